"""One Wyoming connection: its questions are answered one after the other, and it is bounded in all it can take."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import uuid4

from piagent_daemon import wire
from piagent_daemon.agents import Agent
from piagent_daemon.contract import Request
from piagent_daemon.doors import wyoming_words as words
from piagent_daemon.doors.seldom import Seldom
from piagent_daemon.doors.wyoming_reply import Reply
from piagent_daemon.errors import InternalError, InvalidRequest
from piagent_daemon.ports import Clock, Intake
from piagent_daemon.settings import Settings
from piagent_daemon.topics import conversation_for
from piagent_daemon.values import Delivery, Incoming

log = logging.getLogger("piagent.wyoming")

IDLE_S: Final = 60.0
"""A connection on which nothing is being answered is closed after so long without a whole event."""
AHEAD: Final = 4
"""Questions that may wait on one connection."""
UNREAD_BYTES: Final = 1_000_000
"""What may wait in memory for a client that does not read."""
FLUSH_S: Final = 1.0
"""So long a client may take to read the last words before it is hung up on."""
FRAME_BYTES: Final = 65_536
CHAR_BYTES: Final = 12
"""A character in JSON at its longest: two escapes."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all connections share."""

    settings: Settings
    intake: Intake
    clock: Clock
    agents: Callable[[], Mapping[str, Agent]]
    seldom: Seldom = field(default_factory=Seldom)

    @property
    def frame_bytes(self) -> int:
        """The largest part of an event that is taken in."""
        return FRAME_BYTES + CHAR_BYTES * self.settings.max_message_chars

    def warn(self, what: str, *details: object) -> None:
        """Log a warning that any client may bring about; each not more often than once in SELDOM_S seconds."""
        if self.seldom(what, self.clock.monotonic()):
            log.warning(what, *details)


class Line:
    """Reads events from one client and writes to it, from `run` until the client goes, misbehaves or falls silent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, around: Surroundings) -> None:
        self._reader = reader
        self._writer = writer
        self._around = around
        self._agent = around.settings.voice_agent
        self._questions: asyncio.Queue[tuple[words.Event, str]] = asyncio.Queue(AHEAD)
        self._reply: Reply | None = None
        self._gone = False
        self._silence: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serve the client; `close` ends it."""
        async with asyncio.TaskGroup() as tasks:
            asker = tasks.create_task(self._answer_all(), name="wyoming questions")
            try:
                await self._read_all()
            except words.FrameError as error:
                self._around.intake.refused("wyoming")
                self._around.warn("a connection is closed: %s", error)
            except OSError as error:
                log.debug("a connection broke: %s", error)
            finally:
                self._leave()
                if self._reply is None:
                    asker.cancel()

    def close(self) -> None:
        """Hang up once all is sent; after FLUSH_S seconds in any case."""
        transport = self._writer.transport
        if transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(FLUSH_S, transport.abort)
        self._writer.close()

    def _leave(self) -> None:
        """Stop what is being answered: nobody listens any more."""
        self._gone = True
        if self._silence:
            self._silence.cancel()
        self.close()
        self._cancel()

    def _cancel(self) -> None:
        if self._reply and self._reply.ids:  # it heard nothing: Home Assistant speaks only what is handled
            self._around.intake.cancel(*self._reply.ids, -1)

    # --------------------------------------------------------------------------------------------------------- reading

    async def _read_all(self) -> None:
        while True:
            self._wait_for_words()
            event = await words.read_event(self._reader, self._around.frame_bytes)
            if event is None:
                return
            self._hear(event)
            await asyncio.sleep(0)  # what is in the buffer is read without waiting: let others have their turn

    def _wait_for_words(self) -> None:
        """Hang up after IDLE_S seconds without a whole event; asleep while something is being answered."""
        if self._silence:
            self._silence.cancel()
        if self._gone:
            return
        self._silence = asyncio.get_running_loop().call_later(IDLE_S, self._on_silence)

    def _on_silence(self) -> None:
        if self._reply:
            self._wait_for_words()
        else:
            self._writer.transport.abort()

    def _hear(self, event: words.Event) -> None:
        """Act on one event; those that a `handle` service does not know are passed over."""
        agents = self._around.agents()
        if words.Describe.is_type(event.type):
            self._write(words.info(agents, self._around.settings.voice_agent))
        elif words.Ping.is_type(event.type):
            self._write(words.pong(event.data))
        elif words.SelectProgram.is_type(event.type):
            self._agent = words.chosen_agent(event.data, agents) or self._agent
        elif words.Transcript.is_type(event.type):
            if self._questions.full():
                raise words.FrameError("too many questions at once")
            self._questions.put_nowait((event, self._agent))

    # ------------------------------------------------------------------------------------------------------- answering

    async def _answer_all(self) -> None:
        while not self._gone:
            event, agent_name = await self._questions.get()
            asked, agent = words.question(event.data), self._around.agents().get(agent_name)
            self._reply = Reply(self._write, (asked.language, *(agent.languages if agent else ())))
            await self._ask(asked, agent_name, self._reply)
            if self._gone:
                self._cancel()
            await self._reply.ended.wait()
            self._reply = None
            self._wait_for_words()

    async def _ask(self, asked: words.Question, agent: str, reply: Reply) -> None:
        """Hand one question to the engine, or refuse it."""
        intake = self._around.intake
        request = Request(message=asked.text, agent=agent, stream="sentences", context=_context(asked))
        try:
            request = wire.check(request, self._around.settings)
        except InvalidRequest as error:
            intake.refused(error.code)
            reply.fail(error.code)
            return
        conversation_id = conversation_for(asked.conversation) if asked.conversation else None
        delivery = Delivery(f"wyoming:{uuid4()}", by_id=False, redelivered=False, durable=False)
        try:
            await intake.submit(Incoming(request, conversation_id, delivery, self._around.clock.monotonic()), reply)
        except Exception:
            log.exception("a question failed by a defect")
            intake.refused(InternalError.code)
            reply.fail(InternalError.code)

    def _write(self, event: words.Event) -> None:
        """Send one event; never waits. A client that does not read loses its connection."""
        if self._gone or self._writer.is_closing():
            return
        self._writer.write(words.encode(event))
        if self._writer.transport.get_write_buffer_size() > UNREAD_BYTES:
            self._around.warn("a connection is closed: its client does not read")
            self._writer.transport.abort()


def _context(asked: words.Question) -> dict[str, str] | None:
    """Return where the question was asked: facts for the model, for this turn only."""
    where = {"satellite": asked.satellite, "device": asked.device}
    return {name: value for name, value in where.items() if value} or None
