"""What a method of the admin requests is; loaded with the first of them that is used."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import ValidationError

from piagent_daemon.contract import Id, Noun
from piagent_daemon.errors import InvalidRequest
from piagent_daemon.problems import Finding, explain

if TYPE_CHECKING:
    from piagent_daemon.admin import Parts

P = TypeVar("P", bound=Noun)


class NoParams(Noun):
    """The method takes nothing."""


class Long(Noun):
    """The parameters of a method that takes its time; `id` names the request for `cancel`."""

    id: Id


Action = Callable[["Parts", P], Awaitable[Any] | AsyncGenerator[Any, None]]
"""Returns the answer, or yields any number of `Progress` and then the answer."""


@dataclass(frozen=True, slots=True)
class Method(Generic[P]):
    """One method: the shape of its parameters, and what it does."""

    shape: type[P]
    action: Action[P]

    @property
    def long(self) -> bool:
        """Tell whether it takes its time, and has an `id`."""
        return issubclass(self.shape, Long)

    def read(self, name: str, params: dict[str, Any]) -> P:
        """Return the parameters of a request.

        Raises InvalidRequest, naming each that is missing, unknown or bad, and never quoting a value.
        """
        try:
            return self.shape.model_validate(params, strict=True)
        except ValidationError as error:
            problems = [_told(finding.key[:64], finding) for finding in islice(explain(error, nested=None), 5)]
        raise InvalidRequest(f"Bad parameters for {name}: {'; '.join(problems)}.")


def takes(shape: type[P]) -> Callable[[Action[P]], Method[P]]:
    """Make a method of a function whose parameters have this shape."""
    return lambda action: Method(shape, action)


def _told(where: str, finding: Finding) -> str:
    match finding.kind:
        case "missing":
            return f'the required parameter "{where}" is missing'
        case "extra_forbidden":
            return f'there is no parameter "{where}"'
        case _:
            return f"{where}: {finding.message}" if where else finding.message
