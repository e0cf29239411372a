"""Admin requests over MQTT: `<base>/request/<method>` in, `<base>/response/<method>` out (contract section 5)."""

import asyncio
import logging
from collections import deque
from contextlib import aclosing
from hashlib import sha256
from typing import Any, Final, NamedTuple

from piagent_daemon.contract import AdminError, AdminResponse
from piagent_daemon.doors.mqtt_letter import Letter, check_response_topic, delivery_of
from piagent_daemon.doors.mqtt_outbox import POISONED
from piagent_daemon.doors.mqtt_paho import JSON, Packed
from piagent_daemon.doors.mqtt_reply import Receipt, Replies
from piagent_daemon.doors.mqtt_trouble import PACKET_TOO_LARGE, UNSPECIFIED
from piagent_daemon.doors.seldom import Seldom
from piagent_daemon.errors import Busy, InternalError, OutOfBounds, PiagentError, ShuttingDown
from piagent_daemon.ports import Admin
from piagent_daemon.wire import fields_in

log = logging.getLogger("piagent.mqtt")

MAX_TASKS: Final = 32
"""Admin requests that run at a time; one more is answered `busy`."""
MAX_BYTES: Final = 16_000_000
"""What they may take together, unless there is only one."""
TWICE: Final = frozenset({"cancel", "in", "reset"})
"""Methods whose topics two of our subscriptions match (`request/#`, `+/cancel`): many brokers then bring two copies."""
TWIN_S: Final = 1.0
HELD_BACK_S: Final = 600.0
"""A copy at QoS 1 may come so much later than the one at QoS 0, where the broker is known to bring two: its window was
full."""


class Asker(NamedTuple):
    """Whom to answer, and which packets to acknowledge after the last response."""

    topic: str
    properties: Packed
    letter: Letter
    receipt: Receipt


class Clerk:
    """Has admin requests answered, each in a task of its own; the input is acknowledged after the last response."""

    def __init__(self, admin: Admin, replies: Replies, prefixes: tuple[str, ...]) -> None:
        self._admin = admin
        self._replies = replies
        self._outbox = replies.link.outbox
        self._topics = replies.topics
        self._prefixes = prefixes
        self._tasks: set[asyncio.Task[None]] = set()
        self._twins = Twins()
        self._bytes = 0
        self._closed = False
        self._seldom = Seldom()

    def take(self, letter: Letter) -> None:
        """Begin to answer one admin request."""
        method = letter.inbound.name or ""
        receipt = Receipt(self._replies.link)
        receipt.add(letter.generation, letter.packet_id, letter.qos)
        key = delivery_of(letter, None, None).key
        if letter.redelivered and (running := self._replies.live(key)):
            running.merge(receipt)
            return
        if method in TWICE and self._twins.is_second(letter):
            receipt.settle()
            return
        if self._closed and letter.qos:
            return  # it stays with the broker, which brings it after the restart
        properties = JSON if letter.correlation is None else Packed(letter.correlation)
        asker = Asker(self._topics.response(method), properties, letter, receipt)
        try:
            asker = asker._replace(topic=self._response_topic(letter) or asker.topic)
            self._check_room(letter.size)
        except PiagentError as error:
            if isinstance(error, OutOfBounds) and self._seldom("out of bounds", letter.received):
                log.warning("an admin request on %.64r is refused: %s", letter.topic, error)
            self._publish(asker, _failure(error, letter.payload))
            return
        if letter.qos:
            self._replies.enter(key, receipt)
        task = asyncio.get_running_loop().create_task(self._answer(method, asker), name=f"admin {method[:64]}")
        self._tasks.add(task)
        self._bytes += letter.size
        task.add_done_callback(lambda ended: self._ended(ended, asker))

    def _response_topic(self, letter: Letter) -> str | None:
        if letter.response_topic is not None:
            check_response_topic(letter.response_topic, self._prefixes, self._topics)
        return letter.response_topic

    def _check_room(self, size: int) -> None:
        if self._closed:
            raise ShuttingDown
        if len(self._tasks) >= MAX_TASKS or (self._tasks and self._bytes + size > MAX_BYTES):
            raise Busy("Too many admin requests run; ask again in a moment.")

    async def _answer(self, method: str, asker: Asker) -> None:
        async with aclosing(
            self._admin.handle(method, asker.letter.payload, delivery_of(asker.letter, None, None))
        ) as responses:
            async for response in responses:
                self._publish(asker, response)

    def _ended(self, task: asyncio.Task[None], asker: Asker) -> None:
        """Say so when the answer was cut off for good or died by a defect; else who asks would wait for ever."""
        self._tasks.discard(task)
        self._bytes -= asker.letter.size
        if task.cancelled():
            if not asker.letter.qos:  # else the broker brings it after the restart
                why = ShuttingDown("The daemon stopped before this was done.")
                self._publish(asker, _failure(why, asker.letter.payload))
        elif (error := task.exception()) is not None:
            log.error("%s failed by a defect", task.get_name(), exc_info=error)
            self._publish(asker, _failure(InternalError(), asker.letter.payload))

    def _publish(self, asker: Asker, response: AdminResponse) -> None:
        payload, last = response.encode(), response.status != "progress"
        fits = self._outbox.fits(asker.topic, payload, asker.properties)
        if last and fits:
            self._finish(asker, payload)
        elif last:
            self._replace(asker, len(payload))
        elif fits:
            self._outbox.publish(asker.topic, payload, 1, asker.properties)
        else:
            log.warning("a progress of %d bytes on %.64r is more than the broker takes", len(payload), asker.topic)

    def _finish(self, asker: Asker, payload: bytes, *, replaced: bool = False) -> None:
        """Send the last response, and take the broker's word for it."""

        def delivered(code: int) -> None:
            if code in {POISONED, PACKET_TOO_LARGE} and not replaced:
                self._replace(asker, len(payload))
                return
            if code >= UNSPECIFIED or code == POISONED:
                log.error("the broker refuses a response on %.64r (reason %#04x): it is lost", asker.topic, code)
            asker.receipt.settle()

        self._outbox.publish(asker.topic, payload, 1, asker.properties, done=delivered)

    def _replace(self, asker: Asker, size: int) -> None:
        """Say in place of a response that the broker does not take it."""
        log.error("the broker does not take a response of %d bytes on %.64r", size, asker.topic)
        why = InternalError(f"The response has {size} bytes; the MQTT broker does not take that.")
        self._finish(asker, _failure(why, asker.letter.payload).encode(), replaced=True)

    def close(self) -> None:
        """Begin nothing more: what comes at QoS 0 is told so."""
        self._closed = True

    async def stop(self) -> None:
        """Cut off what still runs."""
        self.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


class Twins:
    """Remembers the copies whose second one has not come yet."""

    def __init__(self) -> None:
        self._single: deque[tuple[bytes, int, float]] = deque(maxlen=100)
        """(what it says, QoS, when it came) of each."""
        self._seen = False
        """Two copies came at once; some brokers, and some protocols, bring one."""

    def is_second(self, letter: Letter) -> bool:
        """Tell whether this is the second copy of one message; they may differ in their QoS."""
        said = sha256(b"\0".join((letter.topic.encode(), letter.correlation or b"", letter.payload))).digest()
        for other in self._single:
            words, qos, came = other
            patience_s = HELD_BACK_S if self._seen and letter.qos and not qos else TWIN_S
            if words == said and letter.received - came <= patience_s:
                self._single.remove(other)
                self._seen = True
                return True
        self._single.append((said, letter.qos, letter.received))
        return False


def _failure(error: PiagentError, payload: bytes) -> AdminResponse:
    why = AdminError(code=error.code, message=str(error))
    transaction = _transaction(payload)
    if transaction is None:
        return AdminResponse(status="error", error=why)
    return AdminResponse(status="error", error=why, transaction=transaction)


def _transaction(payload: bytes) -> Any:
    """Return what the asker wants echoed, however broken the rest is."""
    return fields_in(payload).get("transaction")
