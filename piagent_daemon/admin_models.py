"""Admin requests about the server's models. Downloading and removing want MODELS_ADMIN."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from piagent_daemon.admin import Parts, Progress
from piagent_daemon.admin_method import Long, takes
from piagent_daemon.contract import Noun
from piagent_daemon.errors import InvalidRequest, ModelNotFound, PiagentError
from piagent_daemon.model_names import ModelName
from piagent_daemon.rung import Rung
from piagent_daemon.setting_types import allows
from piagent_daemon.values import ModelInfo


class AnyModel(Noun):
    provider: str | None = None


class OneModel(AnyModel):
    model: ModelName


class Pull(Long):
    model: ModelName
    provider: str | None = None


class Reload(Long):
    model: ModelName | None = None
    provider: str | None = None


@takes(AnyModel)
async def list_all(parts: Parts, params: AnyModel) -> Any:
    """List the models that one provider has, or all of them; `errors` says which of several did not answer, and why."""
    if params.provider is not None or not parts.ladder.several:
        rung = parts.ladder.named(params.provider)
        return {"models": [_row(rung, model) for model in await _models(parts, rung)]}
    rungs = [*parts.ladder.known.values()]
    found = await asyncio.gather(*(_models(parts, rung) for rung in rungs), return_exceptions=True)
    rows, errors = [], {}
    for rung, models in zip(rungs, found, strict=True):
        if isinstance(models, PiagentError):
            errors[rung.name] = str(models)
        elif isinstance(models, BaseException):
            raise models
        else:
            rows += [_row(rung, model) for model in models]
    return {"models": rows, "errors": errors}


async def _models(parts: Parts, rung: Rung) -> list[ModelInfo]:
    """Ask a provider for its models; those of the first are also what `info` names."""
    return await (parts.catalogue.refresh() if rung is parts.ladder.rungs[0] else rung.provider.models())


@takes(OneModel)
async def show(parts: Parts, params: OneModel) -> Any:
    """Tell about one model what the list does not: what it can do, and whether it is loaded."""
    rung = await _owner(parts, params)
    state = await rung.provider.probe(params.model)
    listed = await _models(parts, rung) if state.reachable else []
    known = [model for model in listed if allows((params.model,), model.name)]
    if state.model_found is False or (state.model_found is None and listed and not known):
        raise ModelNotFound(state.error or f'The model server does not have "{params.model}".')
    capabilities = await rung.provider.capabilities(params.model)
    row = _row(rung, known[0] if known else ModelInfo(params.model))
    return {**row, "capabilities": sorted(capabilities), "loaded": state.model_loaded}


async def _owner(parts: Parts, params: OneModel) -> Rung:
    """Return the provider that is named, else the first that has the model, else the first."""
    if params.provider is None:
        for rung in parts.ladder.known.values() if parts.ladder.several else ():
            if (await rung.provider.probe(params.model)).model_found:
                return rung
    return parts.ladder.named(params.provider)


@takes(Pull)
async def pull(parts: Parts, params: Pull) -> AsyncGenerator[Any, None]:
    """Download a model; a later pull goes on where an earlier one was stopped."""
    _check_allowed(parts, "models/pull")
    rung = parts.ladder.named(params.provider)
    async with aclosing(parts.catalogue.pull(rung, params.model, params.id)) as steps:
        async for step in steps:
            yield Progress(
                {
                    "id": params.id,
                    "model": params.model,
                    "status": step.status,
                    "digest": step.digest,
                    "completed": step.completed,
                    "total": step.total,
                }
            )
    parts.watch.look_soon()
    yield {"id": params.id, "model": params.model}


@takes(OneModel)
async def delete(parts: Parts, params: OneModel) -> Any:
    """Remove a model from a server; from the first unless one is named, never from whichever has it."""
    _check_allowed(parts, "models/delete")
    try:
        await parts.catalogue.delete(parts.ladder.named(params.provider), params.model)
    except ModelNotFound:  # its own remedy is to pull it
        raise ModelNotFound(f'There is no model "{params.model}" to remove; models/list names what is there.') from None
    parts.watch.look_soon()
    return {"model": params.model}


@takes(Reload)
async def reload(parts: Parts, params: Reload) -> Any:
    """Have a model dropped and loaded anew."""
    rung = parts.ladder.named(params.provider)
    model = params.model or parts.ladder.general(rung.name)
    if params.model and not allows(parts.config.settings.models_allowed, model):
        raise InvalidRequest(f'The model "{model[:128]}" is not in MODELS_ALLOWED.')
    await parts.warmup.reload(rung, model)
    return {"model": model}


def _check_allowed(parts: Parts, method: str) -> None:
    if not parts.config.settings.models_admin:
        raise InvalidRequest(f"{method} is switched off: set MODELS_ADMIN=true to allow it.")


def _row(rung: Rung, model: ModelInfo) -> dict[str, Any]:
    return {
        "provider": rung.name,
        "name": model.name,
        "size": model.size,
        "parameters": model.parameters,
        "quantization": model.quantization,
    }
