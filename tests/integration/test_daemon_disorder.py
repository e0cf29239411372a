"""Everything at once, in any order: requests, cancels, copies, failures, kills, restarts of both sides."""

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BrokerFactory, DaemonFactory
from tests.fakes.answers import Event, check_answer
from tests.fakes.broker import Mosquitto
from tests.fakes.daemon import DaemonProcess
from tests.fakes.observer import TERMINAL, Observer
from tests.fakes.ollama import FakeOllama

STEPS = 110
ROOMS = 4
WORDS = [f" word{number}" for number in range(80)]
OPS = {
    "ask": 60,
    "mode": 12,
    "copy": 8,
    "cancel": 8,
    "cancel_one": 6,
    "reset": 3,
    "kill": 2,
    "stop": 2,
    "reload": 1,
    "broker": 1,
}


class Disorder:
    """One run; what it does depends on `seed` alone."""

    def __init__(
        self, observer: Observer, broker: Mosquitto, server: FakeOllama, process: DaemonProcess, seed: int
    ) -> None:
        self.asked: dict[str, tuple[str, Event]] = {}
        self._observer = observer
        self._broker = broker
        self._server = server
        self._process = process
        self._draw = random.Random(seed)  # noqa: S311  the same disorder in every run

    async def run(self) -> None:
        for _ in range(STEPS):
            (op,) = self._draw.choices(list(OPS), list(OPS.values()))
            await getattr(self, f"_do_{op}")(f"room{self._draw.randrange(ROOMS)}")

    async def settle(self) -> None:
        """Cancel what hangs until every request at QoS 1 has its end."""
        if not self._process.running:
            self._process.start()
        await self._process.ready()
        self._server.forget()
        for name in self.asked:
            while not self.ends(name):
                for room in range(ROOMS):
                    await self._publish(f"room{room}/cancel", qos=0)
                await self._publish("sync/in", {"message": "Done?"})  # its events let this loop go on
                seen = len(self._observer.messages)
                await self._observer.wait(lambda one: one.field("type") in TERMINAL, 20, start=seen)

    def ends(self, name: str) -> list[bytes]:
        return [
            one.payload
            for one in self._observer.messages
            if one.field("request_id") == name and one.field("type") in TERMINAL
        ]

    async def _publish(self, topic: str, payload: Any = None, qos: int = 1, *, wait: bool = True) -> None:
        await self._observer.publish(f"{self._observer.base}/{topic}", payload, qos, wait=wait)

    async def _do_ask(self, room: str) -> None:
        name, qos = f"r{len(self.asked)}", self._draw.choice((1, 1, 1, 0))
        body: Event = {"message": f"Question {name}", "id": name}
        if self._draw.random() < 0.15:
            body["interrupt"] = True
        if self._draw.random() < 0.1:
            body["expires_s"] = 0.05
        if qos:  # what comes at QoS 0 may be lost with the process
            self.asked[name] = (room, body)
        else:
            body["id"] = f"loose {self._draw.random()}"
        await self._publish(f"{room}/in", body, qos, wait=self._draw.random() < 0.5)

    async def _do_mode(self, _: str) -> None:
        mode = self._draw.choice(("rst", "hang", "503", "eof", "nodone", "err", "ok", "ok", "ok"))
        pace = self._draw.choice((0, 100, 400))
        self._server.next(mode, tokens=WORDS[: self._draw.randint(1, 80)], tokens_per_s=pace)

    async def _do_copy(self, _: str) -> None:
        if self.asked:
            room, body = self._draw.choice(list(self.asked.values()))
            await self._publish(f"{room}/in", body, wait=False)

    async def _do_cancel(self, room: str) -> None:
        await self._publish(f"{room}/cancel", qos=0)

    async def _do_cancel_one(self, room: str) -> None:
        await self._publish(f"{room}/cancel", {"id": f"r{self._draw.randint(0, len(self.asked))}"}, 0)

    async def _do_reset(self, room: str) -> None:
        await self._publish(f"{room}/reset")

    async def _do_kill(self, _: str) -> None:
        await self._process.restart(kill=True)

    async def _do_stop(self, _: str) -> None:
        await self._process.stop()
        self._process.start()

    async def _do_reload(self, _: str) -> None:
        await self._process.ready()
        self._process.hup()

    async def _do_broker(self, _: str) -> None:
        self._broker.restart()


@pytest.mark.parametrize("seed", [5])
async def test_every_request_has_one_end_whatever_happens(
    daemon: DaemonFactory, new_broker: BrokerFactory, base_topic: str, tmp_path: Path, seed: int
) -> None:
    broker = new_broker()
    async with FakeOllama(parallel=4) as server, Observer(broker.port, base=base_topic) as observer:
        await observer.subscribe(f"{base_topic}/+/out", no_local=True)
        process = await daemon(
            ollama_host=server.url,
            mqtt_port=broker.port,
            memory_url=f"sqlite://{tmp_path}/memory.db",
            max_concurrent=2,
            max_waiting=8,
            shutdown_grace_s=0.2,
            chunk_interval_ms=10,
            max_retries=1,
            backoff_factor_s=0.05,
        )
        disorder = Disorder(observer, broker, server, process, seed)
        await disorder.run()
        await disorder.settle()
        told: dict[str, list[Event]] = defaultdict(list)
        for one in observer.messages:
            if one.field("request_id"):
                told[one.json["request_id"]].append(one.json)
        for name in disorder.asked:
            assert len(set(disorder.ends(name))) == 1, name
            end = next(event for event in told[name] if event["type"] in TERMINAL)
            last = {event["seq"]: event for event in told[name] if event["attempt"] == end["attempt"]}
            assert max(last) == end["seq"]
            if len(last) == end["seq"] + 1:  # no chunk was lost while there was no broker
                check_answer([last[number] for number in sorted(last)], attempt=end["attempt"])
        assert "Traceback" not in process.output
