"""The download of one model: taken up again where it broke off, watched at a listener's pace."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from piagent_daemon.errors import Cancelled, ProviderUnavailable
from piagent_daemon.ports import Provider
from piagent_daemon.settings import Settings
from piagent_daemon.tries import Tries
from piagent_daemon.values import PullProgress

log = logging.getLogger("piagent.models")


class Download:
    """Begins at once, in a task of its own. `name` is what it can be cancelled by beside its model's name."""

    def __init__(self, provider: Provider, model: str, name: str, settings: Settings) -> None:
        self.model = model
        self.name = name
        self._provider = provider
        self._settings = settings
        self._step = PullProgress("asking the model server")
        self._news = asyncio.Event()
        self._news.set()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"download {model}")
        self._task.add_done_callback(lambda _: self._news.set())

    def stop(self) -> None:
        """Close the connection: the server keeps what it has, and a later download goes on there."""
        self._task.cancel()

    async def steps(self, interval_s: float) -> AsyncGenerator[PullProgress, None]:
        """Yield how far it is, at most once per interval; leaving early stops it.

        Raises Cancelled after `stop`, and ProviderError.
        """
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                if self._task.done():
                    break
                yield self._step
                await asyncio.wait([self._task], timeout=interval_s)
        finally:
            self.stop()
            await asyncio.wait([self._task])
        if self._task.cancelled():
            raise Cancelled(f'The download of "{self.model}" was stopped; another one goes on where it was.')
        self._task.result()

    async def _run(self) -> None:
        """Ask again after a failure that may pass; a download that went on in between has all its tries again."""
        tries, reached = self._tries(), ("", 0)
        while True:
            try:
                async with aclosing(self._provider.pull(self.model)) as steps:
                    async for self._step in steps:
                        self._news.set()
            except ProviderUnavailable as error:
                here = (self._step.digest, self._step.completed)
                if here != reached:
                    tries, reached = self._tries(), here
                if tries.left:
                    log.warning("the download of %s broke off and is taken up again: %s", self.model, error)
                await tries.after(error)
            else:
                return

    def _tries(self) -> Tries:
        return Tries(self._settings.max_retries, self._settings.backoff_factor_s)
