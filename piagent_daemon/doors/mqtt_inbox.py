"""What the broker brings: bytes become requests for the engine, in order of arrival, or are refused with a reason.

Source: contract sections 1, 2 and 6.
"""

import asyncio
import logging
import math
from typing import Final
from uuid import uuid4

import paho.mqtt.client as paho

from piagent_daemon import wire
from piagent_daemon.contract import Request
from piagent_daemon.doors.mqtt_admin import TWICE, Clerk
from piagent_daemon.doors.mqtt_guest import Guest
from piagent_daemon.doors.mqtt_letter import Letter, check_response_topic, delivery_of, open_letter
from piagent_daemon.doors.mqtt_reply import Receipt, Replies, Reply
from piagent_daemon.doors.mqtt_task import LastingTask
from piagent_daemon.doors.seldom import Seldom
from piagent_daemon.errors import InternalError, InvalidRequest, OutOfBounds, PiagentError, ShuttingDown
from piagent_daemon.ports import Intake
from piagent_daemon.settings import Settings
from piagent_daemon.topics import DOCTOR, Inbound, is_conversation_id
from piagent_daemon.values import Delivery, Incoming

log = logging.getLogger("piagent.mqtt")

BACKLOG: Final = 10_000
BACKLOG_BYTES: Final = 32_000_000
"""While so many letters, or so many bytes of them, wait to be read, one at QoS 0 is dropped: the broker knows no
back-pressure for these. Those at QoS 1 count as well and are always taken: the window holds them back."""
BREATH: Final = 16
"""Letters read in a row before everything else gets its turn."""
GUEST: Final = "guest"
"""The kind of a letter on a topic that is not ours."""
LEFT_OVER: Final = (
    "a message on %.64r is none of ours: the broker still holds a subscription of earlier settings (MQTT_BASE_TOPIC, "
    "HA_DISCOVERY_PREFIX); a new MQTT_CLIENT_ID leaves it behind"
)
RESPONSE: Final = b'{"status":"'
"""How each of our own responses begins."""
STUCK_S: Final = 60.0


class NoAddressError(InvalidRequest):
    """The request names a conversation that cannot be a topic, so there is none to answer on."""


class Inbox:
    """Reads one letter after the other and hands it to the engine; `cancel` overtakes what waits to be read."""

    def __init__(self, settings: Settings, intake: Intake, clerk: Clerk, replies: Replies) -> None:
        self._settings = settings
        self._intake = intake
        self._clerk = clerk
        self._replies = replies
        self._link = replies.link
        self._topics = replies.topics
        self._clock = replies.clock
        self._guests: list[Guest] = []
        self._queue: asyncio.Queue[Letter] = asyncio.Queue()
        self._bytes = 0
        self._task = LastingTask(self._work, "mqtt inbox")
        self._reading = False
        self._closed = False
        self._moved = 0.0
        self._retained = Seldom(math.inf)
        self._left_over = Seldom(math.inf)
        self._own = {self._topics.response(method) for method in TWICE}
        """Where our own responses come back from, since our filters for conversations match these topics, too."""
        self._seldom = Seldom()

    # ------------------------------------------------------------------------------------------------------- lifecycle

    def start(self) -> None:
        """Begin to read."""
        self._task.start()

    def close(self) -> None:
        """Hand nothing more to the engine. What came at QoS 1 stays unacknowledged, so that the broker keeps it."""
        self._closed = True
        self._clerk.close()

    async def stop(self) -> None:
        """End reading."""
        await self._task.stop()

    @property
    def alive(self) -> bool:
        """Tell whether what waits is being read."""
        waits = self._reading or not self._queue.empty()
        return self._task.running and (
            not waits or self._link.outbox.crowded or self._clock.monotonic() - self._moved < STUCK_S
        )

    # ------------------------------------------------------------------------------------------------ from the broker

    def invite(self, guest: Guest) -> None:
        """Read a guest's topics, too."""
        self._guests.append(guest)

    def _guest(self, topic: str) -> Guest | None:
        return next((guest for guest in self._guests if guest.claims(topic)), None)

    def on_message(self, message: paho.MQTTMessage, topic: str) -> None:
        """Take one message; called by paho, so it never waits."""
        now = self._clock.monotonic()
        inbound = self._topics.parse(topic)
        guest = None if inbound else self._guest(topic)
        if message.retain:
            if self._retained(topic, now):
                log.warning("a retained message on %.64r is ignored: it would come again at each connect", topic)
        elif inbound is None and guest is None:
            self._pass_over(topic, bytes(message.payload), now)
        else:
            inbound = inbound or Inbound(GUEST, None)
            letter = open_letter(message, topic, inbound, generation=self._link.generation, received=now)
            if inbound.kind == "cancel":
                self._overtake(letter)
                return
            overheard = guest is not None and guest.overhear(letter)
            if not overheard and (message.payload or inbound.kind != "in") and self._has_room(letter):
                self._put(letter)
                return
        self._link.ack(self._link.generation, message.mid, message.qos)

    def _pass_over(self, topic: str, payload: bytes, now: float) -> None:
        if topic in self._own and payload.startswith(RESPONSE):
            return
        if topic and not any(paho.topic_matches_sub(name, topic) for name, _ in self._topics.filters):
            if self._left_over("left over", now):
                log.warning(LEFT_OVER, topic)
            return
        self._intake.refused("topic")
        if self._seldom("topic", now):
            log.warning("a message on %.64r is dropped: no safe topic to answer on", topic)

    def _has_room(self, letter: Letter) -> bool:
        if letter.qos or (self._queue.qsize() < BACKLOG and self._bytes < BACKLOG_BYTES):
            return True
        self._intake.refused("backlog")
        if self._seldom("backlog", letter.received):
            log.warning("messages at QoS 0 come faster than they can be read: dropped")
        return False

    def _put(self, letter: Letter) -> None:
        if self._queue.empty() and not self._reading:
            self._moved = letter.received
        self._bytes += letter.size
        self._queue.put_nowait(letter)

    def _overtake(self, letter: Letter) -> None:
        """Cancel at once what the engine has, and in its turn what still waits to be read."""
        sensible = self._cancel(letter)
        if sensible and (self._reading or not self._queue.empty()) and self._has_room(letter):
            self._put(letter)

    # -------------------------------------------------------------------------------------------------- one at a time

    async def _work(self) -> None:
        count, self._reading = 0, False
        while True:
            letter = await self._queue.get()
            self._reading = True
            self._bytes -= letter.size
            await self._link.outbox.room()
            try:
                await self._read(letter)
            except Exception:
                # One message that meets a defect must neither hold up the others nor come again for ever.
                log.exception("a message on %.64r failed by a defect and is given up", letter.topic)
                self._link.ack(letter.generation, letter.packet_id, letter.qos)
            self._reading = False
            self._moved = self._clock.monotonic()
            count += 1
            if count % BREATH == 0:
                await asyncio.sleep(0)

    async def _read(self, letter: Letter) -> None:
        kind, name = letter.inbound.kind, letter.inbound.name
        if kind == "cancel":
            self._cancel(letter)
        elif kind == "in":
            await self._ask(letter)
        elif kind == GUEST:
            await self._receive(letter)
        elif kind == "request":
            self._clerk.take(letter)
        elif name is not None and not (self._closed and letter.qos):
            await self._intake.reset(name)
            self._link.ack(letter.generation, letter.packet_id, letter.qos)

    def _cancel(self, letter: Letter) -> bool:
        """Cancel what the engine has; tell whether the letter could be read."""
        try:
            wanted = wire.parse_cancel(letter.payload)
        except InvalidRequest:
            self._intake.refused("cancel")
            if self._seldom("cancel", letter.received):
                log.warning('a message on %.64r is neither empty nor {"id": "…"}: ignored', letter.topic)
            return False
        self._intake.cancel(letter.inbound.name or "", wanted.id, wanted.spoken_index)
        return True

    async def _receive(self, letter: Letter) -> None:
        """Hand one message to the guest it is for."""
        guest = self._guest(letter.topic)
        if guest is None or (self._closed and letter.qos):
            return
        receipt = Receipt(self._link)
        receipt.add(letter.generation, letter.packet_id, letter.qos)
        delivery = delivery_of(letter, None, None)
        if not self._merged(delivery, receipt):
            await guest.take(letter, delivery, receipt)

    async def _ask(self, letter: Letter) -> None:
        """Hand one request to the engine, or refuse it."""
        if self._closed and letter.qos:
            return
        receipt = Receipt(self._link)
        receipt.add(letter.generation, letter.packet_id, letter.qos)
        reply = Reply(self._replies, receipt, correlation=letter.correlation)
        try:
            if not wire.is_own_event(letter.payload):
                await self._hand_over(letter, receipt, reply)
            elif (letter.inbound.name or "").startswith(DOCTOR):
                receipt.settle()
            else:
                self._drop(letter, receipt, "own event", "is a copy of our own event")
        except Exception:
            log.exception("a request on %.64r failed by a defect", letter.topic)
            self._refuse(letter, reply, letter.inbound.name, InternalError())

    async def _hand_over(self, letter: Letter, receipt: Receipt, reply: Reply) -> None:
        conversation_id = letter.inbound.name
        try:
            reply.redirect(self._response_topic(letter))
            request = wire.parse_request(letter.payload, self._settings)
            conversation_id = _conversation(request, conversation_id)
        except NoAddressError as error:
            if letter.response_topic is None:
                self._drop(letter, receipt, "conversation_id", "names a conversation that cannot be a topic")
            else:
                self._refuse(letter, reply, None, error)
            return
        except InvalidRequest as error:
            self._refuse(letter, reply, conversation_id, error)
            return
        if self._closed:
            self._refuse(letter, reply, conversation_id, ShuttingDown())
            return
        delivery = delivery_of(letter, conversation_id, request.id)
        if not self._merged(delivery, receipt):
            incoming = Incoming(request, conversation_id, delivery, letter.received, letter.size)
            await self._intake.submit(incoming, reply)

    def _merged(self, delivery: Delivery, receipt: Receipt) -> bool:
        """Tell whether the same delivery is being answered already, and leave the receipt to that answer."""
        running = self._replies.live(delivery.key) if delivery.by_id or delivery.redelivered else None
        if running:
            running.merge(receipt)
            self._intake.duplicate()
            return True
        if delivery.by_id or delivery.durable:
            self._replies.enter(delivery.key, receipt)
        return False

    def _response_topic(self, letter: Letter) -> str | None:
        if letter.response_topic is not None:
            check_response_topic(letter.response_topic, self._settings.response_topic_prefixes, self._topics)
        return letter.response_topic

    def _drop(self, letter: Letter, receipt: Receipt, reason: str, why: str) -> None:
        self._intake.refused(reason)
        if self._seldom(reason, letter.received):
            log.warning("a message on %.64r %s: dropped", letter.topic, why)
        receipt.settle()

    def _refuse(self, letter: Letter, reply: Reply, conversation_id: str | None, error: PiagentError) -> None:
        """Answer with the reason, in the one event that this request gets."""
        self._intake.refused(error.code)
        level = logging.WARNING if isinstance(error, OutOfBounds) else logging.INFO
        if level == logging.INFO or self._seldom("out of bounds", letter.received):
            size = len(letter.payload)
            log.log(level, "a request of %d bytes on %.64r is refused: %s", size, letter.topic, error.code)
        names = wire.names_in(letter.payload)
        reply.send(
            wire.refusal(
                error,
                conversation_id=conversation_id or names.conversation_id or str(uuid4()),
                request_id=names.request_id or str(uuid4()),
                clock=self._clock,
                metadata=names.metadata,
            )
        )


def _conversation(request: Request, name: str | None) -> str | None:
    """Return the conversation of a request; `name` is the topic's, None on `<base>/in`."""
    wanted = request.conversation_id
    if name is not None:
        if wanted not in {None, name}:
            raise InvalidRequest("The conversation_id is not the one of the topic.")
        return name
    if wanted is not None and not is_conversation_id(wanted):
        raise NoAddressError("The conversation_id cannot be a topic level.")
    return wanted
