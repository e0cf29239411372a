"""What is kept for the broker, what is dropped, and in which order it goes."""

import asyncio
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from piagent_daemon.doors import mqtt_outbox
from piagent_daemon.doors.mqtt_connection import Connection, Welcome
from piagent_daemon.doors.mqtt_outbox import CROWD, POISON_LOSSES, POISONED, STALLED_BYTES, WINDOW, Outbox
from piagent_daemon.doors.mqtt_paho import Packed
from piagent_daemon.doors.mqtt_trouble import End

QUICK = End("lost", 128, lasted_s=0.1)


class FakeConnection(Connection):
    """Takes what is published and gives packet ids, skipping those in `used`."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, int, bool]] = []
        self.next_id = 0
        self.used: set[int] = set()
        self.slow = False
        self.forgotten = 0

    @property
    def stalled(self) -> bool:
        return self.slow

    def publish(self, topic: str, payload: bytes, qos: int, properties: Properties, *, retain: bool) -> int | None:  # noqa: ARG002
        self.next_id += 1
        if self.next_id in self.used:
            return None
        self.sent.append((topic, payload, qos, retain))
        return self.next_id

    def forget(self) -> None:
        self.forgotten += 1

    @property
    def topics(self) -> list[str]:
        return [topic for topic, *_ in self.sent]


def attached(**welcome: Any) -> tuple[Outbox, FakeConnection]:
    outbox, connection = Outbox(lambda: None), FakeConnection()
    outbox.attach(connection, Welcome(session_present=False, **welcome))
    return outbox, connection


def test_without_a_connection_qos_0_is_dropped_and_qos_1_kept_in_order() -> None:
    outbox = Outbox(lambda: None)
    codes: list[int] = []
    for number in range(3):
        outbox.publish(f"t{number}", b"x", 1, done=codes.append)
        outbox.publish("loose", b"x", 0)
    assert not outbox._quiet.is_set()
    connection = FakeConnection()
    outbox.attach(connection, Welcome(session_present=True))
    outbox.publish("t3", b"x", 1)
    assert connection.topics == ["t0", "t1", "t2", "t3"]
    for packet_id in (2, 1, 3, 4):
        outbox.on_puback(packet_id, 0x10 if packet_id == 1 else 0)
    assert codes == [0, 0x10, 0]
    assert outbox._quiet.is_set()
    outbox.on_puback(99, 0)


def test_the_brokers_window_is_kept() -> None:
    outbox, connection = attached(window=2)
    for number in range(5):
        outbox.publish(f"t{number}", b"x", 1)
    assert connection.topics == ["t0", "t1"]
    outbox.on_puback(1, 0)
    assert connection.topics == ["t0", "t1", "t2"]
    outbox, connection = attached()
    for number in range(WINDOW + 5):
        outbox.publish(f"t{number}", b"x", 1)
    assert len(connection.sent) == WINDOW


def test_loose_messages_do_not_overtake_kept_ones() -> None:
    outbox, connection = attached(window=1)
    for name, qos in (("a", 1), ("b", 0), ("c", 1), ("d", 0), ("e", 1), ("f", 0)):
        outbox.publish(name, b"x", qos)
    assert connection.topics == ["a", "b"]
    outbox.on_puback(1, 0)
    assert connection.topics == ["a", "b", "c", "d"]
    for _ in range(100):
        outbox.publish("loose", b"x" * (STALLED_BYTES // 10), 0)
    assert outbox._loose == 11
    outbox.detach()
    assert outbox._loose == 0, "loose messages do not outlive the connection"
    outbox.attach(connection, Welcome(session_present=True))
    outbox.on_puback(3, 0)
    assert connection.topics == ["a", "b", "c", "d", "e"]
    outbox.on_puback(5, 0)
    assert outbox._quiet.is_set()
    outbox.publish("g", b"x", 0)
    assert connection.topics[-1] == "g"


def test_a_packet_id_in_use_is_passed_over() -> None:
    outbox, connection = attached()
    connection.used = {1, 2}
    codes: list[int] = []
    outbox.publish("t", b"x", 1, done=codes.append)
    outbox.on_puback(3, 0)
    assert codes == [0]


def test_a_broker_that_keeps_nothing_gets_nothing_to_keep() -> None:
    outbox, connection = attached(retain=False)
    outbox.publish("t", b"x", 1, retain=True)
    assert connection.sent == [("t", b"x", 1, False)]


def test_what_was_sent_is_not_sent_twice_after_a_loss() -> None:
    outbox, connection = attached()
    outbox.publish("t", b"x", 1)
    outbox.detach()
    outbox.publish("u", b"x", 1)
    outbox.attach(connection, Welcome(session_present=True))
    outbox.pump()
    assert connection.topics == ["t", "u"], "paho resends the first by itself"


def test_a_new_client_gets_what_the_old_one_had_not_delivered() -> None:
    outbox, _ = attached()
    outbox.publish("t", b"x", 1)
    outbox.detach()
    outbox.publish("u", b"x", 1)
    outbox.reclaim()
    new = FakeConnection()
    outbox.attach(new, Welcome(session_present=True))
    outbox.pump()
    assert new.topics == ["t", "u"]


def test_a_slow_broker_loses_loose_messages_first() -> None:
    outbox, connection = attached()
    connection.slow = True
    for _ in range(100):
        outbox.publish("loose", b"x" * (STALLED_BYTES // 10), 0)
    assert len(connection.sent) == 11
    outbox.publish("t", b"x", 1)
    assert connection.topics[-1] == "t"
    connection.slow = False
    outbox.publish("loose", b"x", 0)
    assert connection.topics[-1] == "loose"


def test_a_crowd_is_told_and_dissolves() -> None:
    changes: list[bool] = []
    outbox = Outbox(lambda: changes.append(outbox.crowded))
    for _ in range(CROWD + 1):
        outbox.publish("t", b"x", 1)
    assert changes == [True]
    outbox.attach(FakeConnection(), Welcome(session_present=True))
    outbox.pump()
    for packet_id in range(1, CROWD + 2):
        outbox.on_puback(packet_id, 0)
    assert changes == [True, False]
    assert outbox._quiet.is_set()


async def test_poison_is_taken_out_after_three_connections_and_blames_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mqtt_outbox, "PROBE_S", 0)
    outbox, connection = attached()
    codes: dict[str, int] = {}

    async def lose() -> bool:
        outbox.detach()
        suspicion = outbox.take_poison(connection, QUICK)
        outbox.attach(connection, Welcome(session_present=True))
        await asyncio.sleep(0.01)
        outbox.pump()
        return suspicion

    for name in ("before", "poison", "after", "last"):
        outbox.publish(name, b"x", 1, done=lambda code, name=name: codes.update({name: code}))  # type: ignore[misc]
    assert not await lose(), "it may have been any of them"
    assert connection.topics[4:] == ["before"], "one by one"
    outbox.on_puback(5, 0)
    assert connection.topics[5:] == ["poison"]
    assert [await lose(), await lose()] == [True, True]
    assert codes == {"before": 0, "poison": POISONED}
    assert connection.topics[6:] == ["poison", "after"]
    outbox.on_puback(connection.next_id, 0)
    outbox.on_puback(connection.next_id, 0)
    assert codes == {"before": 0, "poison": POISONED, "after": 0, "last": 0}
    for name in ("a", "b"):
        outbox.publish(name, b"x", 1)
    assert connection.topics[-2:] == ["a", "b"], "no longer one by one"


async def test_a_rival_is_not_taken_for_poison() -> None:
    outbox, connection = attached()
    codes: list[int] = []
    outbox.publish("answer", b"x", 1, done=codes.append)
    for _ in range(3 * POISON_LOSSES):
        outbox.detach()
        assert not outbox.take_poison(connection, QUICK)
        outbox.attach(connection, Welcome(session_present=True))
        outbox.pump()
    assert codes == []
    assert set(connection.topics) == {"answer"}


def test_a_bad_network_is_no_poison() -> None:
    outbox, connection = attached()
    codes: list[int] = []
    outbox.publish("t", b"x", 1, done=codes.append)
    for end in (QUICK, QUICK, End("lost", 128, lasted_s=30), QUICK, QUICK, End("failed"), QUICK, End("lost", 0x8E)):
        outbox.take_poison(connection, end)
        outbox.pump()
    assert codes == []
    outbox.on_puback(connection.next_id, 0)
    assert not outbox.take_poison(connection, QUICK)


def test_packed_properties_are_pahos() -> None:
    for correlation in (None, b"", b"\0\xff" * 40):
        plain = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        plain.ContentType = "application/json"
        if correlation is not None:
            plain.CorrelationData = correlation
        assert Packed(correlation).pack() == plain.pack()  # type: ignore[no-untyped-call]
        assert "application/json" in str(Packed(correlation))
