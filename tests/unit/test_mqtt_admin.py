"""Two copies of one admin request, where two of our subscriptions match its topic."""

from typing import Any

from piagent_daemon.doors.mqtt_admin import HELD_BACK_S, TWIN_S, Twins
from piagent_daemon.doors.mqtt_letter import Letter
from piagent_daemon.topics import Inbound


def cancel(received: float, qos: int = 1, **fields: Any) -> Letter:
    letter = Letter("piagent/request/cancel", Inbound("request", "cancel"), b'{"id":"job"}', qos, 1, False, 1, received)
    return letter._replace(**fields)


def test_the_second_copy_is_known_soon_after_the_first() -> None:
    twins = Twins()
    assert [twins.is_second(letter) for letter in (cancel(0.0, 0), cancel(0.1), cancel(0.2))] == [False, True, False]
    assert not twins.is_second(cancel(0.3, payload=b'{"id":"other"}'))


def test_a_copy_that_was_held_back_is_known_where_the_broker_brings_two() -> None:
    twins = Twins()
    assert [twins.is_second(cancel(0.0, 0)), twins.is_second(cancel(0.1))] == [False, True]
    assert [twins.is_second(cancel(10.0, 0)), twins.is_second(cancel(10.0 + HELD_BACK_S))] == [False, True]
    assert [twins.is_second(cancel(2000.0)), twins.is_second(cancel(2000.0 + 2 * TWIN_S, 0))] == [False, False]


def test_where_the_broker_brings_one_the_same_request_is_taken_again() -> None:
    twins = Twins()
    assert [twins.is_second(cancel(at, qos)) for at, qos in ((0.0, 0), (5.0, 1), (10.0, 0), (15.0, 1))] == [False] * 4
