"""The journal of requests in RAM: which were seen, how often they were tried, and how they ended.

Its times are monotonic seconds. Entries are found again for a day, or for DEDUPE_WINDOW_S where that is longer, so that
what a broker brings back late is answered from here; by the client's own id they are found only within DEDUPE_WINDOW_S
after their end.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from piagent_daemon.ports import Clock
from piagent_daemon.settings import Settings
from piagent_daemon.values import Delivery, Ticket

KEEP_S = 86_400.0
MAX_ENTRIES = 20_000
MAX_BYTES = 8 * 1024 * 1024
ENTRY_BYTES = 700

RequestId = tuple[str, str]
"""conversation_id, request_id."""
JournalRow = tuple[str, str, str, int, int, int, bytes | None, float]
"""conversation_id, request_id, key, attempts, crashes, running, terminal, last change in monotonic seconds."""


@dataclass(slots=True)
class Entry:
    """One request. `running` is the crash mark: set by an attempt, taken back by its end or its release.

    `key` is empty when nothing can ever bring the request back; such an entry goes with its end and into no file.
    """

    key: str
    changed: float
    attempts: int = 0
    crashes: int = 0
    running: bool = False
    terminal: bytes | None = None

    def size(self) -> int:
        """Return about how many bytes of RAM this takes."""
        return len(self.key) + len(self.terminal or b"") + ENTRY_BYTES


class Journal:
    """All entries, least recently changed first.

    With `filed`, `changed` has the ids of which a file does not have the newest state.
    """

    def __init__(self, settings: Settings, clock: Clock, *, filed: bool) -> None:
        self._clock = clock
        self._filed = filed
        self._window_s = settings.dedupe_window_s
        self._keep_s = max(KEEP_S, self._window_s)
        self._all: OrderedDict[RequestId, Entry] = OrderedDict()
        self._by_key: dict[str, RequestId] = {}
        self._bytes = 0
        self._cleared: set[RequestId] = set()
        self.changed: set[RequestId] = set()

    def __len__(self) -> int:
        return len(self._all)

    def open(self, delivery: Delivery, ticket: Ticket) -> Ticket:
        """Enter a delivery, or return the ticket of the same delivery that came before."""
        known = self._find(delivery)
        if known is not None:
            return self._ticket(known)
        name = (ticket.conversation_id, ticket.request_id)
        comes_back = delivery.by_id or delivery.durable
        # Brought again and unknown, where no file tells of it: an earlier process may have told part of an answer.
        attempts = 1 if delivery.redelivered and not self._filed else 0
        self._put(name, Entry(delivery.key if comes_back else "", self._clock.monotonic(), attempts))
        self._trim()
        return self._ticket(name)

    def begin(self, name: RequestId) -> Ticket:
        """Count an attempt and set the crash mark; a mark that still stood counts as a crash."""
        entry = self._all.get(name)
        if entry is None:
            self._put(name, entry := Entry("", 0.0))
        if entry.terminal is None:
            entry.crashes += entry.running
            entry.attempts += 1
            entry.running = True
            self._touch(name, entry)
        ticket = self._ticket(name)
        return Ticket(*name, max(1, entry.attempts), ticket.crashes, ticket.terminal)

    def release(self, name: RequestId) -> None:
        """Take the crash mark back."""
        entry = self._all.get(name)
        if entry is not None and entry.running:
            entry.running = False
            self._touch(name, entry)

    def commit(self, name: RequestId, terminal: bytes) -> None:
        """Store the end of a request; of one that nothing can bring back, forget it."""
        entry = self._all.get(name)
        if entry is None:
            return
        if not entry.key:
            self.forget(name)
            return
        self._bytes -= entry.size()
        entry.terminal = terminal
        entry.running = False
        self._bytes += entry.size()
        self._touch(name, entry)
        self._trim()

    def forget(self, name: RequestId) -> None:
        """Strike a request out, if it is there."""
        entry = self._all.pop(name, None)
        if entry is None:
            return
        self._bytes -= entry.size()
        self._cleared.discard(name)
        if self._by_key.get(entry.key) == name:
            del self._by_key[entry.key]
        self._note(name, entry)

    def clear(self, conversation_id: str | None) -> None:
        """Forget the replies of one conversation or of all, those whose window is still open when it is over."""
        self._cleared |= {
            name
            for name, entry in self._all.items()
            if conversation_id in (None, name[0]) and (entry.running or entry.terminal is not None)
        }
        self._sweep_cleared()

    @property
    def cleared(self) -> list[RequestId]:
        """The requests that were cleared and stay until their window is over."""
        return sorted(self._cleared)

    def cleared_before(self, names: Iterable[tuple[str, ...]]) -> None:
        """Take in which ones an earlier process had cleared."""
        self._cleared |= self._all.keys() & set(names)
        self._sweep_cleared()

    def _sweep_cleared(self) -> None:
        oldest = self._clock.monotonic() - self._window_s
        for name in list(self._cleared):
            entry = self._all[name]
            if entry.terminal is not None and entry.changed < oldest:
                self.forget(name)

    def sweep(self) -> None:
        """Forget entries that did not change for long, and those that were cleared when their window is over."""
        self._sweep_cleared()
        oldest = self._clock.monotonic() - self._keep_s
        while self._all and next(iter(self._all.values())).changed < oldest:
            self.forget(next(iter(self._all)))

    def row(self, name: RequestId) -> JournalRow | None:
        """Return what a file should have of an entry; None when it is forgotten or of no use there."""
        entry = self._all.get(name)
        if entry is None or not entry.key:
            return None
        mark = int(entry.running)
        return (*name, entry.key, entry.attempts, entry.crashes, mark, entry.terminal, float(entry.changed))

    def adopt(self, rows: list[JournalRow], shift: float) -> None:
        """Take in a file's rows, oldest change first, except those that RAM knows better; add `shift` to their times.

        A crash mark that stands in the file is a process that ended during the attempt.
        """
        newer, newer_keys = self._all, dict(self._by_key)
        self._all = OrderedDict()
        for conversation_id, request_id, key, attempts, crashes, mark, terminal, changed in rows:
            name = (conversation_id, request_id)
            if name not in newer and name not in self.changed:
                crashed = crashes + (mark if terminal is None else 0)
                self._put(name, Entry(key, changed + shift, attempts, crashed, terminal=terminal), changed=shift != 0)
        self._all.update(newer)
        self._by_key.update(newer_keys)
        self.sweep()
        self._trim()

    def mark_all(self) -> None:
        """Note that a file has nothing of this."""
        self.changed = set(self._all)

    def _find(self, delivery: Delivery) -> RequestId | None:
        name = self._by_key.get(delivery.key)
        if name is None or delivery.redelivered:
            return name
        entry = self._all[name]
        recent = entry.terminal is None or self._clock.monotonic() - entry.changed <= self._window_s
        return name if delivery.by_id and recent else None

    def _ticket(self, name: RequestId) -> Ticket:
        entry = self._all[name]
        return Ticket(*name, entry.attempts + 1, entry.crashes, entry.terminal)

    def _touch(self, name: RequestId, entry: Entry) -> None:
        entry.changed = self._clock.monotonic()
        self._all.move_to_end(name)
        self._note(name, entry)

    def _note(self, name: RequestId, entry: Entry) -> None:
        if self._filed and entry.key:
            self.changed.add(name)

    def _put(self, name: RequestId, entry: Entry, *, changed: bool = True) -> None:
        self.forget(name)
        self._all[name] = entry
        self._bytes += entry.size()
        if entry.key:
            self._by_key[entry.key] = name
        if changed:
            self._note(name, entry)

    def _trim(self) -> None:
        while len(self._all) > MAX_ENTRIES or (self._bytes > MAX_BYTES and len(self._all) > 1):
            ended = (name for name, entry in self._all.items() if entry.terminal is not None)
            self.forget(next(ended, next(iter(self._all))))
