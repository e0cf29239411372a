"""The verb: one request, from remembered history to its terminal event."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from piagent_daemon import ending, files, fitting, prompt, window
from piagent_daemon.agents import Agent
from piagent_daemon.contract import ContextUse, Event, Status
from piagent_daemon.contract import Final as FinalEvent
from piagent_daemon.ending import Run
from piagent_daemon.errors import (
    ContextOverflow,
    PiagentError,
    ProviderError,
    ProviderTimeout,
    ShuttingDown,
)
from piagent_daemon.fitting import Plan
from piagent_daemon.job import NEVER, Job
from piagent_daemon.ladder import Call, Ladder, Narrower
from piagent_daemon.pace import Pace
from piagent_daemon.ports import Clock, ConversationStore
from piagent_daemon.settings import Settings
from piagent_daemon.speech import expects_reply
from piagent_daemon.values import Conversation, Finish, Outcome, Turn
from piagent_daemon.waiting import in_thread
from piagent_daemon.window import Ledger

if TYPE_CHECKING:
    from piagent_daemon.voice import Voice

STAGE_S: Final = 1.0
"""A stage that lasts longer than this many seconds is told in a `status` event."""
REFITS: Final = 3
"""How often a prompt is cut again when the server counts more tokens than we did."""
CHARS_PER_TOKEN: Final = 64
"""No tokenizer has longer tokens on average; a reply beyond this is a server that ignores `num_predict`."""


@dataclass(slots=True)
class Config:
    """What a reload replaces, shared by all who read it."""

    settings: Settings
    agents: Mapping[str, Agent]
    models: tuple[str, ...] = ()
    """What the model server has, as far as is known."""


class Assistant:
    """Answers requests; holds no state of a request, so any number of answers may run side by side."""

    def __init__(self, config: Config, ladder: Ladder, store: ConversationStore, ledger: Ledger, clock: Clock) -> None:
        self._config = config
        self._ladder = ladder
        self._store = store
        self._ledger = ledger
        self._clock = clock

    async def answer(self, job: Job) -> AsyncGenerator[Event, None]:
        """Yield the events of one request, the terminal one last; what a store can make lasting is stored before.

        Raises only what is a defect: every foreseen failure is an `error` event.
        """
        run = Run(asyncio.get_running_loop().time(), max(0.0, self._clock.monotonic() - job.received))
        try:
            async with aclosing(self._events(job, run)) as events:
                async for event in events:
                    yield event
        except PiagentError as error:
            failure = job.failure(error, run.partial())
            if not job.alone:
                await self._store.commit(
                    Outcome(job.conversation_id, job.request_id, failure.encode(), job.request.agent, epoch=run.epoch)
                )
            yield failure
        finally:
            job.partial = run.partial()

    async def _events(self, job: Job, run: Run) -> AsyncGenerator[Event, None]:
        conversation = await self._conversation(job)
        run.epoch = conversation.epoch
        if any(file.path for file in job.request.files):
            await self._read_files(job, run)
        facts = self._facts(job)
        call = Call("" if job.alone else job.conversation_id, job.agent.provider, job.model)
        most = None
        while True:
            try:
                plan = self._plan(job, conversation, facts, call, most)
            except ContextOverflow:
                if not self._ladder.pass_over(call):
                    raise
                continue
            try:
                async with aclosing(self._stream(job, run, plan, call)) as events:
                    async for event in events:
                        yield event
                break
            except Narrower:
                continue
            except ContextOverflow as overflow:
                most = self._refitted(run, plan, call, overflow)
        final = self._final(job, run, plan, conversation, call)
        if run.voice:
            job.sentence_ends = run.voice.ends
        durable = self._store.durable
        if durable and not job.alone:
            await self._store.commit(self._outcome(job, plan, conversation, final))
        yield final
        if not (durable or job.alone):
            await self._store.commit(self._outcome(job, plan, conversation, final))

    def silence(self, job: Job) -> FinalEvent:
        """Return the terminal event of a request that only wanted silence."""
        return ending.silence(job, self._ladder.home(job.agent.provider).name)

    def model(self, agent: Agent) -> str:
        """Return the model that answers for an agent whose requests name none."""
        return agent.model or self._ladder.general(agent.provider)

    # ------------------------------------------------------------------------------------------------ before the call

    async def _conversation(self, job: Job) -> Conversation:
        if job.alone:
            return Conversation()
        found = await self._store.load(job.conversation_id)
        return found if self._config.settings.enable_memory else Conversation(epoch=found.epoch)

    async def _read_files(self, job: Job, run: Run) -> None:
        """Read the files that a request names; a share that is away holds neither its time nor its cancel up.

        Raises ProviderTimeout, or what `files.inline` raises.
        """
        settings = self._config.settings
        limits = settings.max_image_bytes, settings.max_payload_bytes
        read = partial(files.inline, job.request, settings.files_dir, *limits)
        loop = asyncio.get_running_loop()
        reading = loop.create_task(in_thread(read, "read-files"), name="read files")
        job.attach(reading.cancel)
        try:
            await asyncio.wait([reading], timeout=run.started + settings.total_timeout_s - loop.time())
            if not reading.done():
                raise files.late(settings.total_timeout_s)
            if not reading.cancelled():
                job.request = reading.result()
        finally:
            reading.cancel()

    def _facts(self, job: Job) -> str:
        if job.messages is not None:
            return ""
        now = self._clock.now().astimezone()
        return prompt.turn_facts(job.agent, job.request, now=now, conversation_id=job.conversation_id)

    def _plan(self, job: Job, conversation: Conversation, facts: str, call: Call, most: int | None) -> Plan:
        model, tokens = self._ladder.choice(call)
        return fitting.plan(
            job,
            conversation,
            facts,
            settings=self._config.settings,
            ledger=self._ledger,
            model=model,
            context_tokens=tokens,
            most=most,
        )

    def _refitted(self, run: Run, plan: Plan, call: Call, overflow: ContextOverflow) -> int | None:
        """Return how many tokens of history to try next; raises `overflow` when there is nothing left to try."""
        self._ledger.overflowed(call.served, plan.request.messages, overflow.prompt_tokens)
        run.refits += 1
        if plan.history and run.refits <= REFITS and not run.parts:
            return plan.history // 2
        if run.parts or not self._ladder.pass_over(call):
            raise overflow
        run.refits = 0
        return None

    # ------------------------------------------------------------------------------------------------ during the call

    async def _stream(self, job: Job, run: Run, plan: Plan, call: Call) -> AsyncGenerator[Event, None]:
        settings, loop = self._config.settings, asyncio.get_running_loop()
        if job.stream == "sentences" and run.voice is None:
            run.voice = _voice(job, run)
        run.chunks, voice = job.stream is None or job.stream is True, run.voice
        interval_s = 0.0 if voice else settings.chunk_interval_ms / 1000
        deadline = run.started + settings.total_timeout_s
        limit = plan.request.options["num_predict"] * CHARS_PER_TOKEN
        pace = Pace(self._ladder.answer(plan.request, call), interval_s, limit)
        call.told, call.estimate = pace.entered, plan.estimate
        async with pace:
            job.attach(pace.close)
            stage, since, told = pace.stage, loop.time(), False
            while True:
                filler_at = voice.filler_at if voice else NEVER
                await pace.wait(min(deadline, filler_at, since + STAGE_S if stage and not told else NEVER))
                while pace.text_due:
                    run.finish, text = pace.finish, pace.take()
                    for event in run.tell(job, text, more=pace.text_due):
                        yield event
                if pace.finish or pace.ended:
                    break
                now = loop.time()
                if now >= deadline:
                    late = ProviderTimeout(f"The answer was not complete within {settings.total_timeout_s:g} seconds.")
                    self._ladder.overdue(call, late)
                    raise late
                if voice and now >= voice.filler_at:
                    yield voice.fill()
                if pace.stage != stage:
                    stage, since, told = pace.stage, now, False
                elif stage and not told and now >= since + STAGE_S:
                    told = True
                    yield job.stamp(Status, stage=stage, detail=pace.detail or "The model gets ready.")
            run.first_token_at, run.finish, run.too_long = pace.first_token_at, pace.finish, pace.too_long
            if voice and (run.finish or run.too_long):
                for sentence in voice.finish():
                    yield sentence
            if not (job.stopped or run.too_long or run.finish):
                pace.raise_failure()

    # ------------------------------------------------------------------------------------------------- after the call

    def _final(self, job: Job, run: Run, plan: Plan, conversation: Conversation, call: Call) -> FinalEvent:
        if not (run.finish or run.too_long or job.stopped):
            raise ProviderError("The model server broke the answer off without an end.")
        cancelled = job.stopped == "cancelled" and run.finish is None
        reply, finish = run.delivered(job.spoken_index) if cancelled else run.reply, run.finish or Finish("stop")
        if job.stopped == "shutdown" and run.finish is None:
            raise ShuttingDown
        if not cancelled and not reply.strip():
            raise ProviderError("The model returned nothing.")
        usage = finish.usage
        if usage.prompt_tokens:
            self._ledger.calibrate(call.served, plan.request.messages, usage.prompt_tokens)
        speech, fields = run.speech(reply), dict[str, Any]()
        if plan.request.format is not None:
            fields["data"] = ending.parsed(reply)
        if finish.cached:
            fields["cached"] = True
        return job.stamp(
            FinalEvent,
            reply=reply,
            speech=speech,
            model=call.served or job.model,
            provider=call.rung.name if call.rung else self._ladder.home(job.agent.provider).name,
            agent=job.agent.name,
            finish_reason="cancelled" if cancelled else "length" if run.too_long else finish.reason,
            expects_reply=expects_reply(speech or reply),
            usage=usage,
            timing=ending.timing(run, finish),
            context=ContextUse(
                tokens=usage.prompt_tokens or plan.estimate,
                limit=self._ladder.window(call.rung) if call.rung else plan.request.context_tokens,
                dropped_turns=conversation.dropped + plan.drop,
            ),
            metadata=job.request.metadata,
            **fields,
        )

    def _outcome(self, job: Job, plan: Plan, conversation: Conversation, final: FinalEvent) -> Outcome:
        outcome = Outcome(
            job.conversation_id, job.request_id, final.encode(), agent=job.request.agent, epoch=conversation.epoch
        )
        settings = self._config.settings
        cancelled = final.finish_reason == "cancelled"
        if not settings.enable_memory or not (final.reply.strip() or cancelled):
            return outcome
        now = self._clock.now()
        new = (
            Turn("user", prompt.user_text(job.request), now),
            Turn(
                "assistant",
                final.reply,
                now,
                interrupted=cancelled,
                tokens=final.usage.completion_tokens or None,
            ),
        )
        kept = (*conversation.turns[plan.forget :], *new)
        cut = window.cut([0] * len(kept), max_turns=settings.memory_max_turns, budget=0)
        drop = min(plan.forget + cut, len(conversation.turns))
        return outcome._replace(turns=kept[cut:][-len(new) :] if cut < len(kept) else (), drop=drop)


def _voice(job: Job, run: Run) -> "Voice":
    from piagent_daemon.voice import Voice  # noqa: PLC0415 (only where sentences are wanted)

    return Voice(job, run.started - run.queued_s)
