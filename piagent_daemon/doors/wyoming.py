"""The Wyoming front door: piagent as a conversation agent of Home Assistant's Assist, found by the Wyoming integration.

Memory is shared with MQTT: a conversation is the same on both. What came in here is not durable: a connection that
breaks takes its question along.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

from piagent_daemon.agents import Agent
from piagent_daemon.doors.wyoming_line import Line, Surroundings
from piagent_daemon.ports import Clock, Intake
from piagent_daemon.settings import Settings
from piagent_daemon.values import DoorState

log = logging.getLogger("piagent.wyoming")

WYOMING_PORT: Final = "wyoming_port"
MAX_LINES: Final = 64
"""Connections at a time; one more is closed at once."""
AGAIN_S: Final = (1.0, 30.0)


class WyomingDoor:
    """A way in and out over Wyoming (`ports.FrontDoor`). `agents` returns those of this moment."""

    def __init__(
        self, settings: Settings, intake: Intake, clock: Clock, agents: Callable[[], Mapping[str, Agent]]
    ) -> None:
        self.on_change: Callable[[], None] | None = None
        self._uri = settings.wyoming_uri or ""
        self._around = Surroundings(settings, intake, clock, agents)
        self._server: asyncio.Server | None = None
        self._opening: asyncio.Task[None] | None = None
        self._lines: dict[asyncio.Task[None], Line] = {}
        self._trouble = ""
        self._open = asyncio.Event()
        self._tried = asyncio.Event()

    @property
    def state(self) -> DoorState:
        """How the door stands; see `ports.DoorState`."""
        reasons = (WYOMING_PORT,) if self._trouble else ()
        return DoorState(self._open.is_set(), None, reasons, self._trouble or f"listening on {self._uri}")

    @property
    def alive(self) -> bool:
        """Tell whether somebody listens, or tries to."""
        return self._open.is_set() or (self._opening is not None and not self._opening.done())

    async def start(self) -> None:
        """Begin to listen; returns at once."""
        self._opening = asyncio.get_running_loop().create_task(self._listen(), name="wyoming listen")

    async def ready(self) -> None:
        """Return when it listens, or tried to and says why it cannot: the broker's users need not wait for that."""
        await self._tried.wait()

    async def stop_intake(self) -> None:
        """Take no new connections."""
        if self._opening:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._server:
            self._server.close()

    async def stop(self, deadline_s: float) -> None:
        """Hang up; at most `deadline_s` seconds."""
        for line in self._lines.values():
            line.close()
        if self._lines:
            await asyncio.wait(self._lines, timeout=deadline_s)

    # -------------------------------------------------------------------------------------------------------- listening

    async def _listen(self) -> None:
        """Try until the port is ours: at boot the address may not be there yet."""
        address = urlsplit(self._uri)
        pause_s, longest_s = AGAIN_S
        while True:
            try:
                self._server = await asyncio.start_server(
                    self._accept, address.hostname, address.port, limit=self._around.frame_bytes
                )
            except (OSError, ValueError) as error:  # ValueError: a name that no name server takes
                self._tell(f"cannot listen on {self._uri}: {getattr(error, 'strerror', None) or error}")
                self._tried.set()
            else:
                self._open.set()
                self._tried.set()
                self._tell("")
                log.info("listening on %s", self._uri)
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)

    def _tell(self, trouble: str) -> None:
        if trouble == self._trouble:
            return
        self._trouble = trouble
        if trouble:
            log.error("%s (WYOMING_URI); trying again, for ever", trouble)
        if self.on_change:
            self.on_change()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._lines) >= MAX_LINES:
            self._turn_away(writer)
            return
        line = Line(reader, writer, self._around)
        task = asyncio.get_running_loop().create_task(line.run(), name="wyoming connection")
        self._lines[task] = line
        task.add_done_callback(self._lines.pop)

    def _turn_away(self, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        self._around.intake.refused("wyoming")
        self._around.warn("more than %d connections: the others are closed at once", MAX_LINES)
