"""`[providers.<name>]` in piagent.toml: providers with a name of their own."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon import app, log, providers
from piagent_daemon.agents import Agent, load_agents
from piagent_daemon.errors import ConfigError
from piagent_daemon.ladder import Ladder
from piagent_daemon.provider_tables import read
from piagent_daemon.providers.config import Wake, place
from piagent_daemon.settings import Loaded, Settings, load_settings, restart_needed
from piagent_daemon.sources import Tables
from piagent_daemon.turn import Config
from tests.fakes.doubles import FakeClock

BROADCAST = "should be a broadcast address, such as 192.168.1.255, with a port where it is not 9"
MISSING = "cannot be read: No such file or directory"
TWO = """\
provider = "office,ollama-cloud"

[providers.office]
kind = "ollama"
host = "http://me:canary@192.168.1.20:11434"
model = "qwen2.5:14b"
context_tokens = 16384
wake = "00:11:22:AA:bb:cc"
wake_address = "192.168.1.255"

[providers.ollama-cloud]
key_file = "key"
model = "gpt-oss:120b"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text("canary-key\n")
    return tmp_path


def load(text: str, **environ: str) -> Loaded:
    Path("piagent.toml").write_text(text)
    return load_settings(environ=environ)


def problems(text: str, **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(text, **environ)
    return caught.value.problems


def test_a_table_is_a_provider_of_that_name() -> None:
    settings = load(TWO).settings
    office = place("office", settings)
    assert (office.config.name, office.config.kind, office.config.url) == (
        "office",
        "ollama",
        "http://me:canary@192.168.1.20:11434",
    )
    assert (office.config.model, office.config.context_tokens, office.config.key) == ("qwen2.5:14b", 16384, None)
    assert office.wake == Wake("001122aabbcc", "192.168.1.255")
    cloud = place("ollama-cloud", settings)
    assert (cloud.config.kind, cloud.config.key, cloud.model) == ("ollama-cloud", "canary-key", "gpt-oss:120b")
    assert cloud.config.context_tokens == 16384, "without one of its own, that of the settings"


def test_a_key_file_out_of_reach_is_the_systemd_credential_of_its_name(folder: Path) -> None:
    """The service's user cannot read what belongs to root."""
    credentials = folder / "credentials"
    credentials.mkdir()
    (credentials / "second_key").write_text("canary-second\n")
    (credentials / "key").write_text("not this one\n")

    def key(file: str) -> str | None:
        table = f'[providers.ollama-cloud]\nkey_file = "{file}"\n'
        return place("ollama-cloud", load(table, CREDENTIALS_DIRECTORY=str(credentials)).settings).config.key

    assert key("second_key") == key("/root-only/second_key") == "canary-second"
    assert key("key") == "canary-key", "a file that can be read is meant itself"
    said = problems('[providers.a]\nkey_file = "third_key"\n', CREDENTIALS_DIRECTORY=str(credentials))
    assert said == ("piagent.toml:2: [providers.a] key_file: third_key cannot be read: No such file or directory",)


def test_the_first_rung_s_model_and_window_are_those_of_the_settings() -> None:
    loaded = load(TWO)
    assert (loaded.settings.ollama_model_general, loaded.settings.ctx_tokens) == ("qwen2.5:14b", 16384)
    assert loaded.origins["ollama_model_general"] == "piagent.toml:3 [providers.office] model"
    assert loaded.origins["providers"].endswith("piagent.toml")
    same = load(TWO, OLLAMA_MODEL_GENERAL="qwen2.5:14b")
    assert same.origins["ollama_model_general"] == "environment OLLAMA_MODEL_GENERAL"


def test_two_words_on_the_first_rung_s_model_are_one_too_many() -> None:
    (said,) = problems(TWO, OLLAMA_MODEL_GENERAL="other")
    assert said.startswith("OLLAMA_MODEL_GENERAL (environment OLLAMA_MODEL_GENERAL) is for providers without model")
    assert said.endswith("[providers.office] model (piagent.toml:3). Keep one; give the others a table, too")


def test_plain_settings_go_on_to_work_without_any_table() -> None:
    settings = load('provider = "ollama"\nollama_host = "box"\n', OLLAMA_API_KEY="k").settings
    assert settings.providers == {}
    assert (place("ollama", settings).config.url, place("ollama", settings).config.key) == ("box", "k")


def test_a_table_without_an_address_takes_address_and_key_of_its_kind() -> None:
    settings = load('provider = "ollama"\n[providers.ollama]\nmodel = "m"\n', OLLAMA_HOST="box", OLLAMA_API_KEY="k")
    config = place("ollama", settings.settings).config
    assert (config.url, config.key, config.model, config.url_setting) == ("box", "k", "m", "OLLAMA_HOST")


def test_a_key_of_the_plain_settings_is_not_sent_to_another_address() -> None:
    settings = load('[providers.mine]\nkind = "openai"\nurl = "http://box/v1"\n', OPENAI_API_KEY="canary").settings
    config = place("mine", settings).config
    assert (config.key, config.url_setting, config.key_setting) == (
        None,
        "[providers.mine] url",
        "[providers.mine] key",
    )


@pytest.mark.parametrize(
    ("text", "line", "wanted"),
    [
        ('kind = "ollama"\nmodle = "m"', 4, "modle: there is no such key; did you mean model?"),
        ('kind = "ollama"\nmodel = 7', 4, "model: should be a valid string, but is 7"),
        ("context_tokens = 1", 3, "context_tokens: should be greater than or equal to 256, but is 1"),
        ('wake = "home"', 3, "wake: should be a MAC address, such as 00:11:22:aa:bb:cc, but is 'home'"),
        ('url = "http://a"\nhost = "b"', 4, "host and url are both set, keep one"),
        ('url = "ftp://me:canary@a"', 3, "url: should start with http:// or https://, but is 'ftp://********@a'"),
        ('key_file = "none"', 3, "key_file: none cannot be read: No such file or directory"),
        ('key_file = "~nobody-of-that-name/key"', 3, f"key_file: ~nobody-of-that-name/key {MISSING}"),
        ("key = 17", 3, "key: should be a valid string"),
        ('wake_address = "pc.lan"', 3, f"wake_address: {BROADCAST}, but is 'pc.lan'"),
        ("wake_address = 1", 3, "wake_address: should be a valid string, but is 1"),
    ],
)
def test_what_is_wrong_is_said_with_file_line_and_key(text: str, line: int, wanted: str) -> None:
    said = problems(f"log_messages = true\n[providers.office]\n{text}\n")
    assert said == (f"piagent.toml:{line}: [providers.office] {wanted}",)


def test_other_shapes_are_refused() -> None:
    assert problems('providers = "office"') == (
        "piagent.toml:1: providers: should be tables, such as [providers.office]",
    )
    assert problems('[providers]\noffice = "x"') == (
        "piagent.toml:1: providers.office: should be a table, [providers.office]",
    )
    assert problems("[providers.Office]\n") == (
        "piagent.toml:1: [providers.Office]: a name has 1 to 64 of a-z, 0-9, _ and -",
    )


def test_providers_are_no_setting_of_the_environment() -> None:
    assert problems("", PIAGENT_PROVIDERS="x") == (
        "PIAGENT_PROVIDERS: there is no such setting; did you mean PROVIDER? (environment PIAGENT_PROVIDERS)",
    )


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["office", "kind", "key", "key_file", "wake"]) | st.text(), inner, max_size=3
            )
        ),
        max_leaves=8,
    )
)
def test_anything_at_all_is_read_or_told(value: Any) -> None:
    found = read(Tables(Path("piagent.toml"), "", value))
    assert all(isinstance(problem, str) for problem in found.problems)


def test_keys_are_never_shown() -> None:
    settings = load(TWO).settings
    shown = settings.masked()["providers"]
    assert shown["office"]["url"] == "http://********@192.168.1.20:11434"
    assert shown["ollama-cloud"] == {"kind": "ollama-cloud", "key": "********", "model": "gpt-oss:120b"}
    assert "canary" not in repr(settings)
    assert log.secrets_in(settings.providers["ollama-cloud"]) == ["canary-key"]


def test_another_table_wants_a_restart() -> None:
    assert restart_needed(load(TWO).settings, load(TWO.replace("120b", "20b")).settings) == ("PROVIDERS",)


def test_a_name_that_nobody_knows_is_refused_with_those_that_are() -> None:
    settings = load(TWO).settings
    with pytest.raises(ConfigError, match=r"PROVIDER: 'offiec' is not one of .*, office, ollama,"):
        providers.create("offiec", settings)
    odd = load('[providers.odd]\nkind = "olama"\n').settings
    with pytest.raises(ConfigError, match=r"\[providers.odd\] kind: 'olama' is not one of anthropic"):
        providers.create("odd", odd)


async def test_the_daemon_s_ladder_has_the_rungs_of_provider_and_of_agents() -> None:
    settings = load(TWO + '\n[providers.den]\nkind = "echo"\nmodel = "den"\n').settings
    clock = FakeClock()
    ladder = Ladder(app.rungs(Config(settings, {}), clock), lambda: settings, clock)
    app.extend(ladder, Config(settings, {"voice": Agent("voice", "", provider="den")}), clock)
    assert list(ladder.known) == ["office", "ollama-cloud", "den"]
    assert [ladder.general(name) for name in ladder.known] == ["qwen2.5:14b", "gpt-oss:120b", "den"]
    assert [rung.name for rung in ladder.rungs] == ["office", "ollama-cloud"]
    await ladder.aclose()


def test_a_provider_that_only_a_prompt_file_misnames_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "cook.md").write_text("---\nmodel: small:1b\nprovider: nobody\n---\nYou cook.\n")
    settings, clock = load(TWO).settings, FakeClock()
    config = Config(settings, load_agents(tmp_path))
    ladder = Ladder(app.rungs(config, clock), lambda: settings, clock)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/cook.md:3: provider: 'nobody' is not one of anthropic"):
        app.extend(ladder, config, clock)


def test_all_that_the_parts_cannot_use_is_told_at_once() -> None:
    settings = Settings(provider="nope", memory_url="redis:x", default_agent="zz")
    with pytest.raises(ConfigError) as caught:
        app._made(settings, FakeClock())
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "DEFAULT_AGENT",
        "MEMORY_URL",
        "PROVIDER",
    ]
