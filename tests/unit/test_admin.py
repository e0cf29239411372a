"""Admin requests (contract section 5)."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from piagent_daemon.admin import AdminDesk
from piagent_daemon.agents import Agent
from piagent_daemon.contract import AdminResponse, AgentInfo
from piagent_daemon.defaults import Chooser
from piagent_daemon.errors import ProviderUnavailable
from piagent_daemon.health import Tally
from piagent_daemon.reporting import Reporting
from piagent_daemon.scheduler import Scheduler
from piagent_daemon.settings import Settings
from piagent_daemon.stores.memory import MemoryStore
from piagent_daemon.turn import Assistant, Config
from piagent_daemon.warmup import Warmup
from piagent_daemon.window import Ledger
from tests.fakes.doubles import FakeClock, RecordingChannel, ScriptedProvider, incoming


class World:
    def __init__(self) -> None:
        clock = FakeClock()
        settings = Settings(mqtt_username="me", mqtt_password="hidden")
        config = Config(settings, {"general": Agent(name="general", system="Be brief.")})
        self.provider = ScriptedProvider()
        self.store = MemoryStore(settings, clock)
        assistant = Assistant(config, self.provider, self.store, Ledger(), clock)
        self.scheduler = Scheduler(assistant, config, self.store, Tally(clock), clock)
        self.chooser = Chooser(config, self.store)
        warmup = Warmup(self.provider, config, lambda: True)
        self.desk = AdminDesk(config, self.scheduler, self.store, self.provider, chooser=self.chooser, warmup=warmup)
        agents = [AgentInfo(name="general", description="", provider="scripted", model="m")]
        self.desk.reporting = cast(
            "Reporting",
            SimpleNamespace(
                info=lambda: SimpleNamespace(agents=agents), health=lambda: SimpleNamespace(model_dump=lambda: {"a": 1})
            ),
        )

    async def ask(self, method: str, payload: Any = b"") -> Any:
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        responses = [response async for response in self.desk.handle(method, raw)]
        assert [response.status for response in responses[:-1]] == ["progress"] * (len(responses) - 1)
        assert isinstance(responses[-1], AdminResponse)
        return json.loads(responses[-1].encode())

    async def talk(self, conversation: str = "kitchen") -> None:
        channel = RecordingChannel()
        await self.scheduler.submit(incoming("hi", conversation=conversation), channel)
        await channel.terminal()


@pytest.fixture
async def world() -> World:
    return World()


async def test_a_transaction_comes_back(world: World) -> None:
    assert await world.ask("agents/list", {"transaction": [1]}) == {
        "status": "ok",
        "data": {"agents": [{"name": "general", "description": "", "provider": "scripted", "model": "m"}]},
        "transaction": [1],
    }


async def test_memory_is_listed_shown_and_cleared(world: World) -> None:
    await world.talk()
    await world.talk("hall")
    rows = (await world.ask("conversations/list"))["data"]["conversations"]
    assert {row["conversation_id"]: row["turns"] for row in rows} == {"kitchen": 2, "hall": 2}
    shown = (await world.ask("memory/get", {"conversation_id": "kitchen"}))["data"]
    assert [(turn["role"], turn["content"]) for turn in shown["turns"]] == [
        ("user", "hi"),
        ("assistant", "You said: hi"),
    ]
    assert shown["dropped_turns"] == 0
    assert (await world.ask("memory/clear", {"conversation_id": "kitchen"}))["data"] == {"cleared": 1}
    assert (await world.ask("memory/clear"))["data"] == {"cleared": 1}
    assert (await world.ask("conversations/list"))["data"] == {"conversations": []}


async def test_models_are_listed(world: World) -> None:
    assert (await world.ask("models/list"))["data"]["models"][0]["name"] == "scripted:1b"


async def test_a_model_is_dropped_and_loaded_anew(world: World) -> None:
    assert (await world.ask("models/reload"))["data"] == {"model": "qwen2.5:3b-instruct"}
    assert (await world.ask("models/reload", {"model": "small"}))["data"] == {"model": "small"}
    assert world.provider.unloaded == ["qwen2.5:3b-instruct", "small"]
    assert [request.model for request in world.provider.primed] == ["qwen2.5:3b-instruct", "small"]
    assert {request.messages[0].content for request in world.provider.primed} == {"Be brief."}


async def test_defaults_are_set_and_told(world: World) -> None:
    plain = {"agent": "general", "model": "qwen2.5:3b-instruct", "temperature": 0.7}
    assert (await world.ask("defaults/set"))["data"] == plain
    assert (await world.ask("defaults/set", {"model": "small", "temperature": 1}))["data"] == plain | {
        "model": "small",
        "temperature": 1.0,
    }
    assert (await world.ask("defaults/set", {"model": None, "temperature": None}))["data"] == plain
    await world.ask("defaults/set", {"model": "small"})
    await world.talk()
    assert world.provider.asked[-1].model == "small"


async def test_health_is_given(world: World) -> None:
    assert (await world.ask("health"))["data"] == {"a": 1}


async def test_the_configuration_is_given_without_secrets(world: World) -> None:
    data = (await world.ask("config/get"))["data"]
    assert data["mqtt_username"] == "me"
    assert "hidden" not in json.dumps(data)


async def test_cancel_finds_its_request(world: World) -> None:
    answer = await world.ask("cancel", {"id": "nobody"})
    assert (answer["status"], answer["error"]["code"]) == ("error", "invalid_request")


@pytest.mark.parametrize(
    ("method", "payload", "says"),
    [
        ("lights/on", b"", 'no method "lights/on"'),
        ("memory/get", b"{}", "conversation_id"),
        ("memory/get", b'{"conversation_id": 5}', "conversation_id"),
        ("defaults/set", b'{"temperature": 6}', "temperature"),
        ("defaults/set", b'{"temperature": "hot"}', "temperature"),
        ("defaults/set", b'{"model": "two words"}', "model"),
        ("defaults/set", b'{"modle": "small"}', "modle"),
        ("health", b'{"extra": 1}', "extra"),
        ("health", b"{nonsense", "not valid JSON"),
        ("health", b"[1]", "not a JSON object"),
        ("health", b"\xff", "not valid JSON"),
    ],
)
async def test_what_cannot_be_understood_is_an_error(world: World, method: str, payload: bytes, says: str) -> None:
    answer = await world.ask(method, payload)
    assert (answer["status"], answer["error"]["code"]) == ("error", "invalid_request")
    assert says in answer["error"]["message"]


async def test_a_failure_of_the_model_server_is_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> Any:
        raise ProviderUnavailable("The model server is away.")

    monkeypatch.setattr(world.provider, "models", fail)
    answer = await world.ask("models/list", {"transaction": 7})
    assert answer == {
        "status": "error",
        "error": {"code": "provider_unavailable", "message": "The model server is away."},
        "transaction": 7,
    }


async def test_a_defect_is_an_internal_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.provider, "models", lambda: 1 / 0)
    assert (await world.ask("models/list"))["error"]["code"] == "internal"
