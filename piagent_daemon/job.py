"""One request on its way through the engine, and the numbering of its events."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from piagent_daemon.agents import Agent
from piagent_daemon.contract import ErrorEvent, Event, Request, Sentences
from piagent_daemon.errors import PiagentError
from piagent_daemon.ports import Channel, Clock
from piagent_daemon.values import Incoming, Message, Ticket

E = TypeVar("E", bound=Event)
Stop = Literal["cancelled", "shutdown"]
NEVER: Final = float("inf")


class Stamp:
    """Makes the events of one attempt: `seq` counts from 0 over all types."""

    def __init__(self, conversation_id: str, request_id: str, attempt: int, clock: Clock) -> None:
        self.attempt = attempt
        self._ids = (conversation_id, request_id)
        self._clock = clock
        self._seq = 0

    def __call__(self, kind: type[E], **fields: Any) -> E:
        """Return the next event of class `kind`; `fields` are what it adds."""
        conversation_id, request_id = self._ids
        event = kind(
            conversation_id=conversation_id,
            request_id=request_id,
            attempt=self.attempt,
            seq=self._seq,
            ts=self._clock.now(),
            **fields,
        )
        self._seq += 1  # only now: an event that cannot be made has no number
        return event


@dataclass(slots=True, eq=False)
class Job:
    """A request that was accepted. `received`, monotonic seconds, and `size`, bytes, as in `values.Incoming`; `durable`
    as in `values.Delivery`.

    `spoken_index`: whoever stopped it heard no sentence beyond that one. `sentence_ends`: for each sentence that went
    out, how many characters of the answer were heard after it.

    Outside the conversations: `messages` are all that the model reads beside the request's files and images; `work` is
    done in place of an answer, and yields an `error` event when it fails. Of either nothing is remembered.
    """

    request: Request
    conversation_id: str
    request_id: str
    agent: Agent
    model: str
    channel: Channel
    stamp: Stamp
    received: float
    durable: bool
    size: int = 0
    echoes_in: str = ""
    """Where an echo of its answer would come in: its conversation, "" for all that named none."""
    stopped: Stop | None = None
    spoken_index: int | None = None
    sentence_ends: tuple[int, ...] = ()
    messages: tuple[Message, ...] | None = None
    work: "Callable[[Job], AsyncGenerator[Event, None]] | None" = None
    partial: str = field(default="", repr=False)
    """The text that had gone out when the attempt ended."""
    ended: bool = False
    """Its terminal event went out."""
    filled: bool = False
    """The agent's filler was said while it waited."""
    alarms: list[asyncio.TimerHandle] = field(default_factory=list, repr=False)
    """Ring while it waits: when it has waited too long, and when the filler is due."""
    _close: Callable[[], object] | None = field(default=None, repr=False)

    @property
    def stream(self) -> bool | Sentences | None:
        """Return how the answer is wanted, None where neither the request nor the agent says so."""
        return self.agent.stream if self.request.stream is None else self.request.stream

    @property
    def interrupts(self) -> bool:
        """Tell whether it stops what runs in its conversation."""
        return self.agent.interrupt if self.request.interrupt is None else self.request.interrupt

    @property
    def alone(self) -> bool:
        """Tell whether this is outside the conversations."""
        return self.messages is not None or self.work is not None

    def stop(self, why: Stop, spoken_index: int | None = None) -> None:
        """End the running answer as soon as can be; the first reason stays, and the first word on what was heard."""
        self.stopped = self.stopped or why
        self.spoken_index = spoken_index if self.spoken_index is None else self.spoken_index
        if self._close:
            self._close()

    def disarm(self) -> None:
        """Need no alarm any more; one that is still set would hold the whole request in memory."""
        for alarm in self.alarms:
            alarm.cancel()
        self.alarms.clear()

    def attach(self, close: Callable[[], object]) -> None:
        """Name what has to be closed when this job is stopped."""
        self._close = close
        if self.stopped:
            close()

    def failure(self, error: PiagentError, partial: str = "") -> ErrorEvent:
        """Return the terminal event that says why there is no answer."""
        return self.stamp(
            ErrorEvent,
            code=error.code,
            message=str(error),
            status_code=error.status_code,
            retryable=error.retryable,
            partial=partial,
            metadata=self.request.metadata,
        )


def job_of(incoming: Incoming, ticket: Ticket, channel: Channel, clock: Clock, *, agent: Agent, model: str) -> Job:
    """Return the job of a request that came in at a door and has its ticket; `model` is for one that names none."""
    return Job(
        request=incoming.request,
        conversation_id=ticket.conversation_id,
        request_id=ticket.request_id,
        agent=agent,
        model=incoming.request.model or model,
        channel=channel,
        stamp=Stamp(ticket.conversation_id, ticket.request_id, ticket.attempt, clock),
        received=incoming.received,
        durable=incoming.delivery.durable,
        size=incoming.size,
        echoes_in=incoming.conversation_id or "",
    )


@dataclass(slots=True, eq=False)
class Lane:
    """One conversation with something to do: `running` first, then `waiting` in order."""

    conversation_id: str
    waiting: deque[Job] = field(default_factory=deque)
    running: Job | None = None
    agent: str | None = None

    def add(self, job: Job) -> None:
        """Have a job wait its turn: behind all others, or where it interrupts, only behind those that do so, too."""
        self.waiting.insert(len(self.waiting) - self.overtaken_by(job), job)

    def overtaken_by(self, job: Job) -> int:
        """Return how many of those who wait are answered after a job that comes now."""
        return sum(not other.interrupts for other in self.waiting) if job.interrupts else 0


def heard(ends: tuple[int, ...], spoken_index: int | None = None) -> int:
    """Return how many characters of an answer were heard: of all sentences, or of those up to `spoken_index`."""
    kept = ends if spoken_index is None else ends[: spoken_index + 1]
    return kept[-1] if kept else 0
