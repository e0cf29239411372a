"""The table of providers, and the one that needs no server."""

import subprocess
import sys

import pytest

from piagent_daemon.errors import ConfigError, ModelNotFound
from piagent_daemon.ports import Provider
from piagent_daemon.providers import PROVIDERS, create, load
from piagent_daemon.settings import Settings
from piagent_daemon.values import ChatRequest, Message


@pytest.mark.parametrize("name", sorted(PROVIDERS))
async def test_every_name_makes_a_provider_of_that_name(name: str) -> None:
    provider: Provider = create(name, Settings(ollama_host="127.0.0.1:1"))
    assert provider.name == name
    for method in ("chat", "prime", "probe", "models", "capabilities", "pull", "delete", "aclose"):
        assert callable(getattr(provider, method))
    await provider.aclose()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="PROVIDER: 'olama' is not one of echo, ollama"):
        load("olama")


def test_an_address_that_cannot_be_one() -> None:
    with pytest.raises(ConfigError, match="OLLAMA_HOST"):
        create("ollama", Settings(ollama_host="box:port"))


def test_the_echo_needs_no_http() -> None:
    code = "import sys; from piagent_daemon.providers import load; load('echo'); print('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def ask(*messages: Message, prompt: str | None = None, **options: object) -> ChatRequest:
    return ChatRequest("any", messages, options, 2048, prompt=prompt)


async def test_echo_says_what_it_heard_word_by_word() -> None:
    provider = create("echo", Settings())
    question = ask(Message("user", "first"), Message("assistant", "x"), Message("user", "turn  the\nlight on "))
    deltas = [delta async for delta in provider.chat(question)]
    assert "".join(delta.text for delta in deltas) == "You said: turn  the\nlight on "
    assert len(deltas) == 8
    assert [delta.finish is not None for delta in deltas] == [False] * 7 + [True]
    finish = deltas[-1].finish
    assert finish is not None
    assert finish.reason == "stop"
    assert (finish.usage.prompt_tokens, finish.usage.completion_tokens, finish.usage.total_tokens) == (6, 7, 13)


async def test_echo_stops_at_num_predict_and_takes_a_finished_prompt() -> None:
    provider = create("echo", Settings())
    deltas = [delta async for delta in provider.chat(ask(prompt="one two three", num_predict=3))]
    assert "".join(delta.text for delta in deltas) == "You said: one"
    assert deltas[-1].finish is not None
    assert deltas[-1].finish.reason == "length"


async def test_echo_answers_the_rest_of_the_port() -> None:
    provider = create("echo", Settings(ollama_model_general="tiny"))
    await provider.prime(ask())
    assert (await provider.probe("tiny")).model_found
    assert [model.name for model in await provider.models()] == ["tiny"]
    assert await provider.capabilities("tiny") == {"completion"}
    assert [step.status async for step in provider.pull("tiny")][-1] == "success"
    with pytest.raises(ModelNotFound):
        await provider.delete("tiny")
