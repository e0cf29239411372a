"""`provider/health` and `diagnose`: what is wrong, and what to do about it."""

from typing import Any

import pytest

from piagent_daemon.errors import ProviderUnavailable
from piagent_daemon.values import ProviderState
from tests.fakes.desk import Shop, World
from tests.fakes.doubles import ScriptedProvider

GENERAL = "qwen2.5:3b-instruct"


async def checks(world: World, **params: Any) -> tuple[bool, dict[str, tuple[str, str]]]:
    """Diagnose; return the verdict, and state and remedy of each check."""
    data = await world.ok("diagnose", params)
    assert all(row.keys() == {"check", "state", "detail", "remedy"} for row in data["checks"])
    return data["ok"], {row["check"]: (row["state"], row["remedy"]) for row in data["checks"]}


async def test_all_is_well() -> None:
    world = World(Shop(GENERAL))
    well, found = await checks(world)
    assert well
    assert found.keys() == {"clock", "prompts", "context", "memory", "protocol", "daemon", "server scripted", "model"}
    assert not world.provider.asked
    well, found = await checks(world, ask=True)
    assert (well, found["answer"][0]) == (True, "ok")
    assert world.provider.asked[0].options == {"temperature": 0.0, "num_predict": 8}
    assert world.store.count() == 0


async def test_the_list_of_models_is_for_those_that_somebody_names() -> None:
    world = World(Shop(GENERAL), models_allowed=("big:7b",))
    well, found = await checks(world, ask=True)
    assert (well, found["answer"]) == (True, ("ok", ""))
    assert [request.model for request in world.provider.asked] == [GENERAL]


async def test_what_is_wrong_is_said_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(Shop(), ctx_tokens=256, max_tokens=128)
    world.clock.wall = world.clock.wall.replace(year=1970)
    monkeypatch.setattr(type(world.store), "problem", "the disk is full", raising=False)
    await world.watch.look()
    well, found = await checks(world, ask=True)
    assert not well
    bad = {name: state for name, (state, remedy) in found.items() if state != "ok" and remedy}
    assert bad == {"clock": "fail", "context": "warn", "memory": "fail", "daemon": "fail", "model": "fail"}
    assert "answer" not in found
    assert found["model"][1] == "there is no qwen2.5:3b-instruct."


async def test_a_server_that_is_away_and_one_that_does_not_answer() -> None:
    world = World(ScriptedProvider(lambda _: [ProviderUnavailable("gone")]), max_retries=0)
    _, found = await checks(world, ask=True)
    assert found["answer"][0] == "fail"
    world.provider.state = ProviderState(reachable=False, error="no route")
    _, found = await checks(world, ask=True)
    assert found["server scripted"][0] == "fail"
    assert "model" not in found


async def test_the_health_of_the_model_server_is_looked_at_now() -> None:
    world = World(Shop(GENERAL))
    data = await world.ok("provider/health")
    assert (data["name"], data["reachable"], data["reason"], data["error"]) == ("scripted", True, None, None)
    assert data["look_s"] >= 0
    assert [row["name"] for row in data["providers"]] == ["scripted"]
    world.provider.state = ProviderState(reachable=False, error="no route")
    data = await world.ok("provider/health")
    assert (data["reachable"], data["reason"], data["error"]) == (False, "provider_unavailable", "no route")
