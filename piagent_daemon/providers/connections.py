"""The connections to one server, each of them for one question at a time.

The protocol, HTTP/1.1, is h11's, which knows no network; requests, answers and errors are httpx's, as their transport.
There is no pool and no lock: those are points at which asyncio may cancel, and here nothing is waited for when a
question is given up. What did not come to a good end is thrown away.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import h11
import httpx

from piagent_daemon.errors import ProviderError
from piagent_daemon.providers import faults
from piagent_daemon.providers.sockets import Socket, connect

log = logging.getLogger("piagent.providers")

KEEP_S: Final = 60.0
HEAD_BYTES: Final = 102_400
"""So long may the head of an answer be."""
PORTS: Final = {"http": 80, "https": 443}


class Connection(httpx.AsyncBaseTransport):
    """One connection as a transport of httpx: made when it is needed, and anew when it has ended meanwhile.

    The end of a kept connection is not taken for the failure of a server, which may close it between two requests at
    any moment, also in the one in which the next is sent. Source: RFC 9112, section 9.3.1.
    """

    def __init__(self, tls: ssl.SSLContext | None, on_end: Callable[[], None] | None = None) -> None:
        """Open nothing yet. `tls` is None for `http://`; `on_end` is called when a kept connection had ended."""
        self._tls = tls
        self._on_end = on_end
        self._socket: Socket | None = None
        self._http = _protocol()
        self._expires = 0.0
        self._closed = False

    @property
    def is_good(self) -> bool:
        """Tell whether it is there, the last answer was read to its end, and the server has not closed it."""
        if self._socket is None or not self._socket.is_quiet or self._http.our_state is not h11.IDLE:
            return False
        return asyncio.get_running_loop().time() < self._expires

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; once more at once when it went over a kept connection that ended without an answer.

        Of the timeouts of a request only the one for connecting is known here.
        """
        if self.is_good:
            try:
                return await self._ask(request)
            except (httpx.ReadError, _DisconnectedError) as error:
                if self._closed:
                    raise
                log.debug("a kept connection had ended: %r", error)
            if self._on_end:
                self._on_end()
        await self._open(request)
        return await self._ask(request)

    async def _open(self, request: httpx.Request) -> None:
        self._drop()
        url, timeouts = request.url, request.extensions.get("timeout", {})
        if url.scheme != ("https" if self._tls else "http"):
            raise httpx.UnsupportedProtocol(f"no {url.scheme}:// over this connection")
        port = url.port or PORTS[url.scheme]
        self._socket = await connect(url.raw_host.decode("ascii"), port, self._tls, timeouts.get("connect"))
        self._http = _protocol()
        if self._closed:  # while it connected
            self._drop()
            raise httpx.ReadError("the connection was closed")

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        try:
            self._send(request)
            head = await self._receive()
            while isinstance(head, h11.InformationalResponse):
                head = await self._receive()
        except BaseException:
            self._drop()
            raise
        assert isinstance(head, h11.Response)  # noqa: S101 - h11 lets nothing else come first
        said = {"http_version": b"HTTP/" + head.http_version, "reason_phrase": head.reason}
        return httpx.Response(head.status_code, headers=head.headers.raw_items(), stream=_Body(self), extensions=said)

    def _send(self, request: httpx.Request) -> None:
        """Send head and body as one: apart, the second would wait for the first to be acknowledged."""
        send, body = self._http.send, request.content
        try:
            data = send(h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw))
            data += send(h11.Data(data=body)) if body else b""
            data += send(h11.EndOfMessage())
        except h11.LocalProtocolError as error:
            raise httpx.LocalProtocolError(str(error)) from error
        if self._socket:
            self._socket.write(data)

    async def _receive(self) -> Any:
        """Return the next event of h11. Raises httpx.ReadError or httpx.RemoteProtocolError."""
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                data = await self._socket.read() if self._socket else b""
                if not data and self._http.their_state is h11.SEND_RESPONSE:
                    raise _DisconnectedError("Server disconnected without sending a response.")
                self._http.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise httpx.RemoteProtocolError(str(error)) from error
        return event

    async def read(self) -> bytes:
        """Return the next piece of the body of the answer, b"" at its end."""
        try:
            event = await self._receive()
        except BaseException:
            self._drop()
            raise
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    def rest(self) -> None:
        """Be ready for another question when this answer was read to its end; else close.

        What came behind the answer nobody asked for, and the next one would begin with it.
        """
        http = self._http
        if http.our_state is h11.DONE and http.their_state is h11.DONE and not http.trailing_data[0]:
            self._http.start_next_cycle()
            self._expires = asyncio.get_running_loop().time() + KEEP_S
        else:
            self._drop()

    def _drop(self) -> None:
        if self._socket:
            self._socket.abort()
            self._socket = None

    def close(self) -> None:
        """Close it for good."""
        self._closed = True
        self._drop()

    async def aclose(self) -> None:
        """Close it as httpx wants it; there is nothing to wait for."""
        self.close()


class _DisconnectedError(httpx.RemoteProtocolError):
    """The server closed the connection and had said nothing, or not even a whole head."""


class _Body(httpx.AsyncByteStream):
    """The body of an answer, piece by piece as it comes."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._ended = self._closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._ended and (data := await self._connection.read()):
            return data
        self._ended = True
        raise StopAsyncIteration

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = self._ended = True
            self._connection.rest()


def _protocol() -> h11.Connection:
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)


class Connections:
    """Hands connections out and keeps up to `keep` of them for the next question; `tls` is None for `http://`."""

    def __init__(self, tls: ssl.SSLContext | None, keep: int) -> None:
        self._tls = tls
        self._keep = keep
        self._idle: list[Connection] = []
        """The one used last is at the end, and used again first."""
        self._used: set[Connection] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False

    def take(self) -> Connection:
        """Return a connection for whoever asks alone, until `leave`. Raises ProviderError after `aclose`."""
        if self._closed:
            raise ProviderError("the connections to the model server are closed")
        connection = self._idle.pop() if self._idle else Connection(self._tls, self._drop_idle)
        self._used.add(connection)
        while self._idle and not self._idle[0].is_good:
            self._idle.pop(0).close()
        return connection

    def leave(self, connection: Connection, last: Callable[[], Awaitable[None]] | None = None) -> asyncio.Future[None]:
        """Give a connection back after `last`, what is still to be done with its answer.

        This goes on when the future that is returned is cancelled, or when nobody waits for it.
        """
        task = asyncio.create_task(self._leave(connection, last), name="leave a connection")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return asyncio.shield(task)

    async def _leave(self, connection: Connection, last: Callable[[], Awaitable[None]] | None) -> None:
        try:
            if last:
                await last()
        except faults.FOREIGN as error:
            log.debug("an answer did not end well: %r", error)
        finally:
            self._used.discard(connection)
            if connection.is_good and not self._closed and len(self._idle) < self._keep:
                self._idle.append(connection)
            else:
                connection.close()

    def _drop_idle(self) -> None:
        """Close those that wait: when one of them has ended, the others are no newer."""
        while self._idle:
            self._idle.pop().close()

    async def aclose(self) -> None:
        """Close all of them, also those in use: who still reads is told so, and nobody is cancelled."""
        self._closed = True
        for connection in (*self._idle, *self._used):
            connection.close()
        await asyncio.gather(*self._leaving, return_exceptions=True)
