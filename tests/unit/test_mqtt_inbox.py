"""Bytes from the broker, without a broker: every one is answered once, or dropped and counted, and acknowledged."""

import asyncio
import json
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import paho.mqtt.client as paho
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pydantic_core import from_json

from piagent_daemon import wire
from piagent_daemon.contract import AdminResponse, Sentence, Status
from piagent_daemon.doors import mqtt_inbox
from piagent_daemon.doors.mqtt import MqttDoor
from piagent_daemon.doors.mqtt_connection import Welcome
from piagent_daemon.doors.mqtt_outbox import POISONED
from piagent_daemon.settings import Settings
from piagent_daemon.topics import is_publishable
from tests.fakes.doubles import FakeClock
from tests.fakes.echo_engine import EchoEngine, until


class DeafConnection:
    """A broker that takes everything and acknowledges at once what it is given."""

    protocol = "5"
    stalled = False
    kept_up = 0.0

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes, int]] = []
        self.acked: list[int] = []

    def publish(self, topic: str, payload: bytes, qos: int, properties: Properties, *, retain: bool) -> int:  # noqa: ARG002
        self.published.append((topic, payload, qos))
        return len(self.published)

    def flush(self) -> None: ...

    def ack(self, packet_id: int, qos: int) -> None:
        assert qos
        self.acked.append(packet_id)

    def subscribe(self, filters: Any) -> None: ...


class Bench:
    """A door whose connection is a double; `take` brings a message and lets it be read."""

    def __init__(self, **welcome: Any) -> None:
        self.engine, self.clock = EchoEngine(), FakeClock()
        self.codes: list[int] = []
        """What the broker says of the next messages; of all others that it has them."""
        self.holds = False
        configured = Settings(mqtt_client_id="bench", mqtt_port=1)
        self.door = MqttDoor(configured, self.engine, self.engine, self.clock, b"{}")
        self.connection = DeafConnection()
        link: Any = self.door._link
        link._connection = self.connection
        link.connected, link.generation = True, 1
        link.outbox.attach(self.connection, Welcome(session_present=False, **welcome))

    async def take(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, dup: bool = False, **properties: Any
    ) -> None:
        self.bring(topic, payload, qos=qos, retain=retain, dup=dup, **properties)
        inbox = self.door._inbox
        while not inbox._queue.empty():
            await inbox._read(inbox._queue.get_nowait())
        if running := self.door._clerk._tasks:
            await asyncio.wait(running)
            await asyncio.sleep(0)
        if not self.holds:
            self.acknowledge()

    def bring(self, topic: str, payload: bytes, *, qos: int, retain: bool, dup: bool, **properties: Any) -> None:
        """Have the broker bring a message, which then waits to be read."""
        message = paho.MQTTMessage(7, topic.encode())
        message.payload, message.qos, message.retain, message.dup = payload, qos, retain, dup
        message.properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        for name, value in properties.items():
            setattr(message.properties, name, value)
        self.door.on_message(message)

    def acknowledge(self) -> None:
        """Take the broker's word for all that was published."""
        while unacked := list(self.door._link.outbox._unacked):
            for number in unacked:
                self.door._link.outbox.on_puback(number, self.codes.pop(0) if self.codes else 0)

    @property
    def responses(self) -> list[dict[str, Any]]:
        return [json.loads(payload) for topic, payload, _ in self.connection.published if "/response/" in topic]

    @property
    def terminals(self) -> list[dict[str, Any]]:
        events = [
            json.loads(payload) for topic, payload, _ in self.connection.published if topic.startswith("piagent/")
        ]
        return [event for event in events if event.get("type") in {"final", "error"}]


JSONISH = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=150)
FIELDS = ["message", "text", "id", "agent", "stream", "conversation_id", "options", "metadata", "images", "expires_s"]
PAYLOADS = (
    st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | JSONISH.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(FIELDS), JSONISH, max_size=5).map(lambda value: json.dumps(value).encode())
)


@settings(deadline=None)
@given(payload=PAYLOADS, named=st.booleans())
def test_every_payload_is_answered_once_or_counted(payload: bytes, named: bool) -> None:
    bench = Bench()
    asyncio.run(bench.take("piagent/k/in" if named else "piagent/in", payload))
    assert bench.connection.acked == [7]
    dropped = bench.engine.refusals["conversation_id"] + bench.engine.refusals["own event"]
    assert len(bench.terminals) == (1 if payload and not dropped else 0)
    assert all(is_publishable(topic) for topic, *_ in bench.connection.published)


@example(name="request", kind="in")
@example(name="request/a", kind="cancel")
@settings(deadline=None)
@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=150),
    kind=st.sampled_from(["in", "cancel", "reset"]),
)
def test_every_topic_is_taken_or_counted(name: str, kind: str) -> None:
    bench = Bench()
    asyncio.run(bench.take(f"piagent/{name}/{kind}", b"hello"))
    assert bench.connection.acked in ([7], []) if kind == "cancel" else bench.connection.acked == [7]
    assert all(is_publishable(topic) for topic, *_ in bench.connection.published)
    taken = bool(bench.engine.incoming or bench.engine.resets or bench.engine.administered)
    assert taken != bool(bench.engine.refusals) or kind == "cancel" or "/" in name


@settings(deadline=None)
@given(reply_to=TEXTS, prefixed=st.booleans())
def test_no_response_topic_leads_astray(reply_to: str, prefixed: bool) -> None:
    bench = Bench()
    wanted = f"piagent/{reply_to}" if prefixed else reply_to
    asyncio.run(bench.take("piagent/k/in", b"hello", ResponseTopic=wanted, CorrelationData=b"x"))
    assert bench.connection.acked == [7]
    assert len(bench.terminals) == 1
    for topic, *_ in bench.connection.published:
        assert is_publishable(topic)
        assert topic.startswith("piagent/")


async def test_an_admin_request_that_meets_a_defect_is_answered() -> None:
    bench = Bench()
    bench.engine.defect = RuntimeError("a defect")
    await bench.take("piagent/request/health", b'{"transaction": 3}')
    (published,) = bench.connection.published
    assert json.loads(published[1])["error"]["code"] == "internal"
    assert json.loads(published[1])["transaction"] == 3
    assert bench.connection.acked == [7]


@pytest.mark.parametrize(
    ("payload", "properties"), [(b"x" * 5000, {}), (b"hello", {"ResponseTopic": "evil/topic"})], ids=["size", "topic"]
)
async def test_a_flood_of_what_is_out_of_bounds_is_one_line_in_ten_seconds(
    payload: bytes, properties: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    for number in range(200):
        await bench.take(f"piagent/room{number}/in", payload + b"%d" % number, **properties)
    assert len(bench.terminals) == bench.engine.refusals["invalid_request"] == 200
    (line,) = [record for record in caplog.records if "is refused" in record.message]
    assert line.levelname == "WARNING"
    bench.clock.advance(10.0)
    await bench.take("piagent/kitchen/in", payload, **properties)
    assert caplog.text.count("is refused") == 2


async def test_a_flood_of_admin_requests_that_lead_astray_is_one_line_in_ten_seconds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    for number in range(20):
        await bench.take(f"piagent/request/method{number}", b"{}", ResponseTopic=f"evil/{number}")
    assert [answer["error"]["code"] for answer in bench.responses] == 20 * ["invalid_request"]
    assert caplog.text.count("is refused") == 1
    bench.clock.advance(10.0)
    await bench.take("piagent/request/health", b"{}", ResponseTopic="evil/topic")
    assert caplog.text.count("is refused") == 2


async def test_the_doctors_look_is_no_loop(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    event = b'{"type":"status","conversation_id":"c","request_id":"r","seq":0,"attempt":1}'
    await bench.take("piagent/piagent-doctor-1/in", event)
    assert (bench.engine.refusals["own event"], caplog.text) == (0, "")
    assert bench.connection.acked
    await bench.take("piagent/kitchen/in", event)
    assert bench.engine.refusals["own event"] == 1


async def test_an_admin_request_brought_again_before_the_puback_is_answered_once() -> None:
    bench = Bench()
    bench.holds = True
    await bench.take("piagent/request/health", b"{}")
    assert not bench.connection.acked
    bench.holds = False
    await bench.take("piagent/request/health", b"{}", dup=True)
    assert len(bench.engine.administered) == 1
    assert bench.connection.acked == [7]


async def test_of_two_copies_one_is_answered_also_when_the_broker_held_the_other_back() -> None:
    bench = Bench()
    pairs = [((0, 0.1), (0, 30.0)), ((0, 30.0), (1, 30.0)), ((1, 0.1), (0, 30.0))]  # a broker that brings two
    for number, pair in enumerate(pairs, start=1):
        for qos, pause_s in pair:
            await bench.take("piagent/request/cancel", b'{"id": "q"}', qos=qos)
            bench.clock.advance(pause_s)
        assert len(bench.engine.administered) == number
    assert len(bench.connection.acked) == 2
    for payload, qos in ((b"1", 1), (b"1", 1), (b"2", 0), (b"3", 0)):  # asked anew, or something else
        await bench.take("piagent/request/cancel", payload, qos=qos)
        bench.clock.advance(5)
    assert len(bench.engine.administered) == len(pairs) + 4


@pytest.mark.parametrize("code", [POISONED, 0x95])
async def test_a_response_that_the_broker_does_not_take_is_replaced(code: int) -> None:
    bench = Bench()
    bench.codes = [0, code]
    await bench.take("piagent/request/models/list", b'{"transaction": 3}')
    assert [response["status"] for response in bench.responses] == ["progress", "ok", "error"]
    assert bench.responses[-1]["error"]["code"] == "internal"
    assert bench.responses[-1]["transaction"] == 3
    assert bench.connection.acked == [7]


async def test_a_crowded_admin_request_that_meets_a_defect_gets_its_transaction_back() -> None:
    bench = Bench()
    bench.engine.defect = RuntimeError("a defect")
    await bench.take("piagent/request/llm/embed", b'{"transaction": 3, "input": [%s1]}' % (b"1," * 60_000))
    assert bench.responses[-1]["transaction"] == 3


async def test_a_response_that_the_broker_refuses_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.codes = [0, 0x87]
    await bench.take("piagent/request/health", b"{}")
    assert "0x87" in caplog.text
    assert bench.connection.acked == [7]


async def test_a_progress_that_is_too_large_is_left_out() -> None:
    bench = Bench(max_packet=110)
    await bench.take("piagent/request/" + "x" * 30, b"")
    assert [response["status"] for response in bench.responses] == ["ok"]


async def test_while_it_stops_qos_0_is_told_so_and_qos_1_left_to_the_broker() -> None:
    bench = Bench()
    await bench.door.stop_intake()
    for qos in (0, 1):
        await bench.take("piagent/request/health", b'{"transaction": 3}', qos=qos)
        await bench.take("piagent/k/reset", b"", qos=qos)
    (response,) = bench.responses
    assert (response["error"]["code"], response["transaction"]) == ("shutting_down", 3)
    assert bench.engine.resets == ["k"]
    assert not bench.connection.acked


async def test_an_answer_that_nobody_heard_proves_the_right_to_publish() -> None:
    bench = Bench()
    bench.door._denied = frozenset({"acl_publish"})
    bench.codes = [0, 0x10]
    await bench.take("piagent/k/in", b"hello")
    assert bench.door.state.reasons == ()
    bench.door._replies.hurry()


async def test_a_deep_payload_does_no_harm() -> None:
    bench = Bench()
    await bench.take("piagent/k/in", b'{"metadata":' + b"[" * 50_000)
    await bench.take("piagent/k/in", b"[" * 3000)
    assert [event["type"] for event in bench.terminals] == ["error", "final"]


async def test_without_a_conversation_a_refusal_gets_a_new_one() -> None:
    bench = Bench()
    await bench.take("piagent/in", b'{"message": 1}')
    (event,) = bench.terminals
    assert UUID(event["conversation_id"])
    assert bench.connection.published[0][0] == f"piagent/{event['conversation_id']}/out"


async def test_without_a_conversation_in_the_topic_a_refusal_goes_to_the_one_of_the_object() -> None:
    bench = Bench()
    await bench.take("piagent/in", b'{"message": "hi", "conversation_id": "kitchen", "colour": 1}')
    await bench.take("piagent/in", b'{"message": "hi", "conversation_id": "hall"}', ResponseTopic="evil/topic")
    topics = ["piagent/kitchen/out", "piagent/hall/out"]
    assert [topic for topic, *_ in bench.connection.published] == topics
    assert [event["conversation_id"] for event in bench.terminals] == ["kitchen", "hall"]


async def test_two_clients_with_one_id_and_no_conversation_get_answers_of_their_own() -> None:
    bench = Bench()
    bench.engine.hold = True
    for name in ("a", "b"):
        payload = json.dumps({"id": "1", "message": f"question of {name}"}).encode()
        await bench.take("piagent/in", payload, ResponseTopic=f"piagent/{name}/answers")
    assert bench.engine.messages == ["question of a", "question of b"]
    assert not bench.engine.duplicates


async def test_what_only_looks_like_an_event_of_ours_is_answered() -> None:
    bench = Bench()
    await bench.take("piagent/k/in", b'{"request_id":"a","seq":0,"conversation_id":"k","type":[],"id":"q1"}')
    (event,) = bench.terminals
    assert (event["request_id"], event["code"]) == ("q1", "invalid_request")


async def test_a_refusal_names_the_request_behind_a_byte_order_mark() -> None:
    bench = Bench()
    await bench.take("piagent/k/in", b'\xef\xbb\xbf{"message": "hi", "id": "q7", "colour": 1}')
    assert bench.terminals[0]["request_id"] == "q7"


async def test_a_refusal_names_the_request() -> None:
    bench = Bench()
    await bench.take("piagent/k/in", b'{"message": "hi", "id": "q7", "colour": 1, "metadata": {"room": "attic"}}')
    (event,) = bench.terminals
    assert (event["request_id"], event["metadata"]) == ("q7", {"room": "attic"})


async def test_a_refusal_reads_a_payload_once_for_all_that_it_echoes(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Mock(wraps=from_json)
    monkeypatch.setattr(wire, "from_json", read)
    bench = Bench()
    await bench.take("piagent/in", b'{"message": 5, "id": "q7", "conversation_id": "hall", "metadata": {"room": 1}}')
    (event,) = bench.terminals
    assert [event[name] for name in ("request_id", "conversation_id", "metadata")] == ["q7", "hall", {"room": 1}]
    assert read.call_count == 1


async def test_a_payload_of_too_many_values_is_refused_by_its_name(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    await bench.take("piagent/k/in", b'{"message": "hi", "id": "q7", "context": {"a": [%s1]}}' % (b"1," * 60_000))
    (event,) = bench.terminals
    assert (event["request_id"], event["code"]) == ("q7", "invalid_request")
    assert "50000" in event["message"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_cancel_of_endless_size_is_ignored() -> None:
    bench = Bench()
    await bench.take("piagent/k/cancel", b'{"id": "q7", "id": "q7"%s}' % (b" " * 20_000), qos=0)
    assert not bench.engine.cancelled
    assert bench.engine.refusals == {"cancel": 1}


@pytest.mark.parametrize("topic", ["piagent/k/in", "piagent/k/cancel", "piagent/k/reset", "piagent/request/health"])
async def test_retained_messages_are_acknowledged_and_ignored(topic: str) -> None:
    bench = Bench()
    await bench.take(topic, b"hello", retain=True)
    assert bench.connection.acked == [7]
    assert not bench.connection.published
    assert not bench.engine.cancelled


async def test_a_subscription_of_earlier_settings_is_told_once_and_not_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    for topic in ("old/k/in", "piagent/old/k/in", "ha/status"):
        await bench.take(topic, b"hello")
    assert bench.connection.acked == [7, 7, 7]
    assert not bench.engine.refusals
    (record,) = caplog.records
    assert "MQTT_CLIENT_ID" in record.message


@pytest.mark.parametrize("method", ["cancel", "in", "reset"])
async def test_our_own_answers_that_come_back_are_passed_over(method: str, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    await bench.take(f"piagent/response/{method}", AdminResponse(status="ok", data={}).encode())
    assert bench.connection.acked == [7]
    assert not bench.engine.refusals
    assert not caplog.records
    await bench.take(f"piagent/response/{method}", b"somebody else's")
    assert bench.engine.refusals == {"topic": 1}


async def test_cancels_that_wait_to_be_repeated_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_inbox, "BACKLOG", 3)
    bench = Bench()
    bench.door._inbox._reading = True
    for payload in (b"", b"what?"):
        for _ in range(5):
            bench.bring("piagent/k/cancel", payload, qos=0, retain=False, dup=False)
    assert len(bench.engine.cancelled) == 5
    assert bench.door._inbox._queue.qsize() == 3
    assert bench.engine.refusals == {"backlog": 2, "cancel": 5}, "what cannot be read is counted once"


async def test_a_message_that_is_not_read_to_its_end_is_no_progress() -> None:
    bench = Bench()
    bench.engine.gate = asyncio.Event()
    inbox = bench.door._inbox
    inbox.start()
    bench.bring("piagent/k/in", b"hello", qos=1, retain=False, dup=False)
    await until(lambda: inbox._reading)
    assert inbox.alive
    bench.clock.advance(mqtt_inbox.STUCK_S)
    assert not inbox.alive
    bench.engine.gate.set()
    await until(lambda: inbox.alive)
    assert bench.engine.messages == ["hello"]
    await inbox.stop()
    assert not inbox.alive, "nobody reads"


async def test_a_message_that_meets_a_defect_does_not_come_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()

    async def broken(_conversation: str) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(bench.engine, "reset", broken)
    inbox = bench.door._inbox
    inbox.start()
    bench.bring("piagent/k/reset", b"", qos=1, retain=False, dup=False)
    await until(lambda: "failed by a defect" in caplog.text)
    assert bench.connection.acked == [7]
    bench.bring("piagent/k/in", b"hello", qos=1, retain=False, dup=False)
    await until(lambda: bench.engine.messages == ["hello"])
    await inbox.stop()


async def test_all_events_but_text_go_at_qos_1() -> None:
    bench = Bench()
    bench.engine.hold = True
    await bench.take("piagent/k/in", b"hello")
    _, channel, conversation_id, request_id = bench.engine.held[0]
    ids = bench.engine._ids(conversation_id, request_id, 1)
    channel.send(Status(**ids, stage="loading", detail="The model gets ready."))
    channel.send(Sentence(**ids, text="Hello.", index=0))
    bench.engine.release()
    told = {json.loads(payload)["type"]: qos for _, payload, qos in bench.connection.published}
    assert told == {"accepted": 1, "status": 1, "sentence": 0, "chunk": 0, "final": 1}


async def test_a_topic_that_is_no_utf_8_is_dropped() -> None:
    bench = Bench()
    message = paho.MQTTMessage(7, b"piagent/\xff/in")
    message.payload, message.qos = b"hello", 1
    bench.door.on_message(message)
    assert bench.engine.refusals == {"topic": 1}
    assert bench.connection.acked == [7]
