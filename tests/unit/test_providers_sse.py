"""Event streams in any splitting become the objects in their events, within bounds."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon.errors import ProviderError
from piagent_daemon.providers.answer import DONE
from piagent_daemon.providers.client import Http
from piagent_daemon.providers.deadlines import Deadlines
from piagent_daemon.providers.ndjson import MAX_LINE_BYTES
from piagent_daemon.providers.sse import EventStream

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))
OBJECTS = st.dictionaries(TEXT, st.none() | st.integers(-(1 << 53), 1 << 53) | TEXT | st.lists(TEXT), max_size=3)
WORD = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
NOISE = st.builds(
    lambda name, word: f"{name}: {word}", st.sampled_from(["event", "id", "retry", "", "x-field"]), WORD
) | st.sampled_from(["event", ":"])
EVENTS = st.tuples(OBJECTS, st.booleans(), st.lists(NOISE, max_size=2), st.sampled_from(["data: ", "data:"]))


class Network(httpx.AsyncByteStream):
    """Brings these pieces, one a read."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def read(*pieces: bytes) -> list[dict[str, Any]]:
    """Return all that a stream of these pieces holds."""

    async def run() -> list[dict[str, Any]]:
        response = httpx.Response(200, stream=Network([piece for piece in pieces if piece]))
        stream = EventStream(cast("Http", None), response, Deadlines(5), "m")
        found = []
        while not stream.ended:
            found += await stream.read()
        await stream.aclose()
        return found

    return asyncio.run(run())


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(EVENTS, max_size=5), st.sampled_from(["\n", "\r\n", "\r"]), st.lists(st.integers(0, 5000), max_size=20))
def test_any_splitting_gives_the_same_objects(events: list[Any], newline: str, places: list[int]) -> None:
    lines = []
    for value, pretty, noise, field in events:
        text = json.dumps(value, ensure_ascii=False, indent=1 if pretty else None)
        lines += [*noise, *(field + part for part in text.split("\n")), ""]
    data = "".join(line + newline for line in lines).encode()
    assert read(*cut(data, places)) == [value for value, *_ in events]


@given(st.lists(st.binary(max_size=40) | OBJECTS.map(lambda value: b"data: " + json.dumps(value).encode() + b"\n\n")))
def test_random_bytes_raise_only_provider_errors(pieces: list[bytes]) -> None:
    try:
        read(*pieces)
    except ProviderError as error:
        assert "not a JSON object" in str(error)  # noqa: PT017 - it need not fail


def test_done_and_the_last_event_without_its_blank_line() -> None:
    found = read(b'data: {"a":1}\n\ndata: [DONE]\n\n')
    assert found == [{"a": 1}, DONE]
    assert found[-1] is DONE
    assert read(b"data:[DONE]") == [DONE]
    assert read(b"data: [DONE]\r\n", b"\r\n") == [DONE]
    assert read(b'data: {"a":\n', b"data: 1}") == [{"a": 1}]
    assert read(b'\xef\xbb\xbfdata: {"a":1}\n\n') == [{"a": 1}], "a byte order mark says nothing"


@pytest.mark.parametrize("data", [b"data: 3\n\n", b"data: [1]\n\n", b'data: {"a\n\n', b"data: SSH-2.0 x\n\n"])
def test_data_that_is_no_object(data: bytes) -> None:
    with pytest.raises(ProviderError, match="not a JSON object"):
        read(data)


def test_what_stands_where_a_stream_should_be() -> None:
    assert read(b'{"error":"Unexpected endpoint"}') == [{"error": "Unexpected endpoint"}]
    assert read(b'{\n "detail": "not here"\n}') == [{"error": {"detail": "not here"}}]
    with pytest.raises(ProviderError, match=r"not a JSON object: .*html"):
        read(b"<!DOCTYPE html>\n", b"<html>no</html>")
    assert read(b"") == []


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b"\n\ndata: [DONE]\n\n"])
@pytest.mark.parametrize("before", [b"", b'data: {"a":1}\n\n'])
@pytest.mark.parametrize("line", [b'error: {"message":"x"}', b'{"error":{"message":"x"}}'])
def test_an_error_beside_the_events_is_found_however_it_is_cut(line: bytes, before: bytes, end: bytes) -> None:
    data = before + line + end
    wanted = [{"a": 1}] * bool(before) + [{"error": {"message": "x"}}] + [DONE] * (b"DONE" in end)
    for at in range(len(data)):
        assert read(data[:at], data[at:]) == wanted
    assert read(*(bytes((byte,)) for byte in data)) == wanted


def test_an_error_in_a_field_of_its_own() -> None:
    assert read(b'error: {"code":500,"message":"x"}\n\n') == [{"error": {"code": 500, "message": "x"}}]
    assert read(b'data: {"a":1}\n\n', b'error: {"message":"x"}\n\n') == [{"a": 1}, {"error": {"message": "x"}}]


def test_an_event_that_is_named_an_error() -> None:
    assert read(b'event: error\ndata: {"message":"x"}\n\n') == [{"error": {"message": "x"}}]
    assert read(b'event: error\ndata: {"type":"error","error":{"message":"x"}}\n\n') == [
        {"type": "error", "error": {"message": "x"}}
    ]
    assert read(b'event: error\n\ndata: {"a":1}\n\n') == [{"a": 1}]


def test_characters_across_reads_and_bad_bytes(caplog: pytest.LogCaptureFixture) -> None:
    data = 'data: {"a":"Zürich 🏠\u2028\u0085"}\n\n'.encode()
    assert read(*(bytes((byte,)) for byte in data)) == [{"a": "Zürich 🏠\u2028\u0085"}]
    for odd in (b"\xff", b"\\ud83d"):
        caplog.clear()
        assert read(b'data: {"a":"caf%b"}\n\n' % odd) == [{"a": "caf\ufffd"}]
        assert "U+FFFD" in caplog.text
    caplog.clear()
    assert read('data: {"a":"\ufffd"}\n\n'.encode()) == [{"a": "\ufffd"}], "a model may say that by itself"
    assert not caplog.text


def test_nothing_grows_without_bound() -> None:
    many = MAX_LINE_BYTES // 65_000 + 2
    for endless in (b"data: " + b"a" * 65_000, b": comment" + b"a" * 65_000 + b"\n", b"data: aaa\n" * 6500):
        with pytest.raises(ProviderError, match=f"longer than {MAX_LINE_BYTES} bytes"):
            read(*[endless] * many)
    event = b'data: {"a":"%b"}\n\n' % (b"a" * 65_000)
    assert len(read(*[event] * many)) == many
