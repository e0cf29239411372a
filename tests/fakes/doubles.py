"""Doubles of the engine's seams, for tests without sockets: each implements a Protocol of `ports`."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from piagent_daemon.contract import ErrorEvent, Event, Request, Usage
from piagent_daemon.contract import Final as FinalEvent
from piagent_daemon.ladder import Ladder
from piagent_daemon.ports import Clock
from piagent_daemon.rung import Rung
from piagent_daemon.settings import Settings
from piagent_daemon.turn import Config
from piagent_daemon.values import ChatRequest, Delivery, Delta, Finish, Incoming, ModelInfo, ProviderState, PullProgress

Step = Delta | BaseException | asyncio.Event
Script = Callable[[ChatRequest], Iterable[Step]]


class FakeClock:
    """Time that moves only when told to."""

    def __init__(self) -> None:
        self.wall = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        self.elapsed = 1000.0

    def now(self) -> datetime:
        return self.wall

    def monotonic(self) -> float:
        return self.elapsed

    def advance(self, seconds: float) -> None:
        self.elapsed += seconds
        self.wall += timedelta(seconds=seconds)


def answer(*texts: str, reason: Any = "stop", prompt_tokens: int = 0) -> list[Step]:
    """Return the steps of a complete answer."""
    usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=len(texts), total_tokens=prompt_tokens + len(texts))
    return [*(Delta(text=text) for text in texts), Delta(finish=Finish(reason, usage))]


def echo(request: ChatRequest) -> list[Step]:
    """Answer with the newest message."""
    return answer("You said: ", request.messages[-1].content)


class ScriptedProvider:
    """A model server that plays scripts: a step is yielded, raised, or (an Event) waited for."""

    def __init__(self, script: Script = echo, name: str = "scripted") -> None:
        self.name = name
        self.abilities: dict[str, frozenset[str]] = {}
        """By model; another one has them all."""
        self.script = script
        self.scripts: list[Script] = []
        self.asked: list[ChatRequest] = []
        self.primed: list[ChatRequest] = []
        self.unloaded: list[str] = []
        self.closed_early = 0
        self.state = ProviderState(reachable=True, model_loaded=True, model_found=True)

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        self.asked.append(request)
        script = self.scripts.pop(0) if self.scripts else self.script
        complete = False
        try:
            for step in script(request):
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, BaseException):
                    raise step
                else:
                    yield step
            complete = True
        finally:
            self.closed_early += not complete

    async def prime(self, request: ChatRequest) -> None:
        self.primed.append(request)

    async def unload(self, model: str) -> None:
        self.unloaded.append(model)

    async def probe(self, model: str) -> ProviderState:  # noqa: ARG002 - the seam's signature
        return self.state

    async def models(self) -> list[ModelInfo]:
        return [ModelInfo(name, size=1) for name in self.abilities or ("scripted:1b",)]

    async def capabilities(self, model: str) -> frozenset[str]:
        return self.abilities.get(model, frozenset({"completion", "vision"}))

    async def embed(self, inputs: Sequence[str], model: str) -> list[list[float]]:  # noqa: ARG002
        return [[float(len(text)), 1.0] for text in inputs]

    async def pull(self, model: str) -> AsyncGenerator[PullProgress, None]:
        yield PullProgress(f"success {model}")

    async def delete(self, model: str) -> None:
        """Forget nothing: there is nothing."""

    async def aclose(self) -> None:
        """Close nothing."""


def ladder_of(
    *providers: ScriptedProvider, settings: Settings | Config | None = None, clock: Clock | None = None
) -> Ladder:
    """Return a ladder of these, each asked for the settings' model."""
    clock = clock or FakeClock()

    def current() -> Settings:
        return settings.settings if isinstance(settings, Config) else settings or Settings()

    return Ladder([Rung(provider, clock) for provider in providers], current, clock)


@dataclass
class RecordingChannel:
    """Keeps the events of one request."""

    events: list[Event] = field(default_factory=list)
    again: list[bytes] = field(default_factory=list)
    dropped: int = 0
    abandoned: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, event: Event) -> None:
        self.events.append(event)
        assert not self.ended.is_set(), f"an event after the terminal one: {event!r}"
        if event.terminal:
            self.ended.set()

    def send_again(self, terminal: bytes) -> None:
        self.again.append(terminal)

    def drop(self) -> None:
        self.dropped += 1

    def abandon(self) -> None:
        self.abandoned += 1

    async def terminal(self) -> FinalEvent | ErrorEvent:
        """Return the terminal event once it is there, within five seconds."""
        await asyncio.wait_for(self.ended.wait(), 5)
        last = self.events[-1]
        assert isinstance(last, FinalEvent | ErrorEvent)
        return last

    @property
    def kinds(self) -> list[str]:
        return [event.type for event in self.events]

    @property
    def text(self) -> str:
        return "".join(getattr(event, "text", "") for event in self.events)


def incoming(
    message: str = "hello",
    *,
    conversation: str | None = "kitchen",
    durable: bool = True,
    redelivered: bool = False,
    received: float = 1000.0,
    key: str | None = None,
    size: int = 0,
    **fields: Any,
) -> Incoming:
    """Return a request as a door would hand it over."""
    request = Request(message=message, **fields)
    by_id = request.id is not None
    name = key or (f"id:{conversation or ''}:{request.id}" if by_id else f"packet:{id(request)}")
    return Incoming(request, conversation, Delivery(name, by_id, redelivered, durable), received, size)
