"""The whole daemon on a ladder of two model servers, over real HTTP and a real broker."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DaemonFactory
from tests.fakes.answers import ask
from tests.fakes.daemon import DaemonProcess
from tests.fakes.observer import Message, Observer
from tests.fakes.ollama import DEFAULT_MODEL, FakeOllama, Model
from tests.fakes.openai import FakeOpenAI
from tests.fakes.pictures import encoded, png

KEY = "sk-right"
Ladder = Callable[..., Coroutine[Any, Any, DaemonProcess]]


@pytest.fixture
async def home() -> AsyncIterator[FakeOllama]:
    models = {DEFAULT_MODEL: Model(), "seer": Model(capabilities=frozenset({"completion", "vision"}))}
    async with FakeOllama(models) as server:
        server.reply = "from home"
        yield server


@pytest.fixture
async def away() -> AsyncIterator[FakeOpenAI]:
    async with FakeOpenAI(api_key=KEY) as server:
        server.script.reply = "from away"
        yield server


@pytest.fixture
def ladder(daemon: DaemonFactory, home: FakeOllama, away: FakeOpenAI, tmp_path: Path) -> Ladder:
    """Start a daemon with `home` above `away`; `more` is further text of home's table."""

    async def start(more: str = "", **settings: Any) -> DaemonProcess:
        config = tmp_path / "piagent.toml"
        config.write_text(
            f'provider = "home,away"\n[providers.home]\nkind = "ollama"\nurl = "{home.url}"\n{more}\n'
            f'[providers.away]\nkind = "openai"\nurl = "{away.url}"\nkey = "{KEY}"\nmodel = "chatty"\n'
        )
        settings = {"backoff_factor_s": 0.05, "health_interval_s": 0.2} | settings
        return await daemon(config=config, **settings)

    return start


async def health_where(observer: Observer, is_it: Callable[[Any], bool]) -> Any:
    topic = f"{observer.base}/health"

    def fits(message: Message) -> bool:
        return message.topic == topic and message.json.get("status") != "offline" and is_it(message.json)

    newest = max((number for number, one in enumerate(observer.messages) if one.topic == topic), default=0)
    return (await observer.wait(fits, 15, start=newest)).json


def serving(name: str) -> Callable[[Any], bool]:
    return lambda health: bool(health["provider"]["name"] == name)


def who(final: Any) -> tuple[str, str, str]:
    return final["provider"], final["model"], final["reply"]


HOME = ("home", DEFAULT_MODEL, "from home")
AWAY = ("away", "chatty", "from away")


async def test_a_dead_server_is_made_good_in_the_same_request_and_comes_back(
    ladder: Ladder, home: FakeOllama, away: FakeOpenAI, observer: Observer
) -> None:
    await ladder()
    assert who(await ask(observer, "kitchen", "hi")) == HOME
    await home.stop()
    away.next(first_token_delay_s=1.6)
    events = await observer.ask("kitchen", "hi")
    assert who(events[-1]) == AWAY
    status = [event for event in events if event["type"] == "status"]
    assert [event["stage"] for event in status] == ["fallback"]
    assert "home" in status[0]["detail"]
    assert "away" in status[0]["detail"]
    health = await health_where(observer, lambda health: serving("away")(health) and health["totals"]["replies"] == 2)
    assert (health["status"], health["provider"]["model"]) == ("ok", "chatty")
    by_name = {use["name"]: use for use in health["providers"]}
    assert (by_name["home"]["errors"], by_name["home"]["reachable"]) == ({"provider_unavailable": 1}, False)
    assert by_name["home"]["cooldowns"] >= 1
    assert (by_name["away"]["requests"], by_name["away"]["errors"]) == (1, {})
    assert by_name["away"]["speed"]["first_token_s"] > 1
    await home.start()
    await health_where(observer, serving("home"))
    assert who(await ask(observer, "garden", "hi")) == HOME
    assert who(await ask(observer, "kitchen", "hi")) == AWAY, "it stays where its cache is warm"


async def test_a_stream_that_dies_is_an_error_and_the_next_request_goes_on(
    ladder: Ladder, home: FakeOllama, observer: Observer
) -> None:
    await ladder(backoff_factor_s=5)
    home.next("rst", reply="one two three four five six")
    events = await observer.ask("kitchen", "hi")
    assert (events[-1]["type"], events[-1]["code"]) == ("error", "provider_error")
    assert events[-1]["partial"]
    answers = [who(await ask(observer, room, "hi")) for room in ("kitchen", "garden")]
    assert AWAY in answers, "its rest is random, and may be short"


async def test_a_refused_key_goes_to_the_next_rung_and_is_told(
    ladder: Ladder, home: FakeOllama, observer: Observer
) -> None:
    home.next("unauthorized")
    await ladder(backoff_factor_s=5)
    assert who(await ask(observer, "kitchen", "hi")) == AWAY
    health = await health_where(observer, lambda health: "unauthorized" in health["reasons"])
    assert health["status"] == "degraded"


async def test_images_go_to_the_model_that_sees(ladder: Ladder, home: FakeOllama, observer: Observer) -> None:
    await ladder()
    final = await ask(observer, "kitchen", {"message": "what is it?", "images": [encoded(png())]})
    assert (final["provider"], final["model"]) == ("home", "seer:latest")
    assert home.questions[-1].body["model"] == "seer:latest"
    assert who(await ask(observer, "kitchen", "hi")) == HOME


async def test_a_machine_that_sleeps_is_woken_while_the_next_rung_serves(
    ladder: Ladder, home: FakeOllama, observer: Observer
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear:
        ear.bind(("127.0.0.1", 0))
        ear.setblocking(False)
        await home.stop()
        port = ear.getsockname()[1]
        await ladder(f'wake = "02:00:00:00:00:2a"\nwake_address = "127.0.0.1:{port}"')
        assert who(await ask(observer, "kitchen", "hi")) == AWAY
        packet = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(ear, 1024), 5)
    assert packet == b"\xff" * 6 + bytes.fromhex("02000000002a") * 16
    await home.start()
    await health_where(observer, serving("home"))
    assert who(await ask(observer, "garden", "hi")) == HOME
