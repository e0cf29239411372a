"""What health says, reduced from what the engine saw."""

import logging
import os
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Final

from piagent_daemon import __version__
from piagent_daemon.contract import (
    ErrorEvent,
    Health,
    MemoryHealth,
    ProcessHealth,
    ProviderHealth,
    ProviderUse,
    QueueHealth,
    Speed,
    Totals,
)
from piagent_daemon.contract import Final as FinalEvent
from piagent_daemon.errors import Expired
from piagent_daemon.ports import Clock, ConversationStore
from piagent_daemon.recent import RecentSpeed
from piagent_daemon.values import DoorState

log = logging.getLogger("piagent.health")

OVERLOAD_S: Final = 30.0
LOOP_S: Final = 60.0
JUMP_S: Final = 60.0
"""A clock that is corrected by less is not worth a line."""


class Tally:
    """Counts what happened since the start of the process."""

    def __init__(self, clock: Clock) -> None:
        self.on_end: Callable[[FinalEvent | ErrorEvent], None] | None = None
        self.on_reason: Callable[[], None] | None = None
        self._clock = clock
        self._totals = dict.fromkeys(Totals.model_fields, 0)
        self._speed = RecentSpeed()
        self._passing: dict[str, float] = {}

    def request(self) -> None:
        self._totals["requests"] += 1

    def duplicate(self) -> None:
        log.info("a request came in again: it has one answer")
        self._totals["duplicates"] += 1

    def refused(self, reason: str) -> None:
        self._totals["refused"] += 1
        if reason.startswith("loop:"):
            self._note(reason, LOOP_S)

    def overload(self) -> None:
        if "overload" not in self.reasons:
            log.warning("more requests come than MAX_WAITING allows: the newest are told that we are busy")
        self._note("overload", OVERLOAD_S)

    def _note(self, reason: str, seconds: float) -> None:
        known = reason in self.reasons
        self._passing[reason] = self._clock.monotonic() + seconds
        if not known and self.on_reason:
            self.on_reason()

    def ended(self, event: FinalEvent | ErrorEvent) -> None:
        """Count a terminal event."""
        if self.on_end:
            self.on_end(event)
        if isinstance(event, ErrorEvent):
            if event.code == Expired.code:
                log.info("a request of %.64r waited too long: it is not answered any more", event.conversation_id)
            self._totals["cancelled" if event.code == "cancelled" else "errors"] += 1
            return
        self._totals["cancelled" if event.finish_reason == "cancelled" else "replies"] += 1
        self._totals["prompt_tokens"] += event.usage.prompt_tokens
        self._totals["completion_tokens"] += event.usage.completion_tokens
        if event.finish_reason != "cancelled" and not event.cached:
            self._speed.note(event.timing.first_token_s, event.timing.tokens_per_s)

    @property
    def totals(self) -> Totals:
        return Totals(**self._totals)

    @property
    def speed(self) -> Speed:
        return self._speed.medians

    @property
    def reasons(self) -> list[str]:
        """Return the health reasons that pass by themselves, such as `overload`."""
        now = self._clock.monotonic()
        self._passing = {reason: until for reason, until in self._passing.items() if until > now}
        return sorted(self._passing)

    @property
    def passes_in_s(self) -> float:
        """Return after how many seconds the next of these reasons passes."""
        return min(self._passing.values(), default=inf) - self._clock.monotonic()


class Reporter:
    """Composes the health message; holds what does not change."""

    def __init__(self, tally: Tally, store: ConversationStore, clock: Clock) -> None:
        self._tally = tally
        self._store = store
        self._clock = clock
        self._started_at = clock.now()
        self._started = clock.monotonic()
        self._offset = self._clock_offset()

    def health(
        self,
        *,
        door: DoorState,
        provider: ProviderHealth,
        queue: QueueHealth,
        reasons: Sequence[str] = (),
        providers: Sequence[ProviderUse] = (),
    ) -> Health:
        """Return the health of this moment; any reason at all makes it `degraded`."""
        found = [*reasons, *door.reasons, *self._tally.reasons]
        if self._store.problem:
            found.append("memory_not_persisted")
        return Health(
            status="degraded" if found else "ok",
            reasons=list(dict.fromkeys(found)),
            version=__version__,
            protocol=door.protocol,
            started_at=self._started_at,
            ts=self._clock.now(),
            provider=provider,
            providers=list(providers),
            queue=queue,
            memory=MemoryHealth(conversations=self._store.count(), store=self._store.name),
            totals=self._tally.totals,
            speed=self._tally.speed,
            process=ProcessHealth(rss_mb=rss_mb(), uptime_s=round(self._clock.monotonic() - self._started, 1)),
        )

    def look_at_clock(self) -> None:
        """Tell the log when the clock was set since the last look: it is why time stamps leap."""
        before, self._offset = self._offset, self._clock_offset()
        if abs(leap_s := self._offset - before) >= JUMP_S:
            log.info("the clock jumped by %+.0f s: the time stamps with it, but nothing that waits", leap_s)

    def _clock_offset(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()


def rss_mb() -> float:
    """Return the resident memory of this process in MiB. Source: proc(5), /proc/self/statm."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1048576, 1)
