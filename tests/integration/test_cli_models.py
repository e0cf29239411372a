"""`piagent models` against a model server."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.cli import Cli
from tests.fakes.ollama import FakeOllama


@pytest.fixture
async def library() -> AsyncIterator[FakeOllama]:
    async with FakeOllama(pullable={"tiny:1b"}, pull_step_s=0.02) as server:
        yield server


async def test_list(library: FakeOllama) -> None:
    async with Cli("models", "list", ollama_host=library.url) as cli:
        assert await cli.end() == 0
    assert cli.out.split()[0] in library.models
    async with Cli("models", "list", "--json", ollama_host=library.url) as cli:
        assert await cli.end() == 0
    assert [row["name"] for row in json.loads(cli.out)] == list(library.models)


async def test_an_empty_server_says_how_to_fill_it() -> None:
    async with FakeOllama({}) as server, Cli("models", "list", ollama_host=server.url) as cli:
        assert await cli.end() == 0
    assert cli.out == ""
    assert "piagent models pull" in cli.err


async def test_pull_shows_a_bar_for_each_layer_on_a_terminal(library: FakeOllama) -> None:
    async with Cli("models", "pull", "tiny:1b", tty=True, ollama_host=library.url) as cli:
        assert await cli.end() == 0
    assert "100%|" in cli.out
    assert "tiny:1b is there." in cli.out
    assert "tiny:1b" in library.models


async def test_pull_without_a_terminal_names_each_stage_once(library: FakeOllama) -> None:
    async with Cli("models", "pull", "tiny:1b", ollama_host=library.url) as cli:
        assert await cli.end() == 0
    lines = cli.err.splitlines()
    assert lines[0] == "pulling manifest"
    assert lines[-1] == "success"
    assert len(lines) == len(set(lines))


async def test_pull_as_json_lines(library: FakeOllama) -> None:
    async with Cli("models", "pull", "tiny:1b", "--json", ollama_host=library.url) as cli:
        assert await cli.end() == 0
    rows = [json.loads(line) for line in cli.out.splitlines()]
    assert rows[-1]["status"] == "success"
    assert any(row["total"] and row["completed"] == row["total"] for row in rows)


async def test_a_model_that_nobody_has(library: FakeOllama) -> None:
    async with Cli("models", "pull", "nobody:1b", ollama_host=library.url) as cli:
        assert await cli.end() == 1
    assert "nobody:1b" in cli.err or "manifest" in cli.err
    async with Cli("models", "pull", "nobody:1b", "--json", ollama_host=library.url) as cli:
        assert await cli.end() == 1
    assert json.loads(cli.out.splitlines()[-1])["status"] == "error"


async def test_ctrl_c_stops_a_download_that_goes_on_later() -> None:
    async with FakeOllama(pullable={"tiny:1b"}, pull_step_s=0.3) as server:
        async with Cli("models", "pull", "tiny:1b", ollama_host=server.url) as cli:
            await cli.until(lambda: "pulling" in cli.err)
            cli.interrupt()
            assert await cli.end() == 1
        assert cli.err.endswith("Stopped. `piagent models pull tiny:1b` goes on where it was.\n")
        assert "Traceback" not in cli.err


async def test_remove(library: FakeOllama) -> None:
    name = next(iter(library.models))
    async with Cli("models", "rm", name, "nobody:1b", "--json", ollama_host=library.url) as cli:
        assert await cli.end() == 1
    found = json.loads(cli.out)
    assert found["removed"] == [name]
    assert [(row["model"], row["code"]) for row in found["failed"]] == [("nobody:1b", "model_not_found")]
    assert found["failed"][0]["message"].startswith('There is no model "nobody:1b" to remove; `piagent models list`')
    assert not library.models


async def test_no_model_server() -> None:
    async with Cli("models", "list", ollama_host="127.0.0.1:9") as cli:
        assert await cli.end() == 1
    assert "OLLAMA_HOST" in cli.err


async def test_a_server_of_piagent_toml_can_be_named(library: FakeOllama, tmp_path: Path) -> None:
    file = tmp_path / "piagent.toml"
    file.write_text(f'provider = "ollama,desk"\n[providers.desk]\nkind = "ollama"\nurl = "{library.url}"\n')
    async with Cli("--config", str(file), "models", "pull", "tiny:1b", "--provider", "desk") as cli:
        assert await cli.end() == 0
    assert "tiny:1b" in library.models
    async with Cli("--config", str(file), "models", "list", "--provider", "attic") as cli:
        assert await cli.end() == 2
    assert 'there is no provider "attic"; choose from anthropic,' in cli.err
    assert " desk," in cli.err
