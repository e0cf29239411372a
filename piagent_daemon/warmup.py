"""Loads the models and lets them read the agents' system prompts before somebody asks."""

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Final

from piagent_daemon import prompt
from piagent_daemon.agents import Agent
from piagent_daemon.errors import ModelNotFound, PiagentError
from piagent_daemon.ladder import Ladder
from piagent_daemon.rung import Rung
from piagent_daemon.turn import Config
from piagent_daemon.values import ChatRequest, Message

log = logging.getLogger("piagent.warmup")

READ_ANEW: Final = ("ollama_model_general", "ctx_tokens", "think", "prompt_style", "default_agent")
"""Settings by which another model is loaded, a prompt is read otherwise, or another one is to stay warmest."""


class Warmup:
    """Primes the model servers in the background; real requests go first (`is_idle`)."""

    def __init__(self, ladder: Ladder, config: Config, is_idle: Callable[[], bool]) -> None:
        self._ladder = ladder
        self._config = config
        self._is_idle = is_idle
        self._task: asyncio.Task[None] | None = None
        self._left: set[str] = set()
        """The agents that are not primed yet, while it runs."""

    def begin(self, names: Collection[str] | None = None) -> None:
        """Prime the agents of these names, all when None; the default agent last, since that prompt stays warmest.

        Those that are not primed yet are primed with them; without any name, what runs goes on.
        """
        wanted = set(self._config.agents if names is None else names)
        if not wanted:
            return
        if self._task and not self._task.done():
            self._task.cancel()
            wanted |= self._left
        agents = [agent for name, agent in self._config.agents.items() if name in wanted]
        agents.sort(key=lambda agent: agent.name == self._config.settings.default_agent)
        self._left = {agent.name for agent in agents}
        self._task = asyncio.get_running_loop().create_task(self._prime(agents), name="prime the model")
        self._task.add_done_callback(_look_at)

    async def stop(self) -> None:
        """Give up what is not primed yet."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def reload(self, rung: Rung, model: str) -> None:
        """Have a server drop a model and load it anew, its agents' prompts with it. Raises ProviderError."""
        if self._task:
            self._task.cancel()
        await rung.provider.unload(model)
        agents, default = self._config.agents, self._config.settings.default_agent
        its = [agent for agent in agents.values() if self._ladder.home(agent.provider) is rung]
        for agent in [agent for agent in its if self._model(agent) == model] or [agents[default]]:
            await rung.provider.prime(self._request(rung, agent, model))

    async def _prime(self, agents: list[Agent]) -> None:
        away: set[Rung] = set()
        for agent in agents:
            rung = self._ladder.home(agent.provider)
            if rung in away:
                continue
            if not self._is_idle():
                return
            try:
                await rung.provider.prime(self._request(rung, agent, self._model(agent)))
                self._left.discard(agent.name)
            except PiagentError as error:
                # The watch on the model server tells the same in health; the first request simply starts cold.
                log.info("%s: not primed with agent %s: %s", rung.name, agent.name, error)
                if not isinstance(error, ModelNotFound):  # the next agent may have another model
                    away.add(rung)

    def _model(self, agent: Agent) -> str:
        return agent.model or self._ladder.general(agent.provider)

    def _request(self, rung: Rung, agent: Agent, model: str) -> ChatRequest:
        settings = self._config.settings
        messages = (Message("system", agent.system),)
        return ChatRequest(
            model=model,
            messages=messages,
            options={"num_predict": 1},
            context_tokens=self._ladder.window(rung),
            prompt=prompt.xml(messages) if settings.prompt_style == "xml" else None,
        )


def _look_at(task: asyncio.Task[None]) -> None:
    """Log a defect: priming is a favour, and answers do not depend on it."""
    if not task.cancelled() and (error := task.exception()):
        log.error("priming the model failed by a defect", exc_info=error)
