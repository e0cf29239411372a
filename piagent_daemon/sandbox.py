"""Jinja2 for prompt files: sandboxed, and bounded in what it may do.

A template runs inside the event loop, so it must come to an end soon whatever a request has as `context`, and whatever
mistake is in it. So there are no macros and blocks, hence no recursion, and no function but `range`; the rounds of all
loops are counted; and what makes much out of little (`*`, `|center`, `'%9999d'`) takes small numbers only.

Source: https://jinja.palletsprojects.com/en/stable/sandbox/
"""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, Final

from jinja2 import ChainableUndefined, StrictUndefined, Template, TemplateSyntaxError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_ROUNDS: Final = 10_000
"""Of all loops of a template together."""
MAX_CHARS: Final = 1_000_000
"""What one call that repeats a text may make."""
MAX_NUMBER: Final = 1000
"""The largest number where it says how often or how wide."""

ROUNDS: Final = "(rounds)"
"""The variable with the iterator that counts them; no template can name it."""
_REPEATING: Final = ("batch", "center", "indent", "round", "slice", "tojson")
_WIDE_PERCENT: Final = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z(]*(?:\*|\d{4})")
_WIDE_BRACES: Final = re.compile(r"\{[^{}]*:[^{}]*(?:\{|\d{4})")
"""Fields of format strings that are very wide, or whose width comes from elsewhere."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Makes templates. `strict`: a name that is not given is an error; else it is empty."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, *, strict: bool) -> None:
        super().__init__(undefined=StrictUndefined if strict else ChainableUndefined)
        self.globals.clear()  # `namespace` above all: with it a loop can double a text
        self.globals["range"] = _range
        # A prompt must be the same at each start: the model server keeps what it has read of it.
        del self.filters["random"]
        self.filters |= {name: _careful(self.filters[name]) for name in _REPEATING}
        self.filters |= {name: _measured(self.filters[name]) for name in ("replace", "join")}
        self.filters["format"] = _careful_format(self.filters["format"])
        self.filters["counted"] = _counted

    def template(self, source: str) -> Template:
        """Compile a template; raises TemplateSyntaxError."""
        tree = self.parse(source)
        for node in tree.find_all((nodes.Macro, nodes.CallBlock, nodes.Block)):
            raise TemplateSyntaxError("there are no macros and no blocks here", node.lineno)
        for loop in tree.find_all(nodes.For):
            if loop.recursive:
                raise TemplateSyntaxError("there are no recursive loops here", loop.lineno)
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        return Template.from_code(self, self.compile(tree), self.make_globals(None))

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a method, if it is harmless."""
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if isinstance(owner, str) and obj.__name__ in {"format", "format_map"}:
            _check_widths(_WIDE_BRACES, owner)
        elif isinstance(owner, str | bytes | int):
            _check(*args, *kwargs.values())
            _check_sizes(owner, *args, *kwargs.values())
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Calculate, if the result is of a bounded size."""
        if operator == "%" and isinstance(left, str):
            _check_widths(_WIDE_PERCENT, left.replace("%%", ""))
        elif operator == "**":
            _check(left, right)
        elif operator == "*" and hasattr(left, "__len__") != hasattr(right, "__len__"):
            _check(_size(left) * _size(right))
        return super().call_binop(context, operator, left, right)


def _range(*bounds: int) -> range:
    found = range(*bounds)
    _check(len(found))
    return found


@pass_context
def _counted(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    rounds = context[ROUNDS]
    for item in items:
        if next(rounds) > MAX_ROUNDS:
            raise SecurityError(f"its loops take more than {MAX_ROUNDS} rounds")
        yield item


def _careful(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that takes small numbers only."""

    @wraps(function)
    def careful(*args: Any, **kwargs: Any) -> Any:
        given = args[1:] if hasattr(function, "jinja_pass_arg") else args
        _check(*given[1:], *kwargs.values())
        return function(*args, **kwargs)

    return careful


def _measured(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that makes no more than MAX_CHARS out of two texts."""

    @wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        _check_sizes(*(args[1:] if hasattr(function, "jinja_pass_arg") else args), *kwargs.values())
        return function(*args, **kwargs)

    return measured


def _careful_format(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def careful(value: Any, *args: Any, **kwargs: Any) -> Any:
        _check_widths(_WIDE_PERCENT, str(value).replace("%%", ""))
        return function(value, *args, **kwargs)

    return careful


def _size(value: Any) -> Any:
    return len(value) if hasattr(value, "__len__") else value


def _check(*values: Any) -> None:
    if any(isinstance(value, int | float) and abs(value) > MAX_NUMBER for value in values):
        raise SecurityError(f"numbers here are at most {MAX_NUMBER}")


def _check_sizes(first: Any, *others: Any) -> None:
    longest = max((_size(other) for other in others if hasattr(other, "__len__")), default=0)
    if hasattr(first, "__len__") and _size(first) * longest > MAX_CHARS:
        raise SecurityError(f"this could make more than {MAX_CHARS} characters")


def _check_widths(wide: re.Pattern[str], text: str) -> None:
    if wide.search(text):
        raise SecurityError("a field of a format here is at most 999 wide")
