"""What answers `piagent/request/<method>` (contract section 5)."""

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from pydantic import ValidationError

from piagent_daemon.contract import AdminError, AdminResponse, Id, Noun, SetDefaults
from piagent_daemon.defaults import Chooser
from piagent_daemon.errors import InternalError, InvalidRequest, PiagentError
from piagent_daemon.ports import ConversationStore, Provider
from piagent_daemon.reporting import Reporting
from piagent_daemon.scheduler import Scheduler
from piagent_daemon.turn import Config
from piagent_daemon.warmup import Warmup

log = logging.getLogger("piagent.admin")


class NoParams(Noun):
    """The method takes nothing."""


class OneConversation(Noun):
    conversation_id: str


class SomeConversation(Noun):
    conversation_id: str | None = None


class OneRequest(Noun):
    id: Id


class SomeModel(Noun):
    model: str | None = None


class AdminDesk:
    """Answers admin requests. Adding one takes a method here and a line in the table."""

    def __init__(
        self,
        config: Config,
        scheduler: Scheduler,
        store: ConversationStore,
        provider: Provider,
        *,
        chooser: Chooser,
        warmup: Warmup,
    ) -> None:
        self.reporting: Reporting | None = None
        self._config = config
        self._scheduler = scheduler
        self._store = store
        self._provider = provider
        self._chooser = chooser
        self._warmup = warmup
        self._methods: dict[str, tuple[type[Noun], Callable[[Any], Awaitable[Any]]]] = {
            "agents/list": (NoParams, self._agents_list),
            "cancel": (OneRequest, self._cancel),
            "config/get": (NoParams, self._config_get),
            "conversations/list": (NoParams, self._conversations_list),
            "defaults/set": (SetDefaults, self._defaults_set),
            "health": (NoParams, self._health_now),
            "memory/clear": (SomeConversation, self._memory_clear),
            "memory/get": (OneConversation, self._memory_get),
            "models/list": (NoParams, self._models_list),
            "models/reload": (SomeModel, self._models_reload),
        }

    async def handle(self, method: str, payload: bytes) -> AsyncGenerator[AdminResponse, None]:
        """Answer one admin request with exactly one `ok` or `error`, last."""
        answer: dict[str, Any] = {}
        try:
            params = _params(payload)
            if "transaction" in params:
                answer["transaction"] = params.pop("transaction")
            data = await self._call(method, params)
            yield AdminResponse(status="ok", data=data, **answer)
        except PiagentError as error:
            yield _failure(error, answer)
        except Exception:
            log.exception("admin request %.64r failed by a defect", method)
            yield _failure(InternalError("The daemon failed on this request; its log says why."), answer)

    async def _call(self, method: str, params: dict[str, Any]) -> Any:
        if method not in self._methods:
            raise InvalidRequest(f'There is no method "{method[:64]}". Known: {", ".join(sorted(self._methods))}.')
        shape, action = self._methods[method]
        try:
            return await action(shape.model_validate(params, strict=True))
        except ValidationError as error:
            fields = {".".join(str(part) for part in problem["loc"])[:64]: problem["msg"] for problem in error.errors()}
            problems = "; ".join(f"{field}: {message}" for field, message in fields.items())
            raise InvalidRequest(f"Bad parameters for {method}: {problems}.") from None

    def _known(self) -> Reporting:
        if self.reporting is None:
            raise InternalError("The daemon is not put together yet.")
        return self.reporting

    async def _agents_list(self, _: NoParams) -> Any:
        return {"agents": [agent.model_dump() for agent in self._known().info().agents]}

    async def _conversations_list(self, _: NoParams) -> Any:
        return {
            "conversations": [
                {
                    "conversation_id": row.conversation_id,
                    "turns": row.turns,
                    "agent": row.agent,
                    "last_used": row.last_used,
                }
                for row in await self._store.conversations()
            ]
        }

    async def _memory_get(self, params: OneConversation) -> Any:
        found = await self._store.load(params.conversation_id)
        return {
            "conversation_id": params.conversation_id,
            "agent": found.agent,
            "dropped_turns": found.dropped,
            "turns": [
                {"role": turn.role, "content": turn.content, "ts": turn.ts, "interrupted": turn.interrupted}
                for turn in found.turns
            ],
        }

    async def _memory_clear(self, params: SomeConversation) -> Any:
        if params.conversation_id is None:
            return {"cleared": await self._store.clear()}
        return {"cleared": await self._scheduler.reset(params.conversation_id)}

    async def _models_list(self, _: NoParams) -> Any:
        return {
            "models": [
                {
                    "name": model.name,
                    "size": model.size,
                    "parameters": model.parameters,
                    "quantization": model.quantization,
                }
                for model in await self._provider.models()
            ]
        }

    async def _models_reload(self, params: SomeModel) -> Any:
        model = params.model or self._config.settings.ollama_model_general
        await self._warmup.reload(model)
        return {"model": model}

    async def _defaults_set(self, params: SetDefaults) -> Any:
        return (await self._chooser.set(params)).model_dump()

    async def _health_now(self, _: NoParams) -> Any:
        return self._known().health().model_dump()

    async def _config_get(self, _: NoParams) -> Any:
        return self._config.settings.masked()

    async def _cancel(self, params: OneRequest) -> Any:
        if not self._scheduler.cancel_request(params.id):
            raise InvalidRequest(f'No request "{params.id[:64]}" runs or waits.')
        return {"id": params.id}


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


def _failure(error: PiagentError, answer: dict[str, Any]) -> AdminResponse:
    return AdminResponse(status="error", error=AdminError(code=error.code, message=str(error)), **answer)
