"""The table of providers, and the one that needs no server."""

from pathlib import Path
from typing import Any

import pytest

from piagent_daemon.errors import ConfigError, ModelNotFound, ProviderError
from piagent_daemon.ladder import Call, Ladder
from piagent_daemon.ports import Provider
from piagent_daemon.provider_tables import ProviderTable
from piagent_daemon.providers import PROVIDERS, create, load, make
from piagent_daemon.providers.config import ProviderConfig, place
from piagent_daemon.providers.instruction import in_words
from piagent_daemon.providers.openai_presets import PRESETS
from piagent_daemon.providers.openai_wire import chat_body
from piagent_daemon.rung import Rung
from piagent_daemon.settings import Settings
from piagent_daemon.values import ChatRequest, Message
from tests.fakes.doubles import FakeClock

KEYS = dict.fromkeys(("ollama_api_key", "openai_api_key", "anthropic_api_key", "hf_token"), "canary")


@pytest.mark.parametrize("name", sorted(PROVIDERS))
async def test_every_name_makes_a_provider_of_that_name(name: str) -> None:
    settings = Settings.model_validate({"ollama_host": "127.0.0.1:1", "provider_url": "http://127.0.0.1:1", **KEYS})
    provider: Provider = create(name, settings)
    assert provider.name == name
    for method in ("chat", "prime", "unload", "probe", "models", "capabilities", "embed", "pull", "delete", "aclose"):
        assert callable(getattr(provider, method))
    await provider.aclose()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"PROVIDER: 'olama' is not one of anthropic, custom, .*, ollama, ollama-cloud"
    ):
        load("olama")


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("ollama", {"ollama_host": "box:port"}, "OLLAMA_HOST: the port"),
        ("lmstudio", {"provider_url": "box:port"}, "PROVIDER_URL: the port"),
        ("custom", {}, "PROVIDER_URL: custom wants an address"),
        ("openai", {}, "OPENAI_API_KEY: openai wants a key"),
        ("huggingface", {}, "HF_TOKEN: huggingface wants a key"),
        ("anthropic", {}, "ANTHROPIC_API_KEY: anthropic wants a key"),
        ("ollama-cloud", {}, "OLLAMA_API_KEY: Ollama's cloud wants a key"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_tried(name: str, settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        create(name, Settings.model_validate(settings))


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-ü", "sk two", "sk\x7f"])
@pytest.mark.parametrize("kind", ["ollama", "openai", "anthropic"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(kind: str, key: str) -> None:
    with pytest.raises(ConfigError, match="printable ASCII") as caught:
        make(ProviderConfig(kind, kind, url="http://127.0.0.1:1", key=key))
    assert "sk" not in str(caught.value)


def test_no_key_or_address_goes_to_two_servers() -> None:
    settings = Settings.model_validate({"provider": "ollama,ollama-cloud", **KEYS})
    assert place("ollama", settings).config.key is None
    assert place("ollama-cloud", settings).config.key == "canary"
    for ladder, setting in (("lmstudio,openai", "provider_url"), ("custom,lmstudio", "provider_key")):
        value = {"provider": ladder, setting: "http://box:1", **KEYS}
        with pytest.raises(ConfigError, match=f"{setting.upper()}: .* would take it"):
            place(ladder.partition(",")[0], Settings.model_validate(value))
    one = Settings.model_validate({"provider": "ollama,openai", "provider_url": "http://box:1", **KEYS})
    assert place("openai", one).config.url == "http://box:1"


TABLES = {
    "mine": ProviderTable(kind="anthropic"),
    "own": ProviderTable(kind="anthropic", url="http://own:1"),
    "home": ProviderTable(kind="anthropic", url="https://api.anthropic.com/v1"),
    "cloud": ProviderTable(kind="ollama-cloud"),
}
KEYED = {"openai_api_key": "sk-open", "anthropic_api_key": "sk-ant", "provider_key": "sk-any"}


@pytest.mark.parametrize(
    ("ladder", "name", "beside", "url", "key"),
    [
        ("custom", "custom", ["openai"], "http://box:1", "sk-any"),
        ("custom", "openai", ["openai"], "", "sk-open"),  # named by an agent: its own address
        ("ollama", "anthropic", ["anthropic"], "", "sk-ant"),
        ("ollama", "custom", ["custom"], "http://box:1", "sk-any"),
        ("ollama", "custom", ["custom", "lmstudio"], "PROVIDER_URL: custom and lmstudio would take it", None),
        ("openai,mine", "openai", [], "PROVIDER_URL: openai and mine would take it", None),
        ("custom", "lmstudio", ["lmstudio"], "", None),
        ("openai,own", "openai", [], "http://box:1", "sk-open"),
        ("openai,own", "own", [], "http://own:1", None),
        ("mine", "mine", [], "http://box:1", "sk-ant"),
        ("home", "home", [], "https://api.anthropic.com/v1", "sk-ant"),  # the kind's own server
    ],
)
def test_a_key_goes_only_where_it_belongs(ladder: str, name: str, beside: list[str], url: str, key: str | None) -> None:
    settings = Settings.model_validate({"provider": ladder, "provider_url": "http://box:1", **KEYED}).with_providers(
        TABLES
    )
    if url.startswith("PROVIDER_URL"):
        with pytest.raises(ConfigError, match=url):
            place(name, settings, beside)
        return
    found = place(name, settings, beside).config
    assert (found.url, found.key) == (url, key)


@pytest.mark.parametrize("cloud", [("ollama,cloud", []), ("ollama", ["cloud"]), ("ollama", ["ollama-cloud"])])
def test_the_key_of_the_cloud_does_not_go_to_the_ollama_at_home(cloud: tuple[str, list[str]]) -> None:
    ladder, beside = cloud
    settings = Settings.model_validate({"provider": ladder, **KEYS}).with_providers(TABLES)
    assert place("ollama", settings, beside).config.key is None
    assert place("cloud", settings, beside).config.key == "canary"
    assert place("ollama", Settings.model_validate(KEYS)).config.key == "canary", "alone it may want one"


def test_the_cloud_under_v1_speaks_as_openai() -> None:
    made = make(ProviderConfig("ollama-cloud", "ollama-cloud", url="https://ollama.com/v1", key="k"))
    assert (type(made).__name__, made.name) == ("OpenAIProvider", "ollama-cloud")
    request = ChatRequest("gpt-oss", (Message("user", "hi"),), {"num_predict": 5, "top_k": 3}, 4096)
    body = chat_body(request, PRESETS["ollama-cloud"], frozenset())
    assert (body["reasoning_effort"], "top_k" in body) == ("none", False)


SCHEMA = {"type": "object", "properties": {"on": {"type": "boolean"}}}


@pytest.mark.parametrize("form", ["json", SCHEMA])
@pytest.mark.parametrize("text", [None, "<user>hi</user>"])
def test_the_cloud_is_asked_for_a_format_in_words(form: Any, text: str | None) -> None:
    asked = ChatRequest("gpt-oss", (Message("system", "Be brief."), Message("user", "hi")), {}, 4096, text, format=form)
    said = in_words(asked)
    words = said.messages[0].content if text is None else str(said.prompt)
    assert ("one JSON value" in words, "boolean" in words, said.format) == (True, form is SCHEMA, None)
    assert in_words(asked._replace(format=None)).messages == asked.messages
    body = chat_body(asked, PRESETS["ollama-cloud"], frozenset())
    assert "response_format" not in body
    assert "one JSON value" in body["messages"][0]["content"]


def test_a_configuration_shows_no_secret() -> None:
    config = place("ollama", Settings.model_validate({"ollama_host": "http://ann:canary@box", **KEYS})).config
    assert config.key == "canary"
    assert "canary" not in repr(config)


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
    assert await provider.capabilities("tiny") == {"completion", "embedding", "vision"}
    assert [step.status async for step in provider.pull("tiny")][-1] == "success"
    with pytest.raises(ModelNotFound):
        await provider.delete("tiny")


def example() -> str:
    """The README's provider, without the marks around it."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    code = readme.split("\n### Adding a provider\n")[1].split("```python\n")[1].split("```")[0]
    assert '"shout": "piagent_daemon.providers.shout:ShoutProvider",' in readme
    return code


async def test_a_provider_is_added_by_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len([line for line in example().splitlines() if line]) <= 30
    (tmp_path / "readme_shout.py").write_text(example())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PROVIDERS, "shout", "readme_shout:ShoutProvider")
    settings = Settings(provider="shout", ollama_model_general="loud")
    provider: Provider = create("shout", settings)
    clock = FakeClock()
    ladder = Ladder([Rung(provider, clock)], lambda: settings, clock)
    request = ask(Message("user", "turn it on"), num_predict=9)._replace(model="loud")
    deltas = [delta async for delta in ladder.answer(request, Call("kitchen", None, "loud"))]
    assert "".join(delta.text for delta in deltas) == "TURN IT ON "
    assert deltas[-1].finish
    await provider.prime(request)
    await provider.unload("loud")
    assert (await provider.probe("loud")).model_found
    assert [model.name for model in await provider.models()] == ["loud"]
    assert await provider.capabilities("loud") == {"completion"}
    for refused in (provider.embed(["a"], "loud"), provider.delete("loud"), anext(provider.pull("loud"))):
        with pytest.raises(ProviderError):
            await refused
    await ladder.aclose()
