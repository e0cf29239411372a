"""Every setting in words, for the README's table and the example file."""

from dataclasses import dataclass
from typing import Any, get_args

from pydantic.fields import FieldInfo

from piagent_daemon.settings import Settings, reloadable, secrets


@dataclass(frozen=True, slots=True)
class Row:
    """One setting for people: all but `name`, `secret` and `reloadable` are texts ready for a table."""

    name: str
    default: str
    values: str
    description: str
    secret: bool
    reloadable: bool


def table() -> tuple[Row, ...]:
    """Return every setting in order of declaration."""
    return tuple(
        Row(
            name=name.upper(),
            default=_shown(info) or _text(info.default),
            values=_values(info),
            description=info.description or "",
            secret=name in secrets,
            reloadable=name in reloadable,
        )
        for name, info in Settings.model_fields.items()
    )


def _shown(info: FieldInfo) -> Any:
    return info.json_schema_extra["shown"] if isinstance(info.json_schema_extra, dict) else None


def _text(value: Any) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _values(info: FieldInfo) -> str:
    """Return the bounds or the choices of a setting in words."""
    bounds = {key: getattr(item, key) for item in info.metadata for key in ("ge", "gt", "le") if hasattr(item, key)}
    if bounds:
        low = f"more than {bounds['gt']}" if "gt" in bounds else f"{bounds['ge']}"
        return f"{low} to {bounds['le']}" if "ge" in bounds else f"{low}, at most {bounds['le']}"
    if info.annotation is bool:
        return "true, false"
    return ", ".join(choice for choice in get_args(info.annotation) if isinstance(choice, str))
