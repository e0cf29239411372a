"""paho's client as this door wants it: what it says at CONNECT, what it holds, how its socket is set.

Source: MQTT 5 (OASIS, 2019), sections 3.1 (CONNECT), 3.3 (PUBLISH).
"""

import logging
import socket
import ssl
from contextlib import suppress
from typing import Any, Final, cast

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from piagent_daemon.doors import mqtt_trouble
from piagent_daemon.settings import Settings
from piagent_daemon.topics import Topics

WILL_DELAY_S: Final = 5
"""A restart within this time shows no `offline` (MQTT 5)."""
SPARE_WINDOW: Final = 8
PACKET_OVERHEAD: Final = 66_000
"""Bytes of a PUBLISH beside its payload: topic, properties, header."""
READ_BYTES: Final = 65_536
MSG_MORE: Final = getattr(socket, "MSG_MORE", 0)
"""Linux has it; without it each packet is sent by itself."""
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


class Client(paho.Client):
    """paho's client, which keeps no more than `most` bytes of a packet; what is left is still too large for anybody.

    A shield against giants where the broker has none for us (3.1.1 knows no Maximum Packet Size): a message of 256 MB
    would take three times that memory, and come again after the kernel has killed us for it.

    Packets that are written in a row leave as one (MSG_MORE of tcp(7)): the broker wakes up once for them.
    """

    most = 0

    def _sock_recv(self, bufsize: int) -> bytes:
        held = self._in_packet["packet"]
        if len(held) > self.most:
            del held[self.most :]
        return super()._sock_recv(min(bufsize, READ_BYTES))

    def _sock_send(self, buf: bytes | bytearray) -> int:
        sock = self.socket()
        if MSG_MORE and self.want_write() and type(sock) is socket.socket:
            with suppress(BlockingIOError):
                return sock.send(buf, MSG_MORE)
        return super()._sock_send(buf)


def make_client(settings: Settings, protocol: mqtt_trouble.Protocol, tls: ssl.SSLContext | None, will: bytes) -> Client:
    """Return a client that is not connected yet; `will` is what stands on the health topic when we are gone."""
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
    client.on_socket_open = no_delay
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


def connect_properties(settings: Settings) -> Properties:
    """Say how long the session lives and how much we take: the only back-pressure, and the shield against giants."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = settings.mqtt_session_expiry_s
    properties.ReceiveMaximum = min(65_535, settings.max_concurrent + settings.max_waiting + SPARE_WINDOW)
    properties.MaximumPacketSize = _max_packet(settings)
    return properties


def _max_packet(settings: Settings) -> int:
    return min(MAX_PROPERTY, settings.max_payload_bytes + PACKET_OVERHEAD)


def no_delay(_c: paho.Client, _u: Any, sock: Any) -> None:
    """Send each packet at once (TCP_NODELAY); paho leaves Nagle's algorithm on, which costs 40 ms."""
    with suppress(OSError):  # a double of the tests may be no TCP socket
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def quick_ack(sock: socket.socket) -> None:
    """Acknowledge at once on TCP level (Linux, and not lasting): for brokers that leave Nagle's algorithm on."""
    if option := getattr(socket, "TCP_QUICKACK", None):
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, 1)
