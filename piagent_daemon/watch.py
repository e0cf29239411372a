"""How the model server stands: known from the answers it gives, and from a short look when there were none."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from piagent_daemon.contract import ErrorEvent, ProviderHealth
from piagent_daemon.contract import Final as FinalEvent
from piagent_daemon.errors import ModelNotFound, ProviderError, ProviderTimeout, ProviderUnavailable, Unauthorized
from piagent_daemon.ports import Provider
from piagent_daemon.turn import Config
from piagent_daemon.values import ProviderState

log = logging.getLogger("piagent.provider")

FIRST_LOOK_S: Final = 1.0
REASONS: Final = tuple(
    kind.code for kind in (ProviderError, ProviderTimeout, ProviderUnavailable, ModelNotFound, Unauthorized)
)
ACT: Final = frozenset({ModelNotFound.code, Unauthorized.code})
"""Reasons that do not pass by themselves."""
LOADED_S: Final = 1.0
"""A model that took longer than this many seconds to load is worth a line in the log."""


class ProviderWatch:
    """Looks at the model server at start, every HEALTH_INTERVAL_S, and sooner while it is in trouble."""

    def __init__(self, provider: Provider, config: Config) -> None:
        self._provider = provider
        self._config = config
        self.on_change: Callable[[], None] = _nothing
        self._state: ProviderState | None = None
        self._reason: str | None = None
        self._look_soon = asyncio.Event()

    @property
    def reason(self) -> str | None:
        """The health reason for what is wrong, or None."""
        return self._reason

    @property
    def health(self) -> ProviderHealth:
        state = self._state
        return ProviderHealth(
            name=self._provider.name,
            reachable=state.reachable if state else None,
            model=self._config.settings.ollama_model_general,
            model_loaded=state.model_loaded if state else None,
            error=state.error if state else None,
        )

    def ended(self, event: FinalEvent | ErrorEvent) -> None:
        """Learn from a terminal event."""
        if isinstance(event, FinalEvent):
            if event.timing.load_s > LOADED_S:
                log.info("the model %s took %.0f s to load", event.model, event.timing.load_s)
            if event.finish_reason != "cancelled" and not event.cached and self._reason:
                self._set(ProviderState(reachable=True, model_loaded=True, model_found=True), None)
        elif event.code in REASONS:
            reachable = event.code != ProviderUnavailable.code
            self._set(ProviderState(reachable=reachable, error=event.message), event.code)
            self._look_soon.set()

    def look_soon(self) -> None:
        """Look in a moment: there may be another model to look for."""
        self._look_soon.set()

    async def run(self) -> None:
        """Look, wait, look again, for ever."""
        pause_s = FIRST_LOOK_S
        while True:
            await self.look()
            usual_s = self._config.settings.health_interval_s
            pause_s = min(pause_s * 2, usual_s) if self._reason else usual_s
            self._look_soon.clear()
            try:
                await asyncio.wait_for(self._look_soon.wait(), pause_s)
                pause_s = FIRST_LOOK_S
                await asyncio.sleep(pause_s)
            except TimeoutError:
                pass

    async def look(self) -> None:
        """Ask the model server once, in bounded time."""
        state = await self._provider.probe(self._config.settings.ollama_model_general)
        reason = None
        if not state.reachable:
            reason = ProviderUnavailable.code
        elif state.model_found is False:
            reason = ModelNotFound.code
        elif state.error:
            reason = ProviderError.code
        self._set(state, reason)

    def _set(self, state: ProviderState, reason: str | None) -> None:
        changed = (reason, state.error) != (self._reason, self._state.error if self._state else None)
        first = self._state is None
        if changed:
            self._tell(state, reason)
        self._state, self._reason = state, reason
        if changed or first:
            self.on_change()

    def _tell(self, state: ProviderState, reason: str | None) -> None:
        """Log a change: once, however many requests meet it."""
        if reason:
            level = logging.ERROR if reason in ACT else logging.WARNING
            log.log(level, "%s: %s", reason, state.error)
        else:
            log.info("the model server is well again")


def _nothing() -> None:
    """Stand in until somebody wants to hear of changes."""
