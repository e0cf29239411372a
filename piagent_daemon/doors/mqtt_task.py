"""A task that must not end."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

log = logging.getLogger("piagent.mqtt")

PAUSE_S: Final = 1.0


class LastingTask:
    """Runs `work` as a task, and anew when it dies by a defect: a door that hears nothing must not look alive."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._work = work
        self._name = name
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin."""
        if not self._stopped:
            self._task = asyncio.get_running_loop().create_task(self._work(), name=self._name)
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.critical("the task %r died and is started anew", self._name, exc_info=error)
        task.get_loop().call_later(PAUSE_S, self.start)

    async def stop(self) -> None:
        """End it for good."""
        self._stopped = True
        if self._task and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
