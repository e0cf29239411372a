"""paho's client with its socket in the asyncio loop: no thread but the one that connects.

The pattern is that of Home Assistant's MQTT integration: while `connect` runs in its thread the loop leaves the client
alone; the reader is added afterwards, in the loop, and removed before the socket is closed. What is published in one
turn of the loop is written together at its end, or by `flush`; a writer is added only while the kernel does not take
everything.
"""

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol, cast

import paho.mqtt.client as paho
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from piagent_daemon.doors import mqtt_trouble
from piagent_daemon.doors.mqtt_paho import MAX_PROPERTY, connect_properties, make_client, quick_ack
from piagent_daemon.settings import Settings
from piagent_daemon.waiting import in_thread

KEEPALIVE_S: Final = 30
UPKEEP_S: Final = 5.0
"""How often paho looks whether it must ping, or has waited too long for the answer."""
WRITE_BYTES: Final = 65_536
"""So much is written before the loop's turn ends: the broker shall not wait for a crowd of messages to be complete."""


class Welcome(NamedTuple):
    """What the CONNACK said; `max_packet` in bytes, `window` in unacknowledged messages."""

    session_present: bool
    max_packet: int = MAX_PROPERTY
    window: int = 65_535
    retain: bool = True


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
        self._client = client = make_client(settings, protocol, tls, will)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._upkeep: asyncio.TimerHandle | None = None
        self._opening = self._reading = self._writing = False
        self._unwritten = 0
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = lambda _c, _u, message: hears.on_message(message)
        client.on_subscribe = lambda _c, _u, _m, codes, _p: hears.on_suback([code.value for code in codes])
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_packet

    # ------------------------------------------------------------------------------------------------- opening, ending

    async def open(self) -> None:
        """Connect and send CONNECT; the answer comes as `on_welcome`, `on_refused` or `on_closed`.

        Raises OSError (refused, unreachable, timeout, TLS) or ValueError (a host name that cannot be one).
        """
        self._loop = asyncio.get_running_loop()
        self._opening = True
        await in_thread(self._connect, "mqtt-connect", otherwise=self._cut)
        self._opening = False
        sock = self._client.socket()
        if sock is None:
            raise ConnectionResetError("the connection was closed at once")
        self._loop.add_reader(sock.fileno(), self._read)
        self._keep_up(self._loop)
        self._write()
        self._read()  # with TLS the answer may be in memory already, and the reader would never fire

    def _connect(self) -> None:
        host, port = self._settings.mqtt_host, self._settings.mqtt_port
        if self.protocol == "3.1.1":
            self._client.connect(host, port, keepalive=KEEPALIVE_S)
        else:
            self._client.connect(
                host, port, keepalive=KEEPALIVE_S, clean_start=False, properties=connect_properties(self._settings)
            )

    def disconnect(self) -> None:
        """Send DISCONNECT after all that is still to be written; `on_closed` follows."""
        self._client.disconnect()

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
        self._reading = True  # what is still to be read may call somebody who writes
        while self._client.socket() is not None and self._client.loop_read() == paho.MQTT_ERR_SUCCESS:
            pass
        self._reading = False

    # ------------------------------------------------------------------------------------------------------- sending

    @property
    def stalled(self) -> bool:
        """Tell whether the kernel does not take our bytes because the broker does not read them."""
        return self._writing

    def publish(self, topic: str, payload: bytes, qos: int, properties: Properties, *, retain: bool) -> int | None:
        """Take one message; return its packet id, or None when paho could not take it (the id is still in use)."""
        info = self._client.publish(topic, payload, qos, retain, properties)
        self._unwritten += len(payload)
        if self._unwritten > WRITE_BYTES:
            self.flush()
        return None if info.rc == paho.MQTT_ERR_QUEUE_SIZE else info.mid

    def ack(self, packet_id: int, qos: int) -> None:
        """Acknowledge a message; only one that came in on this very connection."""
        self._client.ack(packet_id, qos)

    def subscribe(self, filters: tuple[tuple[str, int], ...]) -> None:
        """Subscribe to (filter, QoS) pairs; the answer comes as `on_suback`. MQTT 5 leaves retained messages out."""
        if self.protocol == "5":
            never = SubscribeOptions.RETAIN_DO_NOT_SEND
            self._client.subscribe([(name, SubscribeOptions(qos=qos, retainHandling=never)) for name, qos in filters])
        else:
            self._client.subscribe(list(filters))

    def unsubscribe(self, filters: tuple[str, ...]) -> None:
        """Take back subscriptions that the session may still hold."""
        self._client.unsubscribe(list(filters))

    def forget(self) -> None:
        """Drop every unacknowledged message of ours, so that it is not sent again."""
        self._client.drop_out_messages()

    def flush(self) -> None:
        """Write now what would be written at the end of the loop's turn."""
        if self._client.want_write() and not self._writing and not self._reading:
            self._write()

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
        if (sock := client.socket()) is not None:
            quick_ack(cast("socket.socket", sock))

    def _write(self) -> None:
        """Write what paho holds, and have the loop call again as long as something is left."""
        if self._opening or self._loop is None:
            return
        self._unwritten = 0
        self._client.loop_write()
        if (sock := self._client.socket()) is None:
            return
        left = self._client.want_write()
        if left and not self._writing:
            self._loop.add_writer(sock.fileno(), self._write)
        elif self._writing and not left:
            self._loop.remove_writer(sock.fileno())
        self._writing = left

    def _keep_up(self, loop: asyncio.AbstractEventLoop) -> None:
        self.kept_up = loop.time()
        pause_s = min(UPKEEP_S, self._client.keepalive / 4 or UPKEEP_S)
        self._upkeep = loop.call_later(pause_s, self._keep_up, loop)
        self._client.loop_misc()

    # ---------------------------------------------------------------------------------------------------- paho's calls

    def _on_packet(self, _c: paho.Client, _u: Any, _sock: Any) -> None:
        """Learn of the first packet that waits to be written."""
        if self._loop is not None and not self._opening:
            self._loop.call_soon(self._write)

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
