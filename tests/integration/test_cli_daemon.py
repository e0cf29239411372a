"""The command line and the real daemon together."""

import json
from typing import Any

import pytest

from tests.conftest import DaemonFactory
from tests.fakes.broker import Mosquitto
from tests.fakes.cli import Cli
from tests.fakes.ollama import FakeOllama


@pytest.fixture
async def place(
    daemon: DaemonFactory, mosquitto: Mosquitto, base_topic: str, model_server: FakeOllama
) -> dict[str, Any]:
    """A running daemon, and where the command finds it."""
    await daemon(ollama_host=model_server.url)
    return {"mqtt_port": mosquitto.port, "mqtt_base_topic": base_topic, "ollama_host": model_server.url}


async def test_ask(place: dict[str, Any], model_server: FakeOllama) -> None:
    model_server.reply = "Grüße aus Zürich."
    async with Cli("ask", "Hi", **place) as cli:
        assert await cli.end() == 0
    assert (cli.out, cli.err) == ("Grüße aus Zürich.\n", "")
    async with Cli("ask", "Hi", "--json", "--agent", "voice", mqtt_protocol="311", **place) as cli:
        assert await cli.end() == 0
    final = json.loads(cli.out)
    assert (final["type"], final["reply"], final["agent"]) == ("final", "Grüße aus Zürich.", "voice")


async def test_ask_for_an_agent_that_is_not_there(place: dict[str, Any]) -> None:
    async with Cli("ask", "Hi", "--agent", "nobody", **place) as cli:
        assert await cli.end() == 1
    assert cli.err.startswith("unknown_agent: ")


async def test_ctrl_c_stops_the_model(place: dict[str, Any], model_server: FakeOllama) -> None:
    model_server.tokens = [f"word{number} " for number in range(2000)]
    model_server.tokens_per_s = 50
    async with Cli("ask", "Hi", **place) as cli:
        await cli.shows("word3")
        cli.interrupt()
        assert await cli.end() == 1
    assert cli.err == "Cancelled.\n"
    await model_server.until(lambda server: server.questions[0].disconnected)


async def test_a_chat_is_one_conversation_until_reset(place: dict[str, Any], model_server: FakeOllama) -> None:
    async with Cli("chat", stdin="one\ntwo\n/reset\nthree\n", **place) as cli:
        assert await cli.end() == 0
    told = [[m["content"] for m in record.body["messages"] if m["role"] == "user"] for record in model_server.questions]
    assert [len(turns) for turns in told] == [1, 2, 1]


async def test_the_doctor_finds_all_well(place: dict[str, Any]) -> None:
    async with Cli("doctor", "--json", **place) as cli:
        code = await cli.end()
    report = json.loads(cli.out)
    assert (code, report["ok"]) == (0, True), report
