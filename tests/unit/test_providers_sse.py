"""Event streams in any splitting become the objects that an independent reader finds in them."""

import itertools
import json
import logging
from typing import Any

import httpx
import pytest
from httpx_sse import EventSource
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon.errors import ProviderError
from piagent_daemon.providers.sse import DONE, SseReader

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))
OBJECTS = st.dictionaries(TEXT, st.none() | st.integers(-(1 << 53), 1 << 53) | TEXT | st.lists(TEXT), max_size=3)
WORD = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
NOISE = st.builds(
    lambda name, word: f"{name}: {word}", st.sampled_from(["event", "id", "retry", "", "x-field"]), WORD
) | st.sampled_from(["event", ":"])
EVENTS = st.tuples(OBJECTS, st.booleans(), st.lists(NOISE, max_size=2), st.sampled_from(["data: ", "data:"]))


def read(*pieces: bytes, limit: int = 1 << 20) -> list[dict[str, Any]]:
    reader = SseReader(limit)
    return [value for piece in (*pieces, None) for value in (reader.close() if piece is None else reader.feed(piece))]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(EVENTS, max_size=5), st.sampled_from(["\n", "\r\n"]), st.lists(st.integers(0, 5000), max_size=20))
def test_any_splitting_gives_what_httpx_sse_finds(events: list[Any], newline: str, places: list[int]) -> None:
    lines = []
    for value, pretty, noise, field in events:
        text = json.dumps(value, ensure_ascii=False, indent=1 if pretty else None)
        lines += [*noise, *(field + part for part in text.split("\n")), ""]
    data = "".join(line + newline for line in lines).encode()
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream; charset=utf-8"}, content=data)
    found = [json.loads(event.data) for event in EventSource(response).iter_sse() if event.data]
    assert read(*cut(data, places)) == found == [value for value, *_ in events]


@given(st.lists(st.binary(max_size=40) | OBJECTS.map(lambda value: b"data: " + json.dumps(value).encode() + b"\n\n")))
def test_random_bytes_raise_only_provider_errors_and_any_splitting_gives_the_same_objects(pieces: list[bytes]) -> None:
    def all_of(*parts: bytes) -> tuple[list[dict[str, Any]], bool]:
        reader, found = SseReader(limit=60), []
        try:
            for part in parts:
                found += reader.feed(part)
            found += reader.close()
            found += reader.close()  # a failure that was held back behind good events
        except ProviderError:
            return found, True
        return found, False

    data = b"".join(pieces)
    assert all_of(*(data[at : at + 1] for at in range(len(data)))) == all_of(data)


def test_done_ends_it() -> None:
    found = read(b'data: {"a":1}\n\ndata: [DONE]\n\ndata: {"b":2}\n\nnonsense')
    assert found == [{"a": 1}, DONE]
    assert found[-1] is DONE
    assert read(b"data:[DONE]") == [DONE]
    assert read(b"data: [DONE]\r\n", b"\r\n") == [DONE]


def test_a_broken_event_before_the_end_is_no_end() -> None:
    reader = SseReader()
    assert reader.feed(b'data: {"a":1}\n\ndata: {"a\n\ndata: [DONE]\n\n') == [{"a": 1}]
    with pytest.raises(ProviderError, match="not a JSON object"):
        reader.close()


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html>\n<html>",
        b"data: 3\n\n",
        b"data: [1]\n\n",
        b'{"error": {\n"message": 1}}',
        b"SSH-2.0 x\n",
        b"\xff\n",
    ],
)
def test_what_is_no_stream_of_objects(data: bytes) -> None:
    with pytest.raises(ProviderError, match="not a JSON object"):
        read(data)


def test_errors_outside_of_events() -> None:
    assert read(b'{"error":"Unexpected endpoint"}') == [{"error": "Unexpected endpoint"}]
    assert read(b'error: {"code":500,"message":"x"}\n\n') == [{"error": {"code": 500, "message": "x"}}]


def test_characters_across_reads_and_bad_bytes(caplog: pytest.LogCaptureFixture) -> None:
    data = 'data: {"a":"Zürich 🏠\u2028\u0085"}\n\n'.encode()
    assert read(*(bytes((byte,)) for byte in data)) == [{"a": "Zürich 🏠\u2028\u0085"}]
    with caplog.at_level(logging.WARNING):
        assert read(b'data: {"a":"caf\xff"}\n\n') == [{"a": "caf\ufffd"}]
    assert "U+FFFD" in caplog.text


def test_nothing_grows_without_bound() -> None:
    with pytest.raises(ProviderError, match="longer than 100 bytes"):
        read(*[b"data: aaaaaaaa"] * 20, limit=100)
    with pytest.raises(ProviderError, match="longer than 100 bytes"):
        read(*[b"data: aaaaaaaa\n"] * 20, limit=100)
    reader = SseReader(limit=100)
    assert reader.feed(b'data: {"a":1}\n\n' + b"data: aaaaaaaa\n" * 20) == [{"a": 1}]
    with pytest.raises(ProviderError, match="longer than 100 bytes"):
        reader.feed(b"")
