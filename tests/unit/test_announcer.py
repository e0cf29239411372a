"""When Home Assistant is told about the daemon."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from piagent_daemon import announcer as announcer_module
from piagent_daemon import discovery
from piagent_daemon.agents import Agent
from piagent_daemon.announcer import Announcer, names_of, short_delay
from piagent_daemon.errors import ProviderUnavailable
from piagent_daemon.ports import Herald
from piagent_daemon.reporting import describe
from piagent_daemon.settings import Settings
from piagent_daemon.turn import Config
from piagent_daemon.values import DoorState, ModelInfo
from tests.fakes.doubles import ScriptedProvider
from tests.fakes.home_assistant import check_message

TOPIC = "homeassistant/device/piagent/config"


class FakeHerald:
    """Keeps what is announced; `ears` are the topics that are listened to."""

    def __init__(self) -> None:
        self.state = DoorState(connected=True)
        self.said: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.ears: dict[str, Callable[[bytes], None]] = {}

    def announce(self, topic: str, payload: Callable[[], bytes]) -> None:
        self.said.put_nowait((topic, payload()))

    def listen(self, topic: str, heard: Callable[[bytes], None]) -> None:
        self.ears[topic] = heard


class Stage:
    """A running announcer and what it said."""

    def __init__(self, **settings: Any) -> None:
        self.config = Config(Settings(**settings), {"general": Agent(name="general", system="Be brief.")})
        self.herald, self.provider = FakeHerald(), ScriptedProvider()
        self.delays = 0
        self.announcer = Announcer(
            self.config, cast("Herald", self.herald), self.provider, lambda: describe(self.config), self._delay
        )
        self.task = asyncio.create_task(self.announcer.run(), name="announcer")

    def _delay(self) -> float:
        self.delays += 1
        return 0.0

    def status(self, payload: bytes) -> None:
        self.herald.ears["homeassistant/status"](payload)

    async def said(self) -> tuple[str, bytes]:
        return await asyncio.wait_for(self.herald.said.get(), 5)

    async def silent(self) -> None:
        """Return when it had every chance to say something, and did not."""
        for _ in range(20):
            await asyncio.sleep(0)
        assert self.herald.said.empty()

    async def parts(self) -> dict[str, Any]:
        topic, payload = await self.said()
        assert topic == TOPIC
        parts: dict[str, Any] = check_message(topic, payload)["cmps"]
        return parts


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    made = Stage()
    yield made
    made.task.cancel()
    await asyncio.wait([made.task])


async def test_it_speaks_once_connected_and_only_of_news(stage: Stage) -> None:
    stage.herald.state = DoorState(connected=False)
    stage.announcer.changed()
    await stage.silent()
    stage.herald.state = DoorState(connected=True)
    stage.announcer.changed()
    assert (await stage.parts())["model"]["options"] == ["qwen2.5:3b-instruct", "scripted:1b"]
    stage.announcer.changed()
    await stage.silent()
    assert stage.delays == 0


async def test_it_repeats_itself_after_a_short_delay_when_home_assistant_starts(stage: Stage) -> None:
    stage.announcer.changed()
    first = await stage.said()
    stage.status(b"offline")
    await stage.silent()
    stage.status(b"online")
    assert await stage.said() == first
    assert stage.delays == 1
    assert all(0 < short_delay() < 5 for _ in range(100))


async def test_new_agents_and_models_are_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.announcer.changed()
    await stage.parts()
    stage.config.agents = {**stage.config.agents, "cook": Agent(name="cook", system="Cook.", model="chef")}
    stage.announcer.changed()
    parts = await stage.parts()
    assert parts["agent"]["options"] == ["general", "cook"]
    assert "chef" in parts["model"]["options"]

    async def fail() -> list[ModelInfo]:
        raise ProviderUnavailable("The model server is away.")

    monkeypatch.setattr(stage.provider, "models", fail)
    stage.announcer.changed()
    await stage.silent()  # what it knew stands


async def test_a_model_server_that_hangs_holds_nothing_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang() -> list[ModelInfo]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(stage.provider, "models", hang)
    monkeypatch.setattr(announcer_module, "PATIENCE_S", 0.01)
    stage.announcer.changed()
    assert (await stage.parts())["model"]["options"] == ["qwen2.5:3b-instruct"]


async def test_switched_off_it_takes_everything_back(stage: Stage) -> None:
    stage.announcer.changed()
    await stage.parts()
    stage.config.settings = Settings(ha_discovery=False)
    stage.announcer.changed()
    assert await stage.said() == (TOPIC, b"")
    stage.status(b"online")
    await stage.silent()
    stage.config.settings = Settings()
    stage.announcer.changed()
    assert await stage.parts()


async def test_the_prefix_is_a_setting() -> None:
    made = Stage(ha_discovery_prefix="ha", mqtt_base_topic="home/piagent")
    made.herald.ears["ha/status"](b"online")
    topic, payload = await made.said()
    assert topic == discovery.topic(made.config.settings)
    assert topic.startswith("ha/device/home_piagent_")
    assert json.loads(payload)["dev"]["name"] == "piagent home/piagent"
    made.task.cancel()
    await asyncio.wait([made.task])


def test_models_that_cannot_talk_are_no_choice() -> None:
    found = [ModelInfo("a"), ModelInfo("b", capabilities=("embedding",)), ModelInfo("c", capabilities=("completion",))]
    assert names_of(found) == ["a", "c"]
