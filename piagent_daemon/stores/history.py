"""Conversations in RAM: what every store shares. No file, no waiting.

Ages are counted in monotonic seconds, so that no jump of the wall clock forgets anything.
"""

import json
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from piagent_daemon.ports import Clock
from piagent_daemon.settings import Settings
from piagent_daemon.values import Conversation, ConversationInfo, Outcome, Turn

MAX_BYTES = 32 * 1024 * 1024
"""All conversations together, in bytes of RAM; MEMORY_MAX_CONVERSATIONS is normally met long before."""
RECORD_BYTES = 400
CLEARED_KEPT = 4096
EMPTY = b"[]"
"""No turns."""

HistoryRow = tuple[str, bytes, int, int, str | None, float]
"""id, turns as JSON, their number, dropped, agent, last use in monotonic seconds."""


@dataclass(slots=True)
class History:
    """One conversation. Its turns are kept as JSON: a third of the size of objects, and ready for a file."""

    turns: bytes
    count: int
    dropped: int
    agent: str | None
    used: float

    def size(self) -> int:
        """Return about how many bytes of RAM this takes."""
        return len(self.turns) + RECORD_BYTES


def encode(turns: tuple[Turn, ...]) -> bytes:
    """Render turns as JSON; lone surrogates survive."""
    rows = [[turn.role, turn.content, turn.ts.isoformat(), turn.interrupted, turn.tokens] for turn in turns]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def decode(turns: bytes) -> tuple[Turn, ...]:
    """Parse what `encode` made."""
    return tuple(
        Turn(role, content, datetime.fromisoformat(ts), interrupted, tokens)
        for role, content, ts, interrupted, tokens in json.loads(turns.decode("utf-8", "surrogatepass"))
    )


def _joined(first: bytes, second: bytes) -> bytes:
    """Return two rendered lists as one, without reading them."""
    if EMPTY in (first, second):
        return second if first == EMPTY else first
    return first[:-1] + b"," + second[1:]


class Histories:
    """All conversations, least recently used first.

    With `filed`, `changed` has the ids of which a file does not have the newest state.
    """

    def __init__(self, settings: Settings, clock: Clock, *, filed: bool) -> None:
        self._clock = clock
        self._filed = filed
        self._ttl_s = settings.memory_ttl_min * 60
        self._limit = settings.memory_max_conversations
        self._all: OrderedDict[str, History] = OrderedDict()
        self._bytes = 0
        self._epoch = 0
        self._cleared: OrderedDict[str, int] = OrderedDict()
        self._cleared_all = 0
        self.changed: set[str] = set()

    def __len__(self) -> int:
        return len(self._all)

    def load(self, conversation_id: str) -> Conversation:
        """Return a conversation, empty when unknown or too old; counts as use."""
        history = self._fresh(conversation_id)
        if history is None:
            return Conversation(epoch=self._epoch)
        history.used = self._clock.monotonic()
        self._all.move_to_end(conversation_id)
        self._note(conversation_id)
        return Conversation(decode(history.turns), history.dropped, history.agent, self._epoch)

    def commit(self, outcome: Outcome) -> None:
        """Cut and append as `outcome` says, unless the conversation was cleared after the turn had loaded it."""
        name = outcome.conversation_id
        if outcome.epoch < max(self._cleared_all, self._cleared.get(name, 0)):
            return
        history = self._fresh(name)
        agent = outcome.agent or (history.agent if history else None)
        if not (outcome.turns or outcome.drop) and agent == (history.agent if history else None):
            return
        history = history or History(EMPTY, 0, 0, None, 0.0)
        drop = min(outcome.drop, history.count)
        kept = encode(decode(history.turns)[drop:]) if drop else history.turns
        count = history.count - drop + len(outcome.turns)
        turns = _joined(kept, encode(outcome.turns))
        self._put(name, History(turns, count, history.dropped + drop, agent, self._clock.monotonic()))
        self._trim()

    def shorten(self, conversation_id: str, length: int, heard: int) -> None:
        """Cut the newest answer, if it has `length` characters, to those that were `heard`; see the port."""
        history = self._fresh(conversation_id)
        turns = decode(history.turns) if history else ()
        if history is None or not turns or turns[-1].role != "assistant" or len(turns[-1].content) != length:
            return
        answer = turns[-1]._replace(content=turns[-1].content[:heard], interrupted=True, tokens=None)
        self._put(conversation_id, replace(history, turns=encode((*turns[:-1], answer)), used=self._clock.monotonic()))

    def clear(self, conversation_id: str | None = None) -> int:
        """Forget one or all; answers that are running now will not be remembered either."""
        self.sweep()
        self._epoch += 1
        if conversation_id is None:
            forgotten = len(self._all)
            for name in list(self._all):
                self._remove(name)
            self._cleared.clear()
            self._cleared_all = self._epoch
            return forgotten
        self._cleared[conversation_id] = self._epoch
        self._cleared.move_to_end(conversation_id)
        if len(self._cleared) > CLEARED_KEPT:
            # Bounded: rather forget a running turn of another conversation than bring back a cleared one.
            self._cleared_all = self._cleared.popitem(last=False)[1]
        self._note(conversation_id)  # a file that could not be read yet may have it
        return int(self._remove(conversation_id))

    def infos(self) -> list[ConversationInfo]:
        """Return one row for each conversation, last used first; the wall time of use follows from the age."""
        self.sweep()
        now, wall = self._clock.monotonic(), self._clock.now()
        return [
            ConversationInfo(name, history.count, history.agent, wall - timedelta(seconds=now - history.used))
            for name, history in reversed(self._all.items())
        ]

    def sweep(self) -> int:
        """Forget what is too old; return how many."""
        before = len(self._all)
        while self._all and self._old(next(iter(self._all.values()))):
            self._remove(next(iter(self._all)))
        return before - len(self._all)

    def row(self, conversation_id: str) -> HistoryRow | None:
        """Return what a file should have of a conversation; None when it is forgotten."""
        history = self._all.get(conversation_id)
        if history is None:
            return None
        return (conversation_id, history.turns, history.count, history.dropped, history.agent, float(history.used))

    def adopt(self, rows: list[HistoryRow], shift: float) -> None:
        """Take in a file's rows, oldest use first, except those that RAM knows better; add `shift` to their times."""
        newer = self._all
        self._all = OrderedDict()
        for name, turns, count, dropped, agent, used in rows:
            if name not in newer and name not in self.changed:
                self._put(name, History(turns, count, dropped, agent, used + shift), changed=shift != 0)
        self._all.update(newer)
        self.sweep()
        self._trim()

    def mark_all(self) -> None:
        """Note that a file has nothing of this."""
        self.changed = set(self._all)

    def _old(self, history: History) -> bool:
        return 0 < self._ttl_s < self._clock.monotonic() - history.used

    def _fresh(self, name: str) -> History | None:
        history = self._all.get(name)
        if history is not None and self._old(history):
            self._remove(name)
            return None
        return history

    def _note(self, name: str) -> None:
        if self._filed:
            self.changed.add(name)

    def _put(self, name: str, history: History, *, changed: bool = True) -> None:
        old = self._all.pop(name, None)
        self._bytes += history.size() - (old.size() if old else 0)
        self._all[name] = history
        if changed:
            self._note(name)

    def _remove(self, name: str) -> bool:
        history = self._all.pop(name, None)
        if history is None:
            return False
        self._bytes -= history.size()
        self._note(name)
        return True

    def _trim(self) -> None:
        while len(self._all) > max(1, self._limit) or (self._bytes > MAX_BYTES and len(self._all) > 1):
            self._remove(next(iter(self._all)))
