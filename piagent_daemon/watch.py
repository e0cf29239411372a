"""How the model servers stand: known from the answers they give, and from a short look when there were none."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from piagent_daemon.contract import ErrorEvent, ProviderHealth, ProviderUse
from piagent_daemon.contract import Final as FinalEvent
from piagent_daemon.errors import ModelNotFound, ProviderError, ProviderTimeout, ProviderUnavailable, Unauthorized
from piagent_daemon.ladder import Ladder
from piagent_daemon.rung import Rung
from piagent_daemon.turn import Config
from piagent_daemon.values import ProviderState
from piagent_daemon.waiting import woken

log = logging.getLogger("piagent.provider")

FIRST_LOOK_S: Final = 1.0
KINDS: Final[dict[str, type[ProviderError]]] = {
    kind.code: kind for kind in (ProviderError, ProviderTimeout, ProviderUnavailable, ModelNotFound, Unauthorized)
}
ACT: Final = frozenset({ModelNotFound.code, Unauthorized.code})
"""Reasons that do not pass by themselves."""
LOADED_S: Final = 1.0
"""A model that took longer than this many seconds to load is worth a line in the log."""


class ProviderWatch:
    """Looks at the serving rung at start, every HEALTH_INTERVAL_S, and sooner while it is in trouble; at each other
    one at start, and whenever its rest is over."""

    def __init__(self, ladder: Ladder, config: Config) -> None:
        self._ladder = ladder
        self._config = config
        self.on_change: Callable[[], None] = _nothing
        self.on_look: Callable[[Rung, ProviderState], None] = _ignore
        """Called after each look at a rung with how it stands."""
        self._look_soon = asyncio.Event()
        ladder.on_failure = self._failed

    @property
    def reason(self) -> str | None:
        """The health reason for what is wrong with the rung that serves, or None."""
        return self._ladder.serving.reason

    @property
    def reasons(self) -> list[str]:
        """The health reasons: of the rung that serves, and of others those that do not pass by themselves."""
        known = self._ladder.known.values()
        found = [self.reason, *(rung.reason for rung in known if rung.reason in ACT)]
        found += [ModelNotFound.code for rung in known if rung.missing]
        return list(dict.fromkeys(reason for reason in found if reason))

    @property
    def health(self) -> ProviderHealth:
        """How the rung that serves now stands."""
        rung = self._ladder.serving
        state = rung.state
        return ProviderHealth(
            name=rung.name,
            reachable=state.reachable if state else None,
            model=self._ladder.general(rung.name),
            model_loaded=state.model_loaded if state else None,
            error=rung.trouble,
        )

    @property
    def report(self) -> list[ProviderUse]:
        """How each of them stands, and what it has done."""
        return self._ladder.report()

    def ended(self, event: FinalEvent | ErrorEvent) -> None:
        """Learn from a terminal event."""
        if isinstance(event, FinalEvent):
            if event.timing.load_s > LOADED_S:
                log.info("the model %s took %.0f s to load", event.model, event.timing.load_s)
            rung = self._ladder.known.get(event.provider, self._ladder.rungs[0])
            if event.finish_reason != "cancelled" and not event.cached and rung.reason and self._heals(rung, event):
                self._set(rung, ProviderState(reachable=True, model_loaded=True, model_found=True), None)
        elif event.code == ModelNotFound.code:  # perhaps only the one that this request named
            self._look_soon.set()

    def _heals(self, rung: Rung, event: FinalEvent) -> bool:
        """Tell whether an answer takes back what is wrong: not that a model is missing, where another one gave it."""
        return rung.reason != ModelNotFound.code or event.model == self._ladder.general(rung.name)

    def _failed(self, rung: Rung, error: ProviderError) -> None:
        """Learn from a failure, though another rung may have made it good."""
        reachable = not isinstance(error, ProviderUnavailable)
        self._set(rung, ProviderState(reachable=reachable, error=str(error)), error.code)
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
            pause_s = min(pause_s * 2, usual_s) if self.reason else usual_s
            self._look_soon.clear()
            if await woken(self._look_soon, min(pause_s, self._ladder.trial_in_s)):
                pause_s = FIRST_LOOK_S
                await asyncio.sleep(pause_s)

    async def look(self, *, everyone: bool = False) -> None:
        """Ask the model servers once whose turn it is, or all of them, in bounded time."""
        serving, known = self._ladder.serving, self._ladder.known.values()
        due = [rung for rung in known if everyone or rung is serving or rung.state is None or rung.due]
        await asyncio.gather(*map(self._look_at, due))

    async def _look_at(self, rung: Rung) -> None:
        rests = rung.rest_until
        state = await rung.provider.probe(self._ladder.general(rung.name))
        if state.reachable and state.model_found is not None:
            await self._look_for_models(rung)
        self._judge(rung, state, rests)
        self.on_look(rung, state)

    async def _look_for_models(self, rung: Rung) -> None:
        """See whether the models are there that agents name."""
        _, *models = self._ladder.models(rung, self._config.agents.values())
        states = await asyncio.gather(*map(rung.provider.probe, models))
        before = rung.missing
        looked = zip(models, states, strict=True)
        rung.missing = {model: state.error or model for model, state in looked if state.model_found is False}
        for model in rung.missing.keys() - before.keys():
            log.error("%s: %s: %s", rung.name, ModelNotFound.code, rung.missing[model])
        if rung.missing != before:
            self.on_change()

    def _judge(self, rung: Rung, state: ProviderState, rests: float) -> None:
        """Take over what a look showed; `rests` is until when the rung rested as the look began."""
        reason = None
        if not state.reachable:
            reason = ProviderUnavailable.code
        elif state.model_found is False:
            reason = ModelNotFound.code
        elif state.error:
            reason = state.code if state.code in KINDS else ProviderError.code
        elif rung.rest_until > rests or (rung.reason and not _cures(rung)):
            return  # a request failed during the look, or in a way that a look cannot judge
        if reason:
            self._ladder.rest(rung, KINDS[reason](state.error or f"{rung.name} does not answer."))
        self._set(rung, state, reason)

    def _set(self, rung: Rung, state: ProviderState, reason: str | None) -> None:
        changed = (reason, state.error) != (rung.reason, rung.state.error if rung.state else None)
        first = rung.state is None
        before, rung.state, rung.reason = rung.reason, state, reason
        if changed:
            self._tell(rung, before)
        if changed or first:
            self.on_change()

    def _tell(self, rung: Rung, before: str | None) -> None:
        """Log a change: once, however many requests meet it."""
        name = f"{rung.name}: " if self._ladder.several else ""
        if rung.reason:
            level = logging.ERROR if rung.reason in ACT else logging.WARNING
            log.log(level, "%s%s: %s", name, rung.reason, rung.state.error if rung.state else None)
        elif before:
            log.info("%sthe model server is well again", name)


def _cures(rung: Rung) -> bool:
    """Tell whether a good look takes back what is wrong: not while it rests, nor that a request's key was refused."""
    by_look = rung.state is not None and rung.state.code is not None
    return not rung.at_rest and (rung.reason != Unauthorized.code or by_look)


def _nothing() -> None:
    """Stand in until somebody wants to hear of changes."""


def _ignore(_: Rung, __: ProviderState) -> None:
    """Stand in until somebody wants to hear of looks."""
