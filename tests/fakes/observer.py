"""An MQTT client for tests: sees what goes over the broker, and asks the daemon."""

import asyncio
import functools
import json
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.fakes.certificates import client_context

TERMINAL = frozenset({"final", "error"})


@dataclass(frozen=True)
class Message:
    """One message as it came. `time` is monotonic seconds; `properties` are MQTT 5's, by their paho names."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    dup: bool
    properties: dict[str, Any]
    time: float

    @functools.cached_property
    def json(self) -> Any:
        """The payload as JSON, or None when it is none."""
        try:
            return json.loads(self.payload)
        except ValueError:
            return None

    def field(self, name: str) -> Any:
        """Return a field of a JSON object, or None."""
        return self.json.get(name) if isinstance(self.json, dict) else None


class Observer:
    """An async context manager. Its network thread hands every message over to the loop it was opened in.

    Its session survives a broker restart; where the broker lost it, it subscribes again before it publishes again.
    """

    def __init__(
        self,
        port: int,
        *,
        base: str = "piagent",
        protocol: Literal["5", "311"] = "5",
        username: str | None = None,
        password: str | None = None,
        ca_file: str | None = None,
        client_id: str | None = None,
    ) -> None:
        self.port = port
        self.base = base
        self.v5 = protocol == "5"
        self.messages: list[Message] = []
        self.connects = 0
        self._changed = asyncio.Event()
        self._acks: dict[tuple[str, int], asyncio.Future[list[ReasonCode]]] = {}
        self._connected = asyncio.Event()
        self._refused: ReasonCode | None = None
        version = mqtt.MQTTv5 if self.v5 else mqtt.MQTTv311
        name = client_id or f"observer-{uuid.uuid4().hex[:12]}"
        clean = None if self.v5 else False  # MQTT 5 keeps its session by session expiry
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, name, clean, protocol=version)
        self._client.reconnect_delay_set(min_delay=1, max_delay=1)
        self._filters: list[tuple[str, int, bool, bool]] = []
        if username is not None:
            self._client.username_pw_set(username, password)
        if ca_file is not None:
            self._client.tls_set_context(client_context(ca_file))

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()

        def hand_over(function: Callable[..., None], *args: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(function, *args)

        client = self._client
        client.on_socket_open = lambda _client, _data, sock: _no_delay(sock)
        client.on_connect = lambda _c, _d, flags, reason, _props: hand_over(
            self._on_connect, reason, flags.session_present
        )
        client.on_disconnect = lambda *_: hand_over(self._connected.clear)
        client.on_message = lambda _c, _d, message: hand_over(self._on_message, message, time.monotonic())
        client.on_publish = lambda _c, _d, mid, reason, _props: hand_over(self._on_ack, "publish", mid, [reason])
        client.on_subscribe = lambda _c, _d, mid, reasons, _props: hand_over(self._on_ack, "subscribe", mid, reasons)
        connect = functools.partial(client.connect, "127.0.0.1", self.port, 60)
        if self.v5:
            props = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            props.SessionExpiryInterval = 3600
            # mosquitto 2.0 writes no session to disk that began with a clean start
            connect = functools.partial(connect, clean_start=False, properties=props)
        await asyncio.to_thread(connect)
        client.loop_start()
        async with asyncio.timeout(10):
            await self._connected.wait()
        if self._refused is not None:
            await self.close()
            raise ConnectionError(f"the broker refused: {self._refused}")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Disconnect; with MQTT 5 the broker forgets the session, so that no later test has a subscriber too many."""
        props = None
        if self.v5:
            props = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
            props.SessionExpiryInterval = 0
        self._client.disconnect(properties=props)
        await asyncio.to_thread(self._client.loop_stop)
        # the pair that wakes its thread; paho leaves it to the garbage collector, which may find the sockets first
        self._client._reset_sockets(sockpair_only=True)

    # ------------------------------------------------------------------------------------------------------ doing

    async def subscribe(
        self, topic_filter: str, qos: int = 1, *, no_local: bool = False, as_published: bool = False
    ) -> list[ReasonCode]:
        """Subscribe and wait for the SUBACK. After a reconnect it is done again by itself.

        A broker clears `retain` in what it passes on to those who subscribed before; with `as_published` (MQTT 5) it
        leaves it as the publisher set it.
        """
        self._filters.append((topic_filter, qos, no_local, as_published))
        async with asyncio.timeout(10):
            return await self._subscribe(topic_filter, qos, no_local, as_published)

    def _subscribe(
        self, topic_filter: str, qos: int, no_local: bool, as_published: bool
    ) -> asyncio.Future[list[ReasonCode]]:
        if self.v5:
            options = SubscribeOptions(qos=qos, noLocal=no_local, retainAsPublished=as_published)
            _, mid = self._client.subscribe(topic_filter, options=options)
        else:
            _, mid = self._client.subscribe(topic_filter, qos)
        assert mid is not None
        return self._ack("subscribe", mid)

    async def publish(
        self,
        topic: str,
        payload: str | bytes | dict[str, Any] | list[Any] | None = None,
        qos: int = 1,
        *,
        retain: bool = False,
        wait: bool = True,
        **properties: Any,
    ) -> ReasonCode | None:
        """Publish, and wait for the PUBACK; return its reason code (None without `wait`). A dict goes as JSON.

        `properties` are MQTT 5's by their paho names: ResponseTopic, CorrelationData, MessageExpiryInterval …
        """
        data = json.dumps(payload, ensure_ascii=False) if isinstance(payload, dict | list) else payload
        props = None
        if properties:
            props = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            for name, value in properties.items():
                setattr(props, name, value)
        await asyncio.sleep(0)  # a disconnection may wait to be noticed
        async with asyncio.timeout(30):
            await self._connected.wait()
        info = self._client.publish(topic, data, qos, retain, props)
        future = self._ack("publish", info.mid)
        if not wait:
            return None
        async with asyncio.timeout(30):
            return (await future)[0]

    async def ask(
        self, convo: str | None, payload: str | dict[str, Any], timeout_s: float = 10.0, **properties: Any
    ) -> list[dict[str, Any]]:
        """Ask, and return all events of the answer up to the terminal one.

        A dict without `id` gets one; plain text belongs to the first request id that is seen after it. Without `convo`
        it goes to `<base>/in`, and the dict must name an `id`.
        """
        start = len(self.messages)
        if isinstance(payload, dict):
            payload = {"id": uuid.uuid4().hex, **payload}
        await self.publish(f"{self.base}/{convo}/in" if convo else f"{self.base}/in", payload, **properties)
        request_id = payload["id"] if isinstance(payload, dict) else None

        def is_end(message: Message) -> bool:
            mine = message.field("request_id") == request_id if request_id else message.topic == self.out(convo)
            return mine and message.field("type") in TERMINAL

        end = await self.wait(is_end, timeout_s, start=start)
        return self.events(str(end.field("request_id")), start=start)

    # ------------------------------------------------------------------------------------------------------ seeing

    def out(self, convo: str | None) -> str:
        return f"{self.base}/{convo}/out"

    def on(self, topic: str) -> list[Message]:
        """Return the messages of one topic."""
        return [message for message in self.messages if message.topic == topic]

    def events(self, request_id: str, *, start: int = 0) -> list[dict[str, Any]]:
        """Return the events of one request, in order of arrival."""
        found = [message for message in self.messages[start:] if message.field("request_id") == request_id]
        return [message.json for message in found if message.field("type") is not None]

    async def wait(self, predicate: Callable[[Message], Any], timeout_s: float = 5.0, *, start: int = 0) -> Message:
        """Return the first message from number `start` on that matches, waiting for it if need be."""
        seen = start
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    while seen < len(self.messages):
                        seen += 1
                        if predicate(self.messages[seen - 1]):
                            return self.messages[seen - 1]
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            last = "\n".join(f"  {one.topic} {one.payload[:200]!r}" for one in self.messages[-8:])
            raise TimeoutError(f"no such message in {timeout_s} s; the last of {len(self.messages)}:\n{last}") from None

    async def until(self, condition: Callable[[], Any], timeout_s: float = 5.0) -> None:
        """Wait until `condition()` holds; it is looked at after each message."""
        if not condition():
            await self.wait(lambda _: condition(), timeout_s)

    async def catch_up(self) -> None:
        """Return when all is seen that the broker took before: a message of our own comes behind it."""
        loop, topic, came = asyncio.get_running_loop(), f"observer/{uuid.uuid4().hex}", asyncio.Event()

        def heard(*_: Any) -> None:
            loop.call_soon_threadsafe(came.set)

        self._client.message_callback_add(topic, heard)
        await self.subscribe(topic)
        await self.publish(topic)
        async with asyncio.timeout(10):
            await came.wait()

    async def terminal(self, request_id: str, timeout_s: float = 10.0) -> dict[str, Any]:
        """Return the terminal event of a request."""
        end = await self.wait(
            lambda message: message.field("request_id") == request_id and message.field("type") in TERMINAL, timeout_s
        )
        event: dict[str, Any] = end.json
        return event

    # ------------------------------------------------------------------------------------------------ in the loop

    def _ack(self, kind: str, mid: int) -> asyncio.Future[list[ReasonCode]]:
        return self._acks.setdefault((kind, mid), asyncio.get_running_loop().create_future())

    def _on_ack(self, kind: str, mid: int, reasons: list[ReasonCode]) -> None:
        future = self._acks.pop((kind, mid), None)
        if future and not future.done():
            future.set_result(reasons)

    def _on_connect(self, reason: ReasonCode, session_present: bool) -> None:
        self._refused = reason if reason.is_failure else None
        lost = self._filters if self.connects and self._refused is None and not session_present else []
        self.connects += 1
        waiting = [self._subscribe(*one) for one in lost]
        if waiting:
            asyncio.gather(*waiting).add_done_callback(lambda _: self._connected.set())
        else:
            self._connected.set()

    def _on_message(self, message: mqtt.MQTTMessage, now: float) -> None:
        props: dict[str, Any] = message.properties.json() if message.properties else {}  # type: ignore[no-untyped-call]
        if "CorrelationData" in props:  # json() gives it as hexadecimal text
            props["CorrelationData"] = bytes.fromhex(props["CorrelationData"])
        self.messages.append(
            Message(message.topic, bytes(message.payload), message.qos, message.retain, message.dup, props, now)
        )
        self._changed.set()


def _no_delay(sock: Any) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
