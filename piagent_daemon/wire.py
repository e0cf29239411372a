"""Requests as bytes: what a payload asks, whether it may, and what a refused one still tells of itself.

Source: contract sections 2 (requests), 3 (events) and 6 (loops).
"""

import base64
import binascii
import json
from codecs import BOM_UTF8
from itertools import islice
from typing import Any, Final, NamedTuple

from pydantic import ValidationError
from pydantic_core import from_json

from piagent_daemon import images
from piagent_daemon.contract import CancelRequest, ErrorEvent, Request
from piagent_daemon.contract import Final as FinalEvent
from piagent_daemon.errors import InvalidRequest, OutOfBounds, PiagentError
from piagent_daemon.ports import Clock
from piagent_daemon.problems import Finding, explain
from piagent_daemon.settings import Settings
from piagent_daemon.topics import is_conversation_id

_EVENT_TYPES: Final = frozenset({"accepted", "status", "chunk", "sentence", "final", "error"})
_EVENT_KEYS: Final = frozenset({"type", "conversation_id", "request_id", "seq"})

MAX_VALUES: Final = 50_000
"""Values, and likewise strings, that JSON is read with. Two bytes can make a value, which takes a hundred times the
room and the time of a byte in a string: a bound on bytes alone would let one payload hold up everybody for minutes."""
MAX_CANCEL_BYTES: Final = 10_000
MAX_LOOKED_INTO_BYTES: Final = 16_777_216
"""What a larger payload tells of itself must stand at its beginning: brokers bring up to 256 MB under MQTT 3.1.1."""


def parse_request(payload: bytes, settings: Settings) -> Request:
    """Read a request: a JSON object, or any other UTF-8 text as the message itself.

    JSON strings and numbers count as their text. Raises InvalidRequest with a sentence naming what is wrong.
    """
    if len(payload) > settings.max_payload_bytes:
        raise OutOfBounds(f"The payload has {len(payload)} bytes; at most {settings.max_payload_bytes} are taken.")
    try:
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRequest("The payload is not UTF-8 text.") from None
    if not text.lstrip().startswith("{"):
        return check(Request(message=_plain(text)), settings)
    check_values(payload)
    return check(_parse_object(text), settings)


def parse_cancel(payload: bytes) -> CancelRequest:
    """Read what is to be cancelled. Raises InvalidRequest."""
    if len(payload) > MAX_CANCEL_BYTES:
        raise OutOfBounds(f"The payload has {len(payload)} bytes; at most {MAX_CANCEL_BYTES} are taken.")
    try:
        return CancelRequest.model_validate_json(payload) if payload.strip() else CancelRequest()
    except ValidationError:
        raise InvalidRequest('The payload is neither empty nor {"id": "…"}.') from None


def check_values(payload: bytes) -> None:
    """Raise OutOfBounds for JSON with more values than are read."""
    if _is_crowded(payload):
        raise OutOfBounds(f"The payload is JSON with more values than the {MAX_VALUES} that are taken.")


def _is_crowded(payload: bytes) -> bool:
    """Tell without parsing whether JSON has more values than are read; what stands within a string is none."""
    if len(payload) <= MAX_VALUES:
        return False
    unescaped = payload.replace(rb"\\", b"").replace(rb"\"", b"")
    if unescaped.count(b'"') > 2 * MAX_VALUES:
        return True
    outside_strings = b"".join(unescaped.split(b'"')[::2])
    return sum(map(outside_strings.count, (b",", b"[", b"{"))) > MAX_VALUES


def _parse_object(text: str) -> Request:
    try:
        return Request.model_validate_json(text.strip())
    except ValidationError as error:
        raise InvalidRequest(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    """Turn pydantic's findings into one sentence each, naming the field and never quoting a value."""
    return " ".join(_sentence(finding.key[:64], finding) for finding in islice(explain(error, nested=None), 5))


def _sentence(where: str, finding: Finding) -> str:
    match finding.kind:
        case "extra_forbidden" if where == "text":
            return 'Give either "message" or "text", not both.'
        case "extra_forbidden":
            return f'Unknown field "{where}".'
        case "missing":
            return f'The field "{where}" is missing.'
        case "json_invalid":
            return "The payload starts like a JSON object but is not valid JSON in Unicode, or it is nested too deeply."
        case _ if finding.message.startswith("should "):
            return f'The field "{where}" {finding.message}.'
        case _:
            return f'The field "{where}" is not valid: {finding.message}.'


def _plain(text: str) -> str:
    """Return the message in a payload that is no JSON object."""
    stripped = text.strip()
    if stripped[:1] == '"':
        try:
            value = json.loads(stripped)
        except ValueError:
            return text
        return value if isinstance(value, str) else text
    return text


def check(request: Request, settings: Settings) -> Request:
    """Return a request with its message trimmed. Raises InvalidRequest when it breaks a bound of the settings."""
    message = request.message.strip()
    if not message:
        raise InvalidRequest("The message is empty.")
    if len(message) > settings.max_message_chars:
        raise OutOfBounds(f"The message has {len(message)} characters; at most {settings.max_message_chars} are taken.")
    if not is_sendable(message):
        raise InvalidRequest("The message holds characters that are not valid Unicode text.")
    for number, image in enumerate(request.images):
        check_image(image, f"images.{number}", settings.max_image_bytes)
    return request if message == request.message else request.model_copy(update={"message": message})


def is_sendable(text: str) -> bool:
    """Tell whether `text` can be written as UTF-8 (it holds no lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def image_base64(image: str) -> str:
    """Return the plain base64 of an image given as base64 or as a `data:` URL."""
    return image.partition(",")[2] if image.startswith("data:") else image


def check_image(image: str, name: str, limit: int) -> None:
    """Raise InvalidRequest for what is no image, or one larger than `limit` bytes or than `images` takes."""
    encoded = image_base64(image)
    if len(encoded) * 3 // 4 > limit + 2:
        raise InvalidRequest(f'"{name}" is larger than {limit} bytes.')
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f'"{name}" is neither base64 nor a base64 "data:" URL.') from None
    if not 0 < len(data) <= limit:
        raise InvalidRequest(f'"{name}" is empty or larger than {limit} bytes.')
    images.inspect(data, name)


def object_in(payload: bytes) -> dict[str, Any]:
    """Return the object in a payload, if it is one that can be written again: no half characters, no endless depth."""
    try:
        return _object(_parse(payload))
    except ValueError:
        return {}


def fields_in(payload: bytes) -> dict[str, Any]:
    """Return the fields of the object in a payload; of one that is too much to be read, those at its beginning."""
    return _beginning(payload) if _is_too_much(payload) else object_in(payload)


def _is_too_much(payload: bytes) -> bool:
    return len(payload) > MAX_LOOKED_INTO_BYTES or _is_crowded(payload)


def _beginning(payload: bytes) -> dict[str, Any]:
    start = payload[:MAX_VALUES].removeprefix(BOM_UTF8)  # so many bytes have fewer values
    try:
        fields = _object(from_json(start, allow_inf_nan=False, allow_partial="trailing-strings"))
    except ValueError:
        return {}
    if fields:
        fields.popitem()  # it may be cut off
    return fields


def _parse(payload: bytes) -> Any:
    return from_json(payload.removeprefix(BOM_UTF8), allow_inf_nan=False)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


class Names(NamedTuple):
    """What a refused request still tells of itself."""

    conversation_id: str | None
    request_id: str | None
    metadata: dict[str, Any]


def names_in(payload: bytes) -> Names:
    """Return by what the sender of a refused request knows which one it was, and where its answer can go."""
    if _is_too_much(payload):
        return _names(_beginning(payload))
    try:
        return _names(_parse(payload))
    except ValueError:
        return _names(_parse_with_halves(payload))._replace(metadata={})


def _names(value: Any) -> Names:
    found = _object(value)
    name, request_id = found.get("conversation_id"), found.get("id")
    return Names(
        name if isinstance(name, str) and is_conversation_id(name) else None,
        request_id if isinstance(request_id, str) and _is_request_id(request_id) else None,
        _object(found.get("metadata")),
    )


def _is_request_id(text: str) -> bool:
    return 0 < len(text) <= 128 and is_sendable(text)


def _parse_with_halves(payload: bytes) -> Any:
    """Return what a payload is that has half an emoji somewhere, as JavaScript makes them; None when it is no JSON."""
    try:
        return json.loads(payload.removeprefix(BOM_UTF8).decode(errors="surrogatepass"))
    except (ValueError, RecursionError):
        return None


def read_terminal(payload: bytes) -> FinalEvent | ErrorEvent:
    """Return a terminal event as an object again. Raises ValueError for anything else."""
    noun = FinalEvent if object_in(payload).get("type") == "final" else ErrorEvent
    return noun.model_validate_json(payload)


def is_own_event(payload: bytes) -> bool:
    """Tell whether a payload is one of our own events, copied back by a flow."""
    if b'"request_id"' not in payload or b'"seq"' not in payload:
        return False
    fields = fields_in(payload)
    kind = fields.get("type")
    return fields.keys() >= _EVENT_KEYS and isinstance(kind, str) and kind in _EVENT_TYPES


def refusal(
    error: PiagentError,
    *,
    conversation_id: str,
    request_id: str,
    clock: Clock,
    metadata: dict[str, Any] | None = None,
) -> ErrorEvent:
    """Return the only event of a request that was not taken."""
    return ErrorEvent(
        conversation_id=conversation_id,
        request_id=request_id,
        attempt=1,
        seq=0,
        ts=clock.now(),
        code=error.code,
        message=str(error),
        status_code=error.status_code,
        retryable=error.retryable,
        metadata=metadata or {},
    )
