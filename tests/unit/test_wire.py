"""Payloads in, payloads out (contract sections 2 and 3)."""

import base64
import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon.contract import Request
from piagent_daemon.errors import Busy, InvalidRequest
from piagent_daemon.settings import Settings
from piagent_daemon.wire import (
    conversation_id_in,
    is_own_event,
    metadata_in,
    parse_request,
    refusal,
    request_id_in,
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
    assert request_id_in(payload) is None or payload
    assert metadata_in(payload) == {} or payload
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
    assert request_id_in(payload) == "r1"
    assert metadata_in(payload) == {"a": 1}


def test_half_an_emoji_does_not_cost_a_request_its_name() -> None:
    payload = b'{"id": "r1", "conversation_id": "kitchen", "message": "hi", "metadata": {"note": "\\ud83d"}}'
    with pytest.raises(InvalidRequest, match="not valid JSON in Unicode"):
        parse(payload)
    assert (request_id_in(payload), conversation_id_in(payload), metadata_in(payload)) == ("r1", "kitchen", {})


@pytest.mark.parametrize("metadata", ['{"a": "\\ud800"}', '{"a": ' + "[" * 400 + "]" * 400 + "}"])
def test_metadata_that_cannot_be_written_again_is_not_echoed(metadata: str) -> None:
    payload = f'{{"message": "x", "metadata": {metadata}}}'.encode()
    with pytest.raises(InvalidRequest):
        parse_request(payload, SETTINGS)
    echoed = metadata_in(payload)
    event = refusal(Busy("full"), conversation_id="c", request_id="r", clock=FakeClock(), metadata=echoed)
    assert event.encode()
    assert echoed == {}


@given(st.binary(max_size=60).map(lambda rest: b'{"message": 5, "metadata": {"a": ' + rest + b"}}"))
def test_any_refusal_can_be_written(payload: bytes) -> None:
    echoed, request_id = metadata_in(payload), request_id_in(payload)
    event = refusal(Busy("x"), conversation_id="c", request_id=request_id or "r", clock=FakeClock(), metadata=echoed)
    assert event.encode()


def test_a_byte_order_mark_before_an_object_is_no_speech() -> None:
    assert parse(b'\xef\xbb\xbf{"message": "hi"}').message == "hi"
