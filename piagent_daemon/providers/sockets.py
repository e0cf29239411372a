"""One socket to a server, straight on asyncio: what has come is read as it is there, what goes out goes at once."""

import asyncio
import socket
import ssl
from typing import Final

import httpx

MAX_HELD_BYTES: Final = 262_144
PIECE_BYTES: Final = 16_384
"""So much is read at a time: others have their turn in between, also when a server sends thousands of tiny chunks."""
KEEP_ALIVE: list[tuple[int, int, int]] = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
if hasattr(socket, "TCP_USER_TIMEOUT"):
    # A server whose power fails in a long model load says nothing any more: without these it would cost the whole
    # first-token timeout to notice.
    KEEP_ALIVE += [
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
    ]


async def connect(host: str, port: int, tls: ssl.SSLContext | None, timeout_s: float | None) -> "Socket":
    """Connect, and shake hands where there is `tls`. Raises httpx.ConnectTimeout or httpx.ConnectError."""
    loop = asyncio.get_running_loop()
    # A race of addresses that is cancelled at its end loses the winner's socket, and one address needs no race.
    stagger_s = None if host.replace(".", "").isdecimal() or ":" in host else 0.25
    try:
        async with asyncio.timeout(timeout_s):
            transport, connected = await loop.create_connection(
                Socket, host, port, ssl=tls, happy_eyeballs_delay=stagger_s
            )
    except TimeoutError as error:
        raise httpx.ConnectTimeout(str(error)) from error
    except OSError as error:
        raise httpx.ConnectError(str(error)) from error
    try:
        for option in KEEP_ALIVE:
            transport.get_extra_info("socket").setsockopt(*option)
    except OSError as error:
        transport.abort()
        raise httpx.ConnectError(str(error)) from error
    return connected


class Socket(asyncio.Protocol):
    """One connection: for one reader at a time. Nothing of it needs to be waited for when it is given up."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._ended = False
        self._error: Exception | None = None
        self._paused = False
        self._reader: asyncio.Future[None] | None = None

    @property
    def is_quiet(self) -> bool:
        """Tell whether it is open, has nothing to read, and everything that was written has left."""
        transport = self._transport
        return not (self._ended or self._received or transport is None or transport.get_write_buffer_size())

    async def read(self) -> bytes:
        """Return the next of what has come, b"" at the end. Raises httpx.ReadError."""
        if self._received:
            await asyncio.sleep(0)
        elif not self._ended:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if not self._received and self._error:
            raise httpx.ReadError(str(self._error)) from self._error
        data = bytes(self._received[:PIECE_BYTES])
        del self._received[:PIECE_BYTES]
        if self._paused and self._transport and len(self._received) < MAX_HELD_BYTES // 2:
            self._paused = False
            self._transport.resume_reading()
        return data

    def write(self, data: bytes) -> None:
        """Send `data`, in the background what does not go at once; that nobody takes it is told when reading."""
        if self._transport and not self._ended:
            self._transport.write(data)

    def abort(self) -> None:
        """Close at once; what was not sent is not sent any more."""
        if self._transport:
            self._transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TCP and TLS have no other
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > MAX_HELD_BYTES and not self._paused and self._transport:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended, self._error = True, exc
        self._wake()

    def _wake(self) -> None:
        if self._reader and not self._reader.done():
            self._reader.set_result(None)
