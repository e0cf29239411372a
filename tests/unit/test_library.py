"""A provider as a library, and what the README and the docstrings say of it, tried out."""

import asyncio
import doctest
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from piagent_daemon import errors
from piagent_daemon.providers import PROVIDERS, create_provider, get_available_providers, library
from piagent_daemon.providers.library import Client, choose
from piagent_daemon.values import Delta, Message, ModelInfo
from tests.fakes.desk import Shop
from tests.fakes.doubles import Step, answer

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand where no `.env` and no `piagent.toml` is."""
    monkeypatch.chdir(tmp_path)


def client(shop: Shop | None = None, **config: Any) -> tuple[Client, Shop]:
    """Return a client of a scripted model server."""
    shop = shop or Shop("m")
    return Client(shop, choose("echo", ["echo"], {"model": "m", "backoff_factor": 0.001, **config})), shop


async def joined(pieces: AsyncIterator[str]) -> list[str]:
    return [piece async for piece in pieces]


def tried(text: str, name: str) -> None:
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    assert test.examples
    output: list[str] = []
    assert doctest.DocTestRunner().run(test, out=output.append).failed == 0, "".join(output)


def test_the_examples_in_the_readme_are_true() -> None:
    section = README.split("\n## From Python\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```pycon\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    tried("\n".join(blocks), "README, From Python")


def test_the_example_in_the_docstring_is_true() -> None:
    tried(library.__doc__ or "", "library")


def test_every_provider_can_be_had() -> None:
    assert get_available_providers() == sorted(PROVIDERS)
    for name in get_available_providers():
        assert create_provider(name, url="http://127.0.0.1:9", key="k").name == name


def test_a_key_of_the_settings_goes_only_to_the_address_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    kinds = ["openai"]
    assert choose("openai", kinds, {}).provider.key == "sk-mine"
    assert choose("openai", kinds, {"url": "http://box:1"}).provider.key is None
    assert choose("openai", kinds, {"url": "http://box:1", "key": "sk-box"}).provider.key == "sk-box"


@pytest.mark.parametrize("images", ["aGk=", b"aGk=", [None], [b"aGk="]])
async def test_images_that_are_none_are_refused(images: Any) -> None:
    provider, _ = client()
    with pytest.raises(errors.ProviderError, match="images are a list"):
        await provider.chat([{"role": "user", "content": "Look", "images": images}])
    assert await provider.chat([{"role": "user", "content": "Look", "images": None}])


async def test_a_prompt_is_answered_whole_or_in_pieces() -> None:
    provider, shop = client()
    shop.script = lambda _: [Delta(thinking="hm"), *answer("Good ", "evening.")]
    assert await provider.generate("Hello") == "Good evening."
    assert await joined(await provider.generate("Hello", stream=True)) == ["Good ", "evening."]
    (request, _) = shop.asked
    assert request.messages == (Message("user", "Hello"),)
    assert (request.model, request.context_tokens) == ("m", 4096)
    assert request.options == {"temperature": 0.7, "num_predict": 1024}


async def test_options_and_model_are_those_of_the_call_the_provider_or_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIAGENT_MAX_TOKENS", "77")
    provider, shop = client(temperature=0.1)
    await provider.generate("Hello", model="other", options={"num_ctx": 512, "top_k": 3})
    (request,) = shop.asked
    assert (request.model, request.context_tokens) == ("other", 512)
    assert request.options == {"temperature": 0.1, "num_predict": 77, "top_k": 3}


async def test_a_conversation_is_answered() -> None:
    provider, shop = client()
    messages: list[Message | Mapping[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        Message("user", "Hello"),
        {"role": "user", "content": "Look", "images": ["data:image/png;base64,aGk="]},
    ]
    assert await provider.chat(messages, format="json") == "You said: Look"
    assert shop.asked[0].messages == (
        Message("system", "Be brief."),
        Message("user", "Hello"),
        Message("user", "Look", ("aGk=",)),
    )
    assert shop.asked[0].format == "json"
    assert await joined(await provider.chat(messages, stream=True)) == ["You said: ", "Look"]
    for bad in ({"role": "tool", "content": "x"}, {"role": "user"}, {"role": "user", "content": "x", "name": "y"}):
        with pytest.raises(errors.ProviderError, match="mapping of role"):
            await provider.chat([bad])


async def test_everything_else_that_a_server_can() -> None:
    provider, _ = client()
    assert await provider.embed("abc") == [[3.0]]
    assert await provider.embed(["a", "bc"], model="m") == [[1.0], [2.0]]
    assert await provider.list_models() == [ModelInfo("m", 7, "1B", "Q4_0")]
    assert (await provider.health_check()).model_found
    assert not (await provider.health_check("other")).model_found


@pytest.mark.parametrize(
    ("steps", "kind", "asked"),
    [
        ([errors.ProviderUnavailable("away")], errors.ProviderUnavailable, 4),
        ([errors.RateLimited("slow down")], errors.RateLimited, 4),
        ([errors.ModelNotFound("gone")], errors.ModelNotFound, 1),
        ([errors.ContextOverflow("too long")], errors.ProviderError, 1),
        ([Delta("Half"), errors.ProviderUnavailable("cut")], errors.ProviderUnavailable, 1),
    ],
)
async def test_failures_are_provider_errors_and_tried_again_before_the_first_text(
    steps: Iterable[Step], kind: type[errors.ProviderError], asked: int
) -> None:
    provider, shop = client()
    shop.script = lambda _: steps
    with pytest.raises(errors.ProviderError) as caught:
        await provider.generate("Hello")
    assert type(caught.value) is kind
    assert len(shop.asked) == asked
    shop.embeddings = lambda _: (_ for _ in ()).throw(kind("x"))
    with pytest.raises(kind):
        await provider.embed("x")


async def test_leaving_a_stream_closes_it() -> None:
    provider, shop = client()
    shop.script = lambda _: [Delta("Half"), asyncio.Event()]
    async with aclosing(await provider.generate("Hello", stream=True)) as pieces:
        assert await anext(pieces) == "Half"
    assert shop.closed_early == 1


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("nope", {}, "no provider 'nope'; known: anthropic"),
        ("openai", {}, "wants a key"),
        ("custom", {}, "wants an address"),
        ("ollama", {"url": "ftp://x"}, ""),
        ("ollama", {"modle": "x"}, "unknown: modle; known: backoff_factor_s"),
    ],
)
def test_what_cannot_be_made_says_why(name: str, config: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.ProviderMisconfigured) as caught:
        create_provider(name, config)
    assert isinstance(caught.value, errors.ProviderError)
    assert says in str(caught.value)


def test_settings_that_are_wrong_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIAGENT_CTX_TOKENS", "many")
    with pytest.raises(errors.ProviderMisconfigured, match="CTX_TOKENS"):
        create_provider("echo")


def test_the_words_of_other_libraries_are_understood() -> None:
    chosen = choose("openai", ["openai"], {"base_url": "http://h", "api_key": "k", "timeout": 9, "backoff_factor": 2})
    made = chosen.provider
    assert (made.url, made.key, made.total_timeout_s, chosen.backoff_factor_s) == ("http://h", "k", 9, 2)


async def test_without_a_model_it_asks_for_one() -> None:
    provider, _ = client(model="")
    with pytest.raises(errors.ProviderMisconfigured, match="name a model"):
        await provider.generate("Hello")


def test_errors_carry_a_status_code() -> None:
    assert (errors.ProviderError("x").status_code, errors.ProviderError("x", 418).status_code) == (502, 418)
    kinds = (errors.ModelNotFound, errors.ProviderUnavailable, errors.RateLimited, errors.ProviderMisconfigured)
    assert all(issubclass(kind, errors.ProviderError) for kind in kinds)
