"""What is said about a broken connection, and what is tried next."""

import logging
import random
import socket
import ssl

import pytest

from piagent_daemon.doors.mqtt_trouble import (
    CREDENTIALS_LIMIT_S,
    DUEL_PAUSE_S,
    LIMIT_S,
    NOT_AUTHORIZED,
    PACKET_TOO_LARGE,
    TAKEN_OVER,
    UNSPECIFIED,
    UNSUPPORTED_PROTOCOL,
    End,
    Reconnect,
    explain,
)

REFUSED = End("failed", error=ConnectionRefusedError(111, "Connection refused"))


def lost(lasted_s: float, code: int = UNSPECIFIED, *, poisoned: bool = False) -> End:
    return End("lost", code, lasted_s=lasted_s, poisoned=poisoned)


def chance() -> random.Random:
    return random.Random(1)  # noqa: S311  no secret


@pytest.mark.parametrize(
    ("end", "tls", "words"),
    [
        (REFUSED, False, "nothing listens"),
        (End("failed", error=socket.gaierror(-2, "Name or service not known")), False, "cannot be resolved"),
        (End("failed", error=TimeoutError("timed out")), False, "CONNECT_TIMEOUT_S"),
        (End("failed", error=ssl.SSLCertVerificationError("bad")), True, "MQTT_CA_FILE"),
        (End("failed", error=ssl.SSLError(1, "wrong version number")), True, "8883"),
        (End("failed", error=ConnectionResetError(104, "reset")), True, "8883"),
        (End("failed", error=OSError(113, "No route to host")), False, "No route to host"),
        (End("failed", error=ValueError("Invalid host.")), False, "Invalid host"),
        (End("unheard"), False, "8883"),
        (End("unheard"), True, "MQTT_CERT_FILE"),
        (End("refused", NOT_AUTHORIZED), False, "MQTT_PASSWORD"),
        (End("refused", 0x9E), False, "0x9e"),
        (lost(3), False, "connection broke"),
        (lost(3, TAKEN_OVER), False, "MQTT_CLIENT_ID"),
    ],
)
def test_each_trouble_has_a_sentence(end: End, tls: bool, words: str) -> None:
    assert words in explain(end, tls=tls)


def test_who_must_act_gets_an_error() -> None:
    assert End("refused", NOT_AUTHORIZED).level == logging.ERROR
    assert End("failed", error=ssl.SSLCertVerificationError("bad")).level == logging.ERROR
    assert REFUSED.level == logging.WARNING
    assert lost(3, 0x8D).level == logging.WARNING
    assert lost(3).level == logging.INFO


def test_waits_grow_up_to_a_limit() -> None:
    class Most(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return max(a, b)

    policy = Reconnect(draw=Most())
    waits = [policy.after(REFUSED, float(number)) for number in range(12)]
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == LIMIT_S
    policy.connected()
    assert policy.after(REFUSED, 100.0) == 1
    waits = [policy.after(End("refused", NOT_AUTHORIZED), float(number)) for number in range(12)]
    assert waits[-1] == CREDENTIALS_LIMIT_S


def tried(policy: Reconnect, *ends: End) -> str:
    """Return the protocol that is tried after these ends."""
    for end in ends:
        policy.after(end, 0.0)
    return policy.protocol


def test_mqtt_5_is_given_up_only_when_it_must_be() -> None:
    policy = Reconnect("auto", chance())
    assert tried(policy) == "5"
    assert tried(policy, End("unheard")) == "5"
    assert tried(policy, REFUSED, End("unheard")) == "3.1.1"
    assert tried(policy, End("unheard"), End("unheard")) == "5", "nothing was proven yet"
    policy.connected()
    assert tried(policy, *[End("unheard")] * 9) == "5", "it was proven to work"
    assert tried(policy, End("refused", UNSUPPORTED_PROTOCOL)) == "3.1.1"


@pytest.mark.parametrize(("pin", "protocol"), [("5", "5"), ("311", "3.1.1")])
def test_a_pinned_protocol_is_never_left(pin: str, protocol: str) -> None:
    policy = Reconnect("5" if pin == "5" else "311", chance())
    for end in (End("unheard"), End("unheard"), End("refused", UNSUPPORTED_PROTOCOL)):
        policy.after(end, 0)
    assert policy.protocol == protocol


def test_three_takeovers_in_a_minute_are_a_duel() -> None:
    policy = Reconnect("auto", chance())
    assert policy.after(lost(1), 0) == 0.0
    assert policy.after(lost(90, TAKEN_OVER), 10) == 0.0
    assert not policy.duel
    low, high = DUEL_PAUSE_S
    assert low <= policy.after(lost(1), 20) <= high
    assert policy.duel
    assert low <= policy.after(lost(1), 300) <= high, "one more is enough now"
    policy.stable()
    assert not policy.duel
    assert policy.after(lost(3600), 4000) == 0.0
    assert not policy.duel


@pytest.mark.parametrize("other", [REFUSED, lost(8), lost(1, 0x8B), lost(1, PACKET_TOO_LARGE), lost(1, poisoned=True)])
def test_a_broker_that_restarts_is_no_duel(other: End) -> None:
    policy = Reconnect("auto", chance())
    now = 0.0
    for _ in range(10):
        for end in (lost(1), other, other) if other is REFUSED else (other,):
            policy.after(end, now)
            now += 1
    assert not policy.duel


def test_poison_behind_other_losses_is_no_duel() -> None:
    policy = Reconnect("auto", chance())
    for poisoned in (False, False, True, True, False, True, True):
        policy.after(lost(0.1, poisoned=poisoned), 0.0)
    assert not policy.duel


def test_takeovers_far_apart_are_no_duel() -> None:
    policy = Reconnect("auto", chance())
    for number in range(20):
        policy.after(lost(29, TAKEN_OVER), number * 31.0)
    assert not policy.duel


def test_short_losses_are_not_answered_in_a_rush() -> None:
    policy = Reconnect("auto", chance())
    waits = [policy.after(lost(1, 0x81), float(number)) for number in range(50)]
    assert waits[:3] == [0, 0, 0]
    assert sum(waits) > 100
