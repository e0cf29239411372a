"""What `piagent doctor` looks at: a family of checks that each say how something stands and what to do about it."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `remedy` is a plain sentence for `warn` (works, but will bite) and `fail`."""

    check: str
    state: State
    detail: str
    remedy: str = ""
