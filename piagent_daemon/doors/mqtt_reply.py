"""Where the events of one request go, and when its input is acknowledged: after the terminal event's PUBACK.

Source: contract sections 3 and 6.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Final

from piagent_daemon.contract import Chunk, ErrorEvent, Event, Sentence
from piagent_daemon.doors.mqtt_link import Link
from piagent_daemon.doors.mqtt_outbox import POISONED, overhead
from piagent_daemon.doors.mqtt_paho import JSON, Packed
from piagent_daemon.doors.mqtt_trouble import NO_SUBSCRIBERS, PACKET_TOO_LARGE, UNSPECIFIED
from piagent_daemon.errors import InternalError
from piagent_daemon.ports import Clock
from piagent_daemon.topics import Topics

log = logging.getLogger("piagent.mqtt")

LATE_S: Final = 5.0
"""After a broker restart an observer may subscribe later than we answer."""
_LOOSE: Final = (Chunk, Sentence)


class Receipt:
    """The broker's packets that one request came in with; several when it was brought again."""

    __slots__ = ("_link", "on_end", "packets")

    def __init__(self, link: Link) -> None:
        self.packets: set[tuple[int, int, int]] = set()
        """(generation, packet id, QoS) of each."""
        self.on_end: Callable[[], None] | None = None
        """Called when the packets are settled or forgotten."""
        self._link = link

    def add(self, generation: int, packet_id: int, qos: int) -> None:
        """Note a packet that stands for the request."""
        if qos:
            self.packets.add((generation, packet_id, qos))

    def merge(self, other: "Receipt") -> None:
        """Take over the packets of a copy of the request."""
        self.packets |= other.packets

    def settle(self) -> None:
        """Acknowledge them, so that the broker does not bring them again."""
        for packet in self.packets:
            self._link.ack(*packet)
        self.forget()

    def forget(self) -> None:
        """Leave them unacknowledged."""
        self.packets.clear()
        if self.on_end:
            self.on_end()


class Replies:
    """What all replies share: the link, and the table of the deliveries that are still being answered.

    `on_code` hears the reason code of each PUBACK of a terminal event.
    """

    def __init__(self, link: Link, topics: Topics, clock: Clock, on_code: Callable[[int], None]) -> None:
        self.link = link
        self.topics = topics
        self.clock = clock
        self.on_code = on_code
        self._live: dict[str, Receipt] = {}
        self._late: dict[Reply, asyncio.TimerHandle] = {}
        self._hurried = False

    def live(self, key: str) -> Receipt | None:
        """Return the receipt of a delivery of that key that is still being answered."""
        return self._live.get(key)

    def enter(self, key: str, receipt: Receipt) -> None:
        """Keep a receipt in the table until it is settled or forgotten."""
        self._live[key] = receipt
        receipt.on_end = lambda: self._leave(key, receipt)

    def _leave(self, key: str, receipt: Receipt) -> None:
        if self._live.get(key) is receipt:
            del self._live[key]

    def later(self, reply: "Reply") -> bool:
        """Have a terminal event that nobody heard published once more; False when there is no time for that."""
        if self._hurried:
            return False
        self._late[reply] = asyncio.get_running_loop().call_later(LATE_S, self._repeat, reply)
        return True

    def _repeat(self, reply: "Reply") -> None:
        del self._late[reply]
        reply.repeat()

    def hurry(self) -> None:
        """Wait for late observers no longer: the daemon stops."""
        self._hurried = True
        for reply, timer in self._late.items():
            timer.cancel()
            reply.drop()
        self._late.clear()


class Reply:
    """The way back of one request (`ports.Channel`)."""

    def __init__(
        self,
        replies: Replies,
        receipt: Receipt,
        *,
        correlation: bytes | None = None,
    ) -> None:
        self.receipt = receipt
        self._replies = replies
        self._outbox = replies.link.outbox
        self._topic: str | None = None
        self._properties = JSON if correlation is None else Packed(correlation)
        self._overhead = 0
        self._terminal = b""
        self._repeated = self._replaced = False

    def redirect(self, response_topic: str | None) -> None:
        """Send everything to a response topic of the asker instead of `…/out`."""
        self._topic = response_topic

    def send(self, event: Event) -> None:
        """Hand over one event; see `ports.Channel`."""
        if event.terminal:
            if not self._terminal:
                self._finish(event.conversation_id, event.encode())
            return
        topic, payload = self._topic or self._address(event.conversation_id), event.encode()
        if self._fits(topic, payload):
            self._outbox.publish(topic, payload, 0 if isinstance(event, _LOOSE) else 1, self._properties)
        else:
            log.warning(
                "request %.64r: an event of %d bytes is larger than the broker takes", event.request_id, len(payload)
            )

    def send_again(self, terminal: bytes) -> None:
        """Hand over a stored terminal event once more; see `ports.Channel`."""
        self._finish(json.loads(terminal)["conversation_id"], terminal)

    def drop(self) -> None:
        """Settle the input without another word; see `ports.Channel`."""
        self.receipt.settle()

    def abandon(self) -> None:
        """Leave the input to the broker, which brings it again; see `ports.Channel`."""
        self.receipt.forget()

    def repeat(self) -> None:
        """Publish the terminal event once more."""
        self._repeated = True
        self._publish()

    def _address(self, conversation_id: str) -> str:
        self._topic = self._replies.topics.out(conversation_id)
        return self._topic

    def _fits(self, topic: str, payload: bytes) -> bool:
        if not self._overhead:
            self._overhead = overhead(topic, self._properties)
        return len(payload) + self._overhead <= self._outbox.max_packet

    def _finish(self, conversation_id: str, payload: bytes) -> None:
        topic = self._topic or self._address(conversation_id)
        self._terminal = payload
        if not self._fits(topic, payload):
            self._replace()
        self._publish()

    def _publish(self) -> None:
        self._outbox.publish(self._topic or "", self._terminal, 1, self._properties, done=self._delivered)
        self._outbox.flush()

    def _delivered(self, code: int) -> None:
        """Take the broker's word for the terminal event."""
        self._replies.on_code(code)
        if code in {POISONED, PACKET_TOO_LARGE} and not self._replaced:
            self._replace()
            self._publish()
            return
        if code == NO_SUBSCRIBERS and not self._repeated and self._replies.later(self):
            log.info("nobody subscribed to %.64r: the answer is published once more", self._topic)
            return
        if code >= UNSPECIFIED or code == POISONED:
            log.error("the broker refuses an answer on %.64r (reason %#04x): it is lost", self._topic, code)
        # also an answer that can never be delivered is settled: it would come back for ever
        self.drop()

    def _replace(self) -> None:
        """Say in place of an answer that the broker does not take it."""
        self._replaced = True
        size, event = len(self._terminal), json.loads(self._terminal)
        log.error("request %.64r: the broker does not take the answer of %d bytes", event["request_id"], size)
        why = InternalError(f"The answer has {size} bytes, and the MQTT broker does not take a message of that size.")
        self._terminal = ErrorEvent(
            conversation_id=event["conversation_id"],
            request_id=event["request_id"],
            attempt=event["attempt"],
            seq=event["seq"],
            ts=self._replies.clock.now(),
            code=why.code,
            message=str(why),
            status_code=why.status_code,
            retryable=why.retryable,
        ).encode()
