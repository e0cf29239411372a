"""Answers that come as server-sent events: httpx-sse reads them, under our deadlines and bounds.

Source: WHATWG HTML, "Interpreting an event stream". Loaded with the first question, as httpx is.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx
from httpx_sse import EventSource

from piagent_daemon.errors import ProviderError
from piagent_daemon.providers.answer import DONE
from piagent_daemon.providers.client import Http, LineStream
from piagent_daemon.providers.deadlines import Deadlines
from piagent_daemon.providers.ndjson import MAX_LINE_BYTES

KIND = {"Content-Type": "text/event-stream; charset=utf-8-sig"}
"""What httpx-sse wants to see, and not every server says; `-sig`, since a byte order mark at the start says nothing."""
ERROR = b"error:"
UNREADABLE = "\ufffd"


class EventStream(LineStream):
    """An answer whose events hold one JSON object each; their names do not matter, the objects tell what they are.

    Data that is no such object, and an event larger than MAX_LINE_BYTES, raise ProviderError.
    """

    def __init__(self, http: Http, response: httpx.Response, deadlines: Deadlines, model: str) -> None:
        super().__init__(http, response, deadlines, model)
        self._held = 0
        """Bytes that came since the last event."""
        self._last = b""
        """What came last from the network."""
        self._any = False
        self._events = EventSource(httpx.Response(200, headers=KIND, stream=_Body(self._bytes()))).aiter_sse()

    async def read(self) -> list[dict[str, Any]]:
        """Return the object of the next event, or DONE; at the end of the stream sets `ended`."""
        try:
            event = await anext(self._events)
        except StopAsyncIteration:
            self.ended = True
            return self._outside_events()
        self._held, self._any = 0, True
        if UNREADABLE in event.data and UNREADABLE.encode() not in self._last:  # httpx put it there
            self._reader.warn("bytes that are not UTF-8")
        if event.data.strip() == "[DONE]":
            return [DONE]
        # a line break in JSON stands between its parts only
        return self._reader.feed(event.data.replace("\n", " ").encode() + b"\n") if event.data else []

    async def aclose(self) -> None:
        """Leave the events."""
        await self._events.aclose()

    async def _bytes(self) -> AsyncGenerator[bytes, None]:
        while data := await self.receive():
            self._held += len(data)
            if self._held > MAX_LINE_BYTES:
                raise ProviderError(f"the model server sent an event longer than {MAX_LINE_BYTES} bytes")
            self._last = data
            yield data
        yield b"\n\n"  # some servers end without the blank line that ends the last event

    def _outside_events(self) -> list[dict[str, Any]]:
        """Return what stands in place of events: llama-server of 2025 has a field of its own for errors, others send an
        error or a page where a stream should be."""
        errors = [line.removeprefix(ERROR).strip() for line in self._last.splitlines() if line.startswith(ERROR)]
        if errors:
            return self._reader.feed(b'{"error":%b}\n' % errors[-1])
        if self._any:
            return []
        found = self._reader.feed(b" ".join(self._last.splitlines()) + b"\n")
        return [value if "error" in value else {"error": value} for value in found]


class _Body(httpx.AsyncByteStream):
    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._parts
