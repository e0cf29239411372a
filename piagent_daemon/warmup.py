"""Loads the models and lets them read the agents' system prompts before somebody asks."""

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Final

from piagent_daemon import prompt
from piagent_daemon.agents import Agent
from piagent_daemon.errors import ModelNotFound, PiagentError, ProviderUnavailable
from piagent_daemon.ladder import Ladder
from piagent_daemon.rung import Rung
from piagent_daemon.turn import Config
from piagent_daemon.values import ChatRequest, Message, ProviderState
from piagent_daemon.waiting import Idle

log = logging.getLogger("piagent.warmup")

READ_ANEW: Final = ("ollama_model_general", "ctx_tokens", "think", "prompt_style", "default_agent")
"""Settings by which another model is loaded, a prompt is read otherwise, or another one is to stay warmest."""
CALM_S: Final = 60.0
"""So long nobody asks any more before priming goes on: it costs a talk its place in the model server's cache."""


class Warmup:
    """Primes the model servers in the background; real requests go first: `idle` is set while there are none."""

    def __init__(self, ladder: Ladder, config: Config, idle: Idle) -> None:
        self.on_primed: Callable[[], None] | None = None
        """Called when models were loaded and prompts read."""
        self._ladder = ladder
        self._config = config
        self._idle = idle
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._reloads = 0
        self._left: set[str] = set()
        """The agents that are not primed yet."""
        self._away: set[Rung] = set()
        """What could not be reached, until a look finds it well."""
        self._missing: set[tuple[Rung, str]] = set()
        """Models that were not there, until a look finds them."""

    def begin(self, names: Collection[str] | None = None) -> None:
        """Prime the agents of these names, all when None; the default agent last, since that prompt stays warmest.

        Those that are not primed yet are primed with them; without any name, what runs goes on.
        """
        wanted = set(self._config.agents if names is None else names)
        if wanted:
            self._left |= wanted
            self._away.clear()
            self._missing.clear()
            self._start()

    def looked(self, rung: Rung, state: ProviderState) -> None:
        """Take what a look at a model server showed: what could not be primed there is primed when it can be.

        A server that was away and has not loaded its model, though that was to stay, was started anew: what it had read
        is gone.
        """
        if not state.reachable:
            self._away.add(rung)
        elif rung in self._away:
            self._away.discard(rung)
            if state.model_loaded is False and self._config.settings.ollama_keep_alive.startswith("-"):
                self._left.update(self._at_home(rung))
        if state.reachable and state.model_found is not None:
            lacks = {*rung.missing, *([] if state.model_found else [self._ladder.general(rung.name)])}
            self._missing = {(one, model) for one, model in self._missing if one is not rung or model in lacks}
        if self._task is None or self._task.done():
            self._start()

    def _start(self) -> None:
        agents = [agent for name, agent in self._config.agents.items() if name in self._left and self._can_be(agent)]
        if not agents or self._stopped or self._reloads:
            return
        agents.sort(key=lambda agent: agent.name == self._config.settings.default_agent)
        if self._task:
            self._task.cancel()
        self._task = asyncio.get_running_loop().create_task(self._prime(agents), name="prime the model")
        self._task.add_done_callback(_look_at)

    async def stop(self) -> None:
        """Give up what is not primed yet."""
        self._stopped = True
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def reload(self, rung: Rung, model: str) -> None:
        """Have a server drop a model and load it anew, its agents' prompts with it. Raises ProviderError."""
        if self._task:
            self._task.cancel()
        self._reloads += 1
        try:
            await rung.provider.unload(model)
            agents, default = self._config.agents, self._config.settings.default_agent
            its = [agents[name] for name in self._at_home(rung) if self._model(agents[name]) == model]
            for agent in its or [agents[default]]:
                await rung.provider.prime(self._request(rung, agent, model))
                if agent in its:
                    self._left.discard(agent.name)
        finally:
            self._reloads -= 1
            self._start()

    async def _prime(self, agents: list[Agent]) -> None:
        before = set(self._left)
        for agent in agents:
            while not self._idle.is_set():
                await self._idle.wait()
                while (left_s := CALM_S - self._idle.lasts_s) > 0:  # noqa: ASYNC110 - a question begins it anew
                    await asyncio.sleep(left_s)
            if self._config.agents.get(agent.name) != agent or agent.name not in self._left or not self._can_be(agent):
                continue
            rung, model = self._ladder.home(agent.provider), self._model(agent)
            try:
                await rung.provider.prime(self._request(rung, agent, model))
                self._left.discard(agent.name)
            except PiagentError as error:
                # The watch on the model server tells the same in health; the first request simply starts cold.
                log.info("%s: not primed with agent %s: %s", rung.name, agent.name, error)
                if isinstance(error, ModelNotFound):
                    self._missing.add((rung, model))
                elif isinstance(error, ProviderUnavailable):
                    self._away.add(rung)
                else:
                    self._left.difference_update(self._at_home(rung))
        if self._left != before and self.on_primed:
            self.on_primed()

    def _can_be(self, agent: Agent) -> bool:
        """Tell whether nothing is known that would keep an agent from being primed."""
        rung = self._ladder.home(agent.provider)
        return rung not in self._away and (rung, self._model(agent)) not in self._missing

    def _at_home(self, rung: Rung) -> list[str]:
        """Return the agents that are answered on a rung where nothing is wrong with it."""
        return [name for name, agent in self._config.agents.items() if self._ladder.home(agent.provider) is rung]

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
