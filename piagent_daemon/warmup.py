"""Loads the model and lets it read the agents' system prompts before somebody asks."""

import asyncio
import logging
from collections.abc import Callable, Collection

from piagent_daemon import prompt
from piagent_daemon.agents import Agent
from piagent_daemon.errors import PiagentError
from piagent_daemon.ports import Provider
from piagent_daemon.turn import Config
from piagent_daemon.values import ChatRequest, Message

log = logging.getLogger("piagent.warmup")


class Warmup:
    """Primes the first model server in the background; real requests go first (`is_idle`)."""

    def __init__(self, provider: Provider, config: Config, is_idle: Callable[[], bool]) -> None:
        self._provider = provider
        self._config = config
        self._is_idle = is_idle
        self._task: asyncio.Task[None] | None = None

    def begin(self, names: Collection[str] | None = None) -> None:
        """Prime the agents of these names, all when None; the default agent last, since that prompt stays warmest."""
        agents = [agent for name, agent in self._config.agents.items() if names is None or name in names]
        agents = [agent for agent in agents if agent.provider in {None, self._provider.name}]
        agents.sort(key=lambda agent: agent.name == self._config.settings.default_agent)
        if self._task:
            self._task.cancel()
        self._task = asyncio.get_running_loop().create_task(self._prime(agents), name="prime the model")
        self._task.add_done_callback(_look_at)

    async def stop(self) -> None:
        """Give up what is not primed yet."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def reload(self, model: str) -> None:
        """Have the server drop a model and load it anew, its agents' prompts with it. Raises ProviderError."""
        if self._task:
            self._task.cancel()
        await self._provider.unload(model)
        agents = [agent for agent in self._config.agents.values() if self._model(agent) == model]
        settings = self._config.settings
        for agent in agents or [self._config.agents[settings.default_agent]]:
            await self._provider.prime(self._request(agent, model))

    async def _prime(self, agents: list[Agent]) -> None:
        for agent in agents:
            if not self._is_idle():
                return
            try:
                await self._provider.prime(self._request(agent, self._model(agent)))
            except PiagentError as error:
                # The watch on the model server tells the same in health; the first request simply starts cold.
                log.info("not primed with agent %s: %s", agent.name, error)
                return

    def _model(self, agent: Agent) -> str:
        return agent.model or self._config.settings.ollama_model_general

    def _request(self, agent: Agent, model: str) -> ChatRequest:
        settings = self._config.settings
        messages = (Message("system", agent.system),)
        return ChatRequest(
            model=model,
            messages=messages,
            options={"num_predict": 1},
            context_tokens=settings.ctx_tokens,
            prompt=prompt.xml(messages) if settings.prompt_style == "xml" else None,
        )


def _look_at(task: asyncio.Task[None]) -> None:
    """Log a defect: priming is a favour, and answers do not depend on it."""
    if not task.cancelled() and (error := task.exception()):
        log.error("priming the model failed by a defect", exc_info=error)
