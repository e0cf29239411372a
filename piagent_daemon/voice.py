"""One answer said sentence by sentence: what goes out when, and how much of the answer was heard."""

from piagent_daemon.contract import Sentence
from piagent_daemon.job import NEVER, Job
from piagent_daemon.sentences import Splitter


class Voice:
    """Makes the `sentence` events of one job.

    `filler_at` is the loop time at which the agent's filler has to be said, NEVER once a word to be spoken came; what a
    model thinks in its text is none.
    """

    def __init__(self, job: Job, asked_at: float) -> None:
        self._job = job
        self._splitter = Splitter()
        self._index = int(job.filled)
        filler = None if job.filled else job.agent.filler
        self._filler = str(filler["text"]) if filler else ""
        self.filler_at = asked_at + float(filler["seconds"]) if filler else NEVER

    def hear(self, text: str, *, more: bool) -> list[Sentence]:
        """Take the next text of the answer; `more`: further text is there already, so nothing needs to be hurried."""
        ready = self._splitter.feed(text)
        if self._splitter.begun:
            self.filler_at = NEVER
        return self._say(ready if more else ready + self._splitter.hurry())

    def finish(self) -> list[Sentence]:
        """Take note that the answer is complete."""
        return self._say(self._splitter.close())

    def fill(self) -> Sentence:
        """Say the filler, which is no part of the answer."""
        self.filler_at = NEVER
        (sentence,) = self._say([self._filler])
        return sentence

    @property
    def ends(self) -> tuple[int, ...]:
        """For each sentence event, in order of `index`, how many characters of the answer were heard after it."""
        fillers = (0,) * (self._index - len(self._splitter.ends))
        return (*fillers, *self._splitter.ends)

    def speech(self, ends: int) -> str:
        """Return as one line what was said of the first `ends` characters of the answer."""
        said = zip(self._splitter.said, self._splitter.ends, strict=True)
        return "".join(text for text, end in said if end <= ends)

    def _say(self, texts: list[str]) -> list[Sentence]:
        events = [self._job.stamp(Sentence, text=text, index=self._index + at) for at, text in enumerate(texts)]
        self._index += len(events)
        return events
