"""Asking a model server again after a failure that may pass."""

import asyncio
from typing import Final

from piagent_daemon.backoff import full_jitter
from piagent_daemon.errors import ProviderUnavailable

MAX_BACKOFF_S: Final = 30.0


class Tries:
    """Counts the further tries at one thing: at most `most`, with waits that double from `factor_s` seconds."""

    def __init__(self, most: int, factor_s: float) -> None:
        self.used = 0
        self._most = most
        self._factor_s = factor_s

    @property
    def left(self) -> bool:
        return self.used < self._most

    @property
    def last(self) -> bool:
        """Tell whether only one is left."""
        return self._most - self.used == 1

    async def after(self, error: ProviderUnavailable, least_s: float | None = None) -> float:
        """Wait before the next try, at least as long as the server asked but no longer than MAX_BACKOFF_S.

        `least_s` is what is left of that, where not all is. Return the seconds; raise `error` when no try is left.
        """
        if not self.left:
            raise error
        least_s = error.retry_after_s or 0.0 if least_s is None else least_s
        wait_s = max(full_jitter(self.used, self._factor_s, MAX_BACKOFF_S), min(least_s, MAX_BACKOFF_S))
        self.used += 1
        await asyncio.sleep(wait_s)
        return wait_s
