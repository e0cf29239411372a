"""A stand-in for the engine behind a front door: answers with what was said, at once or when it is let."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from uuid import uuid4

from piagent_daemon.contract import Accepted, AdminError, AdminResponse, Chunk, ContextUse, Event, Timing, Usage
from piagent_daemon.contract import Final as FinalEvent
from piagent_daemon.doors.mqtt import MqttDoor
from piagent_daemon.ports import Channel
from piagent_daemon.settings import Settings
from piagent_daemon.values import Delivery, Incoming


class RealClock:
    """Time as it is."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return monotonic()


def final(conversation_id: str, request_id: str, reply: str, seq: int = 2) -> FinalEvent:
    """Return a terminal event."""
    return FinalEvent(
        conversation_id=conversation_id,
        request_id=request_id,
        attempt=1,
        seq=seq,
        ts=datetime.now(UTC),
        reply=reply,
        speech=reply,
        model="echo",
        provider="echo",
        agent="general",
        finish_reason="stop",
        expects_reply=False,
        usage=Usage(),
        timing=Timing(),
        context=ContextUse(),
    )


@dataclass
class EchoEngine:
    """Implements `ports.Intake` and `ports.Admin`. With `hold` set, answers wait in `held` for `release`."""

    hold: bool = False
    suffix: str = ""
    incoming: list[Incoming] = field(default_factory=list)
    held: list[tuple[Incoming, Channel, str, str]] = field(default_factory=list)
    cancelled: list[tuple[str, str | None]] = field(default_factory=list)
    heard: list[int | None] = field(default_factory=list)
    """The `spoken_index` of each cancel."""
    resets: list[str] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    administered: list[tuple[str, bytes]] = field(default_factory=list)
    defect: Exception | None = None
    gate: asyncio.Event | None = None
    """When set, `submit` and admin requests wait for it."""

    async def submit(self, incoming: Incoming, channel: Channel) -> None:
        if self.defect:
            raise self.defect
        if self.gate:
            await self.gate.wait()
        self.incoming.append(incoming)
        conversation_id = incoming.conversation_id or str(uuid4())
        request_id = incoming.request.id or str(uuid4())
        channel.send(Accepted(**self._ids(conversation_id, request_id, 0), position=0, agent="general", model="echo"))
        self.held.append((incoming, channel, conversation_id, request_id))
        if not self.hold:
            self.release()

    def release(self) -> None:
        """Answer everything that waits."""
        held, self.held = self.held, []
        for incoming, channel, conversation_id, request_id in held:
            reply = incoming.request.message + self.suffix
            for event in self._answer(conversation_id, request_id, reply):
                channel.send(event)

    def _answer(self, conversation_id: str, request_id: str, reply: str) -> list[Event]:
        return [
            Chunk(**self._ids(conversation_id, request_id, 1), text=reply),
            final(conversation_id, request_id, reply),
        ]

    def _ids(self, conversation_id: str, request_id: str, seq: int) -> dict[str, Any]:
        return {
            "conversation_id": conversation_id,
            "request_id": request_id,
            "attempt": 1,
            "seq": seq,
            "ts": datetime.now(UTC),
        }

    def cancel(self, conversation_id: str, request_id: str | None = None, spoken_index: int | None = None) -> None:
        self.cancelled.append((conversation_id, request_id))
        self.heard.append(spoken_index)

    async def reset(self, conversation_id: str) -> int:
        self.resets.append(conversation_id)
        return 1

    def refused(self, reason: str) -> None:
        self.refusals[reason] += 1

    def duplicate(self) -> None:
        self.duplicates += 1

    async def handle(
        self, method: str, payload: bytes, _delivery: Delivery | None = None
    ) -> AsyncGenerator[AdminResponse, None]:
        self.administered.append((method, payload))
        if self.defect:
            raise self.defect
        if self.gate:
            await self.gate.wait()
        if method == "unknown":
            yield AdminResponse(status="error", error=AdminError(code="invalid_request", message="There is none."))
            return
        yield AdminResponse(status="progress", data={"step": 1})
        yield AdminResponse(status="ok", data=json.loads(payload) if payload[:1] == b"{" else None)

    @property
    def messages(self) -> list[str]:
        return [incoming.request.message for incoming in self.incoming]


OFFLINE = b'{"status":"offline"}'


def make_door(port: int, engine: EchoEngine, **settings: Any) -> MqttDoor:
    """Return a door to the broker at `port` with `engine` behind it; keywords are settings."""
    values: dict[str, Any] = {"mqtt_host": "127.0.0.1", "mqtt_client_id": f"door-{uuid4().hex[:12]}", **settings}
    return MqttDoor(Settings(mqtt_port=port, **values), engine, engine, RealClock(), OFFLINE)


@asynccontextmanager
async def open_door(port: int, engine: EchoEngine, **settings: Any) -> AsyncIterator[MqttDoor]:
    """Run a door that is ready, and stop it in good order."""
    door = make_door(port, engine, **settings)
    await door.start()
    try:
        await asyncio.wait_for(door.ready(), 10)
        yield door
    finally:
        await door.stop(5)


async def kill(door: MqttDoor) -> None:
    """End a door as a kill of its process would: nothing is said to the broker any more."""
    await door._link._task.stop()
    await door._inbox._task.stop()
    door._selftest.end()
    door._link._connection.abort()


async def until(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    """Wait until `condition()` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  what it looks at tells nobody that it changed
            await asyncio.sleep(0.005)
