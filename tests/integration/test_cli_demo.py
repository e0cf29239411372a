"""`piagent demo`: everything in one process, and the stand-in model server on its own."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from piagent_daemon.cli import main
from piagent_daemon.cli.demo import demo_settings
from piagent_daemon.cli.embedded import broker, in_background
from piagent_daemon.cli.standin import MODEL, answer, standin
from piagent_daemon.doors.mqtt_client import MqttClient
from piagent_daemon.errors import DoorError
from piagent_daemon.providers.config import place
from piagent_daemon.providers.ollama import OllamaProvider
from piagent_daemon.settings import Settings
from piagent_daemon.values import ChatRequest, Message
from tests.fakes.broker import free_port
from tests.fakes.cli import Cli
from tests.fakes.ollama import FakeOllama


async def test_one_answer_and_it_is_over() -> None:
    began = time.monotonic()
    async with Cli("demo", "hello", ollama_host=f"127.0.0.1:{free_port()}") as cli:
        await cli.shows("You said")
        assert cli.process.returncode is None
        assert await cli.end() == 0
    assert time.monotonic() - began < 6  # about 2 s on an idle machine
    assert cli.out.startswith('You said: "hello". I am a stand-in, not a language model')
    assert cli.out.endswith("in my place.\n")
    model, server, daemon = cli.err.splitlines()
    assert model.startswith("model   a stand-in at http://127.0.0.1:")
    assert server.startswith("broker  embedded, at 127.0.0.1:")
    assert daemon == "daemon  in this process, on piagent/#"


async def test_a_real_ollama_is_used_when_it_has_a_model(model_server: FakeOllama) -> None:
    model_server.reply = "From the real one."
    async with Cli("demo", "hello", ollama_host=model_server.url) as cli:
        assert await cli.end() == 0
    assert cli.out == "From the real one.\n"
    assert f"of the Ollama at {model_server.url}" in cli.err
    assert "stand-in" not in cli.err


async def test_a_real_ollama_without_models_is_not() -> None:
    async with FakeOllama({}) as server, Cli("demo", "hello", ollama_host=server.url) as cli:
        assert await cli.end() == 0
    assert "stand-in" in cli.out


async def test_a_table_of_ollama_leads_nowhere_else(model_server: FakeOllama, tmp_path: Path) -> None:
    config = tmp_path / "piagent.toml"
    config.write_text(f'[providers.ollama]\nurl = "{model_server.url}"\nmodel = "another"\n')
    async with Cli("--config", str(config), "demo", "hello", ollama_host=f"127.0.0.1:{free_port()}") as cli:
        assert await cli.end() == 0
    assert cli.out.startswith('You said: "hello". I am a stand-in')
    assert not model_server.requests


def test_nothing_is_downloaded() -> None:
    assert not demo_settings(Settings(pull_missing=True), 1883, "http://127.0.0.1:11434", MODEL).pull_missing


async def test_the_chat_remembers_and_ctrl_c_cancels() -> None:
    async with Cli("demo", tty=True, ollama_host=f"127.0.0.1:{free_port()}") as cli:
        await cli.shows("> ")
        cli.type("first\n")
        await cli.shows("my place.")
        cli.type("second\n")
        await cli.shows("Before that, you wrote 1 message")
        cli.interrupt()
        await cli.shows("Cancelled.")
        cli.type("/quit\n")
        assert await cli.end() == 0
    assert "Traceback" not in cli.out


async def test_ctrl_c_at_the_prompt_takes_everything_down() -> None:
    async with Cli("demo", tty=True, ollama_host=f"127.0.0.1:{free_port()}") as cli:
        await cli.shows("> ")
        await cli.interrupt_prompt()
        assert await cli.end() == 0
    assert "Traceback" not in cli.out


def test_without_the_broker_package_it_names_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIAGENT_OLLAMA_HOST", f"127.0.0.1:{free_port()}")
    monkeypatch.setitem(__import__("sys").modules, "amqtt.broker", None)
    assert main(["demo", "hello"]) == 1
    assert f"{sys.executable} -m pip install amqtt" in capsys.readouterr().err
    assert not [thread for thread in threading.enumerate() if "stand-in" in thread.name or "background" in thread.name]


# ------------------------------------------------------------------------------------------------------------ its parts


@pytest.fixture
def url() -> Iterator[str]:
    with standin(word_s=0.001) as url:
        yield url


async def test_the_stand_in_speaks_ollama_s_protocol(url: str) -> None:
    provider = OllamaProvider(place("ollama", Settings(ollama_host=url)).config)
    try:
        state = await provider.probe(MODEL)
        assert (state.reachable, state.model_found, state.model_loaded) == (True, True, True)
        assert [model.name for model in await provider.models()] == [MODEL]
        assert await provider.capabilities(MODEL) == {"completion"}
        request = ChatRequest(MODEL, (Message("user", "ping"),), {"num_predict": 100}, 4096)
        await provider.prime(request)
        async with aclosing(provider.chat(request)) as stream:
            deltas = [delta async for delta in stream]
        assert "".join(delta.text for delta in deltas) == answer([{"role": "user", "content": "ping"}])
        finish = deltas[-1].finish
        assert finish is not None
        assert finish.reason == "stop"
        assert finish.usage.completion_tokens > 10
        short = ChatRequest(MODEL, (Message("user", "ping"),), {"num_predict": 2}, 4096)
        async with aclosing(provider.chat(short)) as stream:
            deltas = [delta async for delta in stream]
        assert "".join(delta.text for delta in deltas) == "You said:"
        assert deltas[-1].finish
        assert deltas[-1].finish.reason == "length"
    finally:
        await provider.aclose()


async def test_leaving_ends_an_answer_in_the_middle() -> None:
    with standin(word_s=5.0) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = b'{"messages": [{"role": "user", "content": "ping"}]}'
        writer.write(b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        began = time.monotonic()
    await asyncio.wait_for(reader.read(), 5)
    assert time.monotonic() - began < 4
    writer.close()


async def test_the_embedded_broker_listens_on_loopback_while_it_lasts() -> None:
    def greet(port: int) -> str:
        with MqttClient(Settings(mqtt_port=port), "test") as client:
            return client.protocol

    async with broker() as port:
        assert await asyncio.to_thread(greet, port) == "3.1.1"
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


def test_what_fails_in_the_background_fails_here_and_leaves_no_thread() -> None:
    @asynccontextmanager
    async def broken() -> AsyncGenerator[None, None]:
        raise DoorError("no")
        yield

    before = threading.active_count()
    with pytest.raises(DoorError, match="no"), in_background(broken):
        pass
    assert threading.active_count() == before


async def test_sigterm_ends_it_too() -> None:
    async with Cli("demo", tty=True, ollama_host=f"127.0.0.1:{free_port()}") as cli:
        await cli.shows("> ")
        os.kill(cli.process.pid, signal.SIGTERM)
        assert await cli.end(5) == -signal.SIGTERM
