"""At least once: when the door acknowledges, what comes again, and what a stop leaves behind."""

import asyncio
import struct

import pytest

from piagent_daemon.doors import mqtt_connection, mqtt_reply
from piagent_daemon.doors.mqtt_trouble import NO_SUBSCRIBERS
from tests.conftest import BrokerFactory
from tests.fakes.broker import Mosquitto
from tests.fakes.echo_engine import OFFLINE, EchoEngine, kill, make_door, open_door, until
from tests.fakes.observer import Observer
from tests.fakes.scripted_broker import CONNECT, DISCONNECT, PUBACK, PUBLISH, Packet, ScriptedBroker, packet, publish

both = pytest.mark.parametrize("protocol", ["5", "311"])


def acks(broker: ScriptedBroker) -> list[int]:
    """Return the packet ids that the door has acknowledged, without those of its self-test."""
    return [one.packet_id for one in broker.of(PUBACK)]


def terminal(one: Packet) -> bool:
    return b'"type":"final"' in one.body or b'"type":"error"' in one.body


@both
async def test_the_acknowledgement_waits_for_the_puback_of_the_answer(protocol: str) -> None:
    engine = EchoEngine(hold=True)
    async with ScriptedBroker() as broker, open_door(broker.port, engine, mqtt_protocol=protocol):
        broker.acks = False
        for number in (7, 8):
            broker.send(publish("piagent/k/in", b"question %d" % number, number, broker.version))
        await until(lambda: len(engine.held) == 2)
        later, sooner = engine.held
        engine.held = [sooner]
        engine.release()
        await until(lambda: len([one for one in broker.of(PUBLISH, "k/out") if terminal(one)]) == 1)
        assert acks(broker) == []
        for one in broker.of(PUBLISH, "k/out"):
            if one.qos and not terminal(one):
                broker.ack(one)
        await asyncio.sleep(0)
        engine.held = [later]
        engine.release()
        await until(lambda: len([one for one in broker.of(PUBLISH, "k/out") if terminal(one)]) == 2)
        assert acks(broker) == []
        first, second = (one for one in broker.of(PUBLISH, "k/out") if terminal(one))
        broker.ack(first)
        await until(lambda: acks(broker) == [8])
        broker.ack(second)
        await until(lambda: acks(broker) == [8, 7])
        broker.acks = True


@both
async def test_what_is_told_in_one_turn_of_the_loop_leaves_as_one(protocol: str) -> None:
    engine = EchoEngine(hold=True)
    async with ScriptedBroker() as broker, open_door(broker.port, engine, mqtt_protocol=protocol):
        broker.send(publish("piagent/k/in", b"hello", 7, broker.version))
        await until(lambda: len(engine.held) == 1 and bool(broker.of(PUBLISH, "k/out")))
        packets, segments = len(broker.packets), broker.segments
        engine.release()
        await until(lambda: any(terminal(one) for one in broker.of(PUBLISH, "k/out")))
        assert [one.qos for one in broker.of(PUBLISH, "k/out")] == [1, 0, 1], "accepted, chunk, final"
        assert broker.segments - segments < len(broker.packets) - packets


@both
async def test_a_packet_id_of_an_earlier_connection_is_never_acknowledged(protocol: str) -> None:
    engine = EchoEngine(hold=True)
    async with ScriptedBroker() as broker, open_door(broker.port, engine, mqtt_protocol=protocol):
        broker.send(publish("piagent/k/in", b"old", 1, broker.version))
        await until(lambda: engine.messages == ["old"])
        broker.drop()
        await until(lambda: broker.connects == 2 and len(broker.of(8)) == 2)
        broker.send(publish("piagent/k/in", b"new", 1, broker.version))
        await until(lambda: engine.messages == ["old", "new"])
        old, new = engine.held
        engine.held = [old]
        engine.release()
        await until(lambda: any(b'"reply":"old"' in one.body for one in broker.of(PUBLISH, "k/out")))
        engine.held = [new]
        engine.release()
        await until(lambda: acks(broker) == [1])
        assert any(b'"reply":"new"' in one.body for one in broker.of(PUBLISH, "k/out"))


@both
async def test_a_message_brought_again_while_it_is_answered_is_answered_once(protocol: str) -> None:
    engine = EchoEngine(hold=True)
    async with ScriptedBroker() as broker, open_door(broker.port, engine, mqtt_protocol=protocol):
        broker.send(publish("piagent/k/in", b"plain", 1, broker.version))
        broker.send(publish("piagent/k/in", b'{"message": "with id", "id": "q"}', 2, broker.version))
        await until(lambda: len(engine.held) == 2)
        broker.drop()
        await until(lambda: broker.connects == 2 and len(broker.of(8)) == 2)
        broker.send(publish("piagent/k/in", b"plain", 1, broker.version, dup=True))
        broker.send(publish("piagent/k/in", b'{"message": "with id", "id": "q"}', 2, broker.version, dup=True))
        broker.send(publish("piagent/k/in", b'{"message": "with id", "id": "q"}', 3, broker.version))
        await until(lambda: engine.duplicates == 3)
        engine.release()
        await until(lambda: sorted(acks(broker)) == [1, 2, 3])
        assert len(engine.messages) == 2


@both
async def test_a_kill_before_the_acknowledgement_brings_the_message_again(
    mosquitto: Mosquitto, base_topic: str, protocol: str
) -> None:
    settings = {"mqtt_base_topic": base_topic, "mqtt_protocol": protocol, "mqtt_client_id": f"kill-{base_topic[-12:]}"}
    async with Observer(mosquitto.port, base=base_topic) as observer:
        await observer.subscribe(f"{base_topic}/+/out")
        engine = EchoEngine(hold=True)
        door = make_door(mosquitto.port, engine, **settings)
        await door.start()
        await asyncio.wait_for(door.ready(), 5)
        await observer.publish(f"{base_topic}/k/in", "first")
        await observer.publish(f"{base_topic}/k/in", "second")
        await until(lambda: len(engine.held) == 2)
        engine.held = engine.held[1:]
        engine.release()
        await observer.wait(lambda message: message.field("reply") == "second")
        await asyncio.sleep(0.1)  # the acknowledgement of the second is on its way
        await kill(door)
        again = EchoEngine()
        async with open_door(mosquitto.port, again, **settings):
            await observer.wait(lambda message: message.field("reply") == "first")
            assert again.messages == ["first"]
            assert again.incoming[0].delivery.redelivered


@both
@pytest.mark.parametrize("hard", [False, True])
async def test_broker_restarts_lose_nothing(new_broker: BrokerFactory, protocol: str, hard: bool) -> None:
    broker = new_broker()
    engine = EchoEngine()
    async with Observer(broker.port) as observer, open_door(broker.port, engine, mqtt_protocol=protocol) as door:
        await observer.subscribe("piagent/+/out")

        async def ask() -> None:
            for number in range(120):
                await observer.publish(f"piagent/c{number % 7}/in", {"message": "hi", "id": f"r{number}"}, wait=False)
                await asyncio.sleep(0.02)

        asking = asyncio.create_task(ask())
        for _ in range(3):
            await asyncio.sleep(0.5)
            await asyncio.to_thread(broker.restart, kill=hard)
        await asking
        await until(lambda: "r119" in {incoming.request.id for incoming in engine.incoming}, 20)

        def answered() -> bool:
            # a killed mosquitto may have said PUBACK to the asker for what it had not yet written to disk
            taken = {incoming.request.id for incoming in engine.incoming}
            wanted = taken if hard else {f"r{number}" for number in range(120)}
            return wanted <= {one.field("request_id") for one in observer.messages if one.field("type") == "final"}

        await observer.until(answered, 20)
        assert door.state.reasons == ()


async def test_a_lost_session_is_told_and_everything_goes_on(
    new_broker: BrokerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    broker = new_broker(persistence=False)
    engine = EchoEngine(hold=True)
    async with Observer(broker.port) as observer, open_door(broker.port, engine):
        await observer.subscribe("piagent/+/out")
        await observer.publish("piagent/k/in", "old")
        await until(lambda: len(engine.held) == 1)
        await asyncio.to_thread(broker.restart)
        await until(lambda: "lost our session" in caplog.text, 15)
        engine.hold = False
        engine.release()
        await observer.wait(lambda message: message.field("reply") == "old", 10)
        await observer.ask("k", "new", 10)


@both
async def test_a_stop_delivers_everything_first(mosquitto: Mosquitto, base_topic: str, protocol: str) -> None:
    engine = EchoEngine(hold=True)
    async with Observer(mosquitto.port, base=base_topic) as observer:
        await observer.subscribe(f"{base_topic}/+/out")
        door = make_door(mosquitto.port, engine, mqtt_base_topic=base_topic, mqtt_protocol=protocol, max_waiting=300)
        await door.start()
        await asyncio.wait_for(door.ready(), 5)
        for number in range(200):
            await observer.publish(f"{base_topic}/k/in", f"q{number}", 0, wait=False)
        await until(lambda: len(engine.held) == 200)
        await door.stop_intake()
        engine.release()
        await door.stop(10)
        await observer.until(lambda: sum(one.field("type") == "final" for one in observer.messages) == 200)
        assert len(observer.on(f"{base_topic}/k/out")) >= 600


@both
async def test_the_goodbye_waits_until_the_broker_has_the_last_word(protocol: str) -> None:
    async with ScriptedBroker() as broker:
        door = make_door(broker.port, EchoEngine(), mqtt_protocol=protocol)
        await door.start()
        await asyncio.wait_for(door.ready(), 5)
        await asyncio.wait_for(door._link.outbox.quiet(), 5)
        broker.acks = False
        stopping = asyncio.create_task(door.stop(5))
        await until(lambda: broker.of(PUBLISH, "/health"))
        (offline,) = broker.of(PUBLISH, "/health")
        assert OFFLINE in offline.body
        ended, _ = await asyncio.wait([stopping], timeout=0.05)
        assert not ended
        assert not broker.of(DISCONNECT)
        broker.ack(offline)
        await stopping
        await until(lambda: broker.of(DISCONNECT))


async def test_after_stop_intake_nothing_is_taken(mosquitto: Mosquitto, base_topic: str, observer: Observer) -> None:
    name = f"stop-{base_topic[-12:]}"
    engine = EchoEngine()
    async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic, mqtt_client_id=name) as door:
        await door.stop_intake()
        await observer.publish(f"{base_topic}/k/in", "durable")
        await observer.publish(f"{base_topic}/k/in", {"message": "loose", "id": "q0"}, 0)
        await observer.publish(f"{base_topic}/k/cancel", b"")
        refused = await observer.wait(lambda message: message.field("type") == "error")
        assert (refused.field("code"), refused.field("request_id")) == ("shutting_down", "q0")
        await until(lambda: engine.cancelled)
        assert engine.messages == []
    async with open_door(mosquitto.port, engine, mqtt_base_topic=base_topic, mqtt_client_id=name):
        await until(lambda: engine.messages == ["durable"])


async def test_a_late_observer_still_gets_the_answer(
    new_broker: BrokerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_reply, "LATE_S", 0.4)
    broker = new_broker()
    engine = EchoEngine()
    async with open_door(broker.port, engine), Observer(broker.port) as observer:
        await observer.publish("piagent/k/in", "anybody there?")
        await until(lambda: engine.messages)
        await asyncio.sleep(0.1)
        await observer.subscribe("piagent/k/out")
        final = await observer.wait(lambda message: message.field("type") == "final")
        assert final.field("reply") == "anybody there?"


async def test_an_answer_that_nobody_hears_is_published_once_more_and_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mqtt_reply, "LATE_S", 0.0)
    async with ScriptedBroker() as broker, open_door(broker.port, EchoEngine()) as door:
        await asyncio.wait_for(door._link.outbox.quiet(), 5)
        broker.acks = False
        broker.send(publish("piagent/k/in", b"hello", 7, broker.version))
        acked = 0

        def nobody_is_there() -> bool:
            nonlocal acked
            ours = [one for one in broker.of(PUBLISH, "k/out") if one.qos]
            for one in ours[acked:]:
                broker.ack(one, NO_SUBSCRIBERS)
            acked = len(ours)
            return acks(broker) == [7]

        await until(nobody_is_there)
        assert len([one for one in broker.of(PUBLISH, "k/out") if terminal(one)]) == 2
        broker.acks = True


async def test_a_stop_does_not_wait_for_late_observers(new_broker: BrokerFactory) -> None:
    broker = new_broker()
    engine = EchoEngine()
    async with Observer(broker.port) as observer:
        async with open_door(broker.port, engine, mqtt_client_id="late") as door:
            await observer.publish("piagent/k/in", "nobody there?")
            await until(lambda: door._replies._late)
        async with open_door(broker.port, engine, mqtt_client_id="late"):
            await observer.publish("piagent/k/in", "again")
            await until(lambda: "again" in engine.messages)
    assert engine.messages == ["nobody there?", "again"], "the input was acknowledged"


@both
async def test_a_frozen_broker_is_noticed_and_the_answer_comes_after(
    new_broker: BrokerFactory, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_connection, "KEEPALIVE_S", 1)
    broker = new_broker()
    engine = EchoEngine(hold=True)
    async with Observer(broker.port) as observer, open_door(broker.port, engine, mqtt_protocol=protocol) as door:
        await observer.subscribe("piagent/+/out")
        await observer.publish("piagent/k/in", "hello")
        await until(lambda: len(engine.held) == 1)
        broker.pause()
        engine.release()
        await until(lambda: not door.state.connected, 6)
        broker.resume()
        await observer.wait(lambda message: message.field("reply") == "hello", 15)


async def test_chunks_give_way_when_the_broker_does_not_read(new_broker: BrokerFactory) -> None:
    broker = new_broker()
    engine = EchoEngine(hold=True)
    async with Observer(broker.port) as observer, open_door(broker.port, engine):
        await observer.subscribe("piagent/+/out")
        await observer.publish("piagent/k/in", "hello")
        await until(lambda: len(engine.held) == 1)
        broker.pause()
        _, channel, conversation_id, request_id = engine.held[0]
        chunk = engine._answer(conversation_id, request_id, "x" * 20_000)[0]
        for _ in range(2000):
            channel.send(chunk)
        engine.release()
        broker.resume()
        await observer.wait(lambda message: message.field("type") == "final", 10)
        assert sum(message.field("type") == "chunk" for message in observer.messages) < 1000


async def test_no_more_is_under_way_than_the_broker_takes() -> None:
    engine, most = EchoEngine(), 2
    async with (
        ScriptedBroker(lambda _: packet(2, b"\0\0\3\x21" + struct.pack("!H", most))) as broker,
        open_door(broker.port, engine) as door,
    ):
        await door._link.outbox.quiet()
        broker.acks = False
        before = len(broker.packets)
        for number in range(1, 4):
            broker.send(publish("piagent/k/in", b"question %d" % number, number, broker.version))
        await until(lambda: len(engine.messages) == 3)
        acked = crowd = 0

        def pump() -> bool:
            nonlocal acked, crowd
            ours = [one for one in broker.packets[before:] if one.kind == PUBLISH and one.qos]
            crowd = max(crowd, len(ours) - acked)
            for one in ours[acked:]:
                broker.ack(one)
            acked = len(ours)
            return len(acks(broker)) == 3

        await until(pump)
        assert acked == 6, "an `accepted` and a `final` for each"
        assert crowd == most
        broker.acks = True


async def test_the_will_is_retained_and_at_qos_1_and_the_session_is_kept() -> None:
    async with ScriptedBroker() as broker, open_door(broker.port, EchoEngine()):
        (connect,) = broker.of(CONNECT)
        assert connect.body[7] == 0b0010_1100, "the flags: retained will at QoS 1, no clean start"
        assert b"\3\0\x10application/json" in connect.body, "the will's content type"


async def test_a_broker_that_does_not_acknowledge_stops_the_intake() -> None:
    engine = EchoEngine()
    async with ScriptedBroker() as broker, open_door(broker.port, engine) as door:
        broker.acks = False
        for number in range(700):  # at QoS 0: two messages of ours each
            name = b"piagent/k/in"
            broker.send(packet(PUBLISH, struct.pack("!H", len(name)) + name + b"\0" + b"q%d" % number))
        await until(lambda: door.state.reasons == ("backpressure",))
        inbox = door._inbox
        await until(lambda: inbox._queue.qsize() + len(engine.incoming) >= 699)
        for _ in range(1000):  # turns of the loop in which the rest would be read
            await asyncio.sleep(0)
        assert len(engine.incoming) < 600
        broker.acks = True
        acked = 0

        def pump() -> bool:
            nonlocal acked
            waiting = [one for one in broker.of(PUBLISH) if one.qos]
            for one in waiting[acked:]:
                broker.ack(one)
            acked = len(waiting)
            return len(engine.incoming) == 700

        await until(pump, 10)
        await until(lambda: door.state.reasons == ())
