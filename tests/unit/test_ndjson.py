"""Bytes in any splitting become the same objects, and bad bytes only ever a ProviderError."""

import itertools
import json
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon.errors import ProviderError
from piagent_daemon.providers.ndjson import MAX_LINE_BYTES, NdjsonReader

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=4)


def read(*pieces: bytes, limit: int = MAX_LINE_BYTES) -> list[dict[str, Any]]:
    reader = NdjsonReader(limit)
    found = [value for piece in pieces for value in reader.feed(piece)]
    return [*found, *reader.close()]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(OBJECTS), st.booleans(), st.booleans(), st.lists(st.integers(0, 10_000), max_size=20))
def test_any_splitting_gives_the_same_objects(
    values: list[dict[str, Any]], ascii_only: bool, last_newline: bool, places: list[int]
) -> None:
    data = b"\n".join(json.dumps(value, ensure_ascii=ascii_only).encode() for value in values)
    assert read(*cut(data + b"\n" * last_newline, places)) == values


@given(st.lists(st.binary(max_size=60) | OBJECTS.map(lambda value: json.dumps(value).encode() + b"\n"), max_size=8))
def test_random_bytes_raise_only_provider_errors_and_any_splitting_gives_the_same_objects(pieces: list[bytes]) -> None:
    def all_of(*parts: bytes) -> tuple[list[dict[str, Any]], str]:
        reader, found = NdjsonReader(limit=40), []
        try:
            for part in parts:
                found += reader.feed(part)
            found += reader.close()
            found += reader.close()  # a failure that was held back behind good lines
        except ProviderError as error:
            return found, str(error)
        return found, ""

    data = b"".join(pieces)
    whole = all_of(data)
    single = all_of(*(data[at : at + 1] for at in range(len(data))))
    assert single[0] == whole[0]
    assert bool(single[1]) == bool(whole[1])


def test_separators_inside_strings_do_not_split_lines() -> None:
    assert read('{"a":"one\u0085two\u2028three\u2029"}\r\n\r\n {"b":1} \n'.encode()) == [
        {"a": "one\u0085two\u2028three\u2029"},
        {"b": 1},
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"[1]",
        b"3",
        b"null",
        b"<!DOCTYPE html>",
        b'{"a":1} {"b":2}',
        b'{"a":tr',
        b"\x00",
        b"[" * 100_000,
        b'{"a":' * 9000,
    ],
)
def test_a_line_that_is_no_object_is_named_and_cut(line: bytes) -> None:
    with pytest.raises(ProviderError, match="not a JSON object") as caught:
        read(line + b"\n")
    assert len(str(caught.value)) < 300


def test_objects_before_a_bad_line_come_first() -> None:
    reader = NdjsonReader()
    assert reader.feed(b'{"a":1}\nbad\n{"b":2}\n') == [{"a": 1}]
    with pytest.raises(ProviderError, match="bad"):
        reader.feed(b'{"c":3}\n')


def test_a_line_without_end_is_refused_at_the_limit() -> None:
    reader = NdjsonReader(limit=1000)
    assert reader.feed(b"a" * 1000) == []
    with pytest.raises(ProviderError, match="longer than 1000 bytes"):
        reader.feed(b"a")


def test_a_long_line_in_one_piece_is_refused() -> None:
    with pytest.raises(ProviderError, match="longer than 100 bytes"):
        read(json.dumps({"a": "b" * 100}).encode() + b"\n", limit=100)


def test_bytes_that_are_no_utf8_are_replaced_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "piagent.ndjson"):
        assert read(b'{"a":"caf\xff"}\n{"a":"\xe2\x82"}\n') == [{"a": "caf�"}, {"a": "�"}]
    assert len(caplog.records) == 1
    assert "U+FFFD" in caplog.text


def test_lone_surrogates_are_replaced_and_pairs_kept() -> None:
    value = {"a": ["\\ud83d\\ude00 \\ud83d x", {"\\udc00": "\\\\ud800"}]}
    text = json.dumps(value).replace("\\\\", "\\")
    [found] = read(text.encode() + b"\n")
    assert found == {"a": ["😀 � x", {"�": "\\ud800"}]}
    json.dumps(found, ensure_ascii=False).encode()
