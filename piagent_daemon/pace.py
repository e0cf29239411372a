"""A provider's stream, read in a task of its own and handed out at a listener's pace.

The reader never waits for the listener, so a token is noticed at once; the listener gets the first text immediately and
later text joined to at most one piece per interval.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Final, Self

from piagent_daemon.contract import Stage
from piagent_daemon.values import Delta, Finish

_READERS: Final[set[asyncio.Task[None]]] = set()
"""The loop itself holds a task only weakly, and a reader may outlive its Pace."""


class Pace:
    """Owns the task that iterates `deltas` between entering and leaving the context, or to the end of a whole answer.

    `interval_s` is the least time between two texts, in seconds; 0 hands out the text of each delta by itself. After
    `max_chars` characters reading ends and `too_long` is set: a guard against a server that never stops. `stage` says
    what the listener waits for while no text comes, None once there was some.
    """

    def __init__(self, deltas: AsyncGenerator[Delta, None], interval_s: float, max_chars: int) -> None:
        self.finish: Finish | None = None
        self.ended = False
        self.too_long = False
        self.stage: Stage | None = "loading"
        self.detail = ""
        self.first_token_at: float | None = None
        self._deltas = deltas
        self._interval_s = interval_s
        self._chars_left = max_chars
        self._loop = asyncio.get_running_loop()
        self._held: deque[str] = deque()
        self._stage_is_news = False
        self._due = 0.0
        self._ring: asyncio.TimerHandle | None = None
        self._listener: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None

    async def __aenter__(self) -> Self:
        self._task = self._loop.create_task(self._read(), name="read model stream")
        self._task.add_done_callback(self._on_end)
        _READERS.add(self._task)
        self._task.add_done_callback(_READERS.discard)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is None:
            return
        if self._ring:
            self._ring.cancel()
        if self.finish and not error:  # it only closes what was read, and nobody need wait for that
            return
        self._task.cancel()
        if not self._task.done():
            await asyncio.wait([self._task])

    def close(self) -> None:
        """Stop reading at once: the connection to the model server closes and the listener sees the end."""
        if self._task:
            self._task.cancel()

    def entered(self, stage: Stage, detail: str) -> None:
        """Note that the stream has come to another stage before its first text."""
        self.stage, self.detail = stage, detail
        self._stage_is_news = True
        self._wake()

    @property
    def text_due(self) -> bool:
        """Tell whether text is held that may be handed out now."""
        return bool(self._held) and (self.finish is not None or self.ended or self._ring is None)

    def take(self) -> str:
        """Return all text that is held, and let the interval begin anew; without an interval, the oldest text alone."""
        if not self._interval_s:
            return self._held.popleft()
        text = "".join(self._held)
        self._held.clear()
        self._due = self._loop.time() + self._interval_s
        return text

    async def wait(self, until: float | None = None) -> None:
        """Return when text is due, the answer is complete, the stage changes, or at loop time `until`."""
        if self.text_due or self.finish or self.ended or self._stage_is_news:
            self._stage_is_news = False
            return
        self._listener = self._loop.create_future()
        alarm = self._loop.call_at(until, self._wake) if until is not None else None
        try:
            await self._listener
        finally:
            self._listener = None
            self._stage_is_news = False
            if alarm:
                alarm.cancel()

    def raise_failure(self) -> None:
        """Raise what ended the stream, if it was neither its proper end nor `close`."""
        if self._failure:
            raise self._failure

    async def _read(self) -> None:
        async with aclosing(self._deltas) as deltas:
            async for delta in deltas:
                self._take_in(delta)
                if delta.finish:
                    await asyncio.sleep(0)  # the listener first: closing takes longer than telling
                if self._chars_left < 0:
                    self.too_long = True
                    return

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self.ended = True
        self._failure = None if task.cancelled() else task.exception()
        self._wake()

    def _take_in(self, delta: Delta) -> None:
        if delta.text:
            now = self._loop.time()
            if self.first_token_at is None:
                self.first_token_at = now
            self.stage = None
            self._held.append(delta.text)
            self._chars_left -= len(delta.text)
            if self._ring is None:
                if now >= self._due:
                    self._wake()
                else:
                    self._ring = self._loop.call_at(self._due, self._rung)
        elif delta.thinking and self.stage not in {None, "thinking"}:
            self.first_token_at = self.first_token_at or self._loop.time()
            self.entered("thinking", "The model thinks.")
        if delta.finish:
            self.finish = delta.finish
            self._wake()

    def _rung(self) -> None:
        self._ring = None
        self._wake()

    def _wake(self) -> None:
        if self._listener and not self._listener.done():
            self._listener.set_result(None)
