"""What a message's topic and properties mean."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon.doors.mqtt_letter import Letter, check_response_topic, delivery_of
from piagent_daemon.doors.seldom import Seldom
from piagent_daemon.errors import InvalidRequest
from piagent_daemon.topics import Inbound, Topics, is_publishable

TOPICS = Topics("piagent")


def letter(**fields: Any) -> Letter:
    values: dict[str, Any] = {
        "topic": "piagent/k/in",
        "inbound": Inbound("in", "k"),
        "payload": b"hello",
        "qos": 1,
        "packet_id": 7,
        "redelivered": False,
        "generation": 1,
        "received": 0.0,
    }
    return Letter(**values | fields)


def test_the_clients_id_names_the_delivery() -> None:
    delivery = delivery_of(letter(correlation=b"x", response_topic="piagent/a"), "k", "q1")
    assert (delivery.key, delivery.by_id) == ("id:k:q1", True)
    assert delivery_of(letter(packet_id=9), None, "q1") == delivery_of(letter(), None, "q1")
    assert delivery_of(letter(), None, "q1").by_id


def test_an_id_without_a_conversation_names_it_for_its_asker_and_its_words_only() -> None:
    keys = {
        delivery_of(letter(response_topic=reply_to, correlation=data, payload=payload), None, "1").key
        for reply_to in (None, "piagent/a", "piagent/b")
        for data in (None, b"1", b"2")
        for payload in (b"on", b"off")
    }
    assert len(keys) == 18


def test_no_two_deliveries_share_a_key() -> None:
    assert delivery_of(letter(), "a", "b:c").key != delivery_of(letter(), "a:b", "c").key
    one = letter(response_topic="b:piagent/x", correlation=b"1")
    other = letter(response_topic="piagent/x", correlation=b"1")
    assert delivery_of(one, "a", None).key != delivery_of(other, "a:b", None).key


def test_correlation_data_names_it_for_its_asker_and_its_words_only() -> None:
    keys = {
        delivery_of(letter(response_topic=reply_to, correlation=data, payload=payload), "k", None).key
        for reply_to in ("piagent/a", "piagent/b")
        for data in (b"1", b"2")
        for payload in (b"on", b"off")
    }
    assert len(keys) == 8
    assert delivery_of(letter(response_topic="piagent/a", correlation=b"1"), "k", None).key.startswith("correlation:")
    assert not delivery_of(letter(correlation=b"1"), "k", None).key.startswith("correlation:")


def test_only_an_id_makes_two_messages_one() -> None:
    assert delivery_of(letter(), "k", "q1").by_id
    assert not delivery_of(letter(response_topic="piagent/a", correlation=b"1"), "k", None).by_id


def test_what_an_asker_wants_back_counts_as_much_as_what_is_asked() -> None:
    assert letter(correlation=b"x" * 60_000).size - letter().size == 60_000


def test_else_the_packet_names_it() -> None:
    first = delivery_of(letter(), "k", None)
    again = delivery_of(letter(redelivered=True), "k", None)
    assert first.key == again.key
    assert (first.by_id, first.redelivered, again.redelivered) == (False, False, True)
    assert delivery_of(letter(payload=b"other"), "k", None).key != first.key
    assert delivery_of(letter(packet_id=8), "k", None).key != first.key
    assert first.durable
    assert not delivery_of(letter(qos=0), "k", None).durable


@pytest.mark.parametrize("topic", ["piagent/answers", "piagent/k/out", "home/x"])
def test_response_topics_that_are_allowed(topic: str) -> None:
    check_response_topic(topic, ("piagent/", "home/"), TOPICS)


@pytest.mark.parametrize(
    "topic",
    [
        *("", "evil/topic", "$SYS/x", "piagents/x", "piagent/+", "piagent/#", "piagent/\0", "piagent/a\nb"),
        *("piagent/" + "x" * 2000, "piagent/" + "/" * 250),
        *("piagent/health", "piagent/info", "piagent/in", "piagent/k/in", "piagent/k/cancel", "piagent/request/health"),
    ],
)
def test_response_topics_that_are_refused(topic: str) -> None:
    with pytest.raises(InvalidRequest):
        check_response_topic(topic, ("piagent/",), TOPICS)


@given(st.text())
def test_no_response_topic_can_poison_the_connection(topic: str) -> None:
    try:
        check_response_topic("piagent/" + topic, ("piagent/",), TOPICS)
    except InvalidRequest:
        return
    assert is_publishable("piagent/" + topic)


def test_seldom_says_each_thing_once_in_a_while() -> None:
    seldom = Seldom(10.0)
    assert [seldom("a", now) for now in (0, 1, 9.9, 10, 11)] == [True, False, False, True, False]
    assert seldom("b", 0)
    for number in range(1000):
        seldom(str(number), 11)
    assert seldom("b", 0), "it forgets rather than grow"
