"""The connections to one server, each of them for one question at a time.

Questions share no pool: httpcore's locks are points at which asyncio may cancel, and a cancellation that comes while a
connection opens or closes would keep its place in the pool for ever. Here one that did not come to a good end is thrown
away with all that belongs to it.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final

import httpcore
import httpx

from piagent_daemon.errors import ProviderError
from piagent_daemon.providers import faults
from piagent_daemon.providers.sockets import TcpBackend

log = logging.getLogger("piagent.providers")

KEEP_S: Final = 60.0
_KEEP_ALIVE: list[tuple[int, int, int]] = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
if hasattr(socket, "TCP_USER_TIMEOUT"):
    # A server whose power fails in a long model load says nothing any more: without these it would cost the whole
    # first-token timeout to notice.
    _KEEP_ALIVE += [
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
    ]


class Connection(httpx.AsyncHTTPTransport):
    """One connection as a transport of httpx: made when it is needed, and anew when it has ended meanwhile.

    The end of a kept connection is not taken for the failure of a server, which may close it between two requests at
    any moment, also in the one in which the next is sent. Source: RFC 9112, section 9.3.1.
    """

    def __init__(self, tls: ssl.SSLContext | None, on_end: Callable[[], None] | None = None) -> None:
        """Open nothing yet; the base class would make a TLS context of its own. `tls` is None for `http://`.

        `on_end` is called when a kept connection had ended.
        """
        self._on_end = on_end
        self._closed = False
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=1,
            keepalive_expiry=KEEP_S,
            socket_options=_KEEP_ALIVE,
            network_backend=None if tls else TcpBackend(),
        )

    @property
    def is_good(self) -> bool:
        """Tell whether it is there, the last answer was read to its end, and the server has not closed it."""
        found = self._pool.connections
        return bool(found) and all(one.is_idle() and not one.has_expired() for one in found)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; once more at once when it went over a kept connection that ended without an answer."""
        connected, opened = False, None

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            nonlocal connected, opened
            if event == "connection.connect_tcp.started":
                connected = True
            elif event == "connection.connect_tcp.complete":
                opened = info["return_value"]
            elif event == "connection.start_tls.failed" and opened:
                await opened.aclose()  # httpcore does so for errors, and lets it lie after a cancellation

        request.extensions = {**request.extensions, "trace": trace}
        try:
            return await self._ask(request)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
            protocol = isinstance(error, httpx.RemoteProtocolError)
            if connected or self._closed or (protocol and "without sending a response" not in str(error)):
                raise
            log.debug("a kept connection had ended: %r", error)
        if self._on_end:
            self._on_end()
        await self._pool.aclose()
        return await self._ask(request)

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        if self._closed:  # while it connected: httpcore had nothing to close yet
            await response.aclose()
            raise httpx.ReadError("the connection was closed")
        return response

    async def aclose(self) -> None:
        """Close it for good."""
        self._closed = True
        await super().aclose()


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
            self._drop(self._idle.pop(0))
        return connection

    def leave(self, connection: Connection, last: Callable[[], Awaitable[None]] | None = None) -> asyncio.Future[None]:
        """Give a connection back after `last`, what is still to be done with its answer.

        This goes on when the future that is returned is cancelled, or when nobody waits for it.
        """
        return asyncio.shield(self._aside(self._leave(connection, last)))

    async def _leave(self, connection: Connection, last: Callable[[], Awaitable[None]] | None) -> None:
        try:
            if last:
                await last()
        except faults.FOREIGN as error:
            log.debug("an answer did not end well: %r", error)
        finally:
            if connection.is_good and not self._closed and len(self._idle) < self._keep:
                self._idle.append(connection)
                self._used.discard(connection)
            else:
                await self._close(connection)

    def _drop_idle(self) -> None:
        """Close those that wait: when one of them has ended, the others are no newer."""
        while self._idle:
            self._drop(self._idle.pop())

    def _drop(self, connection: Connection) -> None:
        self._used.add(connection)
        self._aside(self._close(connection))

    async def _close(self, connection: Connection) -> None:
        await connection.aclose()
        self._used.discard(connection)

    def _aside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="leave a connection")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        return task

    async def aclose(self) -> None:
        """Close all of them, also those in use."""
        self._closed = True
        leaving = list(self._leaving)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        for connection in (*self._idle, *self._used):
            await connection.aclose()
