"""paho's client with its socket in the asyncio loop: no thread but the one that connects.

The pattern is that of Home Assistant's MQTT integration: while `connect` runs in its thread the loop leaves the client
alone; the reader is added afterwards, in the loop, and removed before the socket is closed. `publish` writes at once; a
writer is added only while the kernel does not take everything.
"""

import asyncio
import logging
import socket
import ssl
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol, cast

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from piagent_daemon.doors import mqtt_trouble
from piagent_daemon.doors.mqtt_task import in_thread
from piagent_daemon.settings import Settings
from piagent_daemon.topics import Topics

KEEPALIVE_S: Final = 30
UPKEEP_S: Final = 5.0
"""How often paho looks whether it must ping, or has waited too long for the answer."""
WILL_DELAY_S: Final = 5
"""A restart within this time shows no `offline` (MQTT 5)."""
SPARE_WINDOW: Final = 8
PACKET_OVERHEAD: Final = 66_000
"""Bytes of a PUBLISH beside its payload: topic, properties, header."""
READ_BYTES: Final = 65_536
MAX_PROPERTY: Final = 268_435_455

log = logging.getLogger("piagent.mqtt.paho")
log.addFilter(lambda record: record.levelno < logging.ERROR or "exception" in str(record.msg))


class Packed(Properties):
    """Properties of an outgoing event, encoded once: paho would encode them anew for each message, at 18 µs."""

    def __init__(self, correlation: bytes | None = None) -> None:
        super().__init__(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        self.ContentType = "application/json"
        if correlation is not None:
            self.CorrelationData = correlation
        object.__setattr__(self, "_packed", super().pack())  # type: ignore[no-untyped-call]

    def pack(self) -> bytes:
        return cast("bytes", self.__dict__["_packed"])


JSON: Final = Packed()


class Welcome(NamedTuple):
    """What the CONNACK said; `max_packet` in bytes, `window` in unacknowledged messages."""

    session_present: bool
    max_packet: int = MAX_PROPERTY
    window: int = 65_535
    retain: bool = True


class Client(paho.Client):
    """paho's client, which keeps no more than `most` bytes of a packet; what is left is still too large for anybody.

    A shield against giants where the broker has none for us (3.1.1 knows no Maximum Packet Size): a message of 256 MB
    would take three times that memory, and come again after the kernel has killed us for it.
    """

    most = 0

    def _sock_recv(self, bufsize: int) -> bytes:
        held = self._in_packet["packet"]
        if len(held) > self.most:
            del held[self.most :]
        return super()._sock_recv(min(bufsize, READ_BYTES))


class Hears(Protocol):
    """Who is told what happens on a connection. Every call comes from the event loop and must not raise."""

    def on_welcome(self, welcome: Welcome) -> None: ...
    def on_refused(self, code: int) -> None: ...
    def on_message(self, message: paho.MQTTMessage) -> None: ...
    def on_puback(self, packet_id: int, code: int) -> None: ...
    def on_suback(self, codes: list[int]) -> None: ...
    def on_closed(self, code: int) -> None: ...


class Connection:
    """One paho client and its socket; can be opened again after it was closed, keeping what is unacknowledged."""

    def __init__(
        self,
        settings: Settings,
        protocol: mqtt_trouble.Protocol,
        tls: ssl.SSLContext | None,
        will: bytes,
        hears: Hears,
    ) -> None:
        self.protocol = protocol
        self.kept_up = 0.0
        """Loop time of the last upkeep."""
        self._settings = settings
        self._hears = hears
        self._client = client = _make_client(settings, protocol, tls, will)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._upkeep: asyncio.TimerHandle | None = None
        self._opening = self._reading = self._writing = False
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = lambda _c, _u, message: hears.on_message(message)
        client.on_subscribe = lambda _c, _u, _m, codes, _p: hears.on_suback([code.value for code in codes])
        client.on_socket_open = _no_delay
        client.on_socket_close = self._on_socket_close

    # ------------------------------------------------------------------------------------------------- opening, ending

    async def open(self) -> None:
        """Connect and send CONNECT; the answer comes as `on_welcome`, `on_refused` or `on_closed`.

        Raises OSError (refused, unreachable, timeout, TLS) or ValueError (a host name that cannot be one).
        """
        self._loop = asyncio.get_running_loop()
        self._opening = True
        await in_thread(self._connect, otherwise=self._cut)
        self._opening = False
        sock = self._client.socket()
        if sock is None:
            raise ConnectionResetError("the connection was closed at once")
        self._loop.add_reader(sock.fileno(), self._read)
        self._keep_up(self._loop)
        self._read()  # with TLS the answer may be in memory already, and the reader would never fire

    def _connect(self) -> None:
        host, port = self._settings.mqtt_host, self._settings.mqtt_port
        if self.protocol == "3.1.1":
            self._client.connect(host, port, keepalive=KEEPALIVE_S)
        else:
            self._client.connect(
                host, port, keepalive=KEEPALIVE_S, clean_start=False, properties=_connect_properties(self._settings)
            )

    def disconnect(self) -> None:
        """Send DISCONNECT after all that is still to be written; `on_closed` follows."""
        self._client.disconnect()
        self._watch_writes()

    def abort(self) -> None:
        """Close the socket now; the broker publishes the will."""
        if not self._opening:
            self._cut()

    def _cut(self) -> None:
        sock = self._client.socket()
        if sock is None:
            return
        with suppress(OSError):
            cast("socket.socket", sock).shutdown(socket.SHUT_RDWR)
        while self._client.socket() is not None and self._client.loop_read() == paho.MQTT_ERR_SUCCESS:
            pass

    # ------------------------------------------------------------------------------------------------------- sending

    @property
    def stalled(self) -> bool:
        """Tell whether the kernel does not take our bytes because the broker does not read them."""
        return self._client.want_write() and not self._reading

    def publish(self, topic: str, payload: bytes, qos: int, properties: Properties, *, retain: bool) -> int | None:
        """Write one message; return its packet id, or None when paho could not take it (the id is still in use)."""
        info = self._client.publish(topic, payload, qos, retain, properties)
        self._watch_writes()
        return None if info.rc == paho.MQTT_ERR_QUEUE_SIZE else info.mid

    def ack(self, packet_id: int, qos: int) -> None:
        """Write the acknowledgement of a message; only for one that came in on this very connection."""
        self._client.ack(packet_id, qos)
        self._watch_writes()

    def subscribe(self, filters: tuple[tuple[str, int], ...]) -> None:
        """Subscribe to (filter, QoS) pairs; the answer comes as `on_suback`. MQTT 5 leaves retained messages out."""
        if self.protocol == "5":
            never = SubscribeOptions.RETAIN_DO_NOT_SEND
            self._client.subscribe([(name, SubscribeOptions(qos=qos, retainHandling=never)) for name, qos in filters])
        else:
            self._client.subscribe(list(filters))
        self._watch_writes()

    def unsubscribe(self, filters: tuple[str, ...]) -> None:
        """Take back subscriptions that the session may still hold."""
        self._client.unsubscribe(list(filters))
        self._watch_writes()

    def forget(self) -> None:
        """Drop every unacknowledged message of ours, so that it is not sent again."""
        self._client.drop_out_messages()

    def _watch_writes(self) -> None:
        """Have the loop call `_write` as long as something is left to be written."""
        sock = self._client.socket()
        if self._reading or sock is None or self._loop is None:
            return
        wanted = self._client.want_write()
        if wanted and not self._writing:
            self._loop.add_writer(sock.fileno(), self._write)
        elif self._writing and not wanted:
            self._loop.remove_writer(sock.fileno())
        self._writing = wanted

    # ----------------------------------------------------------------------------------------------------- loop's calls

    def _read(self) -> None:
        client = self._client
        # only PUBACKs are of interest, and they come in here: paho would spend 25 µs on the call for each QoS 0 message
        client.on_publish = self._on_publish
        self._reading = True
        client.loop_read()
        while isinstance(sock := client.socket(), ssl.SSLSocket) and sock.pending():
            client.loop_read()
        self._reading = False
        client.on_publish = None
        if client.want_write():
            client.loop_write()
        self._watch_writes()
        if (sock := client.socket()) is not None:
            _quick_ack(cast("socket.socket", sock))

    def _write(self) -> None:
        self._client.loop_write()
        self._watch_writes()

    def _keep_up(self, loop: asyncio.AbstractEventLoop) -> None:
        self.kept_up = loop.time()
        pause_s = min(UPKEEP_S, self._client.keepalive / 4 or UPKEEP_S)
        self._upkeep = loop.call_later(pause_s, self._keep_up, loop)
        self._client.loop_misc()

    # ---------------------------------------------------------------------------------------------------- paho's calls

    def _on_connect(
        self, _c: paho.Client, _u: Any, flags: paho.ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self._hears.on_refused(reason.value)
            return
        said = {} if properties is None else vars(properties)
        self._hears.on_welcome(
            Welcome(
                session_present=flags.session_present,
                max_packet=said.get("MaximumPacketSize", MAX_PROPERTY),
                window=said.get("ReceiveMaximum", 65_535),
                retain=bool(said.get("RetainAvailable", 1)),
            )
        )

    def _on_publish(self, _c: paho.Client, _u: Any, packet_id: int, reason: ReasonCode, _p: Any) -> None:
        self._hears.on_puback(packet_id, reason.value)

    def _on_disconnect(self, _c: paho.Client, _u: Any, _f: Any, reason: ReasonCode, _p: Any) -> None:
        if not self._opening:  # else `open` finds out by itself, in the loop
            self._hears.on_closed(reason.value)

    def _on_socket_close(self, _c: paho.Client, _u: Any, sock: Any) -> None:
        if self._opening or self._loop is None:
            return  # nothing was added yet
        if self._upkeep:
            self._upkeep.cancel()
        if (number := sock.fileno()) > -1:
            self._loop.remove_reader(number)
            self._loop.remove_writer(number)
        self._writing = False


def _make_client(
    settings: Settings, protocol: mqtt_trouble.Protocol, tls: ssl.SSLContext | None, will: bytes
) -> paho.Client:
    five = protocol == "5"
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=settings.mqtt_client_id,
        clean_session=None if five else False,
        protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
        reconnect_on_failure=False,
        manual_ack=True,
    )
    client.most = _max_packet(settings)
    client.suppress_exceptions = True  # else paho would read the packet of a failed callback again and again
    client.enable_logger(log)
    client.connect_timeout = settings.connect_timeout_s
    client.max_inflight_messages_set(0)  # the link keeps the broker's window, which paho does not know
    if settings.mqtt_username is not None:
        password = settings.mqtt_password
        client.username_pw_set(settings.mqtt_username, password.get_secret_value() if password else None)
    if tls is not None:
        client.tls_set_context(tls)
    properties = None
    if five:
        properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
        properties.WillDelayInterval = WILL_DELAY_S
        properties.ContentType = "application/json"
    client.will_set(Topics(settings.mqtt_base_topic).health, will, qos=1, retain=True, properties=properties)
    return client


def _connect_properties(settings: Settings) -> Properties:
    """Say how long the session lives and how much we take: the only back-pressure, and the shield against giants."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = settings.mqtt_session_expiry_s
    properties.ReceiveMaximum = min(65_535, settings.max_concurrent + settings.max_waiting + SPARE_WINDOW)
    properties.MaximumPacketSize = _max_packet(settings)
    return properties


def _max_packet(settings: Settings) -> int:
    return min(MAX_PROPERTY, settings.max_payload_bytes + PACKET_OVERHEAD)


def _no_delay(_c: paho.Client, _u: Any, sock: Any) -> None:
    """Send each packet at once (TCP_NODELAY); paho leaves Nagle's algorithm on, which costs 40 ms."""
    with suppress(OSError):  # a double of the tests may be no TCP socket
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _quick_ack(sock: socket.socket) -> None:
    """Acknowledge at once on TCP level (Linux, and not lasting): for brokers that leave Nagle's algorithm on."""
    if option := getattr(socket, "TCP_QUICKACK", None):
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, 1)
