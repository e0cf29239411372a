"""Payloads in, payloads out (contract sections 2 and 3)."""

import base64
import json
import re
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import from_json

from piagent_daemon import problems, wire
from piagent_daemon.contract import Request
from piagent_daemon.errors import Busy, InvalidRequest, OutOfBounds
from piagent_daemon.settings import Settings
from piagent_daemon.wire import (
    MAX_VALUES,
    check_values,
    fields_in,
    is_own_event,
    names_in,
    parse_cancel,
    parse_request,
    refusal,
)
from tests.fakes.doubles import FakeClock
from tests.fakes.pictures import encoded, gif

SETTINGS = Settings(max_image_bytes=16, max_message_chars=50, max_payload_bytes=2000)


def parse(value: Any) -> Request:
    payload = value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()
    return parse_request(payload, SETTINGS)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("turn on the light", "turn on the light"),
        ("  spaces \n", "spaces"),
        ('"a JSON string"', "a JSON string"),
        ('"with \\u00fc\\nline"', "with ü\nline"),
        ("42", "42"),
        (" 7.50 ", "7.50"),
        ("true", "true"),
        ("null", "null"),
        ("[1, 2]", "[1, 2]"),
        ('"unfinished', '"unfinished'),
        ('{"message": "hi"}', "hi"),
        (' {"text": "hi"}', "hi"),
    ],
)
def test_anything_but_an_object_is_the_message_itself(payload: str, message: str) -> None:
    assert parse(payload).message == message


@pytest.mark.parametrize("wrap", [str, lambda text: {"message": text}])
def test_the_length_is_counted_without_the_space_around_it(wrap: Callable[[str], Any]) -> None:
    assert parse(wrap(" " * 50 + "x" * 50 + "\n")).message.strip() == "x" * 50
    with pytest.raises(InvalidRequest):
        parse(wrap("x" * 51))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("{not json", "not valid JSON"),
        ('{"message": "a", "message": }', "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        ("   ", "empty"),
        ({"message": ""}, "empty"),
        ({}, '"message" is missing'),
        ({"message": "hi", "agnet": "voice"}, 'Unknown field "agnet"'),
        ({"message": "hi", "text": "ho"}, 'either "message" or "text"'),
        ({"message": 5}, '"message"'),
        ({"message": "x" * 51}, "51 characters"),
        ({"message": "x" * 2000}, "bytes"),
        ({"message": "hi", "id": ""}, '"id"'),
        ({"message": "hi", "id": "x" * 129}, '"id"'),
        ({"message": "hi", "stream": "words"}, '"stream'),
        ({"message": "hi", "interrupt": "yes"}, '"interrupt"'),
        ({"message": "hi", "options": {"num_ctx": 8192}}, 'Unknown field "options.num_ctx"'),
        ({"message": "hi", "options": {"temperature": "hot"}}, '"options.temperature"'),
        ({"message": "hi", "options": {"stop": "x"}}, '"options.stop"'),
        ({"message": "hi", "options": {"num_predict": 0}}, '"options.num_predict"'),
        ({"message": "hi", "images": ["not base64!"]}, '"images.0"'),
        ({"message": "hi", "images": [""]}, '"images.0"'),
        ({"message": "hi", "images": [base64.b64encode(b"x" * 17).decode()]}, '"images.0" is empty or larger'),
        ({"message": "hi", "images": [base64.b64encode(b"x" * 100).decode()]}, '"images.0" is larger than 16'),
        ({"message": "hi", "images": [base64.b64encode(b"hello").decode()]}, '"images.0" is not a PNG'),
        ({"message": "hi", "images": [encoded(gif()), encoded(gif(0, 1))]}, '"images.1" begins like a GIF'),
        ({"message": "hi", "images": [encoded(gif(20_000, 1))]}, "20000 x 1 pixels"),
        ({"message": "hi", "files": [{"name": "a"}]}, '"files.0"'),
        ({"message": "hi", "files": [{"name": "a", "text": "b", "path": "c"}]}, '"files.0"'),
        ({"message": "hi", "expires_s": -1}, '"expires_s"'),
        ({"message": "hi", "metadata": []}, '"metadata"'),
        ({"message": "hi", "stream": "yes"}, """The field "stream" should be a valid boolean or 'sentences'."""),
        ({"message": "hi", "format": 5}, """The field "format" should be 'json' or an object."""),
        ({"message": "hi", "context": [1]}, 'The field "context" should be a valid string or an object.'),
        ({"message": "hi", "id": ""}, 'The field "id" should have at least 1 character.'),
        (
            {"message": "hi", "files": [{"name": "a"}]},
            '"files.0" is not valid: give either "name" and "text", or "path".',
        ),
        ({"message": "hi", "options": {"str": 1}}, 'Unknown field "options.str"'),
    ],
)
def test_a_bad_request_is_refused_by_naming_what_is_wrong(value: Any, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(value)
    assert says in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert not re.search(r"Input|Value error|\[|\^", str(caught.value)), "what pydantic says to programmers"


def test_every_field_of_a_request_is_read() -> None:
    image = encoded(gif())
    asked = {
        "message": "what is it?",
        "id": "r1",
        "agent": "voice",
        "stream": "sentences",
        "interrupt": True,
        "model": "m",
        "options": {
            "temperature": 0,
            "top_p": 0.9,
            "top_k": 1,
            "min_p": 0.1,
            "repeat_penalty": 1.1,
            "seed": 1,
            "stop": ["x"],
            "num_predict": 5,
        },
        "format": {"type": "object"},
        "images": [image, f"data:image/png;base64,{image}"],
        "files": [{"name": "a.txt", "text": "b"}, {"path": "c.txt"}],
        "context": {"room": "kitchen"},
        "metadata": {"any": ["thing"]},
        "expires_s": 5,
        "conversation_id": "kitchen",
    }
    read = parse(asked)
    assert read.model_dump(exclude_none=True) == asked


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_refused(payload: bytes) -> None:
    with suppress(InvalidRequest):
        read = parse_request(payload, SETTINGS)
        assert 0 < len(read.message) <= 50
        read.message.encode()


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda part: st.lists(part) | st.dictionaries(st.text(), part),
        max_leaves=5,
    )
)
def test_any_json_is_a_request_or_refused(value: Any) -> None:
    with suppress(InvalidRequest):
        assert parse(json.dumps(value)).message


@given(st.binary(max_size=300))
def test_looking_into_any_bytes_never_fails(payload: bytes) -> None:
    assert names_in(payload).request_id is None or payload
    assert names_in(payload).metadata == {} or payload
    assert is_own_event(payload) in {True, False}


def test_our_own_event_is_known_however_it_is_written() -> None:
    event = refusal(Busy("full"), conversation_id="c", request_id="r", clock=FakeClock())
    assert is_own_event(event.encode())
    assert is_own_event(json.dumps(json.loads(event.encode()), indent=2).encode())
    for kind in ("[]", "{}", "null", "7", '"noise"'):
        assert not is_own_event(b'{"conversation_id":"k","request_id":"a","seq":0,"type":%s}' % kind.encode())
    assert not is_own_event(b'{"message": "what is a \\"request_id\\" and a \\"seq\\"?"}')


def test_a_refused_request_keeps_its_id_and_metadata() -> None:
    payload = b'{"id": "r1", "metadata": {"a": 1}, "nonsense": true}'
    assert names_in(payload).request_id == "r1"
    assert names_in(payload).metadata == {"a": 1}


def test_half_an_emoji_does_not_cost_a_request_its_name() -> None:
    payload = b'{"id": "r1", "conversation_id": "kitchen", "message": "hi", "metadata": {"note": "\\ud83d"}}'
    with pytest.raises(InvalidRequest, match="not valid JSON in Unicode"):
        parse(payload)
    assert names_in(payload) == ("kitchen", "r1", {})


@pytest.mark.parametrize("metadata", ['{"a": "\\ud800"}', '{"a": ' + "[" * 400 + "]" * 400 + "}"])
def test_metadata_that_cannot_be_written_again_is_not_echoed(metadata: str) -> None:
    payload = f'{{"message": "x", "metadata": {metadata}}}'.encode()
    with pytest.raises(InvalidRequest):
        parse_request(payload, SETTINGS)
    echoed = names_in(payload).metadata
    event = refusal(Busy("full"), conversation_id="c", request_id="r", clock=FakeClock(), metadata=echoed)
    assert event.encode()
    assert echoed == {}


@given(st.binary(max_size=60).map(lambda rest: b'{"message": 5, "metadata": {"a": ' + rest + b"}}"))
def test_any_refusal_can_be_written(payload: bytes) -> None:
    _, request_id, echoed = names_in(payload)
    event = refusal(Busy("x"), conversation_id="c", request_id=request_id or "r", clock=FakeClock(), metadata=echoed)
    assert event.encode()


def test_a_byte_order_mark_before_an_object_is_no_speech() -> None:
    assert parse(b'\xef\xbb\xbf{"message": "hi"}').message == "hi"


# ------------------------------------------------------------------------------------- one message holds nobody up


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each parser was given, in turn."""
    given: list[int] = []

    def counted(parse: Callable[..., Any]) -> Callable[..., Any]:
        def spy(payload: Any, **how: Any) -> Any:
            given.append(len(payload))
            return parse(payload, **how)

        return spy

    monkeypatch.setattr(wire, "from_json", counted(from_json))
    monkeypatch.setattr(wire, "json", SimpleNamespace(loads=counted(json.loads)))
    monkeypatch.setattr(wire, "_parse_object", counted(wire._parse_object))
    return given


LARGE = Settings(max_message_chars=10_000_000)
CROWD = b"[]," * 2_700_000
HALF = b'"\\ud83d"'
CROWDED = {
    "arrays": b'"context":[%s[]]}' % CROWD,
    "arrays in an object": b'"context":{"a":[%s[]]}}' % CROWD,
    "metadata": b'"metadata":{"a":[%s[]]}}' % CROWD,
    "images": b'"images":[%s1]}' % (b"1," * 4_000_000),
    "files": b'"files":[%s{}]}' % (b"{}," * 2_700_000),
    "stop words": b'"options":{"stop":[%s""]}}' % (b'"",' * 2_700_000),
    "unknown fields": b",".join(b'"k%d":1' % number for number in range(700_000)) + b"}",
    "half an emoji": b'"context":[%s%s]}' % (CROWD, HALF),
    "no JSON": b'"context":[%s' % CROWD,
    "quotes": b'"context":"' + b'"' * 8_000_000,
}


@pytest.mark.parametrize("rest", CROWDED.values(), ids=CROWDED)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte order mark"])
def test_a_payload_of_too_many_values_is_refused_unread_and_keeps_its_names(
    parsed: list[int], mark: bytes, rest: bytes
) -> None:
    payload = mark + b'{"id":"r1","conversation_id":"kitchen","message":"hi",' + rest
    with pytest.raises(OutOfBounds, match="50000"):
        parse_request(payload, LARGE)
    assert not parsed
    assert names_in(payload)[:2] == ("kitchen", "r1")
    assert max(parsed) <= MAX_VALUES
    assert len(parsed) == 1


def test_endless_depth_is_not_read_either(parsed: list[int]) -> None:
    payload = b'{"id":"r1","context":' + b"[" * 8_000_000
    with pytest.raises(OutOfBounds):
        parse_request(payload, LARGE)
    assert names_in(payload) == (None, None, {})
    assert max(parsed) <= MAX_VALUES


def test_of_a_payload_of_too_many_values_nothing_is_echoed_in_part() -> None:
    crowd = b'{"id":"r1","metadata":{"a":1},"context":[%s[]]}' % CROWD
    assert names_in(crowd) == (None, "r1", {"a": 1})
    assert names_in(b'{"id":"r1","metadata":{"a":[%s[]]}}' % CROWD) == (None, "r1", {})
    assert names_in(b"[%s[]]" % CROWD) == (None, None, {})


def test_a_payload_far_larger_than_any_that_is_taken_is_not_read_to_its_end(
    parsed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "MAX_LOOKED_INTO_BYTES", 100_000)
    assert names_in(b'{"id":"r1","message":"%s"}' % (b"x" * 200_000)).request_id == "r1"
    assert max(parsed) <= MAX_VALUES


def test_a_refused_payload_is_parsed_once_for_all_its_names(parsed: list[int]) -> None:
    payload = b'{"id":"r1","conversation_id":"k","message":5,"metadata":{"a":1}}'
    assert names_in(payload) == ("k", "r1", {"a": 1})
    assert parsed == [len(payload)]


@pytest.mark.parametrize(
    "fields",
    [
        {"files": [{"name": "a.csv", "text": '1,2,"[{' * 50_000}]},
        {"context": {"windows": "C:\\\\," * 50_000}},
        {"context": "\\" * 100_001},
        {"metadata": {"figures": list(range(49_000))}},
        {"metadata": {str(number): number for number in range(49_000)}},
    ],
)
def test_what_stands_in_strings_is_not_counted_as_values(fields: dict[str, Any]) -> None:
    read = parse_request(json.dumps({"message": "hi", **fields}).encode(), LARGE)
    assert read.model_dump(include=set(fields), exclude_none=True) == fields


def _weight(value: Any) -> tuple[int, int]:
    """Return how many values and how many strings there are in what JSON says."""
    if not isinstance(value, list | dict):
        return 0, int(isinstance(value, str))
    inner = list(map(_weight, [*value.values(), *value] if isinstance(value, dict) else value))
    return max(1, len(value)) + sum(values for values, _ in inner), sum(strings for _, strings in inner)


@given(
    st.recursive(
        st.none() | st.integers() | st.text('a\\",[{', max_size=8),
        lambda part: st.lists(part, max_size=5) | st.dictionaries(st.text('a\\",[{', max_size=3), part, max_size=5),
        max_leaves=12,
    )
)
def test_values_are_counted_without_parsing(value: Any) -> None:
    payload = json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "MAX_VALUES", 4)
        try:
            check_values(payload)
        except OutOfBounds:
            refused = True
        else:
            refused = False
    assert refused == (len(payload) > 4 and max(_weight(value)) > 4)


def test_of_many_problems_only_those_that_are_told_are_put_into_words(monkeypatch: pytest.MonkeyPatch) -> None:
    name_of = Mock(wraps=problems._key)
    monkeypatch.setattr(problems, "_key", name_of)
    unknown = {f"field{number}": 1 for number in range(1000)}
    with pytest.raises(InvalidRequest, match=r'"field0".*"field4"') as caught:
        parse_request(json.dumps({"message": "hi", **unknown}).encode(), LARGE)
    assert '"field5"' not in str(caught.value)
    assert name_of.call_count <= 6


def test_an_event_of_ours_is_known_by_its_beginning_where_it_is_too_much_to_be_read(parsed: list[int]) -> None:
    event = b'{"type":"final","conversation_id":"c","request_id":"r","attempt":1,"seq":0,"data":[%s[]]}' % CROWD
    assert is_own_event(event)
    assert max(parsed) <= MAX_VALUES


def test_a_cancel_that_is_too_large_is_not_read() -> None:
    assert parse_cancel(b'{"id":"r1"}').id == "r1"
    assert parse_cancel(b" ").id is None
    with pytest.raises(OutOfBounds):
        parse_cancel(b'{"id":"r1"}' + b" " * 20_000)
    with pytest.raises(InvalidRequest):
        parse_cancel(b"what?")


def test_the_fields_of_an_object_are_read_whatever_else_the_payload_is() -> None:
    assert fields_in(b'{"transaction": 7}') == {"transaction": 7}
    assert fields_in(b'{"transaction": 7, "input": [%s[]]}' % CROWD) == {"transaction": 7}
    assert fields_in(b"[1]") == fields_in(b"{") == {}
