"""What answers `piagent/request/<method>` (contract section 5); the methods themselves are in `admin_…`."""

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from importlib import import_module
from typing import Any, Final, NamedTuple
from uuid import uuid4

from pydantic_core import from_json

from piagent_daemon.catalogue import Catalogue
from piagent_daemon.contract import AdminError, AdminResponse
from piagent_daemon.defaults import Chooser
from piagent_daemon.errors import Busy, InternalError, InvalidRequest, OutOfBounds, PiagentError
from piagent_daemon.ladder import Ladder
from piagent_daemon.ports import Clock, ConversationStore
from piagent_daemon.reporting import Reporting
from piagent_daemon.scheduler import GIVEN_UP, MAX_CRASHES, Scheduler
from piagent_daemon.turn import Config
from piagent_daemon.values import Delivery, Ticket
from piagent_daemon.warmup import Warmup
from piagent_daemon.watch import ProviderWatch
from piagent_daemon.wire import check_values, fields_in

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
"""Long requests that run at a time; the door takes some more, so that these alone never shut out a short one."""


class Progress(NamedTuple):
    """What a long request has to tell before its answer."""

    data: Any


class Parts(NamedTuple):
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


class AdminDesk:
    """Answers admin requests (`ports.Admin`). Adding one takes a function in `admin_…` and a line in the table."""

    def __init__(self) -> None:
        self.parts: Parts | None = None
        """Set once the daemon is put together."""
        self._long = 0

    async def handle(
        self, method: str, payload: bytes, delivery: Delivery | None = None
    ) -> AsyncGenerator[AdminResponse, None]:
        """Answer one admin request; see `ports.Admin`."""
        answer: dict[str, Any] = {}
        try:
            try:
                params = _params(payload)
            except OutOfBounds:
                answer |= _transaction(fields_in(payload))
                raise
            answer |= _transaction(params)
            async with aclosing(self._run(method, params, answer.get("transaction"), delivery)) as steps:
                async for step in steps:
                    if isinstance(step, Progress):
                        yield AdminResponse(status="progress", data=step.data, **answer)
                    else:
                        yield AdminResponse(status="ok", data=step, **answer)
        except PiagentError as error:
            yield _failure(error, answer)
        except Exception:
            log.exception("admin request %.64r failed by a defect", method)
            yield _failure(InternalError(), answer)

    async def _run(
        self, name: str, params: dict[str, Any], transaction: Any, delivery: Delivery | None
    ) -> AsyncGenerator[Any, None]:
        if self.parts is None:
            raise InternalError("The daemon is not put together yet.")
        if name not in METHODS:
            raise InvalidRequest(f'There is no method "{name[:64]}". Known: {", ".join(METHODS)}.')
        method = load(name)
        if method.long:
            params.setdefault("id", _name(transaction))
            if self._long >= MAX_LONG:
                raise Busy("Too many long requests run; ask again in a moment.")
        self._long += method.long
        try:
            async with _attempt(self.parts.store, delivery if method.long else None):
                done = method.action(self.parts, method.read(name, params))
                if inspect.isasyncgen(done):
                    async with aclosing(done) as steps:
                        async for step in steps:
                            yield step
                else:
                    yield await done
        finally:
            self._long -= method.long


@asynccontextmanager
async def _attempt(store: ConversationStore, delivery: Delivery | None) -> AsyncGenerator[None, None]:
    """Mark a durable request as being tried. Raises InternalError when earlier tries brought the daemon down."""
    if delivery is None or not delivery.durable:
        yield
        return
    ticket = await store.open(delivery, Ticket("", str(uuid4())))
    begun = await store.begin(ticket.request_id, ticket.conversation_id)
    if begun.crashes >= MAX_CRASHES:
        raise InternalError(GIVEN_UP)
    leave = store.forget
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):  # the broker brings it after the restart
        leave = store.release
        raise
    finally:
        await leave(ticket.request_id, ticket.conversation_id)


def load(name: str) -> Any:
    """Return the method (`admin_method.Method`) of that name in METHODS."""
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(f"piagent_daemon.{module}"), attribute)


def _params(payload: bytes) -> dict[str, Any]:
    if not payload.strip():
        return {}
    check_values(payload)
    try:
        params = from_json(payload, allow_inf_nan=False)
    except ValueError:
        raise InvalidRequest("The parameters are not valid JSON in Unicode.") from None
    if not isinstance(params, dict):
        raise InvalidRequest("The parameters are not a JSON object.")
    return params


def _transaction(params: dict[str, Any]) -> dict[str, Any]:
    """Take out of `params` what the asker wants echoed, if anything."""
    return {"transaction": params.pop("transaction")} if "transaction" in params else {}


def _name(transaction: Any) -> str:
    """Return what a long request is called when it has no `id`: its transaction where that can be one."""
    text = str(transaction) if isinstance(transaction, str | int) else ""
    return text if 0 < len(text) <= 128 else str(uuid4())


def _failure(error: PiagentError, answer: dict[str, Any]) -> AdminResponse:
    return AdminResponse(status="error", error=AdminError(code=error.code, message=str(error)), **answer)
