"""The Jinja2 in prompt files. Jinja2 itself is imported only where a text holds a template.

Source: contract section 9.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import count
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from jinja2 import Template

    from piagent_daemon.sandbox import Sandbox

T = TypeVar("T")

MAX_FACTS_CHARS: Final = 4000
"""What a `context` template may add to a turn at most."""
MAX_CONTEXT_CHARS: Final = 16_000
"""A larger `context` is not given to a template, which may go through it several times."""
_NAMELESS: Final = "<template>"
"""What Jinja2 calls the file of a template that came as a text."""
FACTS: Final = frozenset({"now", "conversation_id", "agent", "context"})


class TemplateProblem(ValueError):
    """A template cannot be used: its text may quote what it was given, `kind` and `line` never do.

    `kind` is the class of what was raised, `line` the line in the template's source, or None.
    """

    def __init__(self, message: str, kind: str = "", line: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.line = line


def is_template(text: str) -> bool:
    """Tell whether Jinja2 would find anything to do in `text`."""
    return any(mark in text for mark in ("{{", "{%", "{#"))


def render_once(source: str, variables: Mapping[str, Any]) -> str:
    """Render a system prompt; raises TemplateProblem, also for a name that is not among `variables`."""
    if not is_template(source):
        return source
    return _guarded(lambda: _compiled(source, strict=True).render(_counting(variables)))


def check(source: str) -> None:
    """Raise TemplateProblem when a `context` template cannot be compiled or names what it will not be given."""
    if is_template(source):
        unknown = _guarded(lambda: _unknown_names(source))
        if unknown:
            raise TemplateProblem(f"there is no {min(unknown)} here; there are {', '.join(sorted(FACTS))}")
        _guarded(lambda: _compiled(source, strict=False))


def render_facts(source: str, variables: Mapping[str, Any]) -> str:
    """Render a `context` template for one turn, at most 4000 characters; what the request lacks is empty.

    Raises TemplateProblem.
    """
    if not is_template(source):
        return source.strip()[:MAX_FACTS_CHARS]
    return _guarded(lambda: _bounded(_compiled(source, strict=False), variables))


def _bounded(template: "Template", variables: Mapping[str, Any]) -> str:
    parts: list[str] = []
    size = 0
    for part in template.generate(_counting(variables)):
        parts.append(part[:MAX_FACTS_CHARS])
        size += len(part)
        if size > MAX_FACTS_CHARS:
            break
    return "".join(parts)[:MAX_FACTS_CHARS].strip()


def _counting(variables: Mapping[str, Any]) -> dict[str, Any]:
    from piagent_daemon.sandbox import ROUNDS  # noqa: PLC0415 (see the top)

    return {**variables, ROUNDS: count(1)}


def _unknown_names(source: str) -> set[str]:
    from jinja2 import meta  # noqa: PLC0415 (see the top)

    return meta.find_undeclared_variables(_environment(strict=False).parse(source)) - FACTS


@lru_cache(maxsize=2)
def _environment(*, strict: bool) -> "Sandbox":
    from piagent_daemon.sandbox import Sandbox  # noqa: PLC0415 (see the top)

    return Sandbox(strict=strict)


@lru_cache(maxsize=64)
def _compiled(source: str, *, strict: bool) -> "Template":
    return _environment(strict=strict).template(source)


def _guarded(work: Callable[[], T]) -> T:
    from jinja2 import TemplateError, TemplateSyntaxError  # noqa: PLC0415 (see the top)

    try:
        return work()
    except TemplateSyntaxError as error:
        raise TemplateProblem(error.message or "this is not Jinja2", type(error).__name__, error.lineno) from None
    except TemplateError as error:
        raise _problem(error, str(error)) from None
    except MemoryError as error:
        raise _problem(error, "it takes more memory than there is") from None
    # A template is a small program: whatever its expressions raise comes out of it as it is.
    except Exception as error:  # noqa: BLE001
        raise _problem(error, f"{type(error).__name__}: {error}") from None


def _problem(error: Exception, message: str) -> TemplateProblem:
    steps = walk_tb(error.__traceback__)
    lines = [line for frame, line in steps if frame.f_code.co_filename == _NAMELESS]
    return TemplateProblem(message, type(error).__name__, lines[-1] if lines else None)
