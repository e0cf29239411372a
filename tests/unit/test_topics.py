"""Topic names, both ways (contract section 1)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon.topics import RESERVED, Inbound, Topics, conversation_for, is_conversation_id, is_publishable

TOPICS = Topics("home/piagent")
LONG = "ü" * ((65_535 - len("home/piagent/response/")) // 2)
"""The longest method whose response has a topic of at most 65535 bytes."""


@pytest.mark.parametrize(
    "name", ["kitchen", "a", "x" * 128, "küche", "living room", "..", "%s", "'; DROP TABLE x", "🙂"]
)
def test_one_level_of_text_is_a_conversation(name: str) -> None:
    assert is_conversation_id(name)
    assert TOPICS.parse(TOPICS.inbox(name)) == Inbound("in", name)


@pytest.mark.parametrize(
    "name", ["", "x" * 129, "a/b", "a+b", "#", "a\nb", "\x00", "\x7f", "\u2028", "\ufffe", "\ud800", *sorted(RESERVED)]
)
def test_what_has_no_safe_topic_is_no_conversation(name: str) -> None:
    assert not is_conversation_id(name)


@pytest.mark.parametrize(
    ("topic", "meaning"),
    [
        ("home/piagent/in", Inbound("in", None)),
        ("home/piagent/a/in", Inbound("in", "a")),
        ("home/piagent/a/cancel", Inbound("cancel", "a")),
        ("home/piagent/a/reset", Inbound("reset", "a")),
        ("home/piagent/request/models/list", Inbound("request", "models/list")),
        ("home/piagent/request/in", Inbound("request", "in")),
        (f"home/piagent/request/{LONG}", Inbound("request", LONG)),
        (f"home/piagent/request/{LONG}ü", None),  # its response would not fit
        ("home/piagent/request/a+", None),
        ("home/piagent/a/out", None),
        ("home/piagent//in", None),
        ("home/piagent/health/in", None),
        ("home/piagent/a/b/in", None),
        ("elsewhere/a/in", None),
        ("home/piagent", None),
    ],
)
def test_an_incoming_topic_is_understood(topic: str, meaning: Inbound | None) -> None:
    assert TOPICS.parse(topic) == meaning


@pytest.mark.parametrize("topic", ["", "a+b", "a/#", "a\n", "$SYS/x", "x" * 65536, "a/" * 201])
def test_what_a_broker_refuses_is_not_publishable(topic: str) -> None:
    assert not is_publishable(topic)


@given(st.text(max_size=200))
def test_any_topic_is_parsed_or_refused_and_answers_go_to_one_level(name: str) -> None:
    meaning = TOPICS.parse(f"home/piagent/{name}/in")
    if meaning and meaning.kind == "in" and meaning.name is not None:
        assert is_publishable(TOPICS.out(meaning.name))
        assert TOPICS.out(meaning.name).count("/") == TOPICS.out("x").count("/")


def test_cancel_is_subscribed_at_qos_0_and_everything_else_at_1() -> None:
    assert {qos for name, qos in TOPICS.filters if name.endswith("cancel")} == {0}
    assert {qos for name, qos in TOPICS.filters if not name.endswith("cancel")} == {1}


@given(st.text(max_size=200), st.text(max_size=200))
def test_a_foreign_name_always_gives_one_conversation(name: str, other: str) -> None:
    made = conversation_for(name)
    assert is_conversation_id(made)
    assert made == conversation_for(name)
    assert (made == name) == is_conversation_id(name)
    assert (made == conversation_for(other)) == (other in {name, made})


def test_names_that_cannot_be_a_topic_stay_apart() -> None:
    made = [conversation_for(name) for name in ("a/b", "a+b", "", "x" * 129, "health", "\ud800")]
    assert len(set(made)) == len(made)
    assert all(is_conversation_id(name) for name in made)
