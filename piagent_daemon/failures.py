"""Why an answer did not come yet: what each rung said last, and who may be asked again when."""

from piagent_daemon.errors import ProviderError, ProviderUnavailable
from piagent_daemon.rung import Rung
from piagent_daemon.tries import MAX_BACKOFF_S


class Failures:
    """The newest failure of each rung that one request met."""

    def __init__(self) -> None:
        self.said: dict[Rung, ProviderError] = {}
        """By rung, in the order in which they were asked first."""
        self._left_s: dict[Rung, float] = {}
        """How long each of those that may be asked again wants to be left alone."""

    def note(self, rung: Rung, error: ProviderError) -> None:
        """Take the failure of a rung in place of an earlier one."""
        self.said[rung] = error
        self._left_s.pop(rung, None)
        if isinstance(error, ProviderUnavailable):
            self._left_s[rung] = error.retry_after_s or 0.0

    @property
    def passing(self) -> list[Rung]:
        """Those whose failure may pass."""
        return [rung for rung in self.said if rung in self._left_s]

    def next(self, *, last: bool) -> tuple[ProviderUnavailable, float]:
        """Return whose turn it is among those that may pass, and how many seconds that one wants to be left alone.

        That is whoever may be asked soonest, but for the last try whoever takes longest, in time, so that all are due.
        """
        in_time = [rung for rung in self.passing if self._left_s[rung] <= MAX_BACKOFF_S]
        chosen = max(in_time, key=self._left) if last and in_time else min(self.passing, key=self._left)
        error = self.said[chosen]
        assert isinstance(error, ProviderUnavailable)  # noqa: S101 - no other kind is `passing`
        return error, self._left(chosen)

    def _left(self, rung: Rung) -> float:
        return self._left_s[rung]

    def due(self, waited_s: float) -> list[Rung]:
        """Return whom to ask after a wait: nobody before the time that its server named, but one at least."""
        self._left_s = {rung: left_s - waited_s for rung, left_s in self._left_s.items()}
        due = [rung for rung in self.passing if self._left_s[rung] <= 0]
        return due or [min(self.passing, key=self._left)]

    def why(self) -> ProviderError:
        """Return the failure that is worth telling: one that may pass before others, with a word on each."""
        errors = list(self.said.values())
        if len(errors) == 1:
            return errors[0]
        worst = next((error for error in errors if error.retryable), errors[0])
        told = type(worst)(" ".join(f"{rung.name}: {_sentence(error)}" for rung, error in self.said.items()))
        told.status_code = worst.status_code
        return told


def _sentence(error: ProviderError) -> str:
    text = str(error)
    return text if text.endswith((".", "!", "?")) else f"{text}."
