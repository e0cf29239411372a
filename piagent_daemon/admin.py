"""What answers `piagent/request/<method>` (contract section 5); the methods themselves are in `admin_…`."""

import inspect
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, Generic, TypeVar
from uuid import uuid4

from pydantic import ValidationError

from piagent_daemon.catalogue import Catalogue
from piagent_daemon.contract import AdminError, AdminResponse, Id, Noun
from piagent_daemon.defaults import Chooser
from piagent_daemon.errors import Busy, InternalError, InvalidRequest, PiagentError
from piagent_daemon.ladder import Ladder
from piagent_daemon.ports import Clock, ConversationStore
from piagent_daemon.reporting import Reporting
from piagent_daemon.scheduler import Scheduler
from piagent_daemon.turn import Config
from piagent_daemon.warmup import Warmup
from piagent_daemon.watch import ProviderWatch

log = logging.getLogger("piagent.admin")

METHODS: Final = {
    "agents/list": "admin_daemon:agents_list",
    "cancel": "admin_daemon:cancel",
    "config/get": "admin_daemon:config_get",
    "conversations/list": "admin_memory:conversations_list",
    "defaults/set": "admin_daemon:defaults_set",
    "diagnose": "admin_checks:diagnose",
    "health": "admin_daemon:health",
    "llm/chat": "admin_llm:chat",
    "llm/embed": "admin_llm:embed",
    "llm/vision": "admin_llm:vision",
    "memory/clear": "admin_memory:clear",
    "memory/get": "admin_memory:get",
    "models/delete": "admin_models:delete",
    "models/list": "admin_models:list_all",
    "models/pull": "admin_models:pull",
    "models/reload": "admin_models:reload",
    "models/show": "admin_models:show",
    "provider/health": "admin_checks:provider_health",
}
"""Method -> where it is, loaded only when used."""
MAX_LONG: Final = 24
"""Long requests that run at a time; the door takes some more, so that there is always room for a short one."""

P = TypeVar("P", bound=Noun)


class NoParams(Noun):
    """The method takes nothing."""


class Long(Noun):
    """The parameters of a method that takes its time; `id` names the request for `cancel`."""

    id: Id


@dataclass(frozen=True, slots=True)
class Progress:
    """What a long request has to tell before its answer."""

    data: Any


@dataclass(frozen=True, slots=True)
class Parts:
    """What the methods work with."""

    config: Config
    scheduler: Scheduler
    store: ConversationStore
    ladder: Ladder
    clock: Clock
    chooser: Chooser
    warmup: Warmup
    watch: ProviderWatch
    catalogue: Catalogue
    reporting: Reporting


Action = Callable[[Parts, P], Awaitable[Any] | AsyncGenerator[Any, None]]
"""Returns the answer, or yields any number of `Progress` and then the answer."""


@dataclass(frozen=True, slots=True)
class Method(Generic[P]):
    """One method: the shape of its parameters, and what it does."""

    shape: type[P]
    action: Action[P]


def takes(shape: type[P]) -> Callable[[Action[P]], Method[P]]:
    """Make a method of a function whose parameters have this shape."""
    return lambda action: Method(shape, action)


class AdminDesk:
    """Answers admin requests (`ports.Admin`). Adding one takes a function in `admin_…` and a line in the table."""

    def __init__(self) -> None:
        self.parts: Parts | None = None
        """Set once the daemon is put together."""
        self._long = 0

    async def handle(self, method: str, payload: bytes) -> AsyncGenerator[AdminResponse, None]:
        """Answer one admin request: any number of `progress`, then exactly one `ok` or `error`."""
        answer: dict[str, Any] = {}
        try:
            params = _params(payload)
            if "transaction" in params:
                answer["transaction"] = params.pop("transaction")
            async with aclosing(self._run(method, params, answer.get("transaction"))) as steps:
                async for step in steps:
                    if isinstance(step, Progress):
                        yield AdminResponse(status="progress", data=step.data, **answer)
                    else:
                        yield AdminResponse(status="ok", data=step, **answer)
        except PiagentError as error:
            yield _failure(error, answer)
        except Exception:
            log.exception("admin request %.64r failed by a defect", method)
            yield _failure(InternalError("The daemon failed on this request; its log says why."), answer)

    async def _run(self, name: str, params: dict[str, Any], transaction: Any) -> AsyncGenerator[Any, None]:
        if self.parts is None:
            raise InternalError("The daemon is not put together yet.")
        if name not in METHODS:
            raise InvalidRequest(f'There is no method "{name[:64]}". Known: {", ".join(METHODS)}.')
        method = load(name)
        if issubclass(method.shape, Long):
            params.setdefault("id", _name(transaction))
        long = issubclass(method.shape, Long)
        if long and self._long >= MAX_LONG:
            raise Busy("Too many long requests run; ask again in a moment.")
        self._long += long
        try:
            done = method.action(self.parts, _read(method.shape, name, params))
            if inspect.isasyncgen(done):
                async with aclosing(done) as steps:
                    async for step in steps:
                        yield step
            else:
                yield await done  # type: ignore[misc] # it is no generator
        finally:
            self._long -= long


def load(name: str) -> Method[Any]:
    """Return the method of that name in METHODS."""
    module, _, attribute = METHODS[name].partition(":")
    method: Method[Any] = getattr(import_module(f"piagent_daemon.{module}"), attribute)
    return method


def _params(payload: bytes) -> dict[str, Any]:
    if not payload.strip():
        return {}
    try:
        params = json.loads(payload)
    except (ValueError, RecursionError):
        raise InvalidRequest("The parameters are not valid JSON.") from None
    if not isinstance(params, dict):
        raise InvalidRequest("The parameters are not a JSON object.")
    return params


def _name(transaction: Any) -> str:
    """Return what a long request is called when it has no `id`: its transaction where that can be one."""
    text = str(transaction) if isinstance(transaction, str | int) else ""
    return text if 0 < len(text) <= 128 else str(uuid4())


def _read(shape: type[P], method: str, params: dict[str, Any]) -> P:
    """Raises InvalidRequest, naming each parameter that is missing, unknown or bad, and never quoting a value."""
    try:
        return shape.model_validate(params, strict=True)
    except ValidationError as error:
        problems = []
        for problem in error.errors(include_input=False, include_url=False, include_context=False)[:5]:
            where = ".".join(str(part) for part in problem["loc"])[:64]
            match problem["type"]:
                case "missing":
                    problems.append(f'the required parameter "{where}" is missing')
                case "extra_forbidden":
                    problems.append(f'there is no parameter "{where}"')
                case _:
                    problems.append(f"{where}: {problem['msg']}" if where else problem["msg"])
        raise InvalidRequest(f"Bad parameters for {method}: {'; '.join(problems)}.") from None


def _failure(error: PiagentError, answer: dict[str, Any]) -> AdminResponse:
    return AdminResponse(status="error", error=AdminError(code=error.code, message=str(error)), **answer)
