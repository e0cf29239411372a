"""prompts/*.md -> Agent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from piagent_daemon.contract import Options, Sentences


@dataclass(frozen=True, slots=True)
class Agent:
    """One prompt file. None means that the daemon's own setting applies; `system` is rendered once, so byte-stable."""

    name: str
    system: str
    description: str = ""
    provider: str | None = None
    model: str | None = None
    options: Options = Options()
    stream: bool | Sentences | None = None
    interrupt: bool = False
    think: bool | str | None = None
    format: Literal["json"] | Mapping[str, Any] | None = None
    tools: tuple[str, ...] = ()
    filler: Mapping[str, Any] | None = None
    stop_phrases: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    context: str | None = None
    """Source of the Jinja2 template for the facts of one turn."""
