"""Why there is no connection to the broker, in a sentence, and what is tried next. Pure: time and chance are given.

Source: MQTT 5.0 section 2.4 (reason codes); paho translates those of 3.1.1 into them.
"""

import logging
import random
import socket
import ssl
from collections import deque
from typing import Final, Literal, NamedTuple

from piagent_daemon.backoff import full_jitter

Protocol = Literal["5", "3.1.1"]

NO_SUBSCRIBERS: Final = 0x10
UNSPECIFIED: Final = 0x80
UNSUPPORTED_PROTOCOL: Final = 0x84
BAD_CREDENTIALS: Final = 0x86
NOT_AUTHORIZED: Final = 0x87
KEEPALIVE_TIMEOUT: Final = 0x8D
TAKEN_OVER: Final = 0x8E
PACKET_TOO_LARGE: Final = 0x95

_CODES: Final = {
    0x81: "the broker found a malformed packet",
    0x82: "protocol error",
    0x83: "the broker refuses, without saying why",
    0x84: "the broker does not speak this version of MQTT",
    0x85: "the broker refuses the client id (MQTT_CLIENT_ID)",
    0x86: "bad user name or password (MQTT_USERNAME, MQTT_PASSWORD)",
    0x87: "not authorized (MQTT_USERNAME, MQTT_PASSWORD, or the broker's access rules)",
    0x88: "the broker is unavailable",
    0x89: "the broker is busy",
    0x8A: "the broker banned this client",
    0x8B: "the broker is shutting down",
    0x8D: "the broker does not answer any more (keepalive timeout)",
    0x8E: "another client connected with our client id (MQTT_CLIENT_ID)",
    0x93: "the broker says that we sent too many messages at once",
    0x95: "the broker says that a packet was too large",
    0x9A: "the broker does not keep retained messages",
    0x9F: "the broker says that we connect too often",
}

_USUAL: Final = frozenset({0, UNSPECIFIED, 0x8B})

SHORT_S: Final = 5.0
"""A connection that is lost sooner after its CONNACK was perhaps taken over."""
STABLE_S: Final = 600.0
"""Once a connection has lasted so long, an earlier quarrel over the client id is over."""
DUEL_WINDOW_S: Final = 60.0
DUEL_LOSSES: Final = 3
DUEL_PAUSE_S: Final = (120.0, 300.0)
LIMIT_S: Final = 30.0
CREDENTIALS_LIMIT_S: Final = 300.0


class End(NamedTuple):
    """How a try to be connected ended.

    `failed`: no connection (`error`); `unheard`: closed or silent before the CONNACK; `refused`: a CONNACK that says no
    (`code`); `lost`: was connected for `lasted_s` seconds. `poisoned` tells that one of our own messages seems to
    be the cause.
    """

    kind: Literal["failed", "unheard", "refused", "lost"]
    code: int = 0
    error: Exception | None = None
    lasted_s: float = 0.0
    poisoned: bool = False

    @property
    def level(self) -> int:
        """ERROR where a person must act, INFO where a broker just went, else WARNING."""
        if isinstance(self.error, ssl.SSLError) or self.code in {BAD_CREDENTIALS, NOT_AUTHORIZED}:
            return logging.ERROR
        return logging.INFO if self.kind == "lost" and self.code in _USUAL else logging.WARNING


def explain(end: End, *, tls: bool) -> str:
    """Say in one line why there is no connection, with a remedy where there is one."""
    if end.kind == "failed":
        return _explain_error(end.error, tls=tls)
    if end.kind == "unheard":
        wants = "does it want a client certificate (MQTT_CERT_FILE)?"
        hint = f"; {wants}" if tls else "; is it a TLS port (8883)? Then set MQTT_TLS"
        return f"takes the connection but does not answer in MQTT{hint}"
    why = _CODES.get(end.code, "the connection broke" if end.code in {0, UNSPECIFIED} else f"reason {end.code:#04x}")
    return why if end.kind == "refused" else f"connection lost: {why}"


def _explain_error(error: Exception | None, *, tls: bool) -> str:
    match error:
        case ConnectionRefusedError():
            return "connection refused: nothing listens there"
        case socket.gaierror():
            return f"the name cannot be resolved: {error.strerror}"
        case TimeoutError():
            return "no answer within the time limit (CONNECT_TIMEOUT_S)"
        case ssl.SSLCertVerificationError():
            why = getattr(error, "verify_message", None) or error
            return f"the broker's certificate is not trusted: {why} (MQTT_CA_FILE, MQTT_HOST)"
        case ssl.SSLError():
            return f"no TLS: {getattr(error, 'reason', None) or error}; is it a TLS port (8883)?"
        case ConnectionResetError() if tls:
            return "connection reset during the TLS handshake; is it a TLS port (8883)?"
        case OSError():
            return error.strerror or str(error)
        case _:
            return str(error)


class Reconnect:
    """Decides after each `End` which protocol is tried next, and when.

    MQTT 5 comes first. It is given up for good when the broker says that it does not speak it. Two connections in a row
    that end before their CONNACK change the protocol as well, but only while no CONNACK was ever seen: a proxy before a
    broker that is still starting looks the same. `duel` tells that somebody else uses our client id.
    """

    def __init__(self, pinned: Literal["auto", "5", "311"] = "auto", draw: random.Random | None = None) -> None:
        self.protocol: Protocol = "3.1.1" if pinned == "311" else "5"
        self.duel = False
        self._pinned = pinned != "auto"
        self._draw = draw or random.Random()  # noqa: S311  spreads load, keeps no secret
        self._proven = False
        self._unheard = 0
        self._failures = 0
        self._short_losses = 0
        self._takeovers: deque[tuple[float, bool]] = deque()

    def connected(self) -> None:
        """Note a CONNACK that said yes."""
        self._proven = True
        self._unheard = self._failures = 0

    def stable(self) -> None:
        """Note that the connection has lasted STABLE_S."""
        self.duel = False

    def after(self, end: End, now: float) -> float:
        """Return the seconds to wait; `now` is monotonic."""
        if end.kind == "lost":
            return self._after_loss(end, now)
        self._forget_guesses()
        self._short_losses = 0
        if self._changes_protocol(end):
            return 0.0
        self._failures += 1
        if end.code in {BAD_CREDENTIALS, NOT_AUTHORIZED}:
            return full_jitter(self._failures, 5.0, CREDENTIALS_LIMIT_S, draw=self._draw)
        return full_jitter(self._failures, 0.5, LIMIT_S, draw=self._draw)

    def _after_loss(self, end: End, now: float) -> float:
        self._short_losses = 0 if end.lasted_s >= SHORT_S else self._short_losses + 1
        definite = end.code == TAKEN_OVER
        if end.poisoned:  # once it is found the broker takes the others, so this is no reason to wait
            self._forget_guesses()
            self._short_losses = min(self._short_losses, DUEL_LOSSES)
        elif definite or (end.lasted_s < SHORT_S and end.code in {0, UNSPECIFIED}):
            self._takeovers.append((now, definite))
        while self._takeovers and now - self._takeovers[0][0] > DUEL_WINDOW_S:
            self._takeovers.popleft()
        if len(self._takeovers) >= (1 if self.duel else DUEL_LOSSES):
            self.duel = True
            self._takeovers.clear()
            return self._draw.uniform(*DUEL_PAUSE_S)
        if self._short_losses > DUEL_LOSSES:
            return full_jitter(self._short_losses, 0.5, LIMIT_S, draw=self._draw)
        # at once: a broker that is gone refuses now, one where we were taken over accepts, and that tells them apart
        return 0.0

    def _forget_guesses(self) -> None:
        """Take back what looked like a takeover: the broker was away, or one of our own messages was the cause."""
        self._takeovers = deque(entry for entry in self._takeovers if entry[1])

    def _changes_protocol(self, end: End) -> bool:
        if self._pinned:
            return False
        if end.kind == "refused" and end.code == UNSUPPORTED_PROTOCOL and self.protocol == "5":
            self.protocol = "3.1.1"
            return True
        if end.kind == "unheard" and not self._proven:
            self._unheard += 1
            if self._unheard >= 2:
                self._unheard = 0
                self.protocol = "3.1.1" if self.protocol == "5" else "5"
                return self.protocol == "3.1.1"
        return False
