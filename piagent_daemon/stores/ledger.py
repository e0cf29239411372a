"""Conversations and journal together: what a store does, in RAM and at once. The stores differ in what they add.

Kept apart from them so that both have the same meaning, and so that a store on disk can go on without its disk.
"""

import json
from typing import Final, NamedTuple

from piagent_daemon.ports import Clock
from piagent_daemon.settings import Settings
from piagent_daemon.stores.history import Histories, HistoryRow
from piagent_daemon.stores.journal import Journal, JournalRow, RequestId
from piagent_daemon.values import Outcome

CLEARED: Final = "cleared"
"""The note of the requests whose replies go as soon as their window is over."""
NoteRow = tuple[str, bytes]
"""A name, and what was noted under it; b"" is nothing."""


class Batch(NamedTuple):
    """What a file has to take over, as one transaction. `wipe`: it first forgets everything it has.

    `durable`: a power cut must not undo it.
    """

    histories: list[HistoryRow]
    forgotten: list[str]
    requests: list[JournalRow]
    dropped: list[RequestId]
    notes: list[NoteRow]
    durable: bool = False
    wipe: bool = False


class Contents(NamedTuple):
    """What a file has, oldest first. `boot` names the boot of the machine that its times count from."""

    histories: list[HistoryRow]
    requests: list[JournalRow]
    notes: list[NoteRow]
    boot: str


class Ledger:
    """The state of a store.

    Ages: every time is in monotonic seconds since the machine's boot, so no jump of the wall clock, and no boot without
    a clock, makes anything older. A file of the same boot keeps its times exactly. After a reboot the wall clock is
    still not believed: the newest entry counts as new, and the others keep their distance from it. So MEMORY_TTL_MIN
    counts the time for which the machine ran.
    """

    def __init__(self, settings: Settings, clock: Clock, *, filed: bool) -> None:
        self._clock = clock
        self.histories = Histories(settings, clock, filed=filed)
        self.journal = Journal(settings, clock, filed=filed)
        self.notes: dict[str, bytes] = {}
        self._filed = filed
        self._renoted: set[str] = set()

    def commit(self, outcome: Outcome) -> None:
        """Store the end of a request and what its conversation becomes."""
        self.histories.commit(outcome)
        self.journal.commit((outcome.conversation_id, outcome.request_id), outcome.terminal)

    def note(self, name: str, value: bytes) -> None:
        """Keep `value` under `name`."""
        self.notes[name] = value
        if self._filed:
            self._renoted.add(name)

    def clear(self, conversation_id: str | None) -> int:
        """Forget one conversation or all; return how many."""
        self.journal.clear(conversation_id)
        self.note(CLEARED, json.dumps(self.journal.cleared).encode())
        return self.histories.clear(conversation_id)

    def sweep(self) -> int:
        """Forget what is too old; return the number of conversations."""
        self.journal.sweep()
        return self.histories.sweep()

    @property
    def changes(self) -> int:
        """How many rows a file does not have in their newest state."""
        return len(self.histories.changed) + len(self.journal.changed) + len(self._renoted)

    def take(self, *, durable: bool = False, wipe: bool = False) -> Batch:
        """Return all changes, which then count as written; give them back with `put_back` when they were not."""
        names, self.histories.changed = self.histories.changed, set()
        requests, self.journal.changed = self.journal.changed, set()
        renoted, self._renoted = self._renoted, set()
        rows = {name: self.histories.row(name) for name in names}
        entries = {name: self.journal.row(name) for name in requests}
        return Batch(
            histories=[row for row in rows.values() if row is not None],
            forgotten=[name for name, row in rows.items() if row is None],
            requests=[row for row in entries.values() if row is not None],
            dropped=[name for name, row in entries.items() if row is None],
            notes=[(name, self.notes[name]) for name in renoted],
            durable=durable,
            wipe=wipe,
        )

    def put_back(self, batch: Batch) -> None:
        """Note that `batch` did not reach the file."""
        self.histories.changed.update(row[0] for row in batch.histories)
        self.histories.changed.update(batch.forgotten)
        self.journal.changed.update(row[:2] for row in batch.requests)
        self.journal.changed.update(batch.dropped)
        self._renoted.update(name for name, _ in batch.notes)

    def mark_all(self) -> None:
        """Note that the file has nothing."""
        self.histories.mark_all()
        self.journal.mark_all()
        self._renoted = set(self.notes)

    def adopt(self, contents: Contents, boot: str) -> None:
        """Take in what an earlier process left in a file; what is in RAM already is newer and stays."""
        now = self._clock.monotonic()
        newest = max((row[-1] for rows in (contents.histories, contents.requests) for row in rows), default=now)
        # Times in the future come from a clock that began anew, as in a fresh container.
        shift = 0.0 if contents.boot == boot and newest <= now else now - newest
        self.histories.adopt(contents.histories, shift)
        self.journal.adopt(contents.requests, shift)
        self.notes = dict(contents.notes) | self.notes
        self.journal.cleared_before(_names(self.notes.get(CLEARED, b"")))


def _names(note: bytes) -> list[tuple[str, ...]]:
    """Read what `Ledger.clear` noted; anything else is nothing."""
    try:
        return [tuple(map(str, name)) for name in json.loads(note or b"[]")]
    except (ValueError, TypeError):
        return []
