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
PAGE_BYTES = 8192


class EventStream(LineStream):
    """An answer whose events hold one JSON object each, which tell what they are; of their names only `error` matters.

    Data that is no such object, and an event larger than MAX_LINE_BYTES, raise ProviderError. Errors beside the events
    become objects, too: llama-server of 2025 has a field of its own for them, others send a line of JSON.
    """

    def __init__(self, http: Http, response: httpx.Response, deadlines: Deadlines, model: str) -> None:
        super().__init__(http, response, deadlines, model)
        self._held = 0
        """Bytes that came since the last event."""
        self._page: bytearray | None = bytearray()
        """The beginning of what came, as long as there was no event."""
        self._line = self._error = b""
        self._unreadable = False
        self._events = EventSource(httpx.Response(200, headers=KIND, stream=_Body(self._bytes()))).aiter_sse()

    async def read(self) -> list[dict[str, Any]]:
        """Return the object of the next event, an error beside the events, or DONE; at the end sets `ended`."""
        try:
            event = await anext(self._events)
        except StopAsyncIteration:
            self.ended = True
            return self._beside() or self._object(bytes(self._page or b""))
        self._held, self._page = 0, None
        if self._unreadable and UNREADABLE in event.data:  # httpx put it there
            self._reader.warn("bytes that are not UTF-8")
        if event.data.strip() == "[DONE]":
            return [*self._beside(), DONE]
        # a line break in JSON stands between its parts only
        found = self._reader.feed(event.data.replace("\n", " ").encode() + b"\n") if event.data else []
        return _errors(found) if event.event == "error" else found

    async def aclose(self) -> None:
        """Leave the events."""
        await self._events.aclose()

    async def _bytes(self) -> AsyncGenerator[bytes, None]:
        while data := await self.receive():
            self._held += len(data)
            if self._held > MAX_LINE_BYTES:
                raise ProviderError(f"the model server sent an event longer than {MAX_LINE_BYTES} bytes")
            self._unreadable = UNREADABLE.encode() not in data
            self._look_beside(data)
            yield data
        self._look_beside(b"\n")
        yield b"\n\n"  # some servers end without the blank line that ends the last event

    def _look_beside(self, data: bytes) -> None:
        """Keep the newest error that is no event, and what may be a page or an error in place of all events."""
        if self._page is not None and len(self._page) < PAGE_BYTES:
            self._page += data
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > PAGE_BYTES:
            self._line = b" "  # it is no error, or too long for one
        for line in lines:
            if line.startswith(ERROR):
                self._error = b'{"error":%b}' % line.removeprefix(ERROR).strip()
            elif line.startswith(b"{") and line.rstrip().endswith(b"}"):
                self._error = line

    def _beside(self) -> list[dict[str, Any]]:
        error, self._error = self._error, b""
        if error:
            self._page = None
        return self._object(error)

    def _object(self, text: bytes) -> list[dict[str, Any]]:
        return _errors(self._reader.feed(b" ".join(text.splitlines()) + b"\n")) if text.strip() else []


def _errors(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [value if "error" in value else {"error": value} for value in found]


class _Body(httpx.AsyncByteStream):
    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._parts
