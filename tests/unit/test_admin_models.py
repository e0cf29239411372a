"""`models/…`, the list of models in `piagent/info`, and a model that is missing at start."""

import asyncio
import json
import logging
from contextlib import aclosing
from typing import Any

import pytest

from piagent_daemon.agents import Agent
from piagent_daemon.errors import ProviderError, ProviderUnavailable
from piagent_daemon.values import ProviderState
from tests.fakes.desk import Shop, World, layer
from tests.fakes.doubles import ScriptedProvider

GENERAL = "qwen2.5:3b-instruct"


@pytest.fixture
async def world() -> World:
    return World(Shop(GENERAL), models_admin=True, backoff_factor_s=0.001)


def shop(world: World) -> Shop:
    assert isinstance(world.provider, Shop)
    return world.provider


def offered(world: World) -> list[str]:
    """The models in the retained info."""
    models: list[str] = json.loads(world.herald.announced["piagent/info"])["models"]
    return models


async def test_models_are_listed_and_shown(world: World) -> None:
    shop(world).shelf["eye:latest"] = frozenset({"vision", "completion"})
    row = {"provider": "scripted", "size": 7, "parameters": "1B", "quantization": "Q4_0"}
    rows = (await world.ok("models/list"))["models"]
    assert rows == [{"name": GENERAL, **row}, {"name": "eye:latest", **row}]
    shop(world).shelf["eye"] = shop(world).shelf["eye:latest"]
    assert await world.ok("models/show", {"model": "eye"}) == {
        "name": "eye:latest",
        **row,
        "capabilities": ["completion", "vision"],
        "loaded": True,
    }
    assert await world.error("models/show", {"model": "nope"}) == ("model_not_found", "there is no nope")


async def test_a_pull_tells_how_far_it_is_and_the_model_is_offered(world: World) -> None:
    shop(world).pulls = [[layer(0), layer(100)]]
    progress, last = await world.responses("models/pull", {"model": "new:1b", "transaction": "t-1"})
    assert progress.data["id"] == "t-1"
    assert progress.data.keys() == {"id", "model", "status", "digest", "completed", "total"}
    assert progress.transaction == "t-1"
    assert (last.data, last.transaction) == ({"id": "t-1", "model": "new:1b"}, "t-1")
    assert "new:1b" in offered(world)


async def test_progress_is_told_at_a_calm_pace(world: World) -> None:
    shop(world).pulls = [[layer(done) for done in range(1000)]]
    assert len(await world.responses("models/pull", {"model": "new"})) <= 3


async def test_one_at_a_time(world: World) -> None:
    gate = asyncio.Event()
    shop(world).pulls = [[layer(1), gate]]
    first = asyncio.create_task(world.ok("models/pull", {"model": "first"}))
    await world.until(lambda: shop(world).pulled)
    code, message = await world.error("models/pull", {"model": "second"})
    assert (code, '"first"' in message) == ("busy", True)
    gate.set()
    await first
    await world.ok("models/pull", {"model": "second"})


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"transaction": "t-1"}, "t-1"),
        ({"transaction": 17}, "17"),
        ({"transaction": {"a": 1}}, "first"),
        ({"id": "mine", "transaction": "t-1"}, "mine"),
        ({}, "first"),
    ],
)
async def test_a_pull_is_cancelled_by_id_transaction_or_model(world: World, params: dict[str, Any], name: str) -> None:
    shop(world).pulls = [[layer(40), asyncio.Event()]]
    pull = asyncio.create_task(world.error("models/pull", {"model": "first", **params}))
    await world.until(lambda: shop(world).pulled)
    assert (await world.error("cancel", {"id": "other"}))[0] == "invalid_request"
    assert await world.ok("cancel", {"id": name}) == {"id": name}
    code, message = await pull
    assert (code, '"first"' in message) == ("cancelled", True)
    assert (await world.error("cancel", {"id": name}))[0] == "invalid_request"
    assert "first" not in shop(world).shelf
    await world.ok("models/pull", {"model": "first"})
    assert shop(world).pulled == ["first", "first"]


async def test_leaving_stops_the_download(world: World) -> None:
    shop(world).pulls = [[layer(40), asyncio.Event()]]
    async with aclosing(world.desk.handle("models/pull", b'{"model": "first"}')) as responses:
        assert (await anext(responses)).status == "progress"
    assert (await world.error("cancel", {"id": "first"}))[0] == "invalid_request"


async def test_a_download_that_breaks_off_is_taken_up_again(world: World) -> None:
    broken = ProviderUnavailable("the connection broke")
    shop(world).pulls = [[layer(done), broken] for done in range(10)]
    await world.ok("models/pull", {"model": "new"})
    assert len(shop(world).pulled) == 11
    shop(world).pulls = [[layer(7), broken] for _ in range(10)]
    assert await world.error("models/pull", {"model": "stuck"}) == ("provider_unavailable", "the connection broke")
    assert shop(world).pulled.count("stuck") == 1 + world.config.settings.max_retries
    shop(world).pulls = [[ProviderError("no space left on device")]]
    assert (await world.error("models/pull", {"model": "large"}))[0] == "provider_error"
    assert shop(world).pulled.count("large") == 1


async def test_a_model_is_removed_and_no_longer_offered(world: World) -> None:
    shop(world).shelf["old"] = frozenset()
    await world.ok("models/list")
    assert "old" in offered(world)
    assert await world.ok("models/delete", {"model": "old"}) == {"model": "old"}
    assert "old" not in offered(world)
    assert await world.error("models/delete", {"model": "old"}) == (
        "model_not_found",
        'There is no model "old" to remove; models/list names what is there.',
    )


async def test_a_model_is_dropped_and_loaded_anew(world: World) -> None:
    assert await world.ok("models/reload") == {"model": GENERAL}
    assert await world.ok("models/reload", {"model": "small"}) == {"model": "small"}
    assert world.provider.unloaded == [GENERAL, "small"]
    assert {request.model for request in world.provider.primed} == {GENERAL, "small"}
    assert {request.messages[0].content for request in world.provider.primed} == {"Be brief."}


@pytest.mark.parametrize("method", ["models/pull", "models/delete"])
async def test_changing_the_server_must_be_allowed(method: str) -> None:
    world = World(Shop(GENERAL))
    code, message = await world.error(method, {"model": GENERAL})
    assert (code, "MODELS_ADMIN" in message) == ("invalid_request", True)
    assert not shop(world).pulled
    assert GENERAL in shop(world).shelf


@pytest.mark.parametrize(
    ("method", "params", "says"),
    [
        ("models/pull", {}, 'required parameter "model" is missing'),
        ("models/delete", {}, 'required parameter "model" is missing'),
        ("models/show", {"model": "two words"}, "model"),
        ("models/pull", {"model": "x" * 257}, "model"),
        ("models/pull", {"model": "m", "insecure": True}, 'no parameter "insecure"'),
    ],
)
async def test_parameters_are_judged(world: World, method: str, params: dict[str, Any], says: str) -> None:
    code, message = await world.error(method, params)
    assert code == "invalid_request"
    assert says in message


# ------------------------------------------------------------------------------------------------ several providers


def owners(answer: Any) -> list[tuple[str, str]]:
    return [(row["provider"], row["name"]) for row in answer["models"]]


async def test_the_models_of_all_providers_are_listed_or_those_of_one() -> None:
    desk = Shop("big:70b", name="desk")
    world = World(Shop(GENERAL), desk)
    answer = await world.ok("models/list")
    assert owners(answer) == [("scripted", GENERAL), ("desk", "big:70b")]
    assert answer["errors"] == {}
    assert owners(await world.ok("models/list", {"provider": "desk"})) == [("desk", "big:70b")]
    assert offered(world) == [GENERAL], "a request's model is asked of the first"
    assert (await world.error("models/list", {"provider": "attic"}))[1] == (
        'There is no provider "attic". Known: scripted, desk.'
    )


async def test_a_provider_that_is_away_hides_no_models_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Shop("big:70b", name="desk")
    world = World(Shop(GENERAL), desk)

    async def away() -> Any:
        raise ProviderUnavailable("desk is switched off")

    monkeypatch.setattr(desk, "models", away)
    answer = await world.ok("models/list")
    assert (owners(answer), answer["errors"]) == ([("scripted", GENERAL)], {"desk": "desk is switched off"})
    assert await world.error("models/list", {"provider": "desk"}) == ("provider_unavailable", "desk is switched off")


async def test_a_model_is_shown_by_whoever_has_it() -> None:
    world = World(Shop(GENERAL), Shop("big:70b", GENERAL, name="desk"))
    assert (await world.ok("models/show", {"model": "big:70b"}))["provider"] == "desk"
    assert (await world.ok("models/show", {"model": GENERAL}))["provider"] == "scripted"
    assert (await world.ok("models/show", {"model": GENERAL, "provider": "desk"}))["provider"] == "desk"
    assert (await world.error("models/show", {"model": "nope"}))[0] == "model_not_found"


async def test_a_server_that_answers_by_any_name_has_not_any_model() -> None:
    llama = Shop("served", name="llama")
    llama.capabilities = ScriptedProvider.capabilities.__get__(llama)  # type: ignore[method-assign]

    async def probe(model: str) -> ProviderState:
        return ProviderState(True, model_loaded=True, model_found=True if model == "served" else None)

    llama.probe = probe  # type: ignore[method-assign]
    for world in (World(llama), World(Shop(GENERAL), llama)):
        assert (await world.ok("models/show", {"model": "served"}))["provider"] == "llama"
        assert (await world.error("models/show", {"model": "nope", "provider": "llama"}))[0] == "model_not_found"
        assert (await world.error("models/show", {"model": "nope"}))[0] == "model_not_found"


async def test_a_model_is_brought_to_the_provider_that_is_named_and_removed_there() -> None:
    home, desk = Shop(GENERAL), Shop(name="desk")
    world = World(home, desk, models_admin=True)
    await world.ok("models/pull", {"model": "new", "provider": "desk"})
    assert (home.pulled, desk.pulled) == ([], ["new"])
    await world.ok("models/reload", {"model": "new", "provider": "desk"})
    assert (home.unloaded, desk.unloaded) == ([], ["new"])
    assert (await world.error("models/delete", {"model": "new"}))[0] == "model_not_found"
    await world.ok("models/delete", {"model": "new", "provider": "desk"})
    assert [*desk.shelf] == []


async def test_what_a_further_provider_lacks_is_brought_as_well() -> None:
    home, desk = Shop(GENERAL), Shop(name="desk")
    world = World(home, desk, pull_missing=True)
    task = asyncio.create_task(world.catalogue.run())
    await world.watch.look()
    await world.until(lambda: desk.pulled == [GENERAL])
    assert home.pulled == []
    task.cancel()


async def test_a_model_that_an_agent_names_and_nobody_has_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    world = World(Shop(GENERAL))
    world.config.agents = {**world.config.agents, "coder": Agent(name="coder", system="Code.", model="code:7b")}
    for _ in range(2):
        await world.watch.look()
        state = world.reporting.health()
        assert (state.status, state.reasons) == ("degraded", ["model_not_found"])
        assert state.provider.error == "there is no code:7b"
        assert world.watch.report[0].error == "there is no code:7b"
    assert [record.message for record in caplog.records] == ["scripted: model_not_found: there is no code:7b"]
    shop(world).state = ProviderState(reachable=False, error="gone")
    await world.watch.look()
    assert set(world.reporting.health().reasons) == {"provider_unavailable", "model_not_found"}
    shop(world).state = ProviderState(reachable=True)
    shop(world).shelf["code:7b"] = frozenset()
    await world.watch.look()
    assert world.reporting.health().status == "ok"


async def test_an_agents_model_is_looked_for_at_its_own_provider() -> None:
    desk = Shop("code:7b", GENERAL, name="desk")
    world = World(Shop(GENERAL), desk)
    coder = Agent(name="coder", system="Code.", provider="desk", model="code:7b")
    world.config.agents = {**world.config.agents, "coder": coder}
    await world.watch.look()
    assert world.reporting.health().status == "ok"
    del desk.shelf["code:7b"]
    await world.watch.look(everyone=True)
    assert world.reporting.health().reasons == ["model_not_found"]


# ------------------------------------------------------------------------------------------------------ the catalogue


async def test_the_list_is_asked_for_when_it_may_have_changed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    task = asyncio.create_task(world.catalogue.run())
    await world.watch.look()
    await world.until(lambda: shop(world).listed == 1)
    assert offered(world) == [GENERAL]
    for _ in range(3):
        await world.watch.look()
    assert shop(world).listed == 1
    del shop(world).shelf[GENERAL]
    shop(world).shelf["other"] = frozenset()
    await world.watch.look()
    await world.until(lambda: shop(world).listed == 2)
    assert offered(world) == ["other", GENERAL]  # the agents' own model is always named
    shop(world).state = ProviderState(reachable=False)
    await world.watch.look()
    shop(world).state = ProviderState(reachable=True)
    await world.watch.look()
    await world.until(lambda: shop(world).listed == 3)
    monkeypatch.setattr("piagent_daemon.catalogue.LIST_S", -1.0)
    await world.watch.look()
    await world.until(lambda: shop(world).listed == 4)
    task.cancel()


async def test_a_missing_model_is_brought_only_when_that_is_wanted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for wanted in (False, True):
        world, arrived = World(Shop(), pull_missing=wanted), asyncio.Event()
        world.catalogue.on_arrival = arrived.set
        task = asyncio.create_task(world.catalogue.run())
        await world.watch.look()
        await world.until(lambda world=world: shop(world).listed)  # type: ignore[misc]
        if wanted:
            await asyncio.wait_for(arrived.wait(), 5)
            await world.watch.look()
        assert shop(world).pulled == ([GENERAL] if wanted else [])
        assert world.watch.reason == (None if wanted else "model_not_found")
        task.cancel()
    assert any("downloaded" in record.message for record in caplog.records)


async def test_a_missing_model_is_tried_again_only_when_that_may_help(caplog: pytest.LogCaptureFixture) -> None:
    world = World(Shop(), pull_missing=True, max_retries=0)
    shop(world).pulls = [[ProviderUnavailable("no way out")], [ProviderError("no such model")]]
    task = asyncio.create_task(world.catalogue.run())
    await world.watch.look()
    await world.until(lambda: len(shop(world).pulled) == 1)
    for listed in (2, 3, 4):
        for reachable in (False, True):
            shop(world).state = ProviderState(reachable=reachable)
            await world.watch.look()
        await world.until(lambda listed=listed: shop(world).listed == listed)  # type: ignore[misc]
        await world.until(lambda: any("cannot be downloaded" in record.message for record in caplog.records))
    assert shop(world).pulled == [GENERAL, GENERAL]
    task.cancel()


async def test_a_server_that_goes_away_meanwhile_has_not_been_looked_through() -> None:
    world = World(Shop(), pull_missing=True)
    away = [ProviderState(reachable=False)]
    probe = shop(world).probe

    async def looked(model: str) -> ProviderState:
        return away.pop() if world.ladder.rungs[0].state and away else await probe(model)

    shop(world).probe = looked  # type: ignore[method-assign]
    task = asyncio.create_task(world.catalogue.run())
    await world.watch.look()
    await world.until(lambda: not away)
    await world.watch.look()
    await world.until(lambda: shop(world).pulled == [GENERAL])
    task.cancel()


async def test_what_was_done_is_done_also_when_the_list_fails(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> Any:
        raise ProviderUnavailable("gone")

    monkeypatch.setattr(shop(world), "models", fail)
    assert await world.ok("models/pull", {"model": "new", "transaction": 1}) == {"id": "1", "model": "new"}
    assert await world.ok("models/delete", {"model": "new"}) == {"model": "new"}


async def test_only_an_allowed_model_is_loaded_anew() -> None:
    world = World(Shop(GENERAL), models_allowed=(GENERAL,))
    code, says = await world.error("models/reload", {"model": "huge"})
    assert (code, "MODELS_ALLOWED" in says) == ("invalid_request", True)


async def test_the_general_model_is_loaded_anew_whatever_may_be_named() -> None:
    world = World(Shop(GENERAL), models_allowed=("big:7b",))
    assert await world.ok("models/reload") == {"model": GENERAL}
