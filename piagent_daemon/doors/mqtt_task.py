"""A task that must not end, and a thread that nobody has to wait for."""

import asyncio
import logging
import threading
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


async def in_thread(call: Callable[[], object], otherwise: Callable[[], object]) -> None:
    """Run `call` in a thread that does not hold up the end of the process; `otherwise` undoes it when nobody waits.

    Raises what `call` raises.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if done.cancelled():
            otherwise()
        elif error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        failure: BaseException | None = None
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it; else they would wait for ever
            failure = error
        try:
            loop.call_soon_threadsafe(tell, failure)
        except RuntimeError:  # the loop is closed: the process ends
            otherwise()

    threading.Thread(target=run, name="mqtt-connect", daemon=True).start()
    try:
        await done
    except asyncio.CancelledError:
        if not done.cancelled():
            otherwise()
        raise
