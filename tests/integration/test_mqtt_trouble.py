"""Brokers that refuse, vanish, deny or quarrel, and what the door makes of it."""

import asyncio
import contextlib
import functools
import json
import random
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from piagent_daemon.doors import mqtt_link, mqtt_trouble
from piagent_daemon.doors.mqtt import MqttDoor
from piagent_daemon.doors.mqtt_connection import UPKEEP_S, Connection, Welcome
from piagent_daemon.doors.mqtt_paho import JSON, Client
from piagent_daemon.errors import ConfigError
from piagent_daemon.settings import Settings
from tests.conftest import BrokerFactory
from tests.fakes.broker import BlackHole, free_port
from tests.fakes.certificates import as_strict_as_3_13, make_certificates
from tests.fakes.echo_engine import EchoEngine, make_door, open_door, until
from tests.fakes.observer import Observer
from tests.fakes.scripted_broker import CONNECT, PUBLISH, SUBSCRIBE, UNSUBSCRIBE, ScriptedBroker, packet, publish

both = pytest.mark.parametrize("protocol", ["5", "311"])


def levels(broker: ScriptedBroker) -> list[int]:
    """Return the protocol level of each CONNECT."""
    return [one.version for one in broker.of(CONNECT)]


def is_past(door: MqttDoor, generation: int) -> bool:
    return door._link.generation > generation


def failed_again(door: MqttDoor) -> bool:
    return door._link._reconnect._failures >= 2 or door._link._reconnect._unheard >= 1


def says(door: MqttDoor, why: str) -> bool:
    return why in door.state.detail


# ------------------------------------------------------------------------------------------------------- the protocol


@pytest.mark.parametrize(
    ("answer", "tries"),
    [(b"\x20\x02\x00\x01", 1), (b"\x20\x03\x00\x84\x00", 1), (b"\x20\x02\x00\x84", 2), (None, 2)],
    ids=["3.1.1's refusal", "5's refusal", "malformed", "closed"],
)
async def test_it_falls_back_to_3_1_1(answer: bytes | None, tries: int) -> None:
    engine = EchoEngine()
    async with (
        ScriptedBroker(lambda version: answer if version == 5 else packet(2, b"\0\0")) as broker,
        open_door(broker.port, engine) as door,
    ):
        assert door.state.protocol == "3.1.1"
        assert levels(broker) == [5] * tries + [4]
        broker.drop()
        await until(lambda: len(broker.of(CONNECT)) == tries + 2)
        assert levels(broker)[-1] == 4, "MQTT 5 is tried again only after a restart"


async def test_a_broker_that_is_still_starting_does_not_cost_mqtt_5() -> None:
    answers = 5

    def connack(version: int) -> bytes | None:
        nonlocal answers
        answers -= 1
        return None if answers > 0 or version != 5 else packet(2, b"\0\0\0")

    async with ScriptedBroker(connack) as broker, open_door(broker.port, EchoEngine()) as door:
        assert door.state.protocol == "5"


async def test_a_pinned_protocol_stays() -> None:
    async with ScriptedBroker(lambda _: b"\x20\x03\x00\x84\x00") as broker:
        door = make_door(broker.port, EchoEngine(), mqtt_protocol="5")
        await door.start()
        await until(lambda: len(levels(broker)) >= 3, 10)
        assert set(levels(broker)) == {5}
        assert "version of MQTT" in door.state.detail
        await door.stop(1)


# ------------------------------------------------------------------------------------------------------ the connection


async def test_a_broker_that_is_away_is_waited_for_and_told_once(
    new_broker: BrokerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    broker = new_broker()
    broker.stop()
    door = make_door(broker.port, EchoEngine())
    await door.start()
    await until(lambda: door._link._reconnect._failures >= 3, 20)
    assert "refused" in door.state.detail
    assert not door.state.connected
    assert door.state.protocol is None
    assert door.alive
    await asyncio.to_thread(broker.start)
    await asyncio.wait_for(door.ready(), 30)
    await door.stop(2)
    assert len([record for record in caplog.records if "refused" in record.message]) == 1


class Silent:
    """Hears of a connection and does nothing; `connection` publishes when a message comes in."""

    connection: Connection

    def on_welcome(self, welcome: Welcome) -> None: ...
    def on_refused(self, code: int) -> None: ...
    def on_puback(self, packet_id: int, code: int) -> None: ...
    def on_suback(self, codes: list[int]) -> None: ...
    def on_closed(self, code: int) -> None: ...

    def on_message(self, message: object) -> None:  # noqa: ARG002
        self.connection.publish("a/out", b"x" * 100_000, 1, JSON, retain=False)
        self.connection.flush()


async def test_a_connection_that_breaks_at_its_first_packet_leaves_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_client: Client, _data: bytes) -> int:
        raise ConnectionResetError

    monkeypatch.setattr(Client, "_sock_send", broken)
    loop = asyncio.get_running_loop()
    async with ScriptedBroker() as broker:
        connection = Connection(Settings(mqtt_port=broker.port), "5", None, b"{}", Silent())
        await connection.open()
        connection.abort()
    timers = loop._scheduled  # type: ignore[attr-defined]
    assert not [timer for timer in timers if "_keep_up" in repr(timer) and not timer.cancelled()]


@contextlib.contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Break off what holds the event loop itself for longer, and fail then."""
    alarms = 0

    def ring(_number: int, _frame: object) -> None:
        nonlocal alarms
        alarms += 1
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)  # again and again: paho swallows what its callbacks raise
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not alarms, f"it took longer than {seconds} s"


async def test_whoever_writes_while_the_connection_is_cut_holds_nobody() -> None:
    hears = Silent()
    async with ScriptedBroker() as broker:
        hears.connection = connection = Connection(Settings(mqtt_port=broker.port), "5", None, b"{}", hears)
        await connection.open()
        await until(lambda: bool(broker.of(CONNECT)))
        sock = connection._client.socket()
        assert isinstance(sock, socket.socket)
        asyncio.get_running_loop().remove_reader(sock)
        broker.send(publish("piagent/k/in", b"hello", 7, broker.version))
        await asyncio.to_thread(select.select, [sock], [], [], 5)
        with in_time(5):
            connection.abort()  # with what the broker sent still unread
        assert connection._client.socket() is None
        assert sock.fileno() == -1


@both
async def test_it_is_ready_when_the_subscriptions_are_acknowledged(protocol: str) -> None:
    async with ScriptedBroker() as broker:
        broker.subacks = None
        door = make_door(broker.port, EchoEngine(), mqtt_protocol=protocol)
        door.announce("piagent/info", lambda: b"{}")
        await door.start()
        await until(lambda: broker.of(SUBSCRIBE) and broker.of(PUBLISH, "/info"))
        await asyncio.wait_for(door._link.outbox.quiet(), 5)
        assert not door._ready.is_set()
        broker.suback(broker.of(SUBSCRIBE)[0])
        await asyncio.wait_for(door.ready(), 5)
        await door.stop(5)


async def test_a_connection_that_nobody_looks_after_is_no_progress() -> None:
    async with ScriptedBroker() as broker, open_door(broker.port, EchoEngine()) as door:
        assert door.alive
        door._link._connection.kept_up -= 4 * UPKEEP_S
        assert not door.alive
        door._link._connection.kept_up += 4 * UPKEEP_S
        assert door.alive
        await door._link._task.stop()
        assert not door.alive


async def test_a_black_hole_does_not_stop_the_loop() -> None:
    with BlackHole() as hole:
        door = make_door(hole.port, EchoEngine(), connect_timeout_s=0.5)
        loop = asyncio.get_running_loop()
        await door.start()
        slowest = 0.0
        until_ = loop.time() + 1.2
        while loop.time() < until_:
            before = loop.time()
            await asyncio.sleep(0.01)
            slowest = max(slowest, loop.time() - before)
        assert slowest < 0.1
        assert "no answer" in door.state.detail
        before = loop.time()
        await door.stop(5)
        assert loop.time() - before < 1


async def test_a_name_that_nobody_knows() -> None:
    door = make_door(1883, EchoEngine(), mqtt_host="broker.invalid")
    await door.start()
    await until(lambda: "cannot be resolved" in door.state.detail, 15)
    await door.stop(1)


async def test_a_wrong_password_is_told_once_and_never_shown(
    new_broker: BrokerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    broker = new_broker(users={"piagent": "right"})
    door = make_door(broker.port, EchoEngine(), mqtt_username="piagent", mqtt_password="canary-secret")
    await door.start()
    await until(lambda: broker.output.count("not authorised") >= 2, 20)
    assert "ot authorized" in door.state.detail
    await door.stop(1)
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1
    assert "canary" not in caplog.text
    assert "canary" not in repr(door.state)
    async with open_door(broker.port, EchoEngine(), mqtt_username="piagent", mqtt_password="right") as right:
        assert right.state.connected


async def test_nonsense_from_the_broker_leads_to_a_new_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_trouble, "SHORT_S", 0.0)  # else the pauses between the tries grow
    draw = random.Random(7)  # noqa: S311  a test that fails shall fail again
    good = publish("piagent/k/in", b'{"message": "hi"}', 9, 5)
    engine = EchoEngine()
    async with ScriptedBroker() as broker, open_door(broker.port, engine) as door:
        for number in range(100):
            await until(lambda: door.state.connected)
            bad = bytearray(good)
            for _ in range(draw.randrange(1, 4)):
                bad[draw.randrange(len(bad))] = draw.randrange(256)
            broker.send(bytes(bad))
            broker.send(packet(draw.randrange(16), draw.randbytes(draw.randrange(40)), draw.randrange(16)))
            generation = door._link.generation
            await asyncio.sleep(0.002)
            if door._link.generation == generation:
                broker.drop()  # it waits for the rest of a packet that never comes
                await until(functools.partial(is_past, door, generation))
            assert door.alive, number
        door.announce("piagent/info", lambda: b"{}")
        await until(lambda: broker.of(PUBLISH, "/info"))


@pytest.mark.parametrize("session_present", [False, True])
async def test_only_a_session_that_goes_on_is_rid_of_subscriptions_that_are_not_wanted(session_present: bool) -> None:
    async with (
        ScriptedBroker(lambda _: packet(2, bytes([session_present, 0, 0]))) as broker,
        open_door(broker.port, EchoEngine(), mqtt_protocol="5"),
    ):
        await until(lambda: broker.of(SUBSCRIBE))
        assert [b"hermes/" in one.body for one in broker.of(UNSUBSCRIBE)] == [True] * session_present


# ------------------------------------------------------------------------------------------------------ access rules


@both
@pytest.mark.parametrize(
    ("rule", "reason"), [("topic read piagent/#", "acl_publish"), ("topic write piagent/#", "acl_subscribe")]
)
async def test_access_rules_that_deny_are_found(
    new_broker: BrokerFactory, protocol: str, rule: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("piagent_daemon.doors.mqtt_selftest.PATIENCE_S", 0.5)
    monkeypatch.setattr("piagent_daemon.doors.mqtt_selftest.AGAIN_S", 0.5)
    users = {"piagent": "p", "person": "p"}
    broker = new_broker(users=users, acl=f"user person\ntopic readwrite #\nuser piagent\n{rule}\n")
    settings = {"mqtt_protocol": protocol, "mqtt_username": "piagent", "mqtt_password": "p"}
    changes = 0

    def changed() -> None:
        nonlocal changes
        changes += 1

    async with open_door(broker.port, EchoEngine(), **settings) as door:
        door.on_change = changed
        await until(lambda: reason in door.state.reasons)
        assert changes >= 1
        if protocol == "5":
            assert door.state.reasons == (reason,)
        broker.acl = "user piagent\ntopic readwrite piagent/#\n"
        broker.reload()
        await until(lambda: door.state.reasons == (), 10)


async def test_a_refused_subscription_is_found() -> None:
    async with ScriptedBroker() as broker:
        broker.subacks = b"\x87\1"
        async with open_door(broker.port, EchoEngine(), mqtt_protocol="5") as door:
            assert door.state.reasons == ("acl_subscribe",)
            broker.subacks = b"\1"
            broker.drop()
            await until(lambda: broker.connects == 2 and door.state.reasons == ())


@both
async def test_a_request_that_comes_refutes_a_test_that_could_not_hear_itself(
    new_broker: BrokerFactory, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("piagent_daemon.doors.mqtt_selftest.PATIENCE_S", 0.3)
    rules = "user person\ntopic readwrite #\nuser piagent\ntopic read piagent/+/in\ntopic write piagent/+/out\n"
    broker = new_broker(users={"piagent": "p", "person": "p"}, acl=rules)
    settings = {"mqtt_protocol": protocol, "mqtt_username": "piagent", "mqtt_password": "p"}
    async with (
        open_door(broker.port, EchoEngine(), **settings) as door,
        Observer(broker.port, username="person", password="p") as observer,
    ):
        await observer.subscribe("piagent/k/out")
        if protocol == "311":
            await until(lambda: "acl_subscribe" in door.state.reasons)
        else:
            await asyncio.sleep(0.6)
        await observer.ask("k", "hello")
        assert "acl_subscribe" not in door.state.reasons
        if protocol == "5":
            assert door.state.reasons == ()


# ------------------------------------------------------------------------------------------------------ two of a kind


@both
async def test_two_daemons_with_one_client_id_stop_quarrelling(
    new_broker: BrokerFactory, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker = new_broker()
    engines = EchoEngine(), EchoEngine()
    doors = [make_door(broker.port, engine, mqtt_client_id="same", mqtt_protocol=protocol) for engine in engines]
    for door in doors:
        await door.start()
    await until(lambda: any("duplicate_client_id" in door.state.reasons for door in doors), 20)
    await until(lambda: sum(door.state.connected for door in doors) == 1)
    (wait,) = (record for record in caplog.records if "another client uses our client id" in record.msg)
    assert wait.args
    assert wait.args[1] >= 120, "seconds in which the other one is left alone"  # type: ignore[operator,index]
    assert broker.output.count("Sending CONNACK to same") < 10
    for door in doors:
        await door.stop(1)


async def test_a_quarrel_over_the_client_id_is_over_when_the_connection_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_trouble, "DUEL_PAUSE_S", (0.0, 0.0))
    monkeypatch.setattr(mqtt_link, "STABLE_S", 0.2)
    told: list[tuple[bool, tuple[str, ...]]] = []
    async with ScriptedBroker() as broker, open_door(broker.port, EchoEngine()) as door:
        door.on_change = lambda: told.append((door.state.connected, door.state.reasons))
        for number in range(mqtt_trouble.DUEL_LOSSES):
            broker.drop()
            await until(functools.partial(is_past, door, number + 1))
        await until(lambda: told[-1:] == [(True, ())])
        assert (True, ("duplicate_client_id",)) in told


# ------------------------------------------------------------------------------------------------------ poison


@both
async def test_an_answer_that_the_broker_does_not_take_blocks_nobody(new_broker: BrokerFactory, protocol: str) -> None:
    broker = new_broker(extra=["max_packet_size 20000"])
    engine = EchoEngine(hold=True)
    async with Observer(broker.port) as observer, open_door(broker.port, engine, mqtt_protocol=protocol) as door:
        await observer.subscribe("piagent/+/out")
        for name in ("before", "poison", "after"):
            await observer.publish(f"piagent/{name}/in", {"message": "hi", "id": name})
        await until(lambda: len(engine.held) == 3)
        for (incoming, *_), size in zip(engine.held, (2, 30_000, 2), strict=True):
            object.__setattr__(incoming.request, "message", "x" * size)
        engine.release()
        error = await observer.terminal("poison", 10)
        assert (error["type"], error["code"]) == ("error", "internal")
        for innocent in ("before", "after"):
            await observer.terminal(innocent)
            assert not [one for one in observer.events(innocent) if one["type"] == "error"]
        assert broker.output.count("Sending CONNACK to door-") <= 5
        assert door.state.reasons == ()


@pytest.mark.parametrize(("properties", "retain"), [(b"\0", 1), (b"\2\x25\0", 0)], ids=["unsaid", "not available"])
async def test_a_broker_that_retains_nothing_is_not_asked_to(properties: bytes, retain: int) -> None:
    async with (
        ScriptedBroker(lambda _: packet(2, b"\0\0" + properties)) as broker,
        open_door(broker.port, EchoEngine(), mqtt_protocol="5") as door,
    ):
        door.announce("piagent/info", lambda: b"{}")
        await until(lambda: broker.of(PUBLISH, "/info"))
        assert broker.of(PUBLISH, "/info")[0].flags & 1 == retain


@both
async def test_an_announcement_that_the_broker_does_not_take_is_left_out(
    new_broker: BrokerFactory, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker = new_broker(extra=["max_packet_size 4000"])
    large, topic = "x" * 8000, "homeassistant/device/piagent/config"
    async with (
        Observer(broker.port) as observer,
        open_door(broker.port, EchoEngine(), mqtt_protocol=protocol, mqtt_client_id="door") as door,
    ):
        await observer.subscribe("piagent/+/out")
        await observer.subscribe("homeassistant/#")
        door.announce("piagent/health", lambda: b'{"status":"ok"}')
        door.announce(topic, lambda: json.dumps({"text": large}).encode())
        await observer.ask("k", "before", 10)
        await until(lambda: "does not take the message" in caplog.text, 15)
        await until(lambda: door.state.connected)
        connects = broker.output.count("Sending CONNACK to door")
        assert connects <= 4
        await asyncio.to_thread(broker.restart)
        await until(lambda: broker.output.count("Sending CONNACK to door") > connects, 15)
        await observer.ask("k", "after", 15)
        door.announce(topic, lambda: json.dumps({"text": large}).encode())
        await observer.ask("k", "still there", 10)
        assert broker.output.count("Sending CONNACK to door") == connects + 1
        assert not door._link.outbox._kept
        large = "x"
        door.announce(topic, lambda: json.dumps({"text": large}).encode())
        await observer.wait(lambda message: message.topic == topic and message.field("text") == "x")
    assert len([record for record in caplog.records if "does not take the message" in record.message]) == 1


# ---------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A CA of our own and a certificate for 127.0.0.1: (CA file, certificate, key)."""
    return make_certificates(tmp_path)


async def test_tls(
    new_broker: BrokerFactory,
    certificates: tuple[Path, Path, Path],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_strict_as_3_13(monkeypatch)
    broker = new_broker(certificate=certificates)
    ca = str(certificates[0])
    engine = EchoEngine()
    async with open_door(broker.port, engine, mqtt_tls=True, mqtt_ca_file=ca) as door:
        assert door.state.connected
        async with Observer(broker.port, ca_file=ca) as observer:
            await observer.subscribe("piagent/+/out")
            for number in range(30):
                await observer.publish("piagent/k/in", f"q{number}", wait=False)
            await observer.until(lambda: sum(one.field("type") == "final" for one in observer.messages) == 30)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"mqtt_tls": True}, "not trusted"),
        ({"mqtt_tls": True, "mqtt_ca_file": ca, "mqtt_host": "localhost"}, "not trusted"),
        ({}, "8883"),
    ]
    for settings, why in cases:
        caplog.clear()
        door = make_door(broker.port, engine, **settings)
        await door.start()
        await until(functools.partial(failed_again, door), 20)
        assert says(door, why)
        assert not door.state.connected
        await door.stop(1)
        assert len([record for record in caplog.records if why in record.message]) == 1


async def test_tls_at_a_plain_port(new_broker: BrokerFactory) -> None:
    broker = new_broker()
    door = make_door(broker.port, EchoEngine(), mqtt_tls=True)
    await door.start()
    await until(lambda: "8883" in door.state.detail, 10)
    await door.stop(1)


def test_tls_files_that_cannot_be_used(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate", "utf-8")
    for settings, name in (
        ({"mqtt_ca_file": str(bad)}, "MQTT_CA_FILE"),
        ({"mqtt_cert_file": str(bad), "mqtt_key_file": str(bad)}, "MQTT_CERT_FILE"),
    ):
        with pytest.raises(ConfigError, match=name):
            make_door(8883, EchoEngine(), mqtt_tls=True, **settings)


async def test_no_socket_is_left_behind() -> None:
    port = free_port()
    door = make_door(port, EchoEngine())
    await door.start()
    await door.stop(1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
