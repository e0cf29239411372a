"""The seams: what the engine wants from providers, stores, doors and the clock.

Adapters implement these Protocols; the engine and the adapters never import each other. What passes through is in
`values`.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import datetime
from typing import Protocol

from piagent_daemon.contract import AdminResponse, Event
from piagent_daemon.values import (
    ChatRequest,
    Conversation,
    ConversationInfo,
    Delivery,
    Delta,
    DoorState,
    Incoming,
    ModelInfo,
    Outcome,
    ProviderState,
    PullProgress,
    Ticket,
)


class Provider(Protocol):
    """A model server. Every method raises only ProviderError and its kin, or ContextOverflow."""

    name: str

    def chat(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Stream one answer, without retries; closing the generator closes the connection.

        The last delta has `finish`; a stream that ends without it raises ProviderError.
        """

    async def prime(self, request: ChatRequest) -> None:
        """Load the model and let it read the prompt of `request` (system text), generating next to nothing."""

    async def unload(self, model: str) -> None:
        """Have the server give up a model's memory; nothing where that is not ours to say. The next call loads it."""

    async def probe(self, model: str) -> ProviderState:
        """Look whether the server answers and has `model`; cheap, bounded in time, never raises ProviderError."""

    async def models(self) -> list[ModelInfo]:
        """List the models that the server has."""

    async def capabilities(self, model: str) -> frozenset[str]:
        """Return the model's capabilities in Ollama's words: completion, tools, vision, thinking, embedding."""

    async def embed(self, inputs: Sequence[str], model: str) -> list[list[float]]:
        """Return a vector for each text, in order; a text that does not fit is ContextOverflow and never cut."""

    def pull(self, model: str) -> AsyncGenerator[PullProgress, None]:
        """Download a model; closing the generator stops the download, which a later call resumes."""

    async def delete(self, model: str) -> None:
        """Remove a model from the server."""

    async def aclose(self) -> None:
        """Close every connection."""


class ConversationStore(Protocol):
    """Conversations, and a journal of requests that makes redelivery harmless.

    No method raises for a full or broken disk: the store goes on in memory, `problem` says so, and it tries again.
    """

    name: str
    """What health calls it: `memory` or `sqlite`."""
    durable: bool
    """Whether what was committed outlives the process: then an answer is told after that. Else it is told before, and
    `commit` waits for nothing."""
    on_change: Callable[[], None] | None
    """Called when `problem` may have changed."""

    @property
    def problem(self) -> str | None:
        """Why conversations are not kept on disk though they should be; None when all is well."""

    def count(self) -> int:
        """How many conversations are remembered."""

    async def start(self) -> None:
        """Open the file, if there is one, and take in what an earlier process left; call it first, and once."""

    async def open(self, delivery: Delivery, ticket: Ticket) -> Ticket:
        """Enter a delivery under the fresh ids of `ticket`, or return the ticket that a same delivery has already."""

    async def begin(self, request_id: str, conversation_id: str) -> Ticket:
        """Count one more attempt at a request, before the model is called; return the ticket with its number.

        `crashes` in it counts the earlier attempts that neither ended (`commit`) nor were given back (`release`).
        """

    async def release(self, request_id: str, conversation_id: str) -> None:
        """Give an attempt back at a graceful stop: the request will come again, and this was no crash."""

    async def forget(self, request_id: str, conversation_id: str) -> None:
        """Strike a request out of the journal that came to its end, and whose answer need not be kept."""

    async def load(self, conversation_id: str) -> Conversation:
        """Return what is remembered; an empty Conversation for an unknown or expired one. Counts as use (LRU, TTL)."""

    async def commit(self, outcome: Outcome) -> None:
        """Store a terminal event and the turns that belong to it, all or nothing; see `durable`."""

    async def shorten(self, conversation_id: str, length: int, heard: int) -> None:
        """Keep the first `heard` characters of the newest answer, as an interrupted one; its question stays.

        Nothing happens unless that answer has `length` characters.
        """

    async def clear(self, conversation_id: str | None = None) -> int:
        """Forget one conversation or all of them; return how many were forgotten."""

    async def conversations(self) -> list[ConversationInfo]:
        """List the conversations, last used first."""

    async def note(self, name: str, value: bytes) -> None:
        """Keep a few bytes under a name beside the conversations, for as long as those are kept; b"" forgets them."""

    def noted(self, name: str) -> bytes:
        """Return what was noted last under a name, or b""."""

    async def sweep(self) -> int:
        """Forget what has outlived MEMORY_TTL_MIN and the journal's old entries; return the conversations forgotten."""

    async def aclose(self) -> None:
        """Write what is left and close the file."""


class Channel(Protocol):
    """Where the events of one request go; the door makes one for each request that comes in."""

    def send(self, event: Event) -> None:
        """Hand over one event, never waiting. A terminal event settles the input once the transport has it safely."""

    def send_again(self, terminal: bytes) -> None:
        """Hand over a stored terminal event once more, for a request that came in twice."""

    def drop(self) -> None:
        """Settle the input without an answer (a loop was broken)."""

    def abandon(self) -> None:
        """Leave the input unsettled: the transport brings it back after the restart."""


class Intake(Protocol):
    """What the doors want from the engine."""

    async def submit(self, incoming: Incoming, channel: Channel) -> None:
        """Take one request in; returns when it is queued, refused or a known duplicate, never waits for an answer."""

    def cancel(self, conversation_id: str, request_id: str | None = None, spoken_index: int | None = None) -> None:
        """Stop the running answer of a conversation; without an id also drop what waits.

        With `spoken_index` only the sentences up to that one are remembered, also of an answer that has ended.
        """

    async def reset(self, conversation_id: str) -> int:
        """Forget a conversation, a running answer included, which goes on; return how many were remembered: 0 or 1."""

    def refused(self, reason: str) -> None:
        """Count something that came in and was not taken: no safe topic, no valid request, a copy of our own event."""

    def duplicate(self) -> None:
        """Count a request that came in again while it is being answered."""


class Admin(Protocol):
    """What answers `piagent/request/<method>`."""

    def handle(
        self, method: str, payload: bytes, delivery: Delivery | None = None
    ) -> AsyncGenerator[AdminResponse, None]:
        """Answer one admin request: any number of progress responses, then exactly one ok or error.

        With a durable `delivery`, one that brought the daemon down twice is not tried again.
        """


class FrontDoor(Protocol):
    """A way in and out, open between `start` and `stop`."""

    on_change: Callable[[], None] | None
    """Called when `state` has changed."""

    @property
    def state(self) -> DoorState: ...

    @property
    def alive(self) -> bool:
        """Tell whether the receive loop makes progress; being disconnected is no lack of progress."""

    async def start(self) -> None:
        """Begin to open; returns at once. The door keeps trying for ever."""

    async def ready(self) -> None:
        """Return when the first request can come in, or the door has found that it cannot and says why."""

    async def stop_intake(self) -> None:
        """Take nothing new from the transport; what is in stays in."""

    async def stop(self, deadline_s: float) -> None:
        """Hand over what is still to be said, then close; at most `deadline_s` seconds."""


class Herald(FrontDoor, Protocol):
    """The front door that also tells everybody how the daemon is, and says goodbye when it stops."""

    def announce(self, topic: str, payload: Callable[[], bytes]) -> None:
        """Publish one retained message as it is then, now and after each reconnect.

        An empty one takes back what stands there.
        """

    def listen(self, topic: str, heard: Callable[[bytes], None]) -> None:
        """Hand over what comes on a topic of somebody else's; call it before `start`."""


class Clock(Protocol):
    """Time, injected. Deadlines and ages rest on `monotonic`; the wall clock only informs."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""

    def monotonic(self) -> float:
        """Return seconds that never jump."""
