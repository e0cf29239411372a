"""The door's line to the broker: one connection after the other, for ever, with the cause of each loss said once."""

import asyncio
import logging
import ssl
from typing import Final, Protocol

import paho.mqtt.client as paho

from piagent_daemon.doors import mqtt_trouble
from piagent_daemon.doors.mqtt_connection import UPKEEP_S, Connection, Welcome
from piagent_daemon.doors.mqtt_outbox import Outbox
from piagent_daemon.doors.mqtt_task import LastingTask
from piagent_daemon.doors.mqtt_trouble import STABLE_S, UNSUPPORTED_PROTOCOL, End, Reconnect, explain
from piagent_daemon.settings import Settings

log = logging.getLogger("piagent.mqtt")

CONNACK_S: Final = 10.0


class Listener(Protocol):
    """Who is told what happens on the link. Every call comes from the event loop."""

    def on_up(self, *, session_present: bool) -> None: ...
    def on_down(self) -> None: ...
    def on_message(self, message: paho.MQTTMessage) -> None: ...
    def on_suback(self, codes: list[int]) -> None: ...
    def on_state(self) -> None: ...


class Link:
    """Keeps a connection up, and acknowledges and subscribes on the newest one; `outbox` publishes.

    `generation` counts the connections: a packet id of an earlier one means another message now, or none. `detail` says
    in one line how things stand.
    """

    def __init__(self, settings: Settings, tls: ssl.SSLContext | None, will: bytes, listener: Listener) -> None:
        self.generation = 0
        self.connected = False
        self.detail = f"connecting to the broker {settings.mqtt_host}:{settings.mqtt_port}"
        self.outbox = Outbox(listener.on_state)
        self._settings = settings
        self._tls = tls
        self._will = will
        self._listener = listener
        self._reconnect = Reconnect(settings.mqtt_protocol)
        self._connection = self._make_connection()
        self._task = LastingTask(self._run, "mqtt link")
        self._ended: asyncio.Future[End] | None = None
        self._since = 0.0
        self._stable: asyncio.TimerHandle | None = None
        self._fell_back = False
        self._closing = False

    def _make_connection(self) -> Connection:
        return Connection(self._settings, self._reconnect.protocol, self._tls, self._will, self)

    @property
    def protocol(self) -> mqtt_trouble.Protocol:
        return self._connection.protocol

    @property
    def duel(self) -> bool:
        """Tell whether another client keeps taking our client id."""
        return self._reconnect.duel

    @property
    def alive(self) -> bool:
        """Tell whether somebody looks after the connection."""
        if not self._task.running:
            return False
        return not self.connected or asyncio.get_running_loop().time() - self._connection.kept_up < 4 * UPKEEP_S

    def ack(self, generation: int, packet_id: int, qos: int) -> None:
        """Acknowledge a message, unless it came in on an earlier connection: then the broker brings it again."""
        if qos and self.connected and generation == self.generation:
            self._connection.ack(packet_id, qos)

    def subscribe(self, filters: tuple[tuple[str, int], ...]) -> None:
        """Subscribe to (filter, QoS) pairs, if there is a connection."""
        if self.connected:
            self._connection.subscribe(filters)

    def unsubscribe(self, filters: tuple[str, ...]) -> None:
        """Take back subscriptions that the session may still hold, if there is a connection."""
        if self.connected and filters:
            self._connection.unsubscribe(filters)

    # ------------------------------------------------------------------------------------------------------- lifecycle

    def start(self) -> None:
        """Begin connecting."""
        self._task.start()

    async def close(self, patience_s: float) -> None:
        """Say goodbye to the broker, which then publishes no will; cut the connection after `patience_s` seconds."""
        self._closing = True
        if self.connected and self._ended:
            self._connection.disconnect()
            await asyncio.wait([self._ended], timeout=patience_s)
        await self.cut()

    async def cut(self) -> None:
        """Leave without a goodbye: the broker then publishes the will."""
        self._closing = True
        await self._task.stop()
        self._connection.abort()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            end = await self._connect_once()
            if self._closing:
                return
            if self.outbox.take_poison(self._connection, end):
                end = end._replace(poisoned=True)
            protocol, duel = self._reconnect.protocol, self._reconnect.duel
            delay_s = self._reconnect.after(end, loop.time())
            self._say(end, protocol)
            if self._reconnect.duel and not duel:
                name = self._settings.mqtt_client_id
                log.error("another client uses our client id %r (MQTT_CLIENT_ID); waiting %.0f s", name, delay_s)
            if self._reconnect.protocol != protocol:
                self.outbox.reclaim()
                self._connection = self._make_connection()
            self._listener.on_state()
            await asyncio.sleep(delay_s)

    async def _connect_once(self) -> End:
        """Connect and stay connected; return how it ended."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        try:
            await self._connection.open()
        except (OSError, ValueError) as error:
            return End("failed", error=error)
        timer = loop.call_later(CONNACK_S, self._give_up)
        try:
            return await self._ended
        finally:
            timer.cancel()
            self._connection.abort()

    def _give_up(self) -> None:
        if not self.connected:
            self._end(End("unheard"))

    def _end(self, end: End) -> None:
        if self._ended and not self._ended.done():
            self._ended.set_result(end)

    def _say(self, end: End, protocol: str) -> None:
        """Tell what is wrong: once per cause, not once per try. `protocol` is the one that was tried."""
        where = f"broker {self._settings.mqtt_host}:{self._settings.mqtt_port}"
        why = explain(end, tls=self._settings.mqtt_tls)
        detail = f"waiting for the {where}: {why}"
        if protocol == "5" != self._reconnect.protocol and not self._fell_back:
            self._fell_back = True
            found = "does not speak MQTT 5" if end.code == UNSUPPORTED_PROTOCOL else "gives MQTT 5 no answer"
            log.info("%s %s: falling back to 3.1.1", where, found)
        elif detail != self.detail:
            log.log(end.level, "%s: %s; trying again, for ever", where, why)
        self.detail = detail

    # --------------------------------------------------------------------------------------- what the connection tells

    def on_welcome(self, welcome: Welcome) -> None:
        """See `mqtt_connection.Hears`."""
        loop = asyncio.get_running_loop()
        self.generation += 1
        self.connected = True
        self.detail = "connected"
        self._since = loop.time()
        self._reconnect.connected()
        self._stable = loop.call_later(STABLE_S, self._settle)
        self.outbox.attach(self._connection, welcome)
        loop.call_soon(self._up, self.generation, welcome.session_present)  # after paho has resent what it holds

    def _up(self, generation: int, session_present: bool) -> None:
        if self.connected and generation == self.generation:
            log.info("connected with MQTT %s, session %s", self.protocol, "resumed" if session_present else "new")
            self._listener.on_up(session_present=session_present)
            self.outbox.pump()

    def _settle(self) -> None:
        self._reconnect.stable()
        self._listener.on_state()

    def on_refused(self, code: int) -> None:
        """See `mqtt_connection.Hears`."""
        self._end(End("refused", code))

    def on_message(self, message: paho.MQTTMessage) -> None:
        """See `mqtt_connection.Hears`."""
        self._listener.on_message(message)

    def on_puback(self, packet_id: int, code: int) -> None:
        """See `mqtt_connection.Hears`."""
        self.outbox.on_puback(packet_id, code)

    def on_suback(self, codes: list[int]) -> None:
        """See `mqtt_connection.Hears`."""
        self._listener.on_suback(codes)

    def on_closed(self, code: int) -> None:
        """See `mqtt_connection.Hears`."""
        if not self.connected:
            self._end(End("unheard", code))
            return
        self.connected = False
        if self._stable:
            self._stable.cancel()
        self.outbox.detach()
        self._end(End("lost", code, lasted_s=asyncio.get_running_loop().time() - self._since))
        self._listener.on_down()
