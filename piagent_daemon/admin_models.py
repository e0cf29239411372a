"""Admin requests about the server's models. Downloading and removing want MODELS_ADMIN."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from pydantic import StringConstraints

from piagent_daemon.admin import Parts, Progress
from piagent_daemon.admin_method import Long, NoParams, takes
from piagent_daemon.contract import Noun
from piagent_daemon.errors import InvalidRequest, ModelNotFound
from piagent_daemon.values import ModelInfo

ModelName = Annotated[str, StringConstraints(pattern=r"^[^\s\x00-\x1f]{1,256}$")]


class OneModel(Noun):
    model: ModelName


class SomeModel(Noun):
    model: ModelName | None = None


class Pull(Long):
    model: ModelName


@takes(NoParams)
async def list_all(parts: Parts, _: NoParams) -> Any:
    """List the models that the server has."""
    return {"models": [_row(model) for model in await parts.catalogue.refresh()]}


@takes(OneModel)
async def show(parts: Parts, params: OneModel) -> Any:
    """Tell about one model what the list does not: what it can do, and whether it is loaded."""
    provider = parts.ladder.first
    state = await provider.probe(params.model)
    if state.model_found is False:
        raise ModelNotFound(state.error or f'The model server does not have "{params.model}".')
    capabilities = await provider.capabilities(params.model)
    names = {params.model, f"{params.model}:latest"}
    known = [model for model in await parts.catalogue.refresh() if model.name in names]
    row = _row(known[0] if known else ModelInfo(params.model))
    return {**row, "capabilities": sorted(capabilities), "loaded": state.model_loaded}


@takes(Pull)
async def pull(parts: Parts, params: Pull) -> AsyncGenerator[Any, None]:
    """Download a model; a later pull goes on where an earlier one was stopped."""
    _check_allowed(parts, "models/pull")
    async with aclosing(parts.catalogue.pull(params.model, params.id)) as steps:
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
    """Remove a model from the server."""
    _check_allowed(parts, "models/delete")
    await parts.catalogue.delete(params.model)
    parts.watch.look_soon()
    return {"model": params.model}


@takes(SomeModel)
async def reload(parts: Parts, params: SomeModel) -> Any:
    """Have a model dropped and loaded anew."""
    settings = parts.config.settings
    model = params.model or settings.ollama_model_general
    if settings.models_allowed and model not in settings.models_allowed:
        raise InvalidRequest(f'The model "{model[:128]}" is not in MODELS_ALLOWED.')
    await parts.warmup.reload(model)
    return {"model": model}


def _check_allowed(parts: Parts, method: str) -> None:
    if not parts.config.settings.models_admin:
        raise InvalidRequest(f"{method} is switched off: set MODELS_ADMIN=true to allow it.")


def _row(model: ModelInfo) -> dict[str, Any]:
    return {
        "name": model.name,
        "size": model.size,
        "parameters": model.parameters,
        "quantization": model.quantization,
    }
