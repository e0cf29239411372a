"""Which models the server has, as `piagent/info` tells it; brings a missing one at start where PULL_MISSING says so."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from piagent_daemon.errors import Busy, PiagentError
from piagent_daemon.ladder import Ladder
from piagent_daemon.rung import Rung
from piagent_daemon.turn import Config
from piagent_daemon.values import ModelInfo, ProviderState, PullProgress

if TYPE_CHECKING:
    from piagent_daemon.downloads import Download

log = logging.getLogger("piagent.models")

LIST_S: Final = 300.0
"""Somebody may add or remove models behind our back: after so many seconds a look at the server lists them again."""
TELL_S: Final = 0.5
"""A download moves many times a second; those who watch it hear of it this often."""
LOG_S: Final = 30.0


class Catalogue:
    """Keeps `Config.models`, those of the first provider; downloads and removes models, one download at a time."""

    def __init__(self, ladder: Ladder, config: Config) -> None:
        self.on_change: Callable[[], None] = _nothing
        """Called when the models are others than before."""
        self.on_arrival: Callable[[], None] = _nothing
        """Called when a model that was missing at start is there."""
        self._ladder = ladder
        self._config = config
        self._wake = asyncio.Event()
        self._seen: tuple[bool, bool | None] = (False, None)
        self._listed_at: float | None = None
        self._download: Download | None = None
        self._list_due = False
        self._complete: set[Rung] = set()
        """Those that were seen to have what they shall have."""

    # -------------------------------------------------------------------------------------------------- what there is

    def looked(self, rung: Rung, state: ProviderState) -> None:
        """Take what a look at a model server showed: the list is asked for when it may have changed."""
        if rung is self._ladder.rungs[0]:
            seen, before = (state.reachable, state.model_found), self._seen
            self._seen = seen
            now = asyncio.get_running_loop().time()
            if state.reachable and (seen != before or self._listed_at is None or now - self._listed_at > LIST_S):
                self._list_due = True
                self._wake.set()
        if state.reachable and self._lacking(rung):
            self._wake.set()

    def _lacking(self, rung: Rung) -> bool:
        """Tell whether it was not seen yet to have all models that it shall have."""
        return self._config.settings.pull_missing and rung not in self._complete

    async def run(self) -> None:
        """List the models whenever that is worth it, for ever; download what is missing, once."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._list_due:
                self._list_due = False
                await _try(self.refresh())
            for rung in [*self._ladder.known.values()]:
                if self._lacking(rung) and rung.state and rung.state.reachable:
                    await _try(self._bring_missing(rung))

    async def refresh(self) -> list[ModelInfo]:
        """Return the first provider's models, as they are now. Raises ProviderError."""
        found = await self._ladder.first.models()
        self._listed_at = asyncio.get_running_loop().time()
        names = tuple(sorted({model.name for model in found}))
        if names != self._config.models:
            self._config.models = names
            self.on_change()
        return found

    # ------------------------------------------------------------------------------------------------- what shall be

    async def pull(self, rung: Rung, model: str, name: str) -> AsyncGenerator[PullProgress, None]:
        """Have a provider download a model, telling of it twice a second; `name` is for `cancel`.

        Closing the generator stops the download; a later one goes on where it was. Raises Busy when another one runs,
        Cancelled, ProviderError.
        """
        if self._download:
            raise Busy(f'Another model is being downloaded: "{self._download.model}".')
        from piagent_daemon.downloads import Download  # noqa: PLC0415 (most daemons never download)

        self._download = Download(rung.provider, model, name, self._config.settings)
        try:
            async with aclosing(self._download.steps(TELL_S)) as steps:
                async for step in steps:
                    yield step
        finally:
            self._download = None
        await self._changed(rung)

    def cancel(self, name: str) -> bool:
        """Stop the download of that name, or of the model of that name; tell whether there was one."""
        if self._download is None or name not in {self._download.name, self._download.model}:
            return False
        self._download.stop()
        return True

    async def delete(self, rung: Rung, model: str) -> None:
        """Have a provider remove a model. Raises ProviderError."""
        await rung.provider.delete(model)
        log.info("%s: the model %s was removed", rung.name, model)
        await self._changed(rung)

    async def _changed(self, rung: Rung) -> None:
        """List the models anew; what was done is done, also when the server does not answer just now."""
        if rung is self._ladder.rungs[0]:
            await _try(self.refresh())

    async def _bring_missing(self, rung: Rung) -> None:
        """Download the models that a provider is asked for and lacks.

        Raises what may pass: then it is tried again after the next look, as when the server goes away.
        """
        for model in self._ladder.models(rung, self._config.agents.values()):
            state = await rung.provider.probe(model)
            if not state.reachable:
                return
            if state.model_found is False:
                try:
                    await self._bring(rung, model)
                except PiagentError as error:
                    if error.retryable:
                        raise
                    log.error("the model %s cannot be downloaded: %s", model, error)  # noqa: TRY400 - no defect
        self._complete.add(rung)

    async def _bring(self, rung: Rung, model: str) -> None:
        log.info("%s: the model %s is missing: it is downloaded (PULL_MISSING)", rung.name, model)
        told = asyncio.get_running_loop().time()
        async with aclosing(self.pull(rung, model, model)) as steps:
            async for step in steps:
                now = asyncio.get_running_loop().time()
                if step.total and now - told > LOG_S:
                    told = now
                    log.info("the model %s: %s, %d %%", model, step.status, 100 * step.completed // step.total)
        log.info("the model %s is there", model)
        self.on_arrival()


async def _try(work: Awaitable[object]) -> None:
    """Do what is tried again later when the model server fails."""
    try:
        await work
    except PiagentError as error:
        log.info("%s: %s", error.code, error)


def _nothing() -> None:
    """Stand in until somebody wants to know."""
