"""What stands retained at the broker: the newest, once at a time, and nothing that it cannot take."""

import logging

import pytest

from piagent_daemon.doors import mqtt_retained
from piagent_daemon.doors.mqtt_connection import Welcome
from piagent_daemon.doors.mqtt_outbox import POISONED
from piagent_daemon.doors.mqtt_retained import Retained
from piagent_daemon.doors.mqtt_trouble import NOT_AUTHORIZED
from tests.unit.test_mqtt_outbox import FakeConnection, attached


class Stand:
    """Something retained on the topic `t`, whose payload is `text`."""

    def __init__(self, max_packet: int = 1000) -> None:
        self.outbox, self.connection = attached(max_packet=max_packet)
        self.retained = Retained(self.outbox)
        self.text = b"one"
        self.retained.set("t", lambda: self.text)

    @property
    def sent(self) -> list[bytes]:
        return [payload for _, payload, *_ in self.connection.sent]

    def finish(self, code: int) -> None:
        """Have the message that is on its way end so."""
        self.outbox.on_puback(self.connection.next_id, code)


async def test_one_is_on_its_way_at_a_time_and_the_newest_follows() -> None:
    stand = Stand()
    stand.retained.tell_all()
    for stand.text in (b"two", b"three"):
        stand.retained.tell("t")
        stand.retained.tell_all()
    assert stand.sent == [b"one"]
    stand.finish(0)
    assert stand.sent == [b"one", b"three"]
    stand.finish(0)
    assert stand.sent == [b"one", b"three"]
    assert all(retain for *_, retain in stand.connection.sent)


async def test_nothing_piles_up_while_the_broker_is_away() -> None:
    stand = Stand()
    stand.outbox.detach()
    for stand.text in (b"%d" % number for number in range(100)):
        stand.retained.tell_all()
    assert len(stand.outbox._kept) == 1
    stand.outbox.attach(connection := FakeConnection(), Welcome(session_present=True))
    stand.outbox.pump()
    stand.outbox.on_puback(1, 0)
    assert connection.sent[-1][1] == b"99"


async def test_poison_is_left_out_until_it_is_smaller_or_much_time_has_passed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = Stand()
    stand.retained.tell("t")
    stand.finish(POISONED)
    for stand.text in (b"one", b"other", b"larger"):
        stand.retained.tell_all()
    assert stand.sent == [b"one"]
    stand.text = b"1"
    stand.retained.tell("t")
    assert stand.sent == [b"one", b"1"]
    monkeypatch.setattr(mqtt_retained, "AGAIN_S", 0.0)
    stand.finish(POISONED)
    stand.text = b"as large"
    stand.retained.tell("t")
    assert stand.sent == [b"one", b"1", b"as large"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR], "said once"


async def test_what_is_too_large_is_never_sent_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    stand = Stand(max_packet=100)
    stand.text = b"x" * 100
    for _ in range(3):
        stand.retained.tell_all()
    assert (stand.sent, len(caplog.records)) == ([], 1)
    stand.text = b"small"
    stand.retained.tell_all()
    assert stand.sent == [b"small"]


async def test_a_refusal_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    stand = Stand()
    for _ in range(3):
        stand.retained.tell("t")
        stand.finish(NOT_AUTHORIZED)
    stand.text = b""  # what may not be written need not be taken back
    stand.retained.tell("t")
    stand.finish(NOT_AUTHORIZED)
    assert [record.message for record in caplog.records] == [
        'the broker does not let us publish on "t": allow this user to write it'
    ]
