"""The house that the faults befall: broker, model server, daemon, a listener; and what must hold whatever happens."""

import itertools
import json
import re
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import pytest

from tests.conftest import DaemonFactory
from tests.fakes.answers import Event, admin
from tests.fakes.broker import Mosquitto
from tests.fakes.daemon import DaemonProcess
from tests.fakes.observer import TERMINAL, Message, Observer
from tests.fakes.ollama import FakeOllama

PASSWORD: Final = "canary-broker-7Hq"
API_KEY: Final = "canary-key-9Zt"
SAID: Final = "canary said aloud"
RSS_MB: Final = 150.0
LAG_S: Final = 1.0
WATCHDOG_S: Final = 1.0
SETTINGS: Final = {"mqtt_username": "piagent", "mqtt_password": PASSWORD, "ollama_api_key": API_KEY}
_FAKETIME: Final = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
_ROOM: Final = re.compile(r"\[room ([^\]]+)\]")
_LOG_LINE: Final = re.compile(
    r"(?P<way>Sending|Received) (?P<kind>PUBLISH|PUBACK) (?:to|from) (?P<client>\S+) "
    r"\((?:d\d, q(?P<qos>\d), r\d, m(?P<sent>\d+), '(?P<topic>.*)', \.\.\. |m(?P<acked>\d+), rc|Mid: (?P<mid>\d+), RC)"
)

Protocol = Literal["auto", "5", "311"]


def faketime(factor: int = 1) -> dict[str, str]:
    """Return the environment of a process under libfaketime, for which time goes `factor` times as fast."""
    if _FAKETIME is None:
        pytest.skip("libfaketime is not installed")
    speed = {"FAKETIME": f"+0 x{factor}"} if factor > 1 else {}
    return {"LD_PRELOAD": str(_FAKETIME), **speed}


class House:
    """An async context manager; leaving it without an error checks the invariants, stops the daemon and checks again.

    `late` leaves broker and listener to the test, which calls `listen`. `asked` has the conversation of each request
    that was sent at QoS 1; what a broker lost by itself the test takes out of it.
    """

    def __init__(
        self,
        start: DaemonFactory,
        server: FakeOllama,
        broker: Mosquitto,
        base: str,
        *,
        protocol: Protocol = "auto",
        late: bool = False,
        ca_file: Path | None = None,
        wait: bool = True,
        fast: int = 1,
        env: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.server = server
        self.broker = broker
        self.base = base
        self.asked: dict[str, str] = {}
        self.crowded: set[str] = set()
        """Rooms to which more was sent than is in `asked`."""
        self.watched = True
        """False where the pings of the watchdog were kept from us, so that they prove nothing."""
        self.reachable = True
        """False where the daemon can never reach the broker, so that nothing can be heard of it."""
        self._start = start
        self._late = late
        self._ca_file = ca_file
        self._wait = wait
        self._stack = AsyncExitStack()
        self._observer: Observer | None = None
        self._process: DaemonProcess | None = None
        self._env = {**(faketime(fast) if fast > 1 else {}), **(env or {})}
        self._settings = {
            "mqtt_port": broker.port,
            "ollama_host": server.url,
            "mqtt_protocol": protocol,
            **SETTINGS,
            **settings,
        }

    async def __aenter__(self) -> Self:
        async with self._stack:
            if not self._late:
                await self.listen()
            process = await self._start(wait=self._wait, env=self._env, watchdog_s=WATCHDOG_S, **self._settings)
            self._process = process
            self._stack = self._stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        async with self._stack:
            if kind is None:
                await self.check()

    async def listen(self) -> Observer:
        """Have a client hear everything below the base topic but its own words."""
        ca_file = str(self._ca_file) if self._ca_file else None
        observer = Observer(self.broker.port, base=self.base, username="piagent", password=PASSWORD, ca_file=ca_file)
        self._observer = await self._stack.enter_async_context(observer)
        await observer.subscribe(f"{self.base}/#", no_local=True)
        return observer

    # ------------------------------------------------------------------------------------------------------- handles

    @property
    def observer(self) -> Observer:
        assert self._observer is not None
        return self._observer

    @property
    def process(self) -> DaemonProcess:
        assert self._process is not None
        return self._process

    @property
    def log(self) -> str:
        return self.process.output

    def take_over(self, process: DaemonProcess) -> None:
        """Look at another daemon of the same settings from now on."""
        self._process = process
        self.watched = False

    # -------------------------------------------------------------------------------------------------------- asking

    async def post(self, room: str, text: str = "Hello", *, qos: int = 1, wait: bool = True, **fields: Any) -> str:
        """Send a request and return its id; its text names the room, so that rooms that mix show."""
        request_id = str(fields.pop("id", "") or uuid.uuid4().hex)
        properties = {name: fields.pop(name) for name in list(fields) if name[0].isupper()}
        payload = {"id": request_id, "message": f"{text} {SAID} [room {room}]", **fields}
        if qos:
            self.asked[request_id] = room
        await self.observer.publish(f"{self.base}/{room}/in", payload, qos, wait=wait, **properties)
        return request_id

    async def ask(self, room: str, text: str = "Hello", timeout_s: float = 15.0, **fields: Any) -> Event:
        """Send a request and return its terminal event."""
        return await self.observer.terminal(await self.post(room, text, **fields), timeout_s)

    async def raw(self, room: str, payload: bytes | str | Event, qos: int = 1, **properties: Any) -> None:
        """Send a payload as it is."""
        self.crowded.add(room)
        await self.observer.publish(f"{self.base}/{room}/in", payload, qos, **properties)

    async def well(self, room: str = "still-well", timeout_s: float = 15.0) -> Event:
        """Prove that a plain request is answered."""
        final = await self.ask(room, "Are you there?", timeout_s)
        assert final["type"] == "final", final
        return final

    # -------------------------------------------------------------------------------------------------------- seeing

    @property
    def healths(self) -> list[Event]:
        """Health as it was published, oldest first."""
        return [one.json for one in self.observer.on(f"{self.base}/health") if one.payload]

    async def health(self, true: Callable[[Event], object], timeout_s: float = 10.0, *, start: int = 0) -> Event:
        """Return the first published health from message number `start` on of which `true` holds."""
        topic = f"{self.base}/health"
        message = await self.observer.wait(
            lambda one: one.topic == topic and one.payload and true(one.json), timeout_s, start=start
        )
        found: Event = message.json
        return found

    async def reason(self, reason: str, timeout_s: float = 10.0) -> Event:
        """Wait until health gives a reason."""
        return await self.health(lambda now: reason in now.get("reasons", ()), timeout_s)

    async def good(self, timeout_s: float = 10.0) -> Event:
        """Wait until the newest health is `ok`."""
        await self.observer.until(lambda: self.healths and self.healths[-1]["status"] == "ok", timeout_s)
        return self.healths[-1]

    async def now(self) -> Event:
        """Ask for the health of this moment."""
        health: Event = (await admin(self.observer, "health", timeout_s=10))["data"]
        return health

    async def logged(self, text: str, timeout_s: float = 10.0) -> None:
        """Wait until the log holds `text`."""
        await self.server.until(lambda _: text in self.log, timeout_s)

    async def speaking(self, request_id: str) -> None:
        """Wait for the first chunk of an answer."""
        await self.observer.wait(lambda one: one.field("type") == "chunk" and one.field("request_id") == request_id, 10)

    def ends(self, request_id: str) -> list[Message]:
        """Return the terminal events of a request as they came."""
        return [
            one
            for one in self.observer.messages
            if one.field("request_id") == request_id and one.field("type") in TERMINAL
        ]

    # ----------------------------------------------------------------------------------------------------- invariants

    async def check(self) -> None:
        """Assert I1 to I8; ends the daemon, which must go in good order."""
        for request_id in self.asked:
            await self.observer.terminal(request_id, 20)
        process = self.process
        assert process.running, self.log[-3000:]
        assert process.peak_rss_mb() < RSS_MB
        assert not self.watched or self.lag_s() < LAG_S + process.starved_s()
        before = len(self.observer.messages) if self.reachable else 0
        assert not self.reachable or (await self.now())["status"] in {"ok", "degraded"}
        started = time.monotonic()
        assert await process.stop() == 0, self.log[-3000:]
        assert time.monotonic() - started < 10
        self.check_secrets()
        if not self.reachable:
            return
        await self.health(lambda now: now == {"status": "offline"}, start=before)
        self.check_ends()
        self.check_rooms()
        if process.settings["mqtt_port"] == self.broker.port:
            asked = {key: room for key, room in self.asked.items() if room not in self.crowded}
            client_id, rooms = str(process.settings["mqtt_client_id"]), list(asked.values())
            judged = check_acknowledgements(self.broker.output, client_id, self.base, asked)
            assert judged or all(rooms.count(room) > 1 for room in rooms), "the log shows no acknowledgement"

    def lag_s(self) -> float:
        """Return how late the daemon's loop was at worst since it was ready, by its pings of the watchdog."""
        pings = [when for when, text in self.process.notifications if text == "WATCHDOG=1"]
        assert pings, "the watchdog was never pinged"
        times = [*pings, time.monotonic()]
        return max(later - sooner for sooner, later in itertools.pairwise(times)) - WATCHDOG_S / 4

    def check_ends(self) -> None:
        """I1: each request has an end, and never two different ones; nothing that is new comes after it."""
        for request_id in self.asked:
            ends = {one.payload for one in self.ends(request_id)}
            assert len(ends) == 1, (request_id, ends)

    def check_rooms(self) -> None:
        """I8: events go to the room that asked, and no prompt holds words of two rooms."""
        for message in self.observer.messages:
            room = self.asked.get(str(message.field("request_id")))
            if room is not None and message.field("type") and not message.topic.endswith("/in"):
                assert message.field("conversation_id") == room
                assert message.topic == self.observer.out(room) or message.properties.get("CorrelationData"), message
        for record in self.server.questions:
            rooms = set(_ROOM.findall(json.dumps(record.body, ensure_ascii=False)))
            assert len(rooms) <= 1, rooms

    def check_secrets(self) -> None:
        """I7: no secret anywhere, and nothing in the log of what people say."""
        assert SAID not in self.log
        for secret in (PASSWORD, API_KEY):
            assert secret not in self.log
            for message in self._observer.messages if self._observer else ():
                assert secret.encode() not in message.payload, message


def check_acknowledgements(log: str, client_id: str, base: str, asked: dict[str, str]) -> set[str]:
    """I2, by the broker's log: an input is acknowledged after its answer, and the broker has all of that by then.

    Judged for the rooms that asked once, where the last event is the terminal one; returns those that it has judged.
    """
    single = {room for room in asked.values() if list(asked.values()).count(room) == 1}
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    done: set[str] = set()
    acked: dict[str, int] = defaultdict(int)
    for found in _LOG_LINE.finditer(log):
        if found["client"] != client_id:
            continue
        topic, way, kind = found["topic"] or "", found["way"], found["kind"]
        room = topic.removeprefix(f"{base}/").rpartition("/")[0]
        if way == "Sending" and kind == "PUBLISH" and topic.endswith("/in") and found["qos"] == "1":
            inputs[found["sent"]] = room
        elif way == "Received" and kind == "PUBLISH" and topic.endswith("/out") and found["qos"] == "1":
            outputs[found["sent"]] = room
            assert room not in done or room not in single, f"{room}: an event after the acknowledgement"
        elif way == "Sending" and kind == "PUBACK":
            acked[outputs.pop(found["acked"], "")] += 1
        elif way == "Received" and kind == "PUBACK" and (room := inputs.pop(found["mid"], "")) in single:
            assert acked[room], f"{room}: acknowledged without an answer"
            assert room not in outputs.values(), f"{room}: acknowledged before the answer was with the broker"
            done.add(room)
    return done
