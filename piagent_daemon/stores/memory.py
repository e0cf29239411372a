"""Conversations in RAM: quick, and gone with the process."""

from collections.abc import Callable

from piagent_daemon.errors import ConfigError
from piagent_daemon.ports import Clock
from piagent_daemon.settings import Settings
from piagent_daemon.stores.ledger import Ledger
from piagent_daemon.values import Conversation, ConversationInfo, Delivery, Outcome, Ticket


class MemoryStore:
    """The ConversationStore behind `memory:`. ConfigError for a URL with anything after the colon."""

    name = "memory"
    durable = False
    problem: str | None = None
    on_change: Callable[[], None] | None = None

    def __init__(self, settings: Settings, clock: Clock) -> None:
        if settings.memory_url.partition(":")[2] not in {"", "//"}:
            raise ConfigError("MEMORY_URL: nothing may follow 'memory:'; a file is written sqlite:///path/to/file.db")
        self._ledger = Ledger(settings, clock, filed=False)

    def count(self) -> int:
        return len(self._ledger.histories)

    async def start(self) -> None:
        """Do nothing: there is no file."""

    async def open(self, delivery: Delivery, ticket: Ticket) -> Ticket:
        return self._ledger.journal.open(delivery, ticket)

    async def begin(self, request_id: str, conversation_id: str) -> Ticket:
        return self._ledger.journal.begin((conversation_id, request_id))

    async def release(self, request_id: str, conversation_id: str) -> None:
        self._ledger.journal.release((conversation_id, request_id))

    async def forget(self, request_id: str, conversation_id: str) -> None:
        self._ledger.journal.forget((conversation_id, request_id))

    async def load(self, conversation_id: str) -> Conversation:
        return self._ledger.histories.load(conversation_id)

    async def commit(self, outcome: Outcome) -> None:
        self._ledger.commit(outcome)

    async def shorten(self, conversation_id: str, length: int, heard: int) -> None:
        self._ledger.histories.shorten(conversation_id, length, heard)

    async def clear(self, conversation_id: str | None = None) -> int:
        return self._ledger.clear(conversation_id)

    async def conversations(self) -> list[ConversationInfo]:
        return self._ledger.histories.infos()

    async def note(self, name: str, value: bytes) -> None:
        self._ledger.note(name, value)

    def noted(self, name: str) -> bytes:
        return self._ledger.notes.get(name, b"")

    async def sweep(self) -> int:
        return self._ledger.sweep()

    async def aclose(self) -> None:
        """Do nothing: there is no file."""
