"""The admin desk with the whole engine behind it, for tests without sockets."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from piagent_daemon.admin import AdminDesk, Parts
from piagent_daemon.agents import Agent
from piagent_daemon.catalogue import Catalogue
from piagent_daemon.contract import AdminResponse
from piagent_daemon.defaults import Chooser
from piagent_daemon.errors import ModelNotFound
from piagent_daemon.health import Reporter, Tally
from piagent_daemon.reporting import Reporting
from piagent_daemon.scheduler import Scheduler
from piagent_daemon.settings import Settings
from piagent_daemon.stores.memory import MemoryStore
from piagent_daemon.systemd import Notifier
from piagent_daemon.turn import Assistant, Config
from piagent_daemon.values import Delivery, DoorState, ModelInfo, ProviderState, PullProgress
from piagent_daemon.warmup import Warmup
from piagent_daemon.watch import ProviderWatch
from piagent_daemon.window import Ledger
from tests.fakes.doubles import FakeClock, RecordingChannel, ScriptedProvider, incoming, ladder_of

Pulled = PullProgress | BaseException | asyncio.Event


def layer(completed: int, total: int = 100) -> PullProgress:
    """Return a step in the download of a model's only layer."""
    return PullProgress("pulling 0123456789ab", "sha256:0123456789ab", completed=completed, total=total)


class Shop(ScriptedProvider):
    """A model server whose models come and go. A download plays the next of `pulls`, then the model is there."""

    def __init__(self, *names: str, name: str = "scripted") -> None:
        super().__init__(name=name)
        self.shelf = {name: frozenset({"completion"}) for name in names}
        self.pulls: list[Iterable[Pulled]] = []
        self.pulled: list[str] = []
        self.listed = 0
        self.embeddings: Callable[[Sequence[str]], Any] = lambda texts: [[float(len(text))] for text in texts]

    async def models(self) -> list[ModelInfo]:
        self.listed += 1
        return [ModelInfo(name, 7, "1B", "Q4_0") for name in self.shelf]

    async def capabilities(self, model: str) -> frozenset[str]:
        if model not in self.shelf:
            raise ModelNotFound(f"there is no {model}")
        return self.shelf[model]

    async def probe(self, model: str) -> ProviderState:
        if not self.state.reachable:
            return self.state
        found = model in self.shelf
        return ProviderState(True, found, found, None if found else f"there is no {model}")

    async def embed(self, inputs: Sequence[str], model: str) -> list[list[float]]:  # noqa: ARG002
        made: Any = self.embeddings(inputs)
        return await made if asyncio.iscoroutine(made) else made  # type: ignore[no-any-return]

    async def pull(self, model: str) -> AsyncGenerator[PullProgress, None]:
        self.pulled.append(model)
        for step in self.pulls.pop(0) if self.pulls else [layer(100)]:
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, BaseException):
                raise step
            else:
                yield step
        self.shelf.setdefault(model, frozenset({"completion"}))

    async def delete(self, model: str) -> None:
        if self.shelf.pop(model, None) is None:
            raise ModelNotFound(f"there is no {model}")


class Herald:
    """A front door that only remembers what was announced (`ports.Herald`)."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] | None = None
        self.state = DoorState(connected=True, protocol="5")
        self.alive = True
        self.announced: dict[str, bytes] = {}

    def announce(self, topic: str, payload: Callable[[], bytes]) -> None:
        self.announced[topic] = payload()

    def listen(self, topic: str, heard: Callable[[bytes], None]) -> None:
        """Nobody else speaks here."""

    async def start(self) -> None:
        """Always open."""

    async def ready(self) -> None:
        """Always open."""

    async def stop_intake(self) -> None:
        """Nothing comes in."""

    async def stop(self, deadline_s: float) -> None:
        """Always open."""


class World:
    """An engine around one provider, or a ladder of several, and its desk."""

    def __init__(self, provider: ScriptedProvider | None = None, *more: ScriptedProvider, **chosen: Any) -> None:
        self.clock = FakeClock()
        settings = Settings(**chosen)
        self.config = Config(settings, {name: Agent(name=name, system="Be brief.") for name in ("general", "voice")})
        self.provider = provider or ScriptedProvider()
        self.store = MemoryStore(settings, self.clock)
        self.ladder = ladder_of(self.provider, *more, settings=self.config, clock=self.clock)
        assistant = Assistant(self.config, self.ladder, self.store, Ledger(), self.clock)
        tally = Tally(self.clock)
        self.scheduler = Scheduler(assistant, self.config, self.store, tally, self.clock)
        self.watch = ProviderWatch(self.ladder, self.config)
        self.herald = Herald()
        self.reporting = Reporting(
            config=self.config,
            herald=self.herald,
            doors=[self.herald],
            scheduler=self.scheduler,
            watch=self.watch,
            reporter=Reporter(tally, self.store, self.clock),
            tally=tally,
            notifier=Notifier(),
        )
        self.catalogue = Catalogue(self.ladder, self.config)
        self.catalogue.on_change = self.reporting.introduce
        self.watch.on_look = self.catalogue.looked
        self.desk = AdminDesk()
        self.desk.parts = Parts(
            config=self.config,
            scheduler=self.scheduler,
            store=self.store,
            ladder=self.ladder,
            clock=self.clock,
            chooser=Chooser(self.config, self.store),
            warmup=Warmup(self.ladder, self.config, self.scheduler.idle),
            watch=self.watch,
            catalogue=self.catalogue,
            reporting=self.reporting,
        )

    async def responses(self, method: str, payload: Any = b"", delivery: Delivery | None = None) -> list[AdminResponse]:
        """Ask, and return all responses; the last one alone is no progress."""
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        async with asyncio.timeout(5), aclosing(self.desk.handle(method, raw, delivery)) as responses:
            found = [response async for response in responses]
        assert [response.status == "progress" for response in found] == [True] * (len(found) - 1) + [False]
        return found

    async def ask(self, method: str, payload: Any = b"") -> Any:
        """Ask, and return the last response as JSON."""
        return json.loads((await self.responses(method, payload))[-1].encode())

    async def ok(self, method: str, payload: Any = b"") -> Any:
        """Return the data of a request that must succeed."""
        answer = await self.ask(method, payload)
        assert answer["status"] == "ok", answer
        return answer["data"]

    async def error(self, method: str, payload: Any = b"") -> tuple[str, str]:
        """Return code and message of a request that must fail."""
        answer = await self.ask(method, payload)
        assert answer["status"] == "error", answer
        assert answer["error"].keys() == {"code", "message"}
        return answer["error"]["code"], answer["error"]["message"]

    async def talk(self, conversation: str = "kitchen") -> None:
        """Have one answer in a conversation."""
        channel = RecordingChannel()
        await self.scheduler.submit(incoming("hi", conversation=conversation), channel)
        await channel.terminal()

    async def until(self, condition: Callable[[], Any]) -> None:
        """Let the engine work until `condition()` holds."""
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - the engine tells nobody of each step
                await asyncio.sleep(0)
