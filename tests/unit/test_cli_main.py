"""The verbs: found by name, loaded alone, ended with the right code."""

import importlib
import io
import json
import os
import sys
import tomllib
from pathlib import Path

import pytest

from piagent_daemon import __version__, cli
from piagent_daemon.cli import VERBS, main
from piagent_daemon.cli.config import _words
from piagent_daemon.errors import PiagentError
from piagent_daemon.settings import Settings
from piagent_daemon.settings_table import table

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the tester's own environment and files out."""
    names = {name.upper() for name in Settings.model_fields}
    for name in list(os.environ):
        if name.removeprefix("PIAGENT_") in names or name == "PIAGENT_CONFIG":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_without_arguments_comes_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_takes_a_config(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: piagent {verb}")
    assert "--config PATH" in shown


@pytest.mark.parametrize("verb", ["ask", "asyncapi", "config", "doctor"])
def test_what_reads_data_speaks_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([verb, "--help"])
    assert "--json" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"piagent {__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["sing"],
        ["--loud"],
        ["--config"],
        ["config", "--loud"],
        ["ask"],
        ["models"],
        ["models", "pull"],
        ["asyncapi", "--json", "--yaml"],
        ["ask", "--timeout", "soon", "hello"],
        ["ask", "--timeout", "-1", "hello"],
        ["ask", "--timeout", "inf", "hello"],
        ["ask", "--timeout", "nan", "hello"],
        ["ask", "--timeout", "1e300", "hello"],
        ["ask", "--conversation", "a/b", "hello"],
        ["chat", "--conversation", "a/b"],
        ["asyncapi", "--base", "a/#"],
        ["asyncapi", "--base", ""],
        ["ask", "   "],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err


def test_bad_configuration_is_78_with_a_line_per_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIAGENT_MQTT_PORT", "many")
    monkeypatch.setenv("PIAGENT_MAX_TOKENS", "-3")
    monkeypatch.setenv("PIAGENT_NONSENSE", "1")
    for verb in (["run"], ["config"], ["doctor"], ["ask", "hello"], ["models", "list"]):
        assert main(verb) == 78
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 3
        assert all(line.startswith("piagent: ") for line in lines)
        for name in ("MQTT_PORT", "MAX_TOKENS", "PIAGENT_NONSENSE"):
            assert sum(name in line for line in lines) == 1


@pytest.mark.parametrize(
    "argv", [["--config", "{}", "config"], ["--config={}", "config"], ["config", "--config", "{}"]]
)
def test_the_config_path_may_stand_before_or_after_the_verb(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("mqtt_port = 1999\n")
    assert main([word.format(path) for word in argv] + ["--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["MQTT_PORT"]
    assert shown["value"] == 1999
    assert str(path) in shown["origin"]


def test_config_masks_secrets_and_names_origins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MQTT_USERNAME", "anna")
    monkeypatch.setenv("MQTT_PASSWORD", "canary-password")
    monkeypatch.setenv("PIAGENT_OLLAMA_API_KEY", "canary-key")
    monkeypatch.setenv("OLLAMA_HOST", "http://anna:canary-url@127.0.0.1:11434")
    assert main(["config"]) == 0
    text = capsys.readouterr().out
    assert main(["config", "--json"]) == 0
    found = capsys.readouterr().out
    assert "canary" not in text + found
    assert found.count("********") == 3
    rows = json.loads(found)
    assert list(rows) == [row.name for row in table()]
    assert "environment" in rows["MQTT_USERNAME"]["origin"]
    assert rows["MQTT_PORT"] == {"value": 1883, "origin": "default"}
    assert len(text.splitlines()) == len(rows)


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "-"), (True, "true"), ([], "-"), (["a", "b"], "a,b"), (60.0, "60"), (7, "7"), ("x", "x")],
)
def test_config_values_in_words(value: object, words: str) -> None:
    assert _words(value) == words


def test_a_failure_is_one_line_and_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> int:
        raise PiagentError("The kettle is cold. Fill it.")

    monkeypatch.setattr(importlib.import_module("piagent_daemon.cli.asyncapi"), "run", fail)
    assert main(["asyncapi"]) == cli.FAILED
    assert capsys.readouterr().err == "piagent: The kettle is cold. Fill it.\n"


def test_the_script_is_main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"piagent": "piagent_daemon.cli:main"}


def test_reading_a_question_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main(["ask", "-"]) == 2
    assert "empty" in capsys.readouterr().err
