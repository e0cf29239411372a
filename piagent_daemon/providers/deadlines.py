"""Deadlines for the reads of one streamed answer."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from piagent_daemon.errors import ProviderTimeout

T = TypeVar("T")


class Deadlines:
    """Bounds how long reads may take, each for itself and all together.

    There is one timer, and it is moved only when it fires: a read that comes in time costs well below a microsecond,
    where `asyncio.timeout` around each costs three. Only reads are under the deadline, never whoever consumes them, so
    that an async generator may yield between two reads. Reads raise ProviderTimeout.
    """

    __slots__ = (
        "_cancelling",
        "_due",
        "_end",
        "_hit",
        "_loop",
        "_seconds",
        "_task",
        "_timer",
        "_total_s",
        "_what",
        "_when",
    )

    def __init__(self, total_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._total_s = total_s
        self._end = self._due = self._loop.time() + total_s
        self._seconds, self._what = total_s, "end"
        self._timer: asyncio.TimerHandle | None = None
        self._when = 0.0
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._hit = False

    def allow(self, seconds: float, what: str) -> None:
        """Give the coming reads together `seconds` from now, until the next call; `what` is what they wait for."""
        now = self._loop.time()
        if now >= self._end:
            raise self._timeout()
        self._due = due = min(now + seconds, self._end)
        self._seconds, self._what = seconds, what
        if self._timer is None or due < self._when:
            self._schedule()

    async def read(self, awaitable: Awaitable[T]) -> T:
        """Wait for `awaitable` no longer than allowed."""
        if self._timer is None:  # it fired between two reads
            self._schedule()
        self._task = asyncio.current_task()
        try:
            return await awaitable
        except asyncio.CancelledError:
            if self._hit and self._task is not None and self._task.uncancel() <= self._cancelling:
                raise self._timeout() from None
            raise
        finally:
            self._task = None

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._when = self._due
        self._timer = self._loop.call_at(self._when, self._fire)

    def _fire(self) -> None:
        self._timer = None
        if self._loop.time() < self._due:
            self._schedule()
        elif self._task is not None:
            self._hit = True
            self._cancelling = self._task.cancelling()
            self._task.cancel()

    def _timeout(self) -> ProviderTimeout:
        if self._due >= self._end or self._loop.time() >= self._end:
            return ProviderTimeout(f"the answer was not complete within {self._total_s:g} s")
        return ProviderTimeout(f"no {self._what} came from the model server within {self._seconds:g} s")
