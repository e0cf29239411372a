"""The MQTT door before a real broker: requests, events, refusals, cancel, reset, admin, announcements."""

import asyncio
import json
import re

import pytest

from piagent_daemon.doors import mqtt_admin, mqtt_paho, mqtt_task
from piagent_daemon.doors.mqtt_admin import MAX_TASKS
from tests.conftest import BrokerFactory
from tests.fakes.broker import Mosquitto
from tests.fakes.echo_engine import EchoEngine, kill, make_door, open_door, until
from tests.fakes.observer import Observer

both = pytest.mark.parametrize("protocol", ["5", "311"])


@both
async def test_a_question_gets_its_events(mosquitto: Mosquitto, base_topic: str, protocol: str) -> None:
    engine = EchoEngine()
    async with (
        open_door(mosquitto.port, engine, mqtt_base_topic=base_topic, mqtt_protocol=protocol) as door,
        Observer(mosquitto.port, base=base_topic) as observer,
    ):
        await observer.subscribe(f"{base_topic}/+/out", 2, as_published=True)
        events = await observer.ask("kitchen", "Is it raining?")
        assert [event["type"] for event in events] == ["accepted", "chunk", "final"]
        messages = observer.on(f"{base_topic}/kitchen/out")
        assert [message.qos for message in messages] == [1, 0, 1]
        assert not any(message.retain for message in messages)
        if protocol == "5":
            assert {message.properties["ContentType"] for message in messages} == {"application/json"}
        asked = await observer.ask("kitchen", {"message": "And now?", "id": "q2", "metadata": {"a": 1}})
        assert asked[-1]["request_id"] == "q2"
        assert engine.messages == ["Is it raining?", "And now?"]
        assert door.state.connected
        assert door.state.protocol == ("5" if protocol == "5" else "3.1.1")
        assert door.state.reasons == ()
        assert door.alive


@both
async def test_the_conversation_of_the_self_test_is_one_like_any_other(
    mosquitto: Mosquitto, base_topic: str, protocol: str
) -> None:
    engine = EchoEngine()
    async with (
        open_door(mosquitto.port, engine, mqtt_base_topic=base_topic, mqtt_protocol=protocol) as door,
        Observer(mosquitto.port, base=base_topic) as observer,
    ):
        await observer.subscribe(f"{base_topic}/+/out")
        assert (await observer.ask("piagent-selftest", {"message": "hello", "id": "q"}))[-1]["reply"] == "hello"
        await observer.ask("kitchen", "sync")
        assert not engine.refusals
        assert door.state.reasons == ()


async def test_without_a_conversation(mosquitto: Mosquitto, base_topic: str, observer: Observer) -> None:
    engine = EchoEngine()
    async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic):
        events = await observer.ask(None, {"message": "hello"})
        assert re.fullmatch(r"[0-9a-f-]{36}", events[-1]["conversation_id"])
        events = await observer.ask(None, {"message": "hello", "conversation_id": "büro"})
        assert events[-1]["conversation_id"] == "büro"
        assert [incoming.conversation_id for incoming in engine.incoming] == [None, "büro"]


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\xfe\x00",
        b'{"message": ',
        b'{"message": "hi", "colour": "red"}',
        b"   ",
        b"x" * 4001,
        b'{"message": "hi", "conversation_id": "cellar"}',
    ],
)
async def test_a_bad_request_gets_one_error_and_is_acknowledged(
    mosquitto: Mosquitto, base_topic: str, observer: Observer, payload: bytes
) -> None:
    engine = EchoEngine()
    async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic, mqtt_client_id=f"door-{base_topic[-12:]}"):
        await observer.publish(f"{base_topic}/kitchen/in", payload)
        end = await observer.wait(lambda message: message.field("type") == "error")
        assert end.topic == f"{base_topic}/kitchen/out"
        assert end.field("code") == "invalid_request"
        assert engine.refusals == {"invalid_request": 1}
        await observer.ask("kitchen", "good")
    engine.incoming.clear()
    async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic, mqtt_client_id=f"door-{base_topic[-12:]}"):
        await observer.ask("kitchen", "still good")
        assert engine.messages == ["still good"]
    assert len([message for message in observer.messages if message.field("type") == "error"]) == 1


async def test_what_has_no_safe_topic_is_dropped_and_counted(
    mosquitto: Mosquitto, base_topic: str, observer: Observer
) -> None:
    engine = EchoEngine()
    async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic):
        for name in ("", "health", "x" * 129, "info"):
            await observer.publish(f"{base_topic}/{name}/in", "hello")
        await observer.publish(f"{base_topic}/in", {"message": "hello", "conversation_id": "a/b"})
        await until(lambda: engine.refusals == {"topic": 4, "conversation_id": 1})
        events = await observer.ask("kitchen", "hello")
        answers = [message for message in observer.messages if message.field("type") in {"final", "error"}]
        assert [message.field("request_id") for message in answers] == [events[0]["request_id"]]


async def test_a_copied_event_is_not_answered(mosquitto: Mosquitto, base_topic: str, observer: Observer) -> None:
    engine = EchoEngine()
    async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic):
        events = await observer.ask("kitchen", "hello")
        for event in events:
            await observer.publish(f"{base_topic}/kitchen/in", event)
        await until(lambda: engine.refusals["own event"] == 3)
        assert engine.messages == ["hello"]


@both
async def test_retained_and_empty_messages_are_ignored(
    mosquitto: Mosquitto, base_topic: str, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = EchoEngine()
    async with Observer(mosquitto.port, base=base_topic) as observer:
        await observer.subscribe(f"{base_topic}/+/out")
        for kind in ("in", "cancel", "reset"):
            await observer.publish(f"{base_topic}/kitchen/{kind}", "old", retain=True)
        for _ in range(3):
            async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic, mqtt_protocol=protocol):
                await observer.publish(f"{base_topic}/kitchen/in", b"")
                await observer.ask("kitchen", "new")
        for kind in ("in", "cancel", "reset"):
            await observer.publish(f"{base_topic}/kitchen/{kind}", b"", retain=True)
    assert engine.messages == ["new"] * 3
    assert not engine.cancelled
    assert not engine.resets
    warned = [record for record in caplog.records if "retained" in record.message]
    assert len(warned) == (0 if protocol == "5" else 9)


async def test_cancel_and_reset(mosquitto: Mosquitto, base_topic: str, observer: Observer) -> None:
    engine = EchoEngine(hold=True)
    async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic):
        await observer.publish(f"{base_topic}/kitchen/cancel", b"")
        await observer.publish(f"{base_topic}/kitchen/cancel", {"id": "q1"})
        await observer.publish(f"{base_topic}/kitchen/cancel", "what?")
        await observer.publish(f"{base_topic}/kitchen/reset", "anything")
        await until(lambda: engine.resets == ["kitchen"])
        assert engine.cancelled == [("kitchen", None), ("kitchen", "q1")]
        assert engine.refusals == {"cancel": 1}


async def test_cancel_overtakes_what_waits_to_be_read(
    mosquitto: Mosquitto, base_topic: str, observer: Observer
) -> None:
    engine = EchoEngine(hold=True, gate=asyncio.Event())
    assert engine.gate
    async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic):
        for number in range(5):
            await observer.publish(f"{base_topic}/kitchen/in", f"question {number}", 0)
        await observer.publish(f"{base_topic}/kitchen/cancel", b"")
        await until(lambda: engine.cancelled)
        assert engine.messages == []
        engine.gate.set()
        await until(lambda: len(engine.cancelled) == 2)
        assert len(engine.messages) == 5, "the cancel is repeated after what came before it"


async def test_response_topic_and_correlation(mosquitto: Mosquitto, base_topic: str, observer: Observer) -> None:
    engine = EchoEngine()
    reply_to = f"{base_topic}/answers/7"
    async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic, response_topic_prefixes=(base_topic,)):
        await observer.publish(f"{base_topic}/in", "hello", ResponseTopic=reply_to, CorrelationData=b"\0\1")
        await observer.wait(lambda message: message.field("type") == "final")
        assert [message.field("type") for message in observer.on(reply_to)] == ["accepted", "chunk", "final"]
        assert {message.properties["CorrelationData"] for message in observer.on(reply_to)} == {b"\0\1"}
        delivery = engine.incoming[0].delivery
        assert not delivery.by_id, "only an id is one"
        assert delivery.key.startswith("correlation:")
        await observer.publish(
            f"{base_topic}/in", {"message": "hi", "conversation_id": "+"}, ResponseTopic=reply_to, CorrelationData=b"2"
        )
        end = await observer.wait(lambda message: message.field("type") == "error")
        assert end.topic == reply_to
        assert end.properties["CorrelationData"] == b"2"


@pytest.mark.parametrize("reply_to", ["evil/topic", "$SYS/x", "{base}/health", "{base}/kitchen/in", "{base}/in"])
async def test_a_foreign_response_topic_is_refused(
    mosquitto: Mosquitto, base_topic: str, observer: Observer, reply_to: str
) -> None:
    engine = EchoEngine()
    async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic, response_topic_prefixes=(base_topic,)):
        topic = reply_to.format(base=base_topic)
        await observer.publish(f"{base_topic}/kitchen/in", "hello", ResponseTopic=topic, CorrelationData=b"x")
        end = await observer.wait(lambda message: message.field("type") == "error")
        assert end.topic == f"{base_topic}/kitchen/out"
        assert end.field("code") == "invalid_request"
        assert end.properties["CorrelationData"] == b"x"
        assert engine.messages == []


async def test_admin_requests(mosquitto: Mosquitto, base_topic: str, observer: Observer) -> None:
    engine = EchoEngine()
    async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic, response_topic_prefixes=(base_topic,)):
        await observer.publish(f"{base_topic}/request/models/list", {"a": 1})
        await observer.wait(lambda message: message.field("status") == "ok")
        responses = observer.on(f"{base_topic}/response/models/list")
        assert [message.json for message in responses] == [
            {"status": "progress", "data": {"step": 1}},
            {"status": "ok", "data": {"a": 1}},
        ]
        assert not any(message.retain for message in responses)
        await observer.publish(
            f"{base_topic}/request/health", b"", ResponseTopic=f"{base_topic}/mine", CorrelationData=b"7"
        )
        answer = await observer.wait(
            lambda message: message.topic == f"{base_topic}/mine" and message.field("data") is None
        )
        assert answer.properties["CorrelationData"] == b"7"
        await observer.publish(f"{base_topic}/request/health", {"transaction": 9}, ResponseTopic="evil/topic")
        refused = await observer.wait(lambda message: message.field("status") == "error")
        assert refused.topic == f"{base_topic}/response/health"
        assert refused.json["transaction"] == 9


async def test_too_many_admin_requests_are_busy(mosquitto: Mosquitto, base_topic: str, observer: Observer) -> None:
    engine = EchoEngine(gate=asyncio.Event())
    assert engine.gate
    async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic):
        for number in range(MAX_TASKS + 1):
            await observer.publish(f"{base_topic}/request/slow", {"transaction": number})
        busy = await observer.wait(lambda message: message.field("status") == "error")
        assert busy.json["error"]["code"] == "busy"
        assert busy.json["transaction"] == MAX_TASKS
        engine.gate.set()
        await until(lambda: sum(message.field("status") == "ok" for message in observer.messages) == MAX_TASKS)


async def test_large_admin_requests_do_not_pile_up(
    mosquitto: Mosquitto, base_topic: str, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_admin, "MAX_BYTES", 100_000)
    engine = EchoEngine(gate=asyncio.Event())
    assert engine.gate
    async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic):
        for number in range(3):
            await observer.publish(f"{base_topic}/request/slow", {"transaction": number, "text": "x" * 45_000})
        busy = await observer.wait(lambda message: message.field("status") == "error")
        assert (busy.json["error"]["code"], busy.json["transaction"]) == ("busy", 2)
        engine.gate.set()
        await until(lambda: sum(message.field("status") == "ok" for message in observer.messages) == 2)
        await observer.publish(f"{base_topic}/request/slow", {"transaction": 9, "text": "x" * 200_000})
        await observer.wait(
            lambda message: message.field("status") == "ok" and message.json["data"]["transaction"] == 9
        )


async def test_a_stop_tells_whose_request_it_cuts_off(
    mosquitto: Mosquitto, base_topic: str, observer: Observer
) -> None:
    engine = EchoEngine(gate=asyncio.Event())
    async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic):
        for qos in (0, 1):
            await observer.publish(f"{base_topic}/request/slow", {"transaction": qos}, qos)
        await until(lambda: len(engine.administered) == 2)
    await observer.wait(lambda message: message.field("status") == "offline")
    (cut,) = observer.on(f"{base_topic}/response/slow")
    assert (cut.json["error"]["code"], cut.json["transaction"]) == ("shutting_down", 0)


@both
async def test_announcements_are_retained_and_come_again(mosquitto: Mosquitto, base_topic: str, protocol: str) -> None:
    engine = EchoEngine()
    door = make_door(mosquitto.port, engine, mqtt_base_topic=base_topic, mqtt_protocol=protocol)
    door.announce(f"{base_topic}/health", lambda: b'{"status":"old"}')
    door.announce(f"{base_topic}/health", lambda: b'{"status":"ok"}')
    await door.start()
    await asyncio.wait_for(door.ready(), 5)
    async with Observer(mosquitto.port, base=base_topic) as observer:
        await observer.subscribe(f"{base_topic}/health")
        first = await observer.wait(lambda message: message.field("status") == "ok")
        assert first.retain
        await door.stop(5)
        last = await observer.wait(lambda message: message.field("status") == "offline")
        assert last.qos == 1
        assert [json.loads(message.payload)["status"] for message in observer.messages] == ["ok", "offline"]


async def test_the_goodbye_is_the_last_word(
    mosquitto: Mosquitto, base_topic: str, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = make_door(mosquitto.port, EchoEngine(), mqtt_base_topic=base_topic)
    await door.start()
    await asyncio.wait_for(door.ready(), 5)

    async def late() -> None:
        """Report health while the door closes, as the daemon's report may."""
        door.announce(f"{base_topic}/health", lambda: b'{"status":"ok"}')

    monkeypatch.setattr(door._inbox, "stop", late)
    await door.stop(5)
    async with Observer(mosquitto.port, base=base_topic) as newcomer:
        await newcomer.subscribe(f"{base_topic}/health")
        first = await newcomer.wait(lambda message: message.topic.endswith("/health"))
    assert first.field("status") == "offline"
    await observer.catch_up()
    assert [one.field("status") for one in observer.on(f"{base_topic}/health")] == ["offline"]


@both
async def test_a_stop_that_cannot_say_goodbye_leaves_that_to_the_will(
    new_broker: BrokerFactory, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_paho, "WILL_DELAY_S", 0)
    broker = new_broker()
    door = make_door(broker.port, EchoEngine(), mqtt_protocol=protocol)
    door.announce("piagent/health", lambda: b'{"status":"ok"}')
    await door.start()
    await asyncio.wait_for(door.ready(), 5)
    await asyncio.wait_for(door._link.outbox.quiet(), 5)
    broker.pause()
    door.announce("piagent/info", lambda: b"{}")  # this is never acknowledged, so the stop waits for it in vain
    await door.stop(0.3)
    broker.resume()
    async with Observer(broker.port) as observer:
        await observer.subscribe("piagent/health")
        await observer.wait(lambda message: message.field("status") == "offline")


@both
async def test_the_will_tells_of_a_death(mosquitto: Mosquitto, base_topic: str, protocol: str) -> None:
    engine = EchoEngine()
    door = make_door(mosquitto.port, engine, mqtt_base_topic=base_topic, mqtt_protocol=protocol)
    await door.start()
    await asyncio.wait_for(door.ready(), 5)
    door.announce(f"{base_topic}/health", lambda: b'{"status":"ok"}')
    async with Observer(mosquitto.port, base=base_topic) as observer:
        await observer.subscribe(f"{base_topic}/health")
        await observer.wait(lambda message: message.field("status") == "ok")
        await kill(door)
        await observer.wait(lambda message: message.field("status") == "offline", 10)


async def test_a_defect_behind_the_door_does_not_make_it_deaf(
    mosquitto: Mosquitto,
    base_topic: str,
    observer: Observer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(mqtt_task, "PAUSE_S", 0.0)
    engine = EchoEngine()
    async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic) as door:
        engine.defect = RuntimeError("a defect")
        await observer.publish(f"{base_topic}/kitchen/in", "hello")
        await until(lambda: "failed by a defect" in caplog.text)
        engine.defect = None
        await observer.ask("kitchen", "again")
        assert door.alive
