"""How an answer ends: what one attempt has come to, and the figures of its `final` event."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from piagent_daemon.contract import Chunk, ContextUse, Event, Timing, Usage
from piagent_daemon.contract import Final as FinalEvent
from piagent_daemon.job import Job, heard
from piagent_daemon.speech import speakable
from piagent_daemon.values import Finish

if TYPE_CHECKING:
    from piagent_daemon.voice import Voice


@dataclass(slots=True)
class Run:
    """What one attempt has come to so far; times are loop times in seconds.

    `voice` says it sentence by sentence; else `chunks` tells whether it goes out as it comes. `epoch` is that of the
    conversation as it was loaded, `refits` how often the prompt was cut again.
    """

    started: float
    queued_s: float
    parts: list[str] = field(default_factory=list)
    first_token_at: float | None = None
    finish: Finish | None = None
    too_long: bool = False
    chunks: bool = True
    epoch: int = 0
    refits: int = 0
    voice: "Voice | None" = None

    def tell(self, job: Job, text: str, *, more: bool) -> Sequence[Event]:
        """Take the next text of the answer; return what goes out of it. `more`: further text is there already."""
        self.parts.append(text)
        if self.voice:
            return self.voice.hear(text, more=more) if self.finish or not job.stopped else ()
        return (job.stamp(Chunk, text=text),) if self.chunks else ()

    @property
    def reply(self) -> str:
        return "".join(self.parts)

    def delivered(self, spoken_index: int | None = None) -> str:
        """Return what went out of the reply; sentence by sentence, at most up to the one of `spoken_index`."""
        return self.reply if self.voice is None else self.reply[: heard(self.voice.ends, spoken_index)]

    def partial(self) -> str:
        """Return what went out before the terminal event."""
        return self.delivered() if self.chunks or self.voice else ""

    def speech(self, reply: str) -> str:
        """Return the reply, or its beginning, for ears: the sentences that went out, where there were some."""
        return speakable(reply) if self.voice is None else self.voice.speech(len(reply))


def silence(job: Job, provider: str) -> FinalEvent:
    """Return the terminal event of a request that only wanted silence."""
    return job.stamp(
        FinalEvent,
        reply="",
        speech="",
        model=job.model,
        provider=provider,
        agent=job.agent.name,
        finish_reason="cancelled",
        expects_reply=False,
        usage=Usage(),
        timing=Timing(),
        context=ContextUse(),
        metadata=job.request.metadata,
    )


def timing(run: Run, finish: Finish) -> Timing:
    """Return where the seconds of an attempt went, by the model server's clock where it has one."""
    now = asyncio.get_running_loop().time()
    first = (run.first_token_at or now) - run.started
    generate_s = finish.generate_s or max(0.0, now - run.started - first)
    tokens = finish.usage.completion_tokens
    return Timing(
        queued_s=round(run.queued_s, 4),
        load_s=round(finish.load_s, 4),
        prompt_s=round(finish.prompt_s, 4),
        first_token_s=round(first, 4),
        generate_s=round(generate_s, 4),
        total_s=round(run.queued_s + now - run.started, 4),
        tokens_per_s=round(tokens / generate_s, 2) if tokens and generate_s > 0 else 0.0,
    )


def parsed(reply: str) -> Any:
    """Return the JSON value in a structured answer, or None when the model gave no valid JSON."""
    try:
        return from_json(reply, allow_inf_nan=False)
    except ValueError:
        return None
