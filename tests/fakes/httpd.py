"""A small HTTP/1.1 server whose handler holds the socket, so that an answer can go wrong in any way.

No third-party code. The handler runs as one task per request and is cancelled at the moment the client leaves.
"""

import asyncio
import json
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, Self

from tests.fakes.streams import close, settle

MAX_HEAD_BYTES = 65_536
JSON_TYPE = "application/json; charset=utf-8"
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def encode(value: Any) -> bytes:
    """Return `value` as compact UTF-8 JSON."""
    return _ENCODER.encode(value).encode()


class Exchange:
    """One request, and every way to answer it well or badly. `gone_at` is when the client left before the end."""

    def __init__(self, connection: "_Connection", method: str, target: str, headers: dict[str, str]) -> None:
        self._connection = connection
        self.method = method
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        self.body = b""
        self.arrived_at = time.monotonic()
        self.gone_at: float | None = None
        self.status: int | None = None
        self.ended = False
        self.on_gone: Callable[[], None] | None = None

    async def send(self, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole answer."""
        self.head(status, content_type, {"Content-Length": str(len(body)), **(headers or {})})
        await self.raw(b"" if self.method == "HEAD" else body)
        self.finish()

    async def send_json(self, status: int, value: Any) -> None:
        await self.send(status, encode(value), JSON_TYPE)

    def head(self, status: int, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """Write the status line and headers; without Content-Length the body is chunked."""
        self.status = status
        fields = {"Content-Type": content_type, **(headers or {})}
        if "Content-Length" not in fields:
            fields["Transfer-Encoding"] = "chunked"
        phrase = (
            HTTPStatus(status).phrase if status in {*HTTPStatus} else "Overloaded"
        )  # 529 is nobody's but Anthropic's
        lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {fields[name]}" for name in fields)]
        self._connection.write("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def chunk(self, data: bytes) -> None:
        """Write one chunk of a chunked body."""
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def raw(self, data: bytes) -> None:
        """Write bytes as they are, and wait while the client does not read."""
        self._connection.write(data)
        await self._connection.writable.wait()

    async def end(self) -> None:
        """End a chunked body as it should be."""
        await self.raw(b"0\r\n\r\n")
        self.finish()

    def finish(self) -> None:
        self.ended = True

    def close(self) -> None:
        """Close the connection (FIN): a chunked body that did not end is cut."""
        self.ended = True
        self._connection.transport.close()

    def reset(self) -> None:
        """Tear the connection down (RST)."""
        self.ended = True
        sock = self._connection.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.transport.abort()


Handler = Callable[[Exchange], Awaitable[None]]


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._buffer = bytearray()
        self._pending: Exchange | None = None
        self._body_bytes = 0
        self._current: Exchange | None = None
        self.task: asyncio.Task[None] | None = None
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._server.connections.add(self)
        self._server.accepted += 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._next()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        self._server.connections.discard(self)
        self.writable.set()
        if self._current and not self._current.ended:
            self._current.gone_at = time.monotonic()
            if self._current.on_gone:
                self._current.on_gone()
        if self.task:
            self.task.cancel()

    def cut(self) -> None:
        """Tear down from this side, so that nobody takes it for a client that left."""
        if self._current:
            self._current.ended = True
        self.transport.abort()

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)

    def _next(self) -> None:
        if self.task:
            return
        if self._pending is None:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            if not separator:
                if len(head) > MAX_HEAD_BYTES:
                    self.transport.abort()
                return
            self._buffer = rest
            self._pending = self._parse(bytes(head))
            if self._pending is None:
                self.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                self.transport.close()
                return
        if len(self._buffer) < self._body_bytes:
            return
        exchange, self._pending = self._pending, None
        exchange.body = bytes(self._buffer[: self._body_bytes])
        del self._buffer[: self._body_bytes]
        exchange.arrived_at = time.monotonic()
        self._current = exchange
        self.task = asyncio.get_running_loop().create_task(self._run(exchange), name=f"fake {exchange.path}")

    def _parse(self, head: bytes) -> Exchange | None:
        first, *rest = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        length = headers.get("content-length", "0")
        if len(words) != 3 or not length.isdigit() or "transfer-encoding" in headers:
            return None
        self._body_bytes = int(length)
        return Exchange(self, words[0], words[1], headers)

    async def _run(self, exchange: Exchange) -> None:
        try:
            await self._server.handler(exchange)
        except asyncio.CancelledError:
            return  # the client left, or the server stops
        except Exception as error:
            self._server.defects.append(error)  # raised by stop(): a defect of the fake must fail the test
            self.transport.abort()
            raise
        finally:
            self.task = None
        if not exchange.ended or exchange.headers.get("connection", "").lower() == "close":
            self.transport.close()
        elif not self.transport.is_closing():
            self._next()


class HttpServer:
    """Listens on loopback; can be stopped and started again on the same port. `accepted` counts connections."""

    def __init__(self, handler: Handler, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.handler = handler
        self.port = port
        self.tls = tls
        self.accepted = 0
        self.connections: set[_Connection] = set()
        self.defects: list[Exception] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self.port, backlog=512, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and cut every connection, as a killed server would."""
        if self._server is None:
            return
        server, self._server = self._server, None
        await close(server)
        for connection in list(self.connections):
            connection.cut()
        tasks = [connection.task for connection in list(self.connections) if connection.task]
        if tasks:
            await asyncio.wait(tasks, timeout=2)
        await settle()
        if self.defects:
            raise self.defects.pop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()
