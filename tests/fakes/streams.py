"""A TCP server on loopback that is gone, with all its connections, when its block is left."""

import asyncio
import contextlib
from typing import Final, Self

ACCEPT_TURNS: Final = 4
"""Turns of the loop from a connection's arrival until its protocol hears of it."""


async def settle() -> None:
    """Let connections that came in at the last moment be made, and those that are closed be gone."""
    for _ in range(ACCEPT_TURNS):
        await asyncio.sleep(0)


async def close(server: asyncio.Server) -> None:
    """Close a port. A connection that is being accepted is made first: a closed server would lose its socket."""
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener.fileno())
    await settle()
    server.close()


class StreamServer:
    """An async context manager that runs `serve` for each connection; `port` is known inside the block."""

    def __init__(self) -> None:
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server
        await close(self._server)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await settle()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Talk with one client; the connection is closed afterwards, and when the client leaves."""
        raise NotImplementedError

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self.serve(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()
