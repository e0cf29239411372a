"""What stands retained at the broker: told anew after each connect, one message per topic on its way at a time.

A message that the broker cannot take must not come again at each connect: it would cut the daemon off for ever.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from piagent_daemon.doors.mqtt_outbox import POISONED, Outbox
from piagent_daemon.doors.mqtt_trouble import NOT_AUTHORIZED, PACKET_TOO_LARGE

log = logging.getLogger("piagent.mqtt")

AGAIN_S: Final = 3600.0
"""After so long a message at which the broker closed the connection is tried once more: its limit may be another."""


class Retained:
    """The newest of each topic; a payload is made when it goes out."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._payloads: dict[str, Callable[[], bytes]] = {}
        self._under_way: set[str] = set()
        self._overtaken: set[str] = set()
        """Topics whose message on its way is no longer the newest."""
        self._poison: dict[str, tuple[int, float]] = {}
        """Topic -> the bytes of a payload at which the broker closed the connection, and until when that counts."""
        self._told: set[tuple[str, int]] = set()

    def set(self, topic: str, payload: Callable[[], bytes]) -> None:
        """Have this stand on a topic; it goes out with the next `tell`."""
        self._payloads[topic] = payload

    def tell_all(self) -> None:
        """Publish all of it."""
        for topic in self._payloads:
            self.tell(topic)

    def tell(self, topic: str) -> None:
        """Publish what shall stand on one topic; while an earlier message is on its way, after that one."""
        if topic in self._under_way:
            self._overtaken.add(topic)
            return
        payload = self._payloads[topic]()
        if self._is_poison(topic, payload):
            return
        if not self._outbox.fits(topic, payload):
            self._complain(topic, payload, PACKET_TOO_LARGE)
            return
        self._under_way.add(topic)
        self._outbox.publish(topic, payload, 1, retain=True, done=lambda code: self._done(topic, payload, code))

    def _is_poison(self, topic: str, payload: bytes) -> bool:
        """Tell whether the broker would close the connection again: nothing but the size could change its mind."""
        size, until = self._poison.get(topic, (0, 0.0))
        return asyncio.get_running_loop().time() < until and len(payload) >= size

    def _done(self, topic: str, payload: bytes, code: int) -> None:
        self._under_way.discard(topic)
        if code == POISONED:
            self._poison[topic] = (len(payload), asyncio.get_running_loop().time() + AGAIN_S)
        if code == POISONED or (code == NOT_AUTHORIZED and payload):
            self._complain(topic, payload, code)
        if topic in self._overtaken:
            self._overtaken.remove(topic)
            self.tell(topic)

    def _complain(self, topic: str, payload: bytes, code: int) -> None:
        if (topic, code) in self._told:
            return
        self._told.add((topic, code))
        if code == NOT_AUTHORIZED:
            log.warning('the broker does not let us publish on "%s": allow this user to write it', topic)
        else:
            what = "the broker does not take the message of %d bytes on %.128r (max_packet_size?): it is left out"
            log.error(what, len(payload), topic)
