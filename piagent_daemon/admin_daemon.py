"""Admin requests about the daemon: its agents, settings, defaults, health; stopping what runs."""

from typing import Any

from piagent_daemon.admin import Parts
from piagent_daemon.admin_method import NoParams, takes
from piagent_daemon.contract import Id, Noun, SetDefaults
from piagent_daemon.errors import InvalidRequest


class OneRequest(Noun):
    id: Id


@takes(NoParams)
async def agents_list(parts: Parts, _: NoParams) -> Any:
    """List the agents."""
    return {"agents": [agent.model_dump() for agent in parts.reporting.info().agents]}


@takes(OneRequest)
async def cancel(parts: Parts, params: OneRequest) -> Any:
    """Stop or drop a request by its id: a question, a request to `llm/…`, or a download, also by its model's name."""
    if not (parts.scheduler.cancel_request(params.id) or parts.catalogue.cancel(params.id)):
        raise InvalidRequest(f'No request "{params.id[:64]}" runs or waits.')
    return {"id": params.id}


@takes(NoParams)
async def config_get(parts: Parts, _: NoParams) -> Any:
    """Return the settings in force, secrets masked."""
    return parts.config.settings.masked()


@takes(SetDefaults)
async def defaults_set(parts: Parts, params: SetDefaults) -> Any:
    """Choose what stands in place of settings."""
    return (await parts.chooser.set(params)).model_dump()


@takes(NoParams)
async def health(parts: Parts, _: NoParams) -> Any:
    """Return the health of this moment."""
    return parts.reporting.health().model_dump()
