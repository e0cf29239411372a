"""Plain TCP for httpcore, straight on asyncio.

Source: httpcore, "Network backends" (the documented place for this). Its own backend asks the kernel twice around every
read to stop and start watching the socket, and sends the head and the body of a request apart; for an answer of many
small pieces those system calls are most of the work, and the first of them delay every question.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

import httpcore

MAX_HELD_BYTES: Final = 262_144
SEND_BYTES: Final = 65_536


class TcpBackend(httpcore.AsyncNetworkBackend):
    """Connects by asyncio's own means."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect within `timeout` seconds. Raises httpcore.ConnectTimeout or ConnectError."""
        loop = asyncio.get_running_loop()
        # A race of addresses that is cancelled at its end loses the winner's socket, and one address needs no race.
        stagger_s = None if host.replace(".", "").isdecimal() or ":" in host else 0.25
        try:
            async with asyncio.timeout(timeout):
                transport, stream = await loop.create_connection(TcpStream, host, port, happy_eyeballs_delay=stagger_s)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        try:
            for option in socket_options or ():
                transport.get_extra_info("socket").setsockopt(*option)
        except OSError as error:
            transport.abort()
            raise httpcore.ConnectError(str(error)) from error
        return stream

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await asyncio.sleep(seconds)


class TcpStream(asyncio.Protocol, httpcore.AsyncNetworkStream):
    """One connection. What is written is held until the request is complete, and then sent as one."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._held = bytearray()
        self._ended = False
        self._error: Exception | None = None
        self._paused = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    # httpcore's side

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        """Return what has come, b"" at the end. Raises httpcore.ReadError or ReadTimeout."""
        self._flush()
        if not self._received and not self._ended:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                if timeout is None:
                    await self._reader
                else:
                    async with asyncio.timeout(timeout):
                        await self._reader
            except TimeoutError as error:
                raise httpcore.ReadTimeout(str(error)) from error
            finally:
                self._reader = None
        if not self._received and self._error:
            raise httpcore.ReadError(str(self._error)) from self._error
        return self._take(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Hold `buffer`; an empty one marks the end of a request. Raises httpcore.WriteError or WriteTimeout."""
        if self._error or self._transport is None:
            raise httpcore.WriteError(str(self._error or "not connected"))
        self._held += buffer
        if buffer and len(self._held) < SEND_BYTES:
            return
        self._flush()
        if self._writer:
            try:
                async with asyncio.timeout(timeout):
                    await asyncio.shield(self._writer)
            except TimeoutError as error:
                raise httpcore.WriteTimeout(str(error)) from error

    async def aclose(self) -> None:
        """Close at once; what was not sent is not sent any more."""
        if self._transport:
            self._transport.abort()

    def get_extra_info(self, info: str) -> Any:
        """Tell whether a connection that waits has something to read, which means that it was closed."""
        if info == "is_readable":
            return bool(self._received) or self._ended
        return self._transport.get_extra_info(info) if self._transport else None

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - TCP has no other
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
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writer = self._writer or asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writer and not self._writer.done():
            self._writer.set_result(None)
        self._writer = None

    # both

    def _take(self, max_bytes: int) -> bytes:
        if len(self._received) <= max_bytes:
            data = bytes(self._received)
            self._received.clear()
        else:
            data = bytes(self._received[:max_bytes])
            del self._received[:max_bytes]
        if self._paused and self._transport and len(self._received) < MAX_HELD_BYTES // 2:
            self._paused = False
            self._transport.resume_reading()
        return data

    def _flush(self) -> None:
        if self._held and self._transport:
            self._transport.write(bytes(self._held))
            self._held.clear()

    def _wake(self) -> None:
        if self._reader and not self._reader.done():
            self._reader.set_result(None)
