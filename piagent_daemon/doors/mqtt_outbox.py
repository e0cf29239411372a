"""What leaves for the broker: QoS 0 goes now or never, QoS 1 is kept until the broker has acknowledged it.

paho resends what it sent and saw no PUBACK for; what was never sent waits here. So nothing is published twice because
a first try failed.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

from paho.mqtt.properties import Properties

from piagent_daemon.doors.mqtt_connection import Connection, Welcome
from piagent_daemon.doors.mqtt_paho import JSON
from piagent_daemon.doors.mqtt_trouble import KEEPALIVE_TIMEOUT, SHORT_S, TAKEN_OVER, End

log = logging.getLogger("piagent.mqtt")

WINDOW: Final = 64
"""Unacknowledged messages of ours at a time, or what the broker allows if that is less."""
STALLED_BYTES: Final = 1_000_000
"""What may wait in memory for a broker that does not read, before QoS 0 is dropped."""
CROWD: Final = 1000
CROWD_BYTES: Final = 16_000_000
"""Kept messages, and their bytes, above which no new requests are taken."""
POISON_LOSSES: Final = 3
HEADER_BYTES: Final = 16
"""A PUBLISH packet beside its topic, properties and payload."""
PROBE_S: Final = 0.5
"""Silence on a connection after a quick loss: if it is lost as well, none of our messages was the cause."""
POISONED: Final = -1
"""What `done` hears instead of a reason code when the broker closes the connection whenever it sees the message."""


@dataclass(slots=True, eq=False)
class Parcel:
    """One message of ours; `done` is called with the PUBACK's reason code, or with POISONED."""

    topic: str
    payload: bytes
    properties: Properties
    qos: int = 1
    retain: bool = False
    done: Callable[[int], None] | None = None

    @property
    def size(self) -> int:
        """Return about how many bytes the packet has."""
        return len(self.payload) + overhead(self.topic, self.properties)


def overhead(topic: str, properties: Properties = JSON) -> int:
    """Return the bytes of a PUBLISH packet beside its payload, or a few more."""
    return len(topic.encode()) + len(properties.pack()) + HEADER_BYTES  # type: ignore[no-untyped-call]


class Outbox:
    """Publishes on the connection that it was given last; `on_crowd` is called when `crowded` changes."""

    def __init__(self, on_crowd: Callable[[], None]) -> None:
        self._on_crowd = on_crowd
        self._connection: Connection | None = None
        self._welcome = Welcome(session_present=False)
        self._unacked: dict[int, Parcel] = {}
        self._kept: deque[Parcel] = deque()
        self._loose = 0
        """How many of those are at QoS 0."""
        self._bytes = 0
        self._stalled_bytes = 0
        self._suspects = 0
        """How many of the next messages go one by one, since the broker may have closed the connection at one."""
        self._losses: dict[Parcel, int] = {}
        """How many times in a row the connection was lost quickly with these messages on their way."""
        self._probe: asyncio.TimerHandle | None = None
        self._roomy = asyncio.Event()
        self._roomy.set()
        self._quiet = asyncio.Event()
        self._quiet.set()

    # ----------------------------------------------------------------------------------------------------------- state

    @property
    def max_packet(self) -> int:
        """The largest packet in bytes that the broker takes; it closes the connection at a larger one."""
        return self._welcome.max_packet

    def fits(self, topic: str, payload: bytes, properties: Properties = JSON) -> bool:
        """Tell whether the broker takes a message of this size."""
        return len(payload) + overhead(topic, properties) <= self.max_packet

    @property
    def crowded(self) -> bool:
        """Tell whether so much waits for the broker that no new requests should be taken."""
        return not self._roomy.is_set()

    async def room(self) -> None:
        """Wait while it is crowded."""
        await self._roomy.wait()

    async def quiet(self) -> None:
        """Wait until the broker has acknowledged everything."""
        await self._quiet.wait()

    # --------------------------------------------------------------------------------------------------------- sending

    def publish(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        properties: Properties = JSON,
        *,
        retain: bool = False,
        done: Callable[[int], None] | None = None,
    ) -> None:
        """Send one message; never waits, never raises. The topic must be publishable and the size must fit."""
        if qos == 0:
            self._publish_loosely(topic, payload, properties)
            return
        parcel = Parcel(topic, payload, properties, retain=retain, done=done)
        self._quiet.clear()
        self._bytes += parcel.size
        self._kept.append(parcel)
        self.pump()
        self._look_around()

    def flush(self) -> None:
        """Let nothing wait for the end of the loop's turn: somebody waits for what was published last."""
        if self._connection:
            self._connection.flush()

    def _publish_loosely(self, topic: str, payload: bytes, properties: Properties) -> None:
        connection, waits = self._connection, bool(self._kept)
        if connection is None or ((waits or connection.stalled) and self._stalled_bytes > STALLED_BYTES):
            return
        self._stalled_bytes = self._stalled_bytes + len(payload) if waits or connection.stalled else 0
        if waits:  # behind them, so that the events of an answer stay in order
            self._kept.append(Parcel(topic, payload, properties, qos=0))
            self._loose += 1
        else:
            connection.publish(topic, payload, 0, properties, retain=False)

    def pump(self) -> None:
        """Send what waits, as far as the broker's window goes."""
        if self._probe:
            return
        window = 1 if self._suspects else min(WINDOW, self._welcome.window)
        while self._kept and self._connection and (not self._kept[0].qos or len(self._unacked) < window):
            parcel = self._kept.popleft()
            if parcel.qos:
                self._post(self._connection, parcel)
            else:
                self._loose -= 1
                self._connection.publish(parcel.topic, parcel.payload, 0, parcel.properties, retain=False)

    def _post(self, connection: Connection, parcel: Parcel) -> None:
        retain = parcel.retain and self._welcome.retain
        packet_id = None
        while packet_id is None:  # one that is still in use is refused; few are, so the next one is free
            packet_id = connection.publish(parcel.topic, parcel.payload, 1, parcel.properties, retain=retain)
        self._unacked[packet_id] = parcel

    def on_puback(self, packet_id: int, code: int) -> None:
        """Take the broker's word for one of our messages."""
        if parcel := self._unacked.pop(packet_id, None):
            self._finish(parcel, code)
            self.pump()

    def _finish(self, parcel: Parcel, code: int) -> None:
        self._suspects -= self._suspects > 0
        self._bytes -= parcel.size
        if parcel.done:
            parcel.done(code)
        self._look_around()

    def _look_around(self) -> None:
        """Tell those who wait for room or for quiet."""
        count = len(self._kept) - self._loose + len(self._unacked)
        if self._roomy.is_set() and (count > CROWD or self._bytes > CROWD_BYTES):
            self._roomy.clear()
            log.warning("the broker does not keep up: %d messages wait for it; no new requests are taken", count)
            self._on_crowd()
        elif not self._roomy.is_set() and count <= CROWD // 2 and self._bytes <= CROWD_BYTES // 2:
            self._roomy.set()
            log.info("the broker keeps up again")
            self._on_crowd()
        if not count:
            self._quiet.set()

    # ----------------------------------------------------------------------------------------------------- connections

    def attach(self, connection: Connection, welcome: Welcome) -> None:
        """Send on this connection from now on; what waits goes with the next `pump`."""
        self._connection = connection
        self._welcome = welcome
        self._stalled_bytes = 0
        if self._losses:
            self._probe = asyncio.get_running_loop().call_later(PROBE_S, self._end_probe)

    def _end_probe(self) -> None:
        self._probe = None
        self.pump()

    def detach(self) -> None:
        """Keep QoS 1 and drop QoS 0 until there is a connection again."""
        if self._probe:
            self._probe.cancel()
            self._probe = None
        self._connection = None
        self._kept = deque(parcel for parcel in self._kept if parcel.qos)
        self._loose = 0

    def reclaim(self) -> None:
        """Take back what a client that is given up had not delivered."""
        self._kept.extendleft(reversed(self._unacked.values()))
        self._unacked.clear()

    def take_poison(self, connection: Connection, end: End) -> bool:
        """Look for the message at which the broker closes the connection again and again.

        What was on its way at a quick loss goes one by one on the next connection, so that no other message is blamed
        whose PUBACK got lost, and only after a silence, so that a rival with our client id is not taken for it.
        Returns whether one message is under suspicion: at its second loss. At the third it is taken out, and its `done`
        hears POISONED.
        """
        innocent = end.kind != "lost" or end.lasted_s >= SHORT_S or end.code in {TAKEN_OVER, KEEPALIVE_TIMEOUT}
        if innocent or not self._unacked:
            self._suspects, self._losses = 0, {}
            return False
        self._losses = {parcel: self._losses.get(parcel, 0) + 1 for parcel in self._unacked.values()}
        self._suspects = max(self._suspects, len(self._losses))
        connection.forget()
        self.reclaim()
        worst, losses = max(self._losses.items(), key=itemgetter(1))
        if len(self._losses) == 1 and losses >= POISON_LOSSES:
            log.error("the broker closed the connection %d times at one message on %.64r", losses, worst.topic)
            self._losses = {}
            self._kept.remove(worst)
            self._finish(worst, POISONED)
        return losses > 1
