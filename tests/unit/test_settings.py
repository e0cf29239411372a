"""Settings: where they come from, what they refuse, and that they keep secrets."""

import errno
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from piagent_daemon import sources
from piagent_daemon.errors import ConfigError
from piagent_daemon.setting_types import allows, secrets_in_address
from piagent_daemon.settings import (
    Loaded,
    Settings,
    load_settings,
    reloadable,
    reloaded,
    restart_needed,
    secrets,
)
from piagent_daemon.settings_table import table

CANARY = "canary-7f3a"
CONFIG_PATHS = sources.CONFIG_PATHS
CONTRACT: dict[str, Any] = {
    "mqtt_host": "127.0.0.1",
    "mqtt_port": 1883,
    "mqtt_username": None,
    "mqtt_password": None,
    "mqtt_tls": False,
    "mqtt_ca_file": None,
    "mqtt_cert_file": None,
    "mqtt_key_file": None,
    "mqtt_client_id": f"piagent-{socket.gethostname()}",
    "mqtt_base_topic": "piagent",
    "mqtt_protocol": "auto",
    "mqtt_session_expiry_s": 86400,
    "response_topic_prefixes": ("piagent/",),
    "provider": "ollama",
    "ollama_host": "http://127.0.0.1:11434",
    "ollama_model_general": "qwen2.5:3b-instruct",
    "ollama_keep_alive": "-1",
    "ollama_api_key": None,
    "ctx_tokens": 4096,
    "max_tokens": 1024,
    "temperature": 0.7,
    "prompt_style": "chat",
    "think": False,
    "prompts_dir": None,
    "default_agent": "general",
    "enable_memory": True,
    "memory_max_turns": 8,
    "memory_ttl_min": 60,
    "memory_max_conversations": 500,
    "memory_url": "memory:",
    "max_concurrent": 1,
    "max_waiting": 100,
    "max_message_chars": 4000,
    "max_payload_bytes": 8388608,
    "max_image_bytes": 5242880,
    "connect_timeout_s": 5,
    "first_token_timeout_s": 300,
    "idle_timeout_s": 60,
    "total_timeout_s": 600,
    "max_retries": 3,
    "backoff_factor_s": 0.5,
    "chunk_interval_ms": 25,
    "dedupe_window_s": 600,
    "health_interval_s": 30,
    "shutdown_grace_s": 20,
    "ha_discovery": True,
    "ha_discovery_prefix": "homeassistant",
    "log_level": "info",
    "log_format": "auto",
    "log_messages": False,
    "models_allowed": (),
    "models_admin": False,
    "files_dir": None,
}
"""The defaults of its section 7."""


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "CONFIG_PATHS", (Path("piagent.toml"),))
    return tmp_path


def load(config: Path | None = None, /, **environ: str) -> Loaded:
    return load_settings(config, environ=environ)


def problems(config: Path | None = None, /, **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(config, **environ)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


# ------------------------------------------------------------------------------------------------- defaults and order


def test_the_defaults_are_the_contracts() -> None:
    loaded = load()
    assert set(loaded.origins.values()) == {"default"}
    assert loaded.origins.keys() == Settings.model_fields.keys()
    assert {name: getattr(loaded.settings, name) for name in CONTRACT} == CONTRACT
    assert load(MQTT_TLS="true").settings.mqtt_port == 8883


def test_the_file_is_looked_for_here_and_then_where_the_system_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(CONFIG_PATHS) == [Path("piagent.toml"), Path("/etc/piagent/piagent.toml")]
    here, system = places = tmp_path / "here.toml", tmp_path / "system.toml"
    monkeypatch.setattr(sources, "CONFIG_PATHS", places)
    system.write_text("max_tokens = 2")
    assert load().settings.max_tokens == 2
    here.write_text("max_tokens = 1")
    assert load().settings.max_tokens == 1


def test_every_place_is_read_in_the_order_of_the_contract(tmp_path: Path) -> None:
    key = "OLLAMA_MODEL_GENERAL"
    (tmp_path / "credentials").mkdir()
    (tmp_path / "piagent.toml").write_text(f'\nollama_model_general = "toml"\n{"mqtt_username"} = "u"\n')
    assert (load().settings.ollama_model_general, load().origins["ollama_model_general"]) == ("toml", "piagent.toml:2")
    for line, (text, where) in enumerate([(f"{key}=dot", ".env:1"), (f"PIAGENT_{key}=dotted", ".env:2")], start=1):
        with (tmp_path / ".env").open("a") as file:
            file.write(text + "\n")
        loaded = load()
        assert loaded.settings.ollama_model_general == text.partition("=")[2], line
        assert loaded.origins["ollama_model_general"] == where
    loaded = load(OLLAMA_MODEL_GENERAL="bare")
    assert loaded.settings.ollama_model_general == "bare"
    loaded = load(OLLAMA_MODEL_GENERAL="bare", PIAGENT_OLLAMA_MODEL_GENERAL="prefixed")
    assert loaded.settings.ollama_model_general == "prefixed"
    assert loaded.origins["ollama_model_general"] == "environment PIAGENT_OLLAMA_MODEL_GENERAL"
    assert loaded.settings.mqtt_username == "u"


def test_the_constructor_reads_nothing_but_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIAGENT_MQTT_PORT", "1")
    (tmp_path / ".env").write_text("MQTT_PORT=2")
    assert Settings().mqtt_port == 1883
    assert Settings(mqtt_port=3).mqtt_port == 3
    assert load_settings().settings.mqtt_port == 1


def test_the_file_is_found_by_argument_and_by_variable(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("max_tokens = 1")
    two.write_text("max_tokens = 2")
    assert load(one, PIAGENT_CONFIG=str(two)).settings.max_tokens == 1
    assert load(PIAGENT_CONFIG=str(two)).settings.max_tokens == 2
    assert load(one).path == one
    (tmp_path / ".env").write_text(f"PIAGENT_CONFIG={one}")
    assert load().settings.max_tokens == 1


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.toml") == (f"{tmp_path}/none.toml cannot be read: No such file or directory",)


def test_a_folder_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "piagent.toml").mkdir()
    assert problems() == ("piagent.toml cannot be read: Is a directory",)


@pytest.mark.parametrize("text", ["true", "True", "1", "yes", "YES", "y", "on", " On "])
def test_words_for_yes(text: str) -> None:
    assert load(MQTT_TLS=text).settings.mqtt_tls is True


@pytest.mark.parametrize("text", ["false", "FALSE", "0", "no", "n", "off"])
def test_words_for_no(text: str) -> None:
    assert load(ENABLE_MEMORY=text).settings.enable_memory is False


def test_an_empty_value_is_not_set(tmp_path: Path) -> None:
    (tmp_path / "piagent.toml").write_text('mqtt_username = "u"\nmqtt_password = ""')
    loaded = load(MQTT_USERNAME="", MQTT_PASSWORD="", MQTT_PORT=" ")
    assert (loaded.settings.mqtt_username, loaded.settings.mqtt_password) == ("u", None)
    assert loaded.settings.mqtt_port == 1883


def test_lists_are_comma_separated_or_toml_arrays(tmp_path: Path) -> None:
    (tmp_path / "piagent.toml").write_text('models_allowed = ["a:1b", "b"]\nresponse_topic_prefixes = []')
    assert load().settings.models_allowed == ("a:1b", "b")
    assert load().settings.response_topic_prefixes == ()
    assert load(MODELS_ALLOWED=" c , ,d,").settings.models_allowed == ("c", "d")


@pytest.mark.parametrize(
    ("given_values", "name", "value"),
    [
        ({"MQTT_TLS": "true"}, "mqtt_port", 8883),
        ({"MQTT_TLS": "true", "MQTT_PORT": "1884"}, "mqtt_port", 1884),
        ({"MQTT_BASE_TOPIC": "home/ai"}, "response_topic_prefixes", ("home/ai/",)),
        ({"PROVIDER": "ollama , echo"}, "provider", "ollama,echo"),
        ({"LOG_LEVEL": "WARNING"}, "log_level", "warning"),
        ({"THINK": "High"}, "think", "high"),
        ({"THINK": "on"}, "think", True),
        ({"OLLAMA_KEEP_ALIVE": "1h30m"}, "ollama_keep_alive", "1h30m"),
        ({"OLLAMA_HOST": "0.0.0.0"}, "ollama_host", "0.0.0.0"),  # noqa: S104 (Ollama's own form of "here")
        ({"MQTT_HOST": "fe80::1%eth0"}, "mqtt_host", "fe80::1%eth0"),
        ({"MEMORY_MAX_TURNS": "0"}, "memory_max_turns", 0),
        ({"HERMES_LISTEN": "query, TEXTCAPTURED"}, "hermes_listen", ("query", "textCaptured")),
        ({"HERMES_SITES": "kitchen,first floor"}, "hermes_sites", ("kitchen", "first floor")),
        ({"WYOMING_URI": "tcp://[::]:10500"}, "wyoming_uri", "tcp://[::]:10500"),
        ({"WYOMING_URI": "tcp://localhost:1"}, "wyoming_uri", "tcp://localhost:1"),
    ],
)
def test_values(given_values: dict[str, str], name: str, value: object) -> None:
    assert getattr(load(**given_values).settings, name) == value


def test_toml_numbers_serve_as_words(tmp_path: Path) -> None:
    (tmp_path / "piagent.toml").write_text("mqtt_protocol = 5\nollama_keep_alive = -1\nmemory_ttl_min = 1.5")
    chosen = load().settings
    assert (chosen.mqtt_protocol, chosen.ollama_keep_alive, chosen.memory_ttl_min) == ("5", "-1", 1.5)


# ------------------------------------------------------------------------------------------------------------ problems


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MQTT_PORT", "0"),
        ("MQTT_PORT", "65536"),
        ("MQTT_PORT", "9" * 5000),
        ("MQTT_HOST", "mqtt://broker"),
        ("MQTT_HOST", "broker:1883"),
        ("MQTT_BASE_TOPIC", "home/+/ai"),
        ("MQTT_BASE_TOPIC", "home/#"),
        ("MQTT_BASE_TOPIC", "piagent/"),
        ("MQTT_BASE_TOPIC", "$SYS/piagent"),
        ("MQTT_BASE_TOPIC", "a\nb"),
        ("MQTT_BASE_TOPIC", "x" * 70_000),
        ("MQTT_CLIENT_ID", "a\x00b"),
        ("MQTT_PROTOCOL", "4"),
        ("RESPONSE_TOPIC_PREFIXES", "piagent/,$SYS/"),
        ("RESPONSE_TOPIC_PREFIXES", "#"),
        ("PROVIDER", ","),
        ("HERMES_LISTEN", "textCaptured,everything"),
        ("HERMES_LISTEN", ","),
        ("VOICE_AGENT", "../voice"),
        ("WYOMING_URI", "10500"),
        ("WYOMING_URI", "tcp://0.0.0.0"),
        ("WYOMING_URI", "tcp://0.0.0.0:0"),
        ("WYOMING_URI", "tcp://0.0.0.0:65536"),
        ("WYOMING_URI", "tcp://user@0.0.0.0:10500"),
        ("WYOMING_URI", "unix:///run/piagent"),
        ("PROVIDER", "ollama;echo"),
        ("OLLAMA_HOST", "ftp://x"),
        ("OLLAMA_HOST", "a b"),
        ("OLLAMA_KEEP_ALIVE", "forever"),
        ("TEMPERATURE", "nan"),
        ("TEMPERATURE", "-0.1"),
        ("CTX_TOKENS", "12.5"),
        ("TOTAL_TIMEOUT_S", "0"),
        ("TOTAL_TIMEOUT_S", "inf"),
        ("IDLE_TIMEOUT_S", "-1"),
        ("SHUTDOWN_GRACE_S", "-1"),
        ("MEMORY_URL", "sqlite:///"),
        ("MEMORY_URL", "sqlite:memory.db"),
        ("MEMORY_URL", "/var/lib/piagent"),
        ("DEFAULT_AGENT", "../general"),
        ("ENABLE_MEMORY", "perhaps"),
        ("THINK", "very"),
        ("LOG_LEVEL", "loud"),
        ("MAX_WAITING", "70000"),
    ],
)
def test_a_bad_value_is_one_line_naming_setting_and_place(name: str, value: str) -> None:
    (problem,) = problems(**{name: value})
    assert problem.startswith(f"{name}: ")
    assert problem.endswith(f"(environment {name})")
    assert len(problem) < 300


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_a_value_that_is_not_utf_8_is_one_line_that_does_not_show_it(name: str) -> None:
    (problem,) = problems(**{name.upper(): f"{CANARY}\udcff"})
    assert problem == f"{name.upper()}: should be UTF-8 text (environment {name.upper()})"


def test_a_path_of_a_secret_need_not_be_utf_8(tmp_path: Path) -> None:
    (tmp_path / "\udcff").write_text("sesame")
    key = load(OLLAMA_API_KEY_FILE=f"{tmp_path}/\udcff").settings.ollama_api_key
    assert key
    assert key.get_secret_value() == "sesame"


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "piagent.toml").write_text("# ours\nmqtt_port = 99999\nmqtt_prot = 5\n\n[mqtt]\nhost = 1\n")
    (tmp_path / ".env").write_text("SOMETHING_ELSE=1\nexport PIAGENT_MQTT_HOTS=x\n")
    found = problems(TEMPERATURE="99", PIAGENT_THINKS="1", PIAGENT_TEST_BROKER="x", MQTT_HOTS="ignored")
    assert set(found) == {
        "PIAGENT_TEST_BROKER: there is no such setting (environment PIAGENT_TEST_BROKER)",
        "PIAGENT_THINKS: there is no such setting; did you mean THINK? (environment PIAGENT_THINKS)",
        "PIAGENT_MQTT_HOTS: there is no such setting; did you mean MQTT_HOST? (.env:2)",
        "piagent.toml:3: mqtt_prot: there is no such setting; did you mean mqtt_port?",
        "piagent.toml:5: mqtt: there is no such setting; did you mean mqtt_tls?",
        "MQTT_PORT: should be less than or equal to 65535, but is 99999 (piagent.toml:2)",
        "TEMPERATURE: should be less than or equal to 5, but is '99' (environment TEMPERATURE)",
    }


@pytest.mark.parametrize(
    "text", ["mqtt_port = \n", "a = 'x", "x = 1\nx = 2", "\x00", "a=" + "[" * 5000, "a = " + "9" * 5000]
)
def test_a_broken_toml_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "piagent.toml").write_text(f"max_tokens = 5\n{text}")
    (problem,) = problems()
    assert problem.startswith("piagent.toml:")


def test_the_line_of_a_toml_mistake_is_named(tmp_path: Path) -> None:
    (tmp_path / "piagent.toml").write_text('max_tokens = 5\nmqtt_host = "x\n')
    (problem,) = problems()
    assert problem.startswith("piagent.toml:2: ")


@pytest.mark.parametrize(
    "above",
    [
        'mqtt_username = """\nmax_tokens = 1\n"""',
        "mqtt_username = '''\nmax_tokens = 1\\'''",
        'mqtt_username = """\\"""\nmax_tokens = 1"""""',
        "# it's \"\"\"\nmqtt_username = '''x'''",
        """mqtt_username = "'''#"\nmqtt_client_id = "'''" """,
        'response_topic_prefixes = [\n  "max_tokens=x",\n]',
        'response_topic_prefixes = [\n  "other",\n  "max_tokens"]',
    ],
)
def test_a_line_that_only_looks_like_a_setting_is_not_told_of(tmp_path: Path, above: str) -> None:
    (tmp_path / "piagent.toml").write_text(f"{above}\nmax_tokens = -5\n")
    line = above.count("\n") + 2
    assert f"MAX_TOKENS: should be greater than or equal to 1, but is -5 (piagent.toml:{line})" in problems()


def test_a_line_within_a_text_is_no_table_of_a_provider(tmp_path: Path) -> None:
    text = 'mqtt_username = """\n[providers.a]\nurl = x\n"""\n[providers.a]\nkind = "ollama"\nulr = "x"\n'
    (tmp_path / "piagent.toml").write_text(text)
    assert "piagent.toml:7: [providers.a] ulr: there is no such key; did you mean url?" in problems()


def test_a_line_of_a_dotenv_that_only_looks_like_a_setting_is_not_told_of(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('MQTT_USERNAME="x\nMAX_TOKENS=1"\n\nexport MAX_TOKENS=-5\n')
    assert problems() == ("MAX_TOKENS: should be greater than or equal to 1, but is '-5' (.env:4)",)
    (tmp_path / ".env").write_text("MQTT_USERNAME=x\n\n\n'x y\n")
    assert problems() == (".env:4: this is not NAME=value",)


def test_a_broken_dotenv_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MQTT_HOST=a\n'x y\n")
    assert problems() == (".env:2: this is not NAME=value",)
    (tmp_path / ".env").write_bytes(b"MQTT_HOST=\xff")
    assert problems() == (".env is not UTF-8 text",)


def test_a_password_in_a_dotenv_is_taken_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MQTT_USERNAME=u\nMQTT_PASSWORD='a${HOME}b$c'\n")
    assert secret(load()) == "a${HOME}b$c"


def test_small_letters_in_a_dotenv_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("mqtt_port=99\nsomething=1\npiagent_mqtt_host=x\nMqtt_Password_File=x\n")
    assert problems() == (
        ".env:1: mqtt_port should be in capitals",
        ".env:3: piagent_mqtt_host should be in capitals",
        ".env:4: Mqtt_Password_File should be in capitals",
    )


@pytest.mark.parametrize("target", ["link", "none"], ids=["circle", "nowhere"])
@pytest.mark.parametrize(
    "name", ["PROMPTS_DIR", "FILES_DIR", "MQTT_CA_FILE", "MQTT_PASSWORD_FILE", "OLLAMA_API_KEY_FILE", "PIAGENT_CONFIG"]
)
def test_a_link_that_leads_nowhere_is_one_line(tmp_path: Path, name: str, target: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(target)
    (problem,) = problems(**{name: str(link), "MQTT_TLS": "true"})
    assert f"{link} " in problem
    assert "that can be read" in problem or "cannot be read: " in problem


def test_a_folder_that_may_not_be_looked_into_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat, read = Path.stat, Path.open

    def forbidden(path: Path, *arguments: Any, **more: Any) -> Any:
        if "locked" in path.parts:
            raise PermissionError(errno.EACCES, "Permission denied")
        return (read if arguments else stat)(path, *arguments, **more)

    monkeypatch.setattr(Path, "stat", forbidden)
    monkeypatch.setattr(Path, "open", forbidden)
    monkeypatch.setattr(sources, "CONFIG_PATHS", (tmp_path / "locked" / "piagent.toml",))
    assert problems() == (f"{tmp_path}/locked/piagent.toml cannot be read: Permission denied",)


def test_nobodys_home_is_a_problem() -> None:
    (problem,) = problems(MQTT_USERNAME="u", MQTT_PASSWORD_FILE="~nobody-of-that-name/password")
    assert problem.startswith("MQTT_PASSWORD: ~nobody-of-that-name/password cannot be read: No such file")


@pytest.mark.parametrize("name", ["mqtt_port", "temperature", "max_tokens", "health_interval_s"])
def test_true_is_no_number(tmp_path: Path, name: str) -> None:
    (tmp_path / "piagent.toml").write_text(f"{name} = true")
    assert problems() == (f"{name.upper()}: should be a number, but is true (piagent.toml:1)",)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MAX_TOKENS": "4096"}, "MAX_TOKENS (4096) leaves too little of CTX_TOKENS (4096)"),
        ({"CTX_TOKENS": "1024"}, "MAX_TOKENS (1024) leaves too little of CTX_TOKENS (1024)"),
        ({"MQTT_TLS": "1", "MQTT_CERT_FILE": "c.pem"}, "MQTT_CERT_FILE and MQTT_KEY_FILE need each other"),
        ({"MQTT_CA_FILE": "ca.pem"}, "MQTT_CA_FILE needs MQTT_TLS=true"),
        ({"MQTT_PASSWORD": CANARY}, "MQTT_PASSWORD needs MQTT_USERNAME"),
        ({"MAX_WAITING": "60000"}, "MAX_WAITING and MAX_CONCURRENT together may not exceed 60000"),
    ],
)
def test_settings_must_fit_together(environ: dict[str, str], words: str) -> None:
    (problem,) = problems(**environ)
    assert problem.startswith(words)


def test_files_and_folders_must_be_there(tmp_path: Path) -> None:
    missing = str(tmp_path / "no")
    found = problems(MQTT_TLS="1", MQTT_CA_FILE=missing, PROMPTS_DIR=missing, FILES_DIR="a\x00b")
    assert [problem.partition(":")[0] for problem in found] == ["MQTT_CA_FILE", "PROMPTS_DIR", "FILES_DIR"]
    (tmp_path / "ca.pem").write_text("x")
    assert load(MQTT_TLS="1", MQTT_CA_FILE="ca.pem", FILES_DIR=str(tmp_path)).settings.mqtt_ca_file == "ca.pem"


def test_the_constructor_refuses_unknown_names() -> None:
    with pytest.raises(ValidationError):
        Settings(mqtt_prot=1)  # type: ignore[call-arg]


# ------------------------------------------------------------------------------------------------------------- secrets


def secret(loaded: Loaded, name: str = "mqtt_password") -> str | None:
    value = getattr(loaded.settings, name)
    return value.get_secret_value() if value else None


def test_a_secret_file_counts_as_the_place_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(f"{CANARY}\n")
    (tmp_path / "piagent.toml").write_text('mqtt_username = "u"\nmqtt_password = "toml"')
    loaded = load(MQTT_PASSWORD_FILE=str(tmp_path / "file"))
    assert secret(loaded) == CANARY
    assert loaded.origins["mqtt_password"] == "MQTT_PASSWORD_FILE in environment MQTT_PASSWORD_FILE"
    (tmp_path / "piagent.toml").write_text('mqtt_username = "u"\nmqtt_password_file = "file"')
    assert secret(load()) == CANARY
    assert secret(load(MQTT_PASSWORD="environment")) == "environment"
    assert secret(load(MQTT_PASSWORD="bare", PIAGENT_MQTT_PASSWORD_FILE="file")) == CANARY


def test_a_credential_comes_last_before_the_default(tmp_path: Path) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    environ = {"CREDENTIALS_DIRECTORY": str(folder), "MQTT_USERNAME": "u"}
    assert secret(load(**environ)) is None
    (folder / "mqtt-password").write_text("dashes")
    assert secret(load(**environ)) == "dashes"
    (folder / "mqtt_password").write_text("underscores\n")
    assert secret(load(**environ)) == "underscores"
    assert load(**environ).origins["mqtt_password"] == "credential mqtt_password"
    assert secret(load(**environ, MQTT_PASSWORD="set")) == "set"
    (folder / "mqtt_password").write_text("\n")
    (folder / "mqtt-password").unlink()
    assert secret(load(**environ)) is None


def test_a_named_file_out_of_reach_is_the_credential_of_its_name(tmp_path: Path) -> None:
    """The service's user cannot read what belongs to root; systemd hands it over."""
    folder = tmp_path / "credentials"
    folder.mkdir()
    for name in ("mqtt_password", "mqtt_key"):
        (folder / name).write_text("handed over\n")
    (tmp_path / "mqtt_cert").touch()
    environ = {
        "CREDENTIALS_DIRECTORY": str(folder),
        "MQTT_USERNAME": "u",
        "MQTT_TLS": "1",
        "MQTT_CERT_FILE": "mqtt_cert",
    }
    for key in ("mqtt_key", "/root-only/mqtt_key"):
        loaded = load(**environ, MQTT_KEY_FILE=key, MQTT_PASSWORD_FILE="/root-only/mqtt_password")
        assert loaded.settings.mqtt_key_file == str(folder / "mqtt_key")
        assert loaded.settings.mqtt_cert_file == "mqtt_cert"
        assert secret(loaded) == "handed over"
    (tmp_path / "mqtt_key").touch()
    assert load(**environ, MQTT_KEY_FILE="mqtt_key").settings.mqtt_key_file == "mqtt_key", "what can be read is meant"
    (problem,) = problems(**environ, MQTT_KEY_FILE="/root-only/other")
    assert problem.startswith("MQTT_KEY_FILE: /root-only/other is not a file that can be read")


def test_the_older_name_of_the_cloud_key_is_known(tmp_path: Path) -> None:
    assert secret(load(OLLAMA_CLOUD_API_KEY="old"), "ollama_api_key") == "old"
    assert secret(load(OLLAMA_CLOUD_API_KEY="old", OLLAMA_API_KEY="new"), "ollama_api_key") == "new"
    (tmp_path / "key").write_text("from file")
    assert secret(load(PIAGENT_OLLAMA_CLOUD_API_KEY_FILE="key"), "ollama_api_key") == "from file"


def test_secret_files_that_cannot_be_used_are_problems(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"x" * 300_000)
    for name, words in [
        ("empty", "is empty"),
        ("binary", "not UTF-8"),
        ("large", "larger"),
        ("none", "cannot be read"),
    ]:
        (problem,) = problems(MQTT_USERNAME="u", MQTT_PASSWORD_FILE=name)
        assert words in problem
        assert problem.startswith("MQTT_PASSWORD")
    both = problems(MQTT_USERNAME="u", MQTT_PASSWORD=CANARY, MQTT_PASSWORD_FILE="empty")
    assert both[0].startswith("MQTT_PASSWORD and MQTT_PASSWORD_FILE are both set")
    assert CANARY not in "".join(both)


def test_no_secret_is_ever_shown(tmp_path: Path) -> None:
    url = f"http://user:{CANARY}@host:11434"
    loaded = load(MQTT_USERNAME="u", MQTT_PASSWORD=CANARY, OLLAMA_API_KEY=CANARY, OLLAMA_HOST=url)
    for text in (repr(loaded), str(loaded.settings), repr(loaded.settings.masked()), f"{loaded.settings}"):
        assert CANARY not in text
    assert loaded.settings.shown("ollama_host") == "http://********@host:11434"
    assert loaded.settings.shown("mqtt_password") == "********"
    (tmp_path / "piagent.toml").write_text(f'mqtt_password = ["{CANARY}"]\nollama_api_key = {{a = "{CANARY}"}}\n')
    found = problems(MQTT_HOST=f"mqtt://u:{CANARY}@h", OLLAMA_HOST=f"ftp://u:{CANARY}@h", MQTT_USERNAME="u")
    assert len(found) == 4
    assert CANARY not in "".join(found)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"user:{CANARY}@host:11434", "********@host:11434"),
        (f"{CANARY}@host", "********@host"),
        (f"https://u:{CANARY}@x@host/v1", "https://********@host/v1"),
        ("host:11434", "host:11434"),
    ],
)
def test_no_address_shows_its_password(address: str, shown: str) -> None:
    settings = load(OLLAMA_HOST=address, PROVIDER_URL=address).settings
    assert (settings.shown("ollama_host"), settings.masked()["provider_url"]) == (shown, shown)
    for name in ("MQTT_HOST", "OLLAMA_HOST", "PROVIDER_URL", "WYOMING_URI"):
        (problem,) = problems(**{name: f"{address} /x"})
        assert CANARY not in problem
    secrets = secrets_in_address(address)
    assert bool(secrets) == ("@" in address)
    assert CANARY not in address or any(secret.startswith(CANARY) for secret in secrets)


@pytest.mark.parametrize(
    ("allowed", "model", "allows_it"),
    [
        ((), "any", True),
        (("a",), "a", True),
        (("a",), "a:latest", True),
        (("a:latest",), "a", True),
        (("a",), "a:1b", False),
        (("host:5000/me/a",), "host:5000/me/a:latest", True),
    ],
)
def test_a_model_is_the_same_with_latest(allowed: tuple[str, ...], model: str, allows_it: bool) -> None:
    assert allows(allowed, model) is allows_it


def test_a_user_name_with_an_at_is_shown() -> None:
    assert load(MQTT_USERNAME="ann@example.com").settings.shown("mqtt_username") == "ann@example.com"
    assert secrets_in_address("http://ann:a%20b@host") == ("ann:a%20b", "a%20b")


# -------------------------------------------------------------------------------------------------------------- reload


def test_a_reload_takes_what_it_may_and_names_the_rest() -> None:
    old, new = Settings(), Settings(mqtt_host="other", max_tokens=200, provider="echo", log_level="debug")
    merged = reloaded(old, new)
    assert (merged.max_tokens, merged.log_level) == (200, "debug")
    assert (merged.mqtt_host, merged.provider) == ("127.0.0.1", "ollama")
    assert restart_needed(old, new) == ("MQTT_HOST", "PROVIDER")
    assert restart_needed(old, Settings()) == ()


def test_what_hangs_on_a_connection_or_a_file_wants_a_restart() -> None:
    fixed = {name for name in Settings.model_fields if name.startswith("mqtt_")} | {
        "memory_url",
        "provider",
        "ollama_host",
        "first_token_timeout_s",
        "memory_ttl_min",
        "dedupe_window_s",
    }
    assert not fixed & reloadable
    assert {"max_tokens", "temperature", "max_retries", "log_level", "prompts_dir"} <= reloadable


# --------------------------------------------------------------------------------------------------------------- table


def test_the_table_has_every_setting_once_with_words() -> None:
    rows = {row.name: row for row in table()}
    assert rows.keys() == {name.upper() for name in Settings.model_fields}
    assert all(row.description and row.default for row in rows.values())
    assert {name for name, row in rows.items() if row.secret} == {name.upper() for name in secrets}
    keys = {"ollama_api_key", "provider_key", "openai_api_key", "anthropic_api_key", "hf_token"}
    assert secrets == {"mqtt_password", *keys}
    assert rows["MQTT_PORT"].default == "1883 (8883 with TLS)"
    assert rows["MQTT_PORT"].values == "1 to 65535"
    assert rows["ENABLE_MEMORY"].default == "true"
    assert rows["LOG_LEVEL"].values == "debug, info, warning, error"
    assert rows["MEMORY_TTL_MIN"].default == "60"


# ------------------------------------------------------------------------------------------------- values from outside

NAMES = st.sampled_from(
    [prefix + name.upper() for name in (*Settings.model_fields, "mqtt_password_file") for prefix in ("", "PIAGENT_")]
    + ["PIAGENT_MQTT_PROT", "PIAGENT_", "PIAGENT_\n", "CREDENTIALS_DIRECTORY", "PIAGENT_CONFIG"]
)
WORDS = st.sampled_from(
    ["true", "-1", "0", "1e400", "nan", "memory:", "sqlite:///x", "a,b", "http://", "::", "\udcff", "[]"]
)


def outcome(**environ: str) -> tuple[str, ...]:
    """Load and return the problems; anything but settings or a ConfigError comes out as it is."""
    try:
        load(**environ)
    except ConfigError as error:
        return error.problems or ("a ConfigError without a problem\n",)
    return ()


@given(st.dictionaries(NAMES, st.text(max_size=40) | WORDS, max_size=6))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_environment_gives_settings_or_a_config_error(environ: dict[str, str]) -> None:
    assert all(problem.isprintable() for problem in outcome(**environ))


@given(st.binary(max_size=200) | st.text(alphabet="mqtt_por=[]{}\"'\\\n #.19-:T", max_size=80).map(str.encode))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.parametrize("name", ["piagent.toml", ".env"])
def test_any_file_gives_settings_or_a_config_error(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    assert all(problem.isprintable() for problem in outcome())


def test_settings_are_made_in_an_instant() -> None:
    fields: dict[str, Any] = {"mqtt_host": "broker", "mqtt_username": "u", "mqtt_password": SecretStr("x")}
    best = min(_seconds(fields) for _ in range(10))
    assert best < 0.015


def _seconds(fields: dict[str, Any]) -> float:
    started = time.perf_counter()
    Settings(**fields)
    return time.perf_counter() - started
