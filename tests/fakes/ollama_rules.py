"""What Ollama refuses, with the statuses and texts that were measured. Pure.

Source: Ollama 0.33, /api/chat, /api/generate, /api/embed; the texts are those of Go's encoding/json and time packages.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

FLOATS: Final = frozenset(
    {"temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty", "frequency_penalty"}
)
INTEGERS: Final = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "num_predict"}
    | {"seed", "top_k", "repeat_last_n"}
)
LOAD_TIME: Final = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")
"""Options that reload the model when they change; so does the field `shift`."""
FOR_EVER: Final = math.inf
_THINK_LEVELS: Final = {"high", "medium", "low", "max"}
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"([0-9]*\.?[0-9]+)(ns|us|µs|ms|s|m|h)")
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.\-/]*(:[\w.\-]+)?")
_GO_TYPES: Final[dict[str, tuple[type | tuple[type, ...], str]]] = {
    "model": (str, "string"),
    "name": (str, "string"),
    "prompt": (str, "string"),
    "suffix": (str, "string"),
    "system": (str, "string"),
    "messages": (list, "[]api.Message"),
    "stream": (bool, "bool"),
    "raw": (bool, "bool"),
    "truncate": (bool, "bool"),
    "shift": (bool, "bool"),
    "options": (dict, "map[string]interface {}"),
    "tools": (list, "api.Tools"),
    "images": (list, "[]api.ImageData"),
}
_SCHEMA_TYPES: Final = {"object", "array", "string", "number", "integer", "boolean", "null"}


class Refusal(Exception):
    """An answer other than 200 before the first token."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error


def nested(code: int, message: str, kind: str = "invalid_request_error", **more: int) -> str:
    """Return llama-server's own error, which Ollama passes on as a string inside `error`."""
    return json.dumps({"error": {"code": code, "message": message, "type": kind, **more}})


def too_long(tokens: int, num_ctx: int) -> Refusal:
    text = f"request ({tokens} tokens) exceeds the available context size ({num_ctx} tokens), try increasing it"
    return Refusal(400, nested(400, text, "exceed_context_size_error", n_prompt_tokens=tokens, n_ctx=num_ctx))


def decode(data: bytes) -> dict[str, Any]:
    """Read a request body."""
    if not data:
        raise Refusal(400, "missing request body")
    text = data.decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
            raise Refusal(400, "unexpected EOF") from None
        raise Refusal(400, f"invalid character '{text[error.pos]}' looking for beginning of value") from None
    if not isinstance(value, dict):
        raise Refusal(400, f"json: cannot unmarshal {_go_kind(value)} into Go value of type api.ChatRequest")
    return value


def _go_kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    names = {str: "string", list: "array", dict: "object", int: "number", float: "number"}
    return names.get(type(value), "null")


def check_types(body: Mapping[str, Any], struct: str) -> None:
    """Refuse fields of the wrong type, those of the messages included. null counts as absent."""
    for name, value in body.items():
        if name in _GO_TYPES and value is not None and not isinstance(value, _GO_TYPES[name][0]):
            raise _wrong_type(value, f"{struct}.{name}", _GO_TYPES[name][1])
    for message in body.get("messages") or ():
        if not isinstance(message, dict):
            raise _wrong_type(message, f"{struct}.messages", "api.Message")
        for name in ("role", "content", "thinking", "tool_name"):
            if not isinstance(message.get(name), str | None):
                raise _wrong_type(message[name], f"{struct}.messages.{name}", "string")
        check_images(message.get("images"))
    check_images(body.get("images"))


def _wrong_type(value: Any, field: str, go_type: str) -> Refusal:
    return Refusal(400, f"json: cannot unmarshal {_go_kind(value)} into Go struct field {field} of type {go_type}")


def check_images(images: Any) -> None:
    """Images are plain base64; a `data:` prefix is no base64."""
    for image in images or ():
        try:
            base64.b64decode(image, validate=True)
        except (binascii.Error, TypeError, ValueError):
            at = next((at for at, char in enumerate(str(image)) if not (char.isalnum() or char in "+/=")), 0)
            raise Refusal(400, f"illegal base64 data at input byte {at}") from None


def full_name(name: str) -> str:
    """Return a model's name with its tag."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Refusal(400, "invalid model name")


def options(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options Ollama understands. A wrong type is a 500, not a 400; null and unknown keys are ignored."""
    known: dict[str, Any] = {}
    for name, value in (body.get("options") or {}).items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None:
            continue
        if name in FLOATS:
            good, wanted = number, "float32"
        elif name in INTEGERS:
            good, wanted = number, "integer"
        elif name == "use_mmap":
            good, wanted = isinstance(value, bool), "boolean"
        elif name == "stop":
            good, wanted = isinstance(value, list), "array"
        else:
            continue
        if not good:
            raise Refusal(500, f'option "{name}" must be of type {wanted}')
        if name == "stop" and not all(isinstance(word, str) for word in value):
            raise Refusal(500, 'option "stop" must be of an array of strings')
        known[name] = int(value) if name in INTEGERS else value
    return known


def keep_alive(body: Mapping[str, Any], default_s: float) -> float:
    """Return seconds; FOR_EVER for a negative value. The string "-1" has no unit and is refused."""
    value = body.get("keep_alive")
    if value is None:
        return default_s
    if isinstance(value, int | float) and not isinstance(value, bool):
        return FOR_EVER if value < 0 else float(value)
    if not isinstance(value, str):
        raise Refusal(400, f"Unsupported type: '{_go_kind(value)}'")
    if value in {"0", "-0", "+0"}:
        return 0.0
    sign, text = (-1, value[1:]) if value.startswith("-") else (1, value.removeprefix("+"))
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        bare = re.fullmatch(r"[0-9]*\.?[0-9]+", text)
        raise Refusal(400, f'time: {"missing unit in" if bare else "invalid"} duration "{value}"')
    return FOR_EVER if sign < 0 else sum(float(number) * _UNITS[unit] for number, unit in parts)


def think(body: Mapping[str, Any], model: str, capabilities: frozenset[str]) -> bool:
    """Tell whether the model will think: by default it does when it can."""
    value = body.get("think")
    if value is None:
        return "thinking" in capabilities
    if not isinstance(value, bool) and value not in _THINK_LEVELS:
        text = f'invalid think value: "{value}" (must be "high", "medium", "low", "max", true, or false)'
        raise Refusal(400, text)
    if value and "thinking" not in capabilities:
        raise Refusal(400, f'"{model}" does not support thinking')
    return bool(value)


def check_format(body: Mapping[str, Any]) -> None:
    """`format` is absent, "", "json" or a schema; a schema that llama-server cannot use is a nested 400."""
    value = body.get("format")
    if value in (None, "", "json"):
        return
    if not isinstance(value, dict):
        text = f'invalid format: {json.dumps(value)}; expected "json" or a valid JSON Schema object'
        raise Refusal(500, text)
    kind = value.get("type", "object")
    if not (kind in _SCHEMA_TYPES if isinstance(kind, str) else isinstance(kind, list)):
        raise Refusal(400, nested(400, f"JSON schema conversion failed: Unrecognized schema: {json.dumps(value)}"))


def instance(schema: Any, text: str) -> Any:
    """Return a value that fits a JSON Schema, with `text` wherever a string may stand."""
    if not isinstance(schema, dict):
        return {"answer": text}
    if choice := schema.get("enum"):
        return choice[0]
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: instance(part, text) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema["items"], text)] if "items" in schema else []
    return {"string": text, "integer": 1, "number": 1.5, "boolean": True}.get(kind)
