"""Bytes from the network -> JSON objects, one a line.

Lines are split as bytes: a text reader would also split at U+0085 and U+2028, which are legal inside JSON strings, and
would tear characters that lie across two reads.
"""

import json
import logging
from typing import Any

from piagent_daemon.errors import ProviderError

log = logging.getLogger("piagent.ndjson")

MAX_LINE_BYTES = 1_048_576
_decode = json.JSONDecoder().raw_decode


class NdjsonReader:
    """Collects bytes in any splitting and gives back the objects of the lines they complete.

    Bytes that are not UTF-8 become U+FFFD, and so do lone surrogates from `\\u` escapes, with one warning for each
    reader. A line that is no JSON object or is longer than `limit` bytes raises ProviderError, after the objects before
    it were given back.
    """

    __slots__ = ("_held", "_limit", "_size", "_warned", "late")

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._held: list[bytes] = []
        self._size = 0
        self.late: ProviderError | None = None
        """What is wrong behind the objects that were given back."""
        self._warned = False

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Return the objects of the lines that `data` completes."""
        if self.late:
            raise self.late
        lines = data.split(b"\n")
        rest = lines.pop()
        if lines and self._held:
            self._held.append(lines[0])
            lines[0] = b"".join(self._held)
            self._held.clear()
            self._size = 0
        found = self._objects(lines) if lines else []
        if rest:
            self._held.append(rest)
            self._size += len(rest)
            if self._size > self._limit:
                self._held.clear()
                self._fail(ProviderError(_too_long(self._limit)), found)
        return found

    def close(self) -> list[dict[str, Any]]:
        """Return the object of a last line without a newline; to be called at the end of the stream."""
        return self.feed(b"\n") if self._held else self.feed(b"")

    def _objects(self, lines: list[bytes]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for line in lines:
            try:
                # Nearly every line of an answer is plain: this is the way of a token, the careful reading costs double.
                text = line.decode()
                value, end = _decode(text) if len(line) <= self._limit else (None, 0)
                if end == len(text) and type(value) is dict and "\\u" not in text:
                    found.append(value)
                    continue
            except (ValueError, RecursionError):
                pass
            try:
                value = self._parse(line)
            except ProviderError as error:
                self._fail(error, found)
                break
            if value is not None:
                found.append(value)
        return found

    def _fail(self, error: ProviderError, found: list[dict[str, Any]]) -> None:
        self.late = self.late or error
        if not found:
            raise self.late

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        if len(line) > self._limit:
            raise ProviderError(_too_long(self._limit))
        try:
            text = line.decode().strip()
        except UnicodeDecodeError:
            text = line.decode(errors="replace").strip()
            self.warn("bytes that are not UTF-8")
        text = text.removeprefix("\ufeff")  # a byte order mark says nothing
        if not text:
            return None
        try:
            value, end = _decode(text)
            if type(value) is dict and end == len(text):
                clean = without_surrogates(value) if "\\ud" in text or "\\uD" in text else value
                if clean != value:
                    self.warn("half of a surrogate pair")
                return clean
        except (ValueError, RecursionError):
            pass
        raise ProviderError(f"the model server sent a line that is not a JSON object: {_excerpt(line)}")

    def warn(self, what: str) -> None:
        """Log, once, that something of the answer cannot be shown."""
        if not self._warned:
            self._warned = True
            log.warning("the model server sent %s; it is shown as U+FFFD", what)


def without_surrogates(value: Any) -> Any:
    """Return a JSON value with U+FFFD for each half of a surrogate pair, which no UTF-8 text can hold."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    return [without_surrogates(item) for item in value] if isinstance(value, list) else value


def _too_long(limit: int) -> str:
    return f"the model server sent a line longer than {limit} bytes"


def _excerpt(line: bytes) -> str:
    return repr(line[:200])[:200]
