"""The MQTT front door: requests in and events out over a broker, at least once (contract sections 1, 3, 4, 6, 10).

Its parts: `mqtt_connection` (paho in the asyncio loop), `mqtt_link` (one connection after the other), `mqtt_outbox`
(what leaves), `mqtt_retained` (what stands at the broker), `mqtt_inbox` (what comes), `mqtt_reply` (the way back of
one request), `mqtt_admin`, `mqtt_selftest`.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Final

import paho.mqtt.client as paho

from piagent_daemon import tls
from piagent_daemon.doors.mqtt_admin import Clerk
from piagent_daemon.doors.mqtt_guest import FOREIGN, Ear, Guest
from piagent_daemon.doors.mqtt_inbox import Inbox
from piagent_daemon.doors.mqtt_link import Link
from piagent_daemon.doors.mqtt_reply import Replies
from piagent_daemon.doors.mqtt_retained import Retained
from piagent_daemon.doors.mqtt_selftest import ACL_PUBLISH, ACL_SUBSCRIBE, SelfTest
from piagent_daemon.doors.mqtt_trouble import NOT_AUTHORIZED, PACKET_TOO_LARGE, UNSPECIFIED
from piagent_daemon.errors import ConfigError
from piagent_daemon.ports import Admin, Clock, Intake
from piagent_daemon.settings import Settings
from piagent_daemon.topics import Topics
from piagent_daemon.values import DoorState

log = logging.getLogger("piagent.mqtt")

DUPLICATE_CLIENT_ID: Final = "duplicate_client_id"
BACKPRESSURE: Final = "backpressure"
RETURN_S: Final = 2.0
"""How long a stop waits for a broker that is away."""
GOODBYE_S: Final = 1.0


class MqttDoor:
    """A way in and out over MQTT (`ports.Herald`). `will` is what stands on the health topic when we are gone.

    `on_change` is called when `state` has changed. Raises ConfigError when the TLS files cannot be used.
    """

    def __init__(self, settings: Settings, intake: Intake, admin: Admin, clock: Clock, will: bytes) -> None:
        self.on_change: Callable[[], None] | None = None
        self._topics = Topics(settings.mqtt_base_topic)
        self._will = will
        self._link = Link(settings, _tls_context(settings), will, self)
        self._replies = Replies(self._link, self._topics, clock, self._on_code)
        self._clerk = Clerk(admin, self._replies, settings.response_topic_prefixes)
        self._inbox = Inbox(settings, intake, self._clerk, self._replies)
        self._selftest = SelfTest(self._link.outbox, self._topics, clock, self._on_verdict)
        self._ready = asyncio.Event()
        self._filters = self._topics.filters
        self._ears: set[str] = set()
        self._retained = Retained(self._link.outbox)
        self._leaving = False
        self._unsubscribed = False
        self._denied: frozenset[str] = frozenset()
        self._reported: DoorState | None = None

    # ------------------------------------------------------------------------------------------------------------ port

    @property
    def state(self) -> DoorState:
        """How the door stands; see `ports.DoorState`."""
        link = self._link
        reasons = set(self._denied)
        if self._unsubscribed:
            reasons.add(ACL_SUBSCRIBE)
        if link.duel:
            reasons.add(DUPLICATE_CLIENT_ID)
        if link.outbox.crowded:
            reasons.add(BACKPRESSURE)
        protocol = link.protocol if link.generation else None
        return DoorState(link.connected, protocol, tuple(sorted(reasons)), link.detail)

    @property
    def alive(self) -> bool:
        """Tell whether the receive loop makes progress; see `ports.FrontDoor`."""
        return self._inbox.alive and self._link.alive

    async def start(self) -> None:
        """Begin connecting; returns at once."""
        self._inbox.start()
        self._link.start()

    async def ready(self) -> None:
        """Return when the subscriptions are acknowledged for the first time."""
        await self._ready.wait()

    def announce(self, topic: str, payload: Callable[[], bytes]) -> None:
        """Publish a retained message, now and after each reconnect; see `ports.Herald`."""
        if self._leaving:
            return  # the goodbye is the last word
        self._retained.set(topic, payload)
        if self._link.connected:
            self._retained.tell(topic)

    def listen(self, topic: str, heard: Callable[[bytes], None]) -> None:
        """Hand over what comes on a topic of somebody else's; call it before `start`. A refusal is no trouble."""
        self._ears.add(topic)
        self.invite(Ear(topic, heard))

    async def stop_intake(self) -> None:
        """Hand nothing more to the engine; see `ports.FrontDoor`.

        No UNSUBSCRIBE: the broker shall go on queueing for the session while the daemon is away.
        """
        self._inbox.close()

    async def stop(self, deadline_s: float) -> None:
        """Wait for acknowledgements, say goodbye on the health topic, disconnect; at most `deadline_s` seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline_s
        self._inbox.close()
        self._selftest.end()
        self._replies.hurry()
        self._leaving = True
        self._retained.set(self._topics.health, lambda: self._will)
        said_goodbye = False
        try:
            async with asyncio.timeout(deadline_s if self._link.connected else min(deadline_s, RETURN_S)):
                await self._clerk.stop()
                await self._link.outbox.quiet()
                if self._link.connected:
                    self._retained.tell(self._topics.health)
                    await self._link.outbox.quiet()
                    said_goodbye = True
        except TimeoutError:
            log.warning("the broker did not acknowledge everything before the stop")
        await self._inbox.stop()
        if said_goodbye:
            await self._link.close(max(0.0, min(GOODBYE_S, until - loop.time())))
        else:
            await self._link.cut()

    # ---------------------------------------------------------------------------------------------------------- guests

    def invite(self, guest: Guest) -> None:
        """Carry another vocabulary on this connection; see `mqtt_guest.Host`."""
        self._filters += guest.filters
        self._inbox.invite(guest)

    def publish(self, topic: str, payload: bytes, done: Callable[[int], None]) -> None:
        """Publish what a guest has to say; see `mqtt_guest.Host`."""
        if self._link.outbox.fits(topic, payload):
            self._link.outbox.publish(topic, payload, 1, done=done)
        else:
            log.error("the broker does not take a message of %d bytes on %.64r: it is lost", len(payload), topic)
            done(PACKET_TOO_LARGE)

    # ---------------------------------------------------------------------------------------------- what the link tells

    def on_up(self, *, session_present: bool) -> None:
        """Subscribe and announce anew; see `mqtt_link.Listener`."""
        if self._link.generation > 1 and not session_present:
            log.warning("the broker lost our session: requests that it had not delivered yet may be gone")
        if session_present:
            asked = {name for name, _ in self._filters}
            self._link.unsubscribe(tuple(name for name in FOREIGN if name not in asked))
        self._link.subscribe((*self._filters, *self._selftest.filters(self._link.protocol)))
        self._retained.tell_all()
        self.on_state()

    def on_down(self) -> None:
        """See `mqtt_link.Listener`."""
        self._selftest.end()

    def on_message(self, message: paho.MQTTMessage) -> None:
        """See `mqtt_link.Listener`."""
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""  # a broker that lets it through; it is no topic of ours
        if self._selftest.is_probe(topic, bytes(message.payload)):
            self._link.ack(self._link.generation, message.mid, message.qos)
            return
        if topic.startswith(f"{self._topics.base}/"):
            self._selftest.heard()
        self._inbox.on_message(message, topic)

    def on_suback(self, codes: list[int]) -> None:
        """See `mqtt_link.Listener`."""
        asked = [name for name, _ in self._filters]
        refused = [name for name, code in zip(asked, codes, strict=False) if code >= UNSPECIFIED]
        denied = [name for name in refused if name not in self._ears]
        if denied and not self._unsubscribed:
            log.error("the broker refuses the subscriptions to %s: allow this user to read them", ", ".join(denied))
        self._unsubscribed = bool(denied)
        self._ready.set()
        self._selftest.begin(self._link.protocol)
        self.on_state()

    def on_state(self) -> None:
        """Tell the daemon when the state is another one now."""
        state = self.state
        if state != self._reported:
            self._reported = state
            if self.on_change:
                self.on_change()

    def _on_verdict(self, reasons: frozenset[str]) -> None:
        self._denied = reasons
        self.on_state()

    def _on_code(self, code: int) -> None:
        """Learn from the PUBACK of a terminal event (MQTT 5) whether answers may be published."""
        if code == NOT_AUTHORIZED and ACL_PUBLISH not in self._denied:
            log.error('the broker does not let us publish answers: allow this user to write "%s/#"', self._topics.base)
            self._on_verdict(self._denied | {ACL_PUBLISH})
        elif 0 <= code < UNSPECIFIED and self._link.protocol == "5" and ACL_PUBLISH in self._denied:
            self._on_verdict(self._denied - {ACL_PUBLISH})


class _TlsSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails; paho would leave that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    if not settings.mqtt_tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.mqtt_ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"MQTT_CA_FILE: {error}.") from error
    tls.take_home_made(context)
    context.sslsocket_class = _TlsSocket
    if settings.mqtt_cert_file:
        try:
            context.load_cert_chain(settings.mqtt_cert_file, settings.mqtt_key_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"MQTT_CERT_FILE, MQTT_KEY_FILE: {error}.") from error
    return context
