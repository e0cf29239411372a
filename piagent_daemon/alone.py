"""Work outside the conversations: it waits in their queue, takes one of their places, is cancelled like theirs."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, TypeVar
from uuid import uuid4

from piagent_daemon.agents import Agent
from piagent_daemon.contract import ErrorEvent, Event, Request
from piagent_daemon.errors import Cancelled, PiagentError, ProviderTimeout, ProviderUnavailable, ShuttingDown
from piagent_daemon.job import Job, Stamp
from piagent_daemon.ports import Clock
from piagent_daemon.scheduler import Scheduler
from piagent_daemon.settings import Settings
from piagent_daemon.tries import Tries
from piagent_daemon.values import Message

NOBODY: Final = Agent(name="llm", system="")
"""Stands where a job names its agent: no prompt, no options of its own."""

T = TypeVar("T")


class ToldError(PiagentError):
    """A failure that the engine has put into an event already."""

    def __init__(self, event: ErrorEvent) -> None:
        super().__init__(event.message)
        self.code = event.code  # type: ignore[misc] # the one of another class


class Errand:
    """One job that belongs to no conversation.

    `name` is its request id, which `cancel` wants; `model` may be empty where the call finds one.
    """

    def __init__(self, scheduler: Scheduler, clock: Clock, *, name: str, model: str, request: Request) -> None:
        lane = str(uuid4())
        self._scheduler = scheduler
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._job = Job(
            request=request,
            conversation_id=lane,
            request_id=name,
            agent=NOBODY,
            model=model,
            channel=self,
            stamp=Stamp(lane, name, 1, clock),
            received=clock.monotonic(),
            durable=False,
        )

    async def ask(self, messages: tuple[Message, ...]) -> AsyncGenerator[Event, None]:
        """Have messages answered; yield the events up to `final`. Leaving early stops it. Raises ToldError."""
        self._job.messages = messages
        request = self._job.request
        parts = (*(said.content for said in messages), *request.images, *(file.text or "" for file in request.files))
        self._job.size = sum(map(len, parts))
        self._scheduler.take(self._job)
        try:
            while (event := await self._next()) is not None:
                yield event
                if event.terminal:
                    return
        finally:
            self._scheduler.cancel(self._job.conversation_id)

    async def do(self, call: Callable[[], Awaitable[T]], settings: Settings, size: int) -> T:
        """Make one call of the model server, again after a failure that may pass. Raises ToldError.

        `size` is about how many bytes the call holds while it waits.
        """
        found: list[T] = []

        async def patiently() -> None:
            tries = Tries(settings.max_retries, settings.backoff_factor_s)
            while not found:
                try:
                    found.append(await call())
                except ProviderUnavailable as error:
                    await tries.after(error)

        async def work(job: Job) -> AsyncGenerator[Event, None]:
            task = asyncio.get_running_loop().create_task(patiently(), name=f"errand {job.request_id}")
            job.attach(task.cancel)
            try:
                done, _ = await asyncio.wait([task], timeout=settings.total_timeout_s)
                if not done:
                    raise ProviderTimeout(f"The model server took longer than {settings.total_timeout_s:g} seconds.")
                if task.cancelled():
                    raise _stopped(job)
                task.result()
                self._events.put_nowait(None)
            except PiagentError as error:
                yield job.failure(error)
            finally:
                task.cancel()

        self._job.work, self._job.size = work, size
        self._scheduler.take(self._job)
        try:
            while await self._next() is not None:
                pass
        finally:
            self._scheduler.cancel(self._job.conversation_id)
        return found[0]

    async def _next(self) -> Event | None:
        event = await self._events.get()
        if isinstance(event, ErrorEvent):
            raise ToldError(event)
        return event

    # --------------------------------------------------------------------------------------------------- ports.Channel

    def send(self, event: Event) -> None:
        """Take one event; see `ports.Channel`."""
        self._events.put_nowait(event)

    def send_again(self, terminal: bytes) -> None:
        """Nothing: what is not remembered is not sent again."""

    def drop(self) -> None:
        """Nothing: there is no input to settle."""

    def abandon(self) -> None:
        """Nothing, as with `drop`."""


def _stopped(job: Job) -> PiagentError:
    if job.stopped == "shutdown":
        return ShuttingDown()
    return Cancelled("The request was cancelled.")
