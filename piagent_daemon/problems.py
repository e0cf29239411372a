"""Configuration problems in words: one line each, naming file, line and key, never a secret."""

import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from pydantic import ValidationError


def nearest(name: str, known: Collection[str]) -> str:
    """Return a hint at the known name that is most like `name`, or an empty string."""
    from difflib import get_close_matches  # noqa: PLC0415 (only needed when something is wrong)

    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def line_of(text: str, key: str) -> int:
    """Return the number of the line on which `key` is set in a TOML, YAML or .env text; 1 when it is not found."""
    name = rf"""["']?{re.escape(key)}["']?[ \t]*"""
    found = re.search(rf"^[ \t]*(?:(?:export[ \t]+)?{name}[:=.]|\[+[ \t]*{name}[\].])", text, re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found else 1


class Finding(NamedTuple):
    """What pydantic found at one key ("" for the whole); `value` is what was given and may be a secret."""

    key: str
    message: str
    value: Any


def explain(error: ValidationError, nested: Collection[str] = ()) -> Iterator[Finding]:
    """Yield one finding per key, the messages for the members of a union joined by "or".

    Keys in `nested` hold models of their own: what is found in them has a key with a dot.
    """
    messages: dict[str, dict[str, None]] = {}
    values: dict[str, Any] = {}
    for problem in error.errors(include_url=False, include_context=False):
        if problem["type"] == "default_factory_not_called":
            continue
        key, *rest = map(str, problem["loc"] or ("",))
        if rest and key in nested:
            key = f"{key}.{rest[0]}"
        message = problem["msg"].removeprefix("Value error, ").replace("Input should", "should")
        messages.setdefault(key, {})[message] = None
        values[key] = problem["input"]
    for key, said in messages.items():
        yield Finding(key, " or ".join(said), values[key])


def one_line(text: str) -> str:
    """Return `text` with controls and lone surrogates escaped, so that any terminal and any log takes it."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
