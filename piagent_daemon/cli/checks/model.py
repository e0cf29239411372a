"""The model server: reachable, has the models, and one of them answers."""

import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing

from piagent_daemon import checks, providers
from piagent_daemon.agents import Agent, misplaced
from piagent_daemon.checks import REMEDIES, Finding
from piagent_daemon.errors import ConfigError, PiagentError
from piagent_daemon.ports import Provider
from piagent_daemon.providers.config import ProviderConfig
from piagent_daemon.settings import Settings
from piagent_daemon.values import ChatRequest, Message


async def check_models(settings: Settings, agents: Collection[Agent], *, ask: bool) -> AsyncGenerator[Finding, None]:
    """Look at each model server of PROVIDER and of agents, and at the models it shall have; `ask` lets it answer."""
    first, *_ = ladder = settings.provider.split(",")
    tenants = {agent.provider: agent for agent in agents if agent.provider not in {None, *ladder}}
    homes = [(agent.provider or first, agent.model) for agent in agents]
    beside = [home for home, _ in homes]
    for name in dict.fromkeys((*ladder, *beside)):
        try:
            provider = providers.create(name, settings, beside)
        except ConfigError as error:
            if tenant := tenants.get(name):
                trouble, remedy = misplaced(tenant, error), "Correct the prompt file, or the settings of that provider."
            else:
                trouble, remedy = error, "Correct PROVIDER."
            yield Finding(f"server {name}", "fail", str(trouble), remedy)
            continue
        try:
            config = providers.config.place(name, settings, beside).config
            own = sorted({model for home, model in homes if model and home == name} - {config.model})
            async with aclosing(_server(provider, config, own, ask=ask)) as findings:
                async for finding in findings:
                    yield finding
        finally:
            await provider.aclose()


async def _server(
    provider: Provider, config: ProviderConfig, own: Sequence[str], *, ask: bool
) -> AsyncGenerator[Finding, None]:
    there = True
    async with aclosing(checks.server(provider, [config.model, *own])) as findings:
        async for finding in findings:
            there = there and finding.state == "ok"
            yield finding
    if ask and there:
        yield await _answer(provider, config)


async def _answer(provider: Provider, config: ProviderConfig) -> Finding:
    """Let the general model say a word, with the daemon's own window: another one would reload the model."""
    request = ChatRequest(
        model=config.model,
        messages=(Message("user", "Say: ok"),),
        options={"num_predict": 8, "temperature": 0.0},
        context_tokens=config.context_tokens,
    )
    began = time.monotonic()
    try:
        async with aclosing(provider.chat(request)) as deltas:
            async for _ in deltas:
                pass
    except PiagentError as error:
        return Finding("answer", "fail", str(error), REMEDIES.get(error.code, "Look at the model server's log."))
    return Finding("answer", "ok", f"the model answered after {time.monotonic() - began:.1f} s")
