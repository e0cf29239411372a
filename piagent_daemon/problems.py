"""Configuration problems in words: one line each, naming file, line and key, never a secret."""

import re
from collections.abc import Collection, Iterator
from itertools import groupby
from typing import Any, Final, NamedTuple

from pydantic import ValidationError


def nearest(name: str, known: Collection[str]) -> str:
    """Return a hint at the known name that is most like `name`, or an empty string."""
    from difflib import get_close_matches  # noqa: PLC0415 (only needed when something is wrong)

    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


_TOML_WORDS: Final = r"""#[^\n]*|\"{3}(?:\\.|[^\\])*?\"{3,5}|'{3}.*?'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*'"""
"""Comments and strings; compiled only where there is a TOML file."""


def bare(text: str) -> str:
    """Return a TOML text with the same lines, of which those within its strings say nothing."""
    return re.sub(_TOML_WORDS, lambda found: "\n" * found[0].count("\n") or found[0], text, flags=re.DOTALL)


def line_of(text: str, key: str) -> int:
    """Return the number of the line on which `key` is set in a bare TOML text; 1 when it is not found."""
    name = re.escape(key)
    pattern = rf"""^[ \t]*(?:(["']?){name}\1[ \t]*[=.]|\[+[ \t]*(["']?){name}\2[ \t]*[.\]])"""
    found = re.search(pattern, text, re.MULTILINE)
    return text.count("\n", 0, found.start()) + 1 if found else 1


_MEMBER: Final = re.compile(r"str|bool|int|float|[a-z]+\[.*\]", re.DOTALL)
"""How pydantic names a member of a union, beside the keys, where it says what is wrong with each."""
_JARGON: Final = re.compile(r"^Value error, |^(Input|String|List|Dictionary) (?=should )| after validation(?=,)")


class Finding(NamedTuple):
    """What pydantic found at one key ("" for the whole); `value` is what was given and may be a secret.

    `kind` is pydantic's word for it, such as `missing`, or `extra_forbidden` for an unknown key.
    """

    key: str
    message: str
    value: Any
    kind: str


def explain(error: ValidationError, nested: Collection[str] | None = ()) -> Iterator[Finding]:
    """Yield one finding per key, the messages for the members of a union joined by "or".

    Keys in `nested` hold models of their own: what is found in them has a key with a dot. With None, any key may, and
    they may lie deeper.
    """
    problems = error.errors(include_url=False, include_context=False)
    found = (problem for problem in problems if problem["type"] != "default_factory_not_called")
    for key, at_key in groupby(found, lambda one: _key(one["loc"], nested, exact=one["type"] == "extra_forbidden")):
        same = list(at_key)
        first, *others = dict.fromkeys(_JARGON.sub("", problem["msg"]) for problem in same)
        message = " or ".join([first, *(one.removeprefix("should be ") for one in others)])
        yield Finding(key, message, same[-1]["input"], same[-1]["type"])


def _key(loc: tuple[int | str, ...], nested: Collection[str] | None, *, exact: bool) -> str:
    """Return what the place of a problem is called; `exact`: its last part is a key, whatever it looks like."""
    key, *rest = map(str, loc or ("",))
    if nested is not None:
        return f"{key}.{rest[0]}" if rest and key in nested else key
    last = rest.pop() if rest and exact else None
    inner = [part for part in rest if not _MEMBER.fullmatch(part)]
    return ".".join((key, *inner, *([last] if last else [])))


def one_line(text: str) -> str:
    """Return `text` with controls and lone surrogates escaped, so that any terminal and any log takes it."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
