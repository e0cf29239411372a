"""How quick the recent answers were."""

from collections import deque
from collections.abc import Sequence
from typing import Final

from piagent_daemon.contract import Speed

ANSWERS: Final = 20
"""So many the medians rest on."""


class RecentSpeed:
    """Times and rates of the last answers."""

    def __init__(self) -> None:
        self._first_token_s: deque[float] = deque(maxlen=ANSWERS)
        self._tokens_per_s: deque[float] = deque(maxlen=ANSWERS)

    def note(self, first_token_s: float, tokens_per_s: float) -> None:
        """Take an answer in; a rate of 0 is an unknown one."""
        self._first_token_s.append(first_token_s)
        if tokens_per_s:
            self._tokens_per_s.append(tokens_per_s)

    @property
    def medians(self) -> Speed:
        return Speed(first_token_s=_median(self._first_token_s), tokens_per_s=_median(self._tokens_per_s))


def _median(values: Sequence[float]) -> float | None:
    return round(sorted(values)[len(values) // 2], 3) if values else None
