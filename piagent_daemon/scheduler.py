"""Who is answered next: order within a conversation, fairness across them, bounds, cancelling, duplicates.

Holds the engine's only catch-all: whatever a request brings about, it gets its terminal event.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Any, Final
from uuid import uuid4

from piagent_daemon.admission import expired, is_too_large, refusal, wants_silence
from piagent_daemon.contract import Accepted, ErrorEvent, Event, QueueHealth, Sentence
from piagent_daemon.contract import Final as FinalEvent
from piagent_daemon.errors import Busy, Cancelled, InternalError, PiagentError, ShuttingDown
from piagent_daemon.health import Tally
from piagent_daemon.job import Job, Lane, job_of
from piagent_daemon.loops import LoopBreaker
from piagent_daemon.ports import Channel, Clock, ConversationStore
from piagent_daemon.spoken import Spoken
from piagent_daemon.turn import Assistant, Config
from piagent_daemon.values import Incoming, Outcome, Ticket
from piagent_daemon.waiting import Idle, first_of

log = logging.getLogger("piagent.scheduler")

MAX_CRASHES: Final = 2
GIVEN_UP: Final = "This request brought the daemon down twice; not tried again."
STOP_S: Final = 2.0
"""Seconds that a stopped answer has to say its last word."""


class Scheduler:
    """Takes requests in (`ports.Intake`) and runs at most MAX_CONCURRENT of them side by side."""

    def __init__(
        self, assistant: Assistant, config: Config, store: ConversationStore, tally: Tally, clock: Clock
    ) -> None:
        self._assistant = assistant
        self._config = config
        self._store = store
        self._tally = tally
        self._clock = clock
        self._lanes: dict[str, Lane] = {}
        self._ready: deque[Lane] = deque()
        self._live: dict[tuple[str, str], Job] = {}
        self._tasks: dict[Job, asyncio.Task[None]] = {}
        self._errands: set[asyncio.Task[None]] = set()
        self._loops = LoopBreaker(clock)
        self._spoken = Spoken()
        self._entering = 0
        self._waiting = 0
        self._draining = False
        self.idle = Idle()
        """Set while nothing comes in, waits, runs or is being ended."""

    # ---------------------------------------------------------------------------------------------------------- state

    @property
    def queue(self) -> QueueHealth:
        return QueueHealth(active=len(self._tasks), waiting=self._waiting, limit=self._config.settings.max_waiting)

    @property
    def alive(self) -> bool:
        """Tell whether what waits is being worked on."""
        return self._draining or not self._ready or len(self._tasks) >= self._config.settings.max_concurrent

    # ------------------------------------------------------------------------------------------------------------- in

    async def submit(self, incoming: Incoming, channel: Channel) -> None:
        """Take one request in; see `ports.Intake`."""
        self._entering += 1
        self.idle.clear()
        try:
            await self._enter(incoming, channel)
        finally:
            self._entering -= 1
            self._look_idle()

    async def _enter(self, incoming: Incoming, channel: Channel) -> None:
        fresh = Ticket(incoming.conversation_id or str(uuid4()), incoming.request.id or str(uuid4()))
        ticket = await self._store.open(incoming.delivery, fresh)
        if ticket.terminal is not None:
            self._tally.duplicate()
            channel.send_again(ticket.terminal)
        elif (ticket.conversation_id, ticket.request_id) in self._live:
            self._tally.duplicate()
            channel.abandon()
        elif self._loops.is_echo(incoming.conversation_id or "", incoming.request.message):
            self._tally.refused(f"loop:{incoming.conversation_id or 'in'}")
            channel.drop()
        else:
            await self._take(incoming, ticket, channel)

    async def _take(self, incoming: Incoming, ticket: Ticket, channel: Channel) -> None:
        agents, settings = self._config.agents, self._config.settings
        name = incoming.request.agent or await self._last_agent(ticket.conversation_id)
        agent = agents.get(name) or agents[settings.default_agent]
        job = job_of(incoming, ticket, channel, self._clock, agent=agent, model=self._assistant.model(agent))
        if self._draining and job.durable:  # it came in just before, and the transport brings it again
            channel.abandon()
        else:
            self.take(job)

    def take(self, job: Job) -> None:
        """Queue a job that is made already, such as one outside the conversations."""
        self._tally.request()
        self._live[job.conversation_id, job.request_id] = job
        waited_s = self._clock.monotonic() - job.received
        if why := refusal(job, self._config, waited_s, draining=self._draining):
            self._start_errand(self._refuse(job, why))
            return
        if wants_silence(job.agent, job.request.message):
            self._send(job, job.stamp(Accepted, position=0, agent=job.agent.name, model=job.model))
            self.cancel(job.conversation_id)
            self._start_errand(self._end(job, self._assistant.silence(job)))
            return
        self._accept(self._lanes.get(job.conversation_id) or Lane(job.conversation_id), job)

    def _accept(self, lane: Lane, job: Job) -> None:
        free = len(self._tasks) < self._config.settings.max_concurrent and not self._ready
        starts_now = free and lane.running is None
        if not starts_now and not self._has_room(lane, job):
            self._tally.overload()
            self._start_errand(self._refuse(job, Busy("Too many requests wait; ask again in a moment.")))
            return
        lane.agent = job.request.agent or lane.agent
        if self._config.settings.log_messages:
            log.debug("conversation %.64r asks: %s", job.conversation_id, job.request.message)
        position = 0 if starts_now else self._waiting + 1 - lane.overtaken_by(job)
        self._send(job, job.stamp(Accepted, position=position, agent=job.agent.name, model=job.model))
        if job.interrupts and lane.running:
            lane.running.stop("cancelled")
        self._enqueue(lane, job)

    def _enqueue(self, lane: Lane, job: Job) -> None:
        self._lanes[lane.conversation_id] = lane
        lane.add(job)
        self._waiting += 1
        self.idle.clear()
        if lane.running is None and len(lane.waiting) == 1:
            self._ready.append(lane)
        loop, waited_s = asyncio.get_running_loop(), self._clock.monotonic() - job.received
        if (expires_s := job.request.expires_s) is not None:
            job.alarms.append(loop.call_later(max(0.0, expires_s - waited_s), self._expire, lane, job))
        if job.agent.filler and job.stream == "sentences":
            due_s = float(job.agent.filler["seconds"]) - waited_s
            job.alarms.append(loop.call_later(max(0.0, due_s), self._fill, lane, job))
        self._dispatch()

    def _has_room(self, lane: Lane, job: Job) -> bool:
        if is_too_large(job, (other for one in self._lanes.values() for other in one.waiting)):
            return False
        takes_place = job.interrupts and lane.running and lane.overtaken_by(job) == len(lane.waiting)
        return bool(takes_place) or self._waiting < self._config.settings.max_waiting or self._make_room(lane)

    def _make_room(self, lane: Lane) -> bool:
        """Send the newest request of the conversation that floods away, if that is not the one that asks."""
        widest = max(self._lanes.values(), key=lambda other: len(other.waiting), default=None)
        if widest is None or len(widest.waiting) < len(lane.waiting) + 2:
            return False
        self._tally.overload()
        self._drop(widest, widest.waiting[-1], Busy("Too many requests of this conversation wait."))
        return True

    async def _last_agent(self, conversation_id: str) -> str:
        if (lane := self._lanes.get(conversation_id)) and lane.agent:
            return lane.agent
        return (await self._store.load(conversation_id)).agent or self._config.settings.default_agent

    # ------------------------------------------------------------------------------------------------------------ run

    def _dispatch(self) -> None:
        while self._ready and len(self._tasks) < self._config.settings.max_concurrent:
            lane = self._ready.popleft()
            if not lane.waiting or (self._draining and lane.waiting[0].durable):
                continue
            job = lane.waiting.popleft()
            self._waiting -= 1
            lane.running = job
            job.disarm()
            name = f"answer {job.request_id}"
            self._tasks[job] = asyncio.get_running_loop().create_task(self._run(lane, job), name=name)

    async def _run(self, lane: Lane, job: Job) -> None:
        try:
            await self._answer(job)
        except Exception:
            log.exception("request %s failed by a defect", job.request_id)
            if not job.ended:
                await self._refuse(job, InternalError())
        finally:
            lane.running = None
            del self._tasks[job]
            self._live.pop((job.conversation_id, job.request_id), None)
            self._next(lane)

    async def _answer(self, job: Job) -> None:
        if job.durable:
            ticket = await self._store.begin(job.request_id, job.conversation_id)
            if ticket.crashes >= MAX_CRASHES:
                log.error("request %s brought the daemon down %d times: given up", job.request_id, ticket.crashes)
                await self._refuse(job, InternalError(GIVEN_UP))
                return
        async with aclosing((job.work or self._assistant.answer)(job)) as events:
            async for event in events:
                self._send(job, event)

    def _next(self, lane: Lane) -> None:
        if lane.waiting:
            self._ready.append(lane)
        else:
            self._lanes.pop(lane.conversation_id, None)
        self._dispatch()
        self._look_idle()

    def _look_idle(self) -> None:
        if not (self._entering or self._tasks or self._errands) and (self._draining or not self._waiting):
            self.idle.set()

    def _send(self, job: Job, event: Event) -> None:
        job.channel.send(event)  # first: somebody waits for it
        if isinstance(event, FinalEvent | ErrorEvent):
            job.ended = True
            self._tally.ended(event)
        if isinstance(event, FinalEvent) and event.reply and not job.alone:
            self._loops.replied(job.echoes_in, event.reply)
            if self._config.settings.log_messages:
                log.debug("conversation %.64r hears: %s", job.conversation_id, event.reply)
            self._spoken.answered(job, event.reply)
            if job.spoken_index is not None and event.finish_reason != "cancelled":  # it came too late to stop anything
                self._shorten(job.conversation_id, job.request_id, job.spoken_index)

    # -------------------------------------------------------------------------------------------------- ending early

    def cancel(self, conversation_id: str, request_id: str | None = None, spoken_index: int | None = None) -> None:
        """Stop the running answer of a conversation; see `ports.Intake`."""
        lane = self._lanes.get(conversation_id)
        if lane and lane.running and request_id in {None, lane.running.request_id}:
            lane.running.stop("cancelled", spoken_index)
        elif spoken_index is not None:
            self._shorten(conversation_id, request_id, spoken_index)
        if lane:
            for job in [job for job in lane.waiting if request_id in {None, job.request_id}]:
                self._drop(lane, job, Cancelled("Cancelled before it started."))

    def _shorten(self, conversation_id: str, request_id: str | None, spoken_index: int) -> None:
        """Have only what was heard remembered of an answer that is complete."""
        if cut := self._spoken.cut(conversation_id, request_id, spoken_index):
            self._start_errand(self._store.shorten(conversation_id, *cut))

    def cancel_request(self, request_id: str) -> bool:
        """Stop or drop the request of that id in whatever conversation; tell whether there was one."""
        found = [job for job in self._live.values() if job.request_id == request_id]
        for job in found:
            self.cancel(job.conversation_id, request_id)
        return bool(found)

    async def reset(self, conversation_id: str | None = None) -> int:
        """Forget a conversation or all, running answers included, which go on; return how many were remembered."""
        self._loops.forget(conversation_id)
        for lane in self._lanes.values():
            if conversation_id in {None, lane.conversation_id}:
                lane.agent = None
        return await self._store.clear(conversation_id)

    def refused(self, reason: str) -> None:
        """Count something that was not taken."""
        self._tally.refused(reason)

    def duplicate(self) -> None:
        """Count a request that came in again while it is being answered."""
        self._tally.duplicate()

    def _expire(self, lane: Lane, job: Job) -> None:
        if job in lane.waiting:
            self._drop(lane, job, expired(job))

    def _fill(self, lane: Lane, job: Job) -> None:
        """Say the agent's filler for a request that still waits."""
        if job in lane.waiting and job.agent.filler:
            job.filled = True
            self._send(job, job.stamp(Sentence, text=str(job.agent.filler["text"]), index=0))

    def _drop(self, lane: Lane, job: Job, why: PiagentError) -> None:
        lane.waiting.remove(job)
        self._waiting -= 1
        if not lane.waiting and lane.running is None:
            self._lanes.pop(lane.conversation_id, None)
            if lane in self._ready:
                self._ready.remove(lane)
        self._start_errand(self._refuse(job, why))

    async def _refuse(self, job: Job, why: PiagentError) -> None:
        await self._end(job, job.failure(why, job.partial))

    async def _end(self, job: Job, event: ErrorEvent | FinalEvent) -> None:
        """Give a request the terminal event that no answer gives it."""
        job.disarm()
        if not job.alone:
            await self._store.commit(Outcome(job.conversation_id, job.request_id, event.encode()))
        self._live.pop((job.conversation_id, job.request_id), None)
        self._send(job, event)

    def _start_errand(self, errand: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(errand, name="errand")
        self._errands.add(task)
        self.idle.clear()
        task.add_done_callback(self._errand_done)

    def _errand_done(self, task: asyncio.Task[None]) -> None:
        self._errands.discard(task)
        self._look_idle()

    # ---------------------------------------------------------------------------------------------------------- drain

    async def drain(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Finish what can be finished in `grace_s` seconds or until `hurry` is set; nothing new is begun for long.

        Durable requests that wait or are cut off are left to the transport, which brings them back.
        """
        self._draining = True
        for lane in list(self._lanes.values()):
            for job in [job for job in lane.waiting if job.durable]:
                lane.waiting.remove(job)
                self._waiting -= 1
                self._live.pop((job.conversation_id, job.request_id), None)
                job.channel.abandon()
        self._look_idle()
        await first_of(self.idle.wait(), hurry.wait(), timeout_s=grace_s)
        for lane in list(self._lanes.values()):
            for job in list(lane.waiting):
                self._drop(lane, job, ShuttingDown())
        cut_off = [job for job in self._tasks if job.durable and not job.ended]
        for job, task in self._tasks.items():
            if job.durable:
                task.cancel()  # all of them first: none may end while another is given back
            else:
                job.stop("shutdown")
        for job in cut_off:
            await self._store.release(job.request_id, job.conversation_id)
            job.channel.abandon()
        if left := [*self._tasks.values(), *self._errands]:
            await asyncio.wait(left, timeout=STOP_S)
