"""Values out of JSON that a server made: what is not of the kind that it should be counts as missing."""

from collections.abc import Mapping
from typing import Any


def count(body: Mapping[str, Any], key: str) -> int:
    """Return a number of things, 0 when there is none."""
    value = body.get(key)
    return value if type(value) is int and 0 <= value < 1 << 63 else 0


def text(body: Mapping[str, Any], key: str) -> str:
    """Return a string, empty when there is none."""
    value = body.get(key)
    return value if isinstance(value, str) else ""


def table(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object, empty when there is none."""
    value = body.get(key)
    return value if isinstance(value, dict) else {}


def items(body: Mapping[str, Any], key: str) -> list[Any]:
    """Return a list, empty when there is none."""
    value = body.get(key)
    return value if isinstance(value, list) else []


def words(body: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return the strings of a list, in lower case."""
    return tuple(item.lower() for item in items(body, key) if isinstance(item, str))


def rows(body: Mapping[str, Any], key: str, name: str) -> list[dict[str, Any]]:
    """Return the objects of a list that have a string under `name`."""
    return [row for row in items(body, key) if isinstance(row, dict) and isinstance(row.get(name), str)]
