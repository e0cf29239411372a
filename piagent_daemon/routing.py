"""Which model of a provider can do what a request needs."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Final

from piagent_daemon.errors import ModelNotFound
from piagent_daemon.ports import Provider
from piagent_daemon.rung import Rung
from piagent_daemon.setting_types import allows

MAX_ASKED: Final = 12
"""So many models are asked for their capabilities one by one, where the list does not tell."""
NEEDS: Final = {
    "vision": "can look at images: bring one (with Ollama: `ollama pull qwen2.5vl:3b`)",
    "embedding": "makes embeddings: bring one (with Ollama: `ollama pull nomic-embed-text`)",
}


async def capable(
    provider: Provider, capability: str, first: str, allowed: Collection[str] = (), *, only: bool = False
) -> str:
    """Return `first` when it has the capability or nothing is known of it, else another model that has it.

    With `allowed`, only those may take its place, and none with `only`. Raises ModelNotFound when there is none, or
    what the provider raises.
    """
    try:
        known = await provider.capabilities(first)
    except ModelNotFound:
        if only:
            raise
        known = frozenset({"none"})
    if not known or capability in known:
        return first
    others = [] if only else [model for model in await provider.models() if not allows((first,), model.name)]
    others = [model for model in others if allows(allowed, model.name)]
    for model in others:
        if capability in model.capabilities:
            return model.name
    for model in others[:MAX_ASKED]:
        if capability in await provider.capabilities(model.name):
            return model.name
    raise ModelNotFound(f"{provider.name} has no model that {NEEDS[capability]}")


async def embedder(
    rungs: Sequence[Rung], model: str | None, general: Callable[[str], str], allowed: Collection[str]
) -> tuple[Rung, str]:
    """Return who makes embeddings, and by which model: `model`, or the first that can.

    `general` returns the model of a provider for those who name none. There is no second choice while it fails: vectors
    of two models cannot be compared. Raises ModelNotFound, or what a provider raises.
    """
    missing: ModelNotFound | None = None
    for rung in rungs if model is None else await _owners(rungs, model):
        try:
            wanted = model or general(rung.name)
            return rung, await capable(rung.provider, "embedding", wanted, allowed, only=bool(model))
        except ModelNotFound as error:
            missing = missing or error
    raise missing or ModelNotFound("There is no provider.")


async def _owners(rungs: Sequence[Rung], model: str) -> list[Rung]:
    """Return those that have a model, else those that cannot tell: a server of one model answers by any name."""
    states = await asyncio.gather(*(rung.provider.probe(model) for rung in rungs))
    looked = list(zip(rungs, states, strict=True))
    have = [rung for rung, state in looked if state.model_found]
    return have or [rung for rung, state in looked if state.model_found is None] or [rungs[0]]
