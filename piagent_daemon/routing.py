"""Which model of a provider can do what a request needs."""

from collections.abc import Collection
from typing import Final

from piagent_daemon.errors import ModelNotFound
from piagent_daemon.ports import Provider
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
