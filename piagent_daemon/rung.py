"""One provider as a rung of the ladder: how it stands, until when it rests, and what it has done."""

from collections import Counter
from collections.abc import Callable
from typing import Final

from piagent_daemon.backoff import full_jitter
from piagent_daemon.cache import AnswerCache
from piagent_daemon.contract import ProviderUse
from piagent_daemon.errors import ProviderError, ProviderUnavailable
from piagent_daemon.ports import Clock, Provider
from piagent_daemon.recent import RecentSpeed
from piagent_daemon.values import Finish, ProviderState

REST_FACTOR: Final = 20.0
"""The first rest is at most so many BACKOFF_FACTOR_S; it doubles with each failure that follows."""
MAX_REST_S: Final = 300.0
WAKES_S: Final = 120.0
"""So long a machine may take from the magic packet to its first answer."""
WAKE_AGAIN_S: Final = 30.0
WAKE_LOOK_S: Final = 3.0
"""How long the rung of a machine that wakes up rests after each look."""


class Rung:
    """A provider and its standing. Times are monotonic seconds of `clock`.

    `model` and `context_tokens` are those of its own, None where the settings' apply. `wake` has its machine start.
    """

    def __init__(
        self,
        provider: Provider,
        clock: Clock,
        *,
        model: str | None = None,
        context_tokens: int | None = None,
        wake: Callable[[], None] | None = None,
        jitter: Callable[[int, float, float], float] = full_jitter,
    ) -> None:
        self.provider = provider
        self.name = provider.name
        self.model = model
        self.context_tokens = context_tokens
        self.state: ProviderState | None = None
        """What the last look or answer showed."""
        self.reason: str | None = None
        """The health reason for what is wrong with it."""
        self.missing: dict[str, str] = {}
        """Models of agents that it does not have, and what it said of each."""
        self.cache = AnswerCache(provider.chat, clock)
        self.rest_until = 0.0
        self.retries = 0
        self._clock = clock
        self._wake = wake
        self._woken_at = -WAKES_S
        self._jitter = jitter
        self._failures = 0
        self._on_trial = False
        self._requests = 0
        self._cooldowns = 0
        self._errors: Counter[str] = Counter()
        self._speed = RecentSpeed()

    # ------------------------------------------------------------------------------------------------------- standing

    @property
    def resting(self) -> bool:
        """Tell whether it is passed over: it rests, its machine wakes up, or one request tries whether it is well."""
        return self._on_trial or self.at_rest or (self.waking and self.reason == ProviderUnavailable.code)

    @property
    def at_rest(self) -> bool:
        return self._clock.monotonic() < self.rest_until

    @property
    def due(self) -> bool:
        """Tell whether its rest is over and nobody has tried since whether it is well."""
        return self._failures > 0 and not (self._on_trial or self.at_rest) and self.reason is not None

    @property
    def trouble(self) -> str | None:
        """What is wrong with it, or with one of its agents' models, in the server's words."""
        return (self.state and self.state.error) or next(iter(self.missing.values()), None)

    def rest(self, error: ProviderError, factor_s: float) -> None:
        """Pass over it for a while that grows with each failure, and is never shorter than the server asked for."""
        now = self._clock.monotonic()
        if self.waking and isinstance(error, ProviderUnavailable):
            self._failures = max(1, self._failures)
            self.rest_until = now + WAKE_LOOK_S
            return
        least_s = min(error.retry_after_s or 0.0, MAX_REST_S) if isinstance(error, ProviderUnavailable) else 0.0
        if self.at_rest:  # a further try of those that failed already
            self.rest_until = max(self.rest_until, now + least_s)
            return
        factor_s *= REST_FACTOR / 2
        half_s = min(factor_s * 2.0**self._failures, MAX_REST_S / 2)
        wait_s = max(half_s + self._jitter(self._failures, factor_s, MAX_REST_S / 2), least_s)
        self._failures = min(self._failures + 1, 30)
        self._cooldowns += 1
        self.rest_until = now + wait_s

    # --------------------------------------------------------------------------------------------------------- waking

    @property
    def waking(self) -> bool:
        """Tell whether its machine was told to start a short while ago."""
        return self._clock.monotonic() < self._woken_at + WAKES_S

    def wake(self) -> bool:
        """Have its machine start, unless that was done a moment ago; tell whether it was done now."""
        now = self._clock.monotonic()
        if self._wake is None or now < self._woken_at + WAKE_AGAIN_S:
            return False
        if not self.waking:
            self.rest_until = min(self.rest_until, now + WAKE_LOOK_S)
        self._woken_at = now
        self._wake()
        return True

    # -------------------------------------------------------------------------------------------------------- counting

    def begin(self) -> None:
        """Count a request."""
        self._requests += 1
        self._on_trial = self._failures > 0

    def end(self) -> None:
        """Note that a request is over, however it went."""
        self._on_trial = False

    def failed(self, error: ProviderError) -> None:
        """Count a failed request."""
        self._errors[error.code] += 1

    def answered(self, finish: Finish, first_token_s: float, generate_s: float) -> None:
        """Count an answer; it is well, unless that was an earlier one."""
        if finish.cached:
            return
        self._failures, self.rest_until, self._woken_at = 0, 0.0, -WAKES_S
        tokens, seconds = finish.usage.completion_tokens, finish.generate_s or generate_s
        self._speed.note(first_token_s, tokens / seconds if seconds > 0 else 0.0)

    def use(self, model: str) -> ProviderUse:
        """Return how it stands and what it has done; `model` is the one that it is asked for."""
        state = self.state
        return ProviderUse(
            name=self.name,
            reachable=state.reachable if state else None,
            model=model,
            model_loaded=state.model_loaded if state else None,
            error=self.trouble,
            resting_s=round(max(0.0, self.rest_until - self._clock.monotonic()), 1),
            requests=self._requests,
            errors=dict(self._errors),
            retries=self.retries,
            cooldowns=self._cooldowns,
            speed=self._speed.medians,
        )
