"""Proves after each connect that the broker lets us publish answers and read requests.

A broker with access rules says little: reading that is denied still gets a SUBACK that grants it (mosquitto, all
versions), and publishing that is denied gets a PUBACK that says success under MQTT 3.1.1. So one probe each is sent to
`<base>/piagent-selftest/in` and `<base>/piagent-selftest/out`, at QoS 1 and not retained:

* reading works when the probe on `in` comes back through the subscription that requests use, or any request came;
* publishing works under MQTT 5 when the PUBACK of the probe on `out` says no `Not authorized`; under 3.1.1 when that
  probe comes back, for which alone its topic is subscribed there.

A probe has the shape of a `status` event of a conversation that nobody has: a watcher of `…/out` skips it, and other
daemons drop the one on `in`. Under MQTT 5 a PUBACK that forbids the probe on `in` proves nothing about reading, so
nothing is claimed. Under 3.1.1 that cannot be seen: there the daemon needs `readwrite <base>/#`, which is also the
remedy that the log names, and when neither probe comes back both reasons stand, because the broker does not tell which
right is missing. A failed test is repeated every minute.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from piagent_daemon.contract import Status
from piagent_daemon.doors.mqtt_outbox import Outbox
from piagent_daemon.doors.mqtt_trouble import NOT_AUTHORIZED, Protocol
from piagent_daemon.ports import Clock
from piagent_daemon.topics import Topics

log = logging.getLogger("piagent.mqtt")

CONVERSATION: Final = "piagent-selftest"
REQUEST_ID: Final = b'"request_id":"selftest-'
"""What every probe holds."""
PATIENCE_S: Final = 5.0
AGAIN_S: Final = 60.0
ACL_PUBLISH: Final = "acl_publish"
ACL_SUBSCRIBE: Final = "acl_subscribe"


@dataclass(slots=True)
class Findings:
    """What is known of the running test; codes are those of the PUBACKs, None while there is none."""

    in_code: int | None = None
    out_code: int | None = None
    in_back: bool = False
    out_back: bool = False
    heard: bool = False
    """Any other message came in on this connection."""


def judge(found: Findings, protocol: Protocol) -> frozenset[str]:
    """Return the health reasons that the findings at the end of a test amount to."""
    reasons = set()
    reads = found.in_back or found.heard
    if protocol == "5":
        if found.out_code == NOT_AUTHORIZED:
            reasons.add(ACL_PUBLISH)
        if not reads and found.in_code is not None and found.in_code != NOT_AUTHORIZED:
            reasons.add(ACL_SUBSCRIBE)
        return frozenset(reasons)
    if found.in_code is None and not found.in_back:
        return frozenset()  # the broker is slow: no PUBACK, no verdict
    if not found.out_back:
        reasons.add(ACL_PUBLISH)
    if not reads:
        reasons.add(ACL_SUBSCRIBE)
    return frozenset(reasons)


def is_complete(found: Findings, protocol: Protocol) -> bool:
    """Tell whether nothing more can be learned."""
    reads = found.in_back or found.heard
    return reads and (found.out_code is not None if protocol == "5" else found.out_back)


class SelfTest:
    """Runs the test; `verdict` is called with the reasons each time that one ends, or a later message refutes it."""

    def __init__(self, outbox: Outbox, topics: Topics, clock: Clock, verdict: Callable[[frozenset[str]], None]) -> None:
        self._outbox = outbox
        self._in, self._out = topics.inbox(CONVERSATION), topics.out(CONVERSATION)
        self._base = topics.base
        self._clock = clock
        self._verdict = verdict
        self._protocol: Protocol = "5"
        self._nonce = ""
        self._found = Findings()
        self._timer: asyncio.TimerHandle | None = None
        self._said: frozenset[str] = frozenset()

    def filters(self, protocol: Protocol) -> tuple[tuple[str, int], ...]:
        """Return what must be subscribed beside the daemon's own topics."""
        return () if protocol == "5" else ((self._out, 0),)

    def begin(self, protocol: Protocol) -> None:
        """Start over, once the subscriptions are acknowledged."""
        heard = self._found.heard
        self.end()
        self._protocol = protocol
        self._nonce = secrets.token_hex(8)
        self._found = found = Findings(heard=heard)
        probe = self._probe()

        def in_acked(code: int) -> None:
            found.in_code = code

        def out_acked(code: int) -> None:
            found.out_code = code

        self._outbox.publish(self._in, probe, 1, done=in_acked)
        self._outbox.publish(self._out, probe, 1, done=out_acked)
        self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._finish)

    def end(self) -> None:
        """Forget the running test: the connection is gone."""
        if self._timer:
            self._timer.cancel()
        self._timer = None
        self._nonce = ""
        self._found = Findings()

    def _probe(self) -> bytes:
        return Status(
            conversation_id=CONVERSATION,
            request_id=f"selftest-{self._nonce}",
            attempt=1,
            seq=0,
            ts=self._clock.now(),
            stage="loading",
            detail="self-test of the broker's access rules",
        ).encode()

    def is_probe(self, topic: str, payload: bytes) -> bool:
        """Tell whether a message is a probe, ours or of another daemon, and take note of it."""
        if topic != self._out and (topic != self._in or REQUEST_ID not in payload):
            return False  # on `out` nothing is read but probes, on `in` somebody may ask
        if self._nonce and self._nonce.encode() in payload:
            if topic == self._in:
                self._found.in_back = True
            else:
                self._found.out_back = True
            if is_complete(self._found, self._protocol):
                self._finish()
        return True

    def heard(self) -> None:
        """Take note of any other message: reading works."""
        if not self._found.heard:
            self._found.heard = True
            if ACL_SUBSCRIBE in self._said:
                self._say(self._said - {ACL_SUBSCRIBE})

    def _finish(self) -> None:
        reasons = judge(self._found, self._protocol)
        if self._timer:
            self._timer.cancel()
        self._timer = None
        self._nonce = ""
        if reasons:
            self._timer = asyncio.get_running_loop().call_later(AGAIN_S, self.begin, self._protocol)
        self._say(reasons)

    def _say(self, reasons: frozenset[str]) -> None:
        remedy = f'allow this user to read and write "{self._base}/#" (mosquitto: "topic readwrite {self._base}/#")'
        for reason in sorted(reasons - self._said):
            what = "answers cannot be published" if reason == ACL_PUBLISH else "requests cannot be read"
            log.error("self-test: the broker's access rules seem to say that %s (%s); %s", what, reason, remedy)
        if self._said and not reasons:
            log.info("self-test: the broker's access rules let us read and write again")
        self._said = reasons
        self._verdict(reasons)
