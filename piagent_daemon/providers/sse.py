"""Bytes of a server-sent event stream -> the JSON objects in its events.

Source: WHATWG HTML, "Interpreting an event stream". Lines are split as bytes at LF and CRLF, like those of NDJSON and
for the same reasons: a text reader tears characters, splits at U+2028 or holds a line of any length. CR alone, which
the specification allows and nobody sends, does not end a line.
"""

import re
from typing import Any

from piagent_daemon.errors import ProviderError
from piagent_daemon.providers.ndjson import MAX_LINE_BYTES, NdjsonReader

DONE: dict[str, Any] = {"[DONE]": True}
"""Stands for OpenAI's last event, whose data is no JSON; nothing after it is read."""
_FIELD = re.compile(rb"[A-Za-z_-]+(:|$)")


class SseReader(NdjsonReader):
    """Collects bytes in any splitting and gives back the objects of the events they complete, then DONE.

    The data of an event is one JSON object; names of events do not matter, since the objects tell what they are. A
    line of another protocol (an HTML page, a JSON error in place of a stream) is read as JSON, and raises ProviderError
    when it is none. llama-server of 2025 has errors in a field of their own, which become objects like the others.
    """

    __slots__ = ("_data", "_done", "_event_bytes")

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        super().__init__(limit)
        self._data: list[bytes] = []
        self._event_bytes = 0
        self._done = False

    def close(self) -> list[dict[str, Any]]:
        """Return the objects of a last event without its blank line; to be called at the end of the stream."""
        return self.feed(b"\n\n")

    def _objects(self, lines: list[bytes]) -> list[dict[str, Any]]:
        if self._done:
            return []
        found: list[bytes] = []
        too_long = False
        for line in lines:
            if self._done or too_long:
                break
            self._event_bytes += len(line) if line[:5] == b"data:" else 0
            too_long = max(self._event_bytes, len(line)) > self._limit
            if line[-1:] == b"\r":
                line = line[:-1]  # noqa: PLW2901 - the same line without its end
            if line[:5] == b"data:":
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line:
                if self._data:
                    found.append(self._event())
            elif line[:6] == b"error:":
                found.append(b'{"error":%b}' % line[6:])
            elif line[:1] != b":" and not _FIELD.match(line):
                found.append(line)
        if self._done:
            found.pop()
        values = super()._objects(found)
        if too_long:
            self._fail(ProviderError(f"the model server sent an event longer than {self._limit} bytes"), values)
        return [*values, DONE] if self._done and not self._late else values

    def _event(self) -> bytes:
        data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data.clear()
        self._event_bytes = 0
        self._done = data.strip() == b"[DONE]"
        return b"[DONE]" if self._done else data
