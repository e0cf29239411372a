"""`piagent doctor`: what is well, and what is not, each seen on real parts."""

import argparse
import asyncio
import contextlib
import errno
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from piagent_daemon import checks
from piagent_daemon.agents import Agent
from piagent_daemon.checks import Finding
from piagent_daemon.cli import doctor
from piagent_daemon.cli.checks import local
from piagent_daemon.settings import Settings
from piagent_daemon.stores.sqlite import SqliteStore
from piagent_daemon.values import Outcome, Turn
from tests.conftest import BrokerFactory
from tests.fakes.broker import Mosquitto, free_port
from tests.fakes.cli import Cli
from tests.fakes.doubles import FakeClock
from tests.fakes.observer import Message, Observer
from tests.fakes.ollama import FakeOllama, Model
from tests.fakes.responder import Responder

MODEL = "qwen2.5:3b-instruct"


async def _report(**settings: Any) -> tuple[int, dict[str, dict[str, str]]]:
    """Run the doctor; return its exit code and its findings by name."""
    async with Cli("doctor", "--json", **settings) as cli:
        code = await cli.end()
    report = json.loads(cli.out)
    assert cli.err == ""
    assert report["ok"] is (code == 0)
    assert all(finding["remedy"] for finding in report["checks"] if finding["state"] != "ok")
    return code, {finding["check"]: finding for finding in report["checks"]}


@asynccontextmanager
async def _daemon(observer: Observer, health: Mapping[str, Any]) -> AsyncIterator[None]:
    """Play a daemon that answers `request/health`."""
    responder = Responder(observer)
    await responder.show(**health)

    async def answer() -> None:
        asked = await observer.wait(lambda message: message.topic.endswith("/request/health"), 10)
        await observer.publish(
            f"{observer.base}/response/health", {"status": "ok", "transaction": asked.field("transaction")}
        )

    task = asyncio.create_task(answer(), name="answer")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_all_is_well(
    mosquitto: Mosquitto, base_topic: str, observer: Observer, model_server: FakeOllama, tmp_path: Path
) -> None:
    place = {"mqtt_port": mosquitto.port, "mqtt_base_topic": base_topic, "ollama_host": model_server.url}
    url = f"sqlite:///{tmp_path}/memory.db"
    async with _daemon(observer, {"status": "ok"}):
        code, found = await _report(**place, memory_url=url)
    assert code == 0, found
    names = ["clock", "prompts", "context", "memory", "broker", "credentials", "protocol", "permissions", "daemon"]
    assert list(found) == [*names, "server ollama", "model", "answer"]
    assert not (tmp_path / "memory.db").exists()
    assert [record.body["options"]["num_ctx"] for record in model_server.questions] == [4096]


async def test_each_agents_model_is_looked_for_where_the_agent_lives(tmp_path: Path) -> None:
    (tmp_path / "coder.md").write_text("---\nprovider: desk\nmodel: code:7b\n---\nYou write code.\n")
    async with FakeOllama() as home, FakeOllama({"code:7b": Model()}) as desk:
        file = tmp_path / "piagent.toml"
        file.write_text(
            f'ollama_host = "{home.url}"\nprompts_dir = "{tmp_path}"\n'
            f'[providers.desk]\nkind = "ollama"\nurl = "{desk.url}"\nmodel = "code:7b"\n'
        )
        async with Cli("doctor", "--json", "--no-ask", "--config", str(file), mqtt_port=free_port()) as cli:
            await cli.end()
    rows = [(row["check"], row["state"], row["detail"]) for row in json.loads(cli.out)["checks"]]
    assert [row for row in rows if row[0].startswith(("server", "model"))] == [
        ("server ollama", "ok", "answers"),
        ("model", "ok", f"{MODEL} is there"),
        ("server desk", "ok", "answers"),
        ("model", "ok", "code:7b is there"),
    ]


async def test_a_provider_that_a_prompt_file_misnames(tmp_path: Path) -> None:
    (tmp_path / "cook.md").write_text("---\nmodel: small:1b\nprovider: nobody\n---\nYou cook.\n")
    code, found = await _report(mqtt_port=free_port(), provider="echo", prompts_dir=str(tmp_path))
    assert code == 1
    assert found["server echo"]["state"] == "ok"
    assert found["server nobody"]["detail"].startswith(
        f"{tmp_path}/cook.md:3: provider: 'nobody' is not one of anthropic"
    )
    assert "Correct the prompt file" in found["server nobody"]["remedy"]


async def test_a_running_daemon_is_not_disturbed(
    mosquitto: Mosquitto, base_topic: str, observer: Observer, model_server: FakeOllama
) -> None:
    place: dict[str, Any] = {"mqtt_port": mosquitto.port, "mqtt_base_topic": base_topic}
    async with (
        _daemon(observer, {"status": "ok"}),
        Cli("doctor", "--no-ask", ollama_host=model_server.url, **place) as cli,
    ):
        assert await cli.end() == 0
    assert not model_server.questions

    def own(message: Message) -> bool:
        return "/piagent-doctor-" in message.topic

    assert not [message for message in observer.messages if message.retain and own(message)]
    for message in filter(own, observer.messages):
        if message.topic.endswith("/in"):
            assert message.qos == 0
            assert {"type", "request_id", "seq", "conversation_id"} <= message.json.keys()


async def test_on_a_terminal_it_is_in_colour_with_remedies(model_server: FakeOllama) -> None:
    async with Cli("doctor", tty=True, mqtt_port=free_port(), ollama_host=model_server.url) as cli:
        assert await cli.end() == 1
    assert "\x1b[31mFAIL  broker" in cli.out
    assert "-> Install one with" in cli.out
    assert "ok    server ollama" in cli.out
    assert "Not all is well" in cli.out


@pytest.mark.parametrize(("status", "state"), [(None, "does"), ("offline", "stopped"), ("degraded", "degraded")])
async def test_the_daemon_s_state(
    status: str | None, state: str, mosquitto: Mosquitto, base_topic: str, observer: Observer
) -> None:
    place = {"mqtt_port": mosquitto.port, "mqtt_base_topic": base_topic, "provider": "echo"}
    health = {"reasons": ["model_not_found"], "provider": {"error": "Pull the model."}}
    if status == "degraded":
        async with _daemon(observer, {"status": status, **health}):
            code, found = await _report(**place)
        assert "model_not_found" in found["daemon"]["detail"]
        assert found["daemon"]["remedy"] == "Pull the model."
    else:
        if status:
            await Responder(observer).show(status)
        code, found = await _report(**place)
        assert "systemctl start piagent" in found["daemon"]["remedy"]
    assert code == 1
    assert found["daemon"]["state"] == "fail"
    assert state in found["daemon"]["detail"] or status is None


async def test_a_daemon_that_does_not_answer(mosquitto: Mosquitto, base_topic: str, observer: Observer) -> None:
    await Responder(observer).show()
    code, found = await _report(mqtt_port=mosquitto.port, mqtt_base_topic=base_topic, provider="echo")
    assert code == 1
    assert "does not answer" in found["daemon"]["detail"]


WRITABLE = ("piagent/+/cancel", "piagent/+/in", "piagent/+/reset", "piagent/request/health")


@pytest.mark.parametrize("protocol", ["5", "311"])
@pytest.mark.parametrize(
    ("rules", "mute"),
    [
        (["topic write piagent/#"], sorted([*WRITABLE, "piagent/+/out", "piagent/response/+"])),
        (
            ["topic read piagent/#", *(f"topic write {name}" for name in WRITABLE)],
            ["piagent/+/out", "piagent/response/+"],
        ),
        (
            ["topic read piagent/#", *(f"topic write {name}" for name in (*WRITABLE, "piagent/+/out"))],
            ["piagent/response/+"],
        ),
    ],
    ids=["deaf", "mute", "mute to admins"],
)
async def test_permissions_are_proven_by_an_own_echo(
    protocol: str, rules: list[str], mute: list[str], new_broker: BrokerFactory
) -> None:
    broker = new_broker(users={"piagent": "right"}, acl="\n".join(["user piagent", *rules, ""]))
    code, found = await _report(
        mqtt_port=broker.port, mqtt_username="piagent", mqtt_password="right", mqtt_protocol=protocol, provider="echo"
    )
    assert code == 1
    assert found["credentials"]["state"] == "ok"
    assert found["permissions"]["state"] == "fail"
    assert found["permissions"]["detail"] == f"no echo on {', '.join(mute)}"
    assert "topic readwrite piagent/#" in found["permissions"]["remedy"]


async def test_wrong_credentials(new_broker: BrokerFactory) -> None:
    broker = new_broker(users={"piagent": "right"})
    settings = {"mqtt_username": "piagent", "mqtt_password": "canary"}
    code, found = await _report(mqtt_port=broker.port, provider="echo", **settings)
    assert code == 1
    assert found["broker"]["state"] == "ok"
    assert found["credentials"]["state"] == "fail"
    assert "canary" not in json.dumps(found)


async def test_the_model_server_is_away_or_lacks_the_model(model_server: FakeOllama) -> None:
    code, found = await _report(mqtt_port=free_port(), ollama_host=f"127.0.0.1:{free_port()}")
    assert code == 1
    assert found["server ollama"]["state"] == "fail"
    code, found = await _report(mqtt_port=free_port(), ollama_host=model_server.url, ollama_model_general="nobody:1b")
    assert found["server ollama"]["state"] == "ok"
    assert found["model"]["state"] == "fail"
    assert "ollama pull nobody:1b" in found["model"]["remedy"]
    assert "answer" not in found


async def test_a_model_that_fails_to_answer(model_server: FakeOllama) -> None:
    model_server.mode = "err"
    code, found = await _report(mqtt_port=free_port(), ollama_host=model_server.url)
    assert code == 1
    assert found["model"]["state"] == "ok"
    assert found["answer"]["state"] == "fail"


# ------------------------------------------------------------------------------------------------ this machine, alone


def test_a_clock_that_was_never_set(tmp_path: Path) -> None:
    assert checks.clock(datetime(1970, 1, 1, tzinfo=UTC), tmp_path).state == "fail"
    assert checks.clock(datetime(2026, 11, 1, tzinfo=UTC), tmp_path).state == "ok"


def test_a_pi_without_a_clock_of_its_own(tmp_path: Path) -> None:
    now = datetime(2026, 11, 1, tzinfo=UTC)
    model = tmp_path / "proc/device-tree/model"
    model.parent.mkdir(parents=True)
    model.write_text("Raspberry Pi 4 Model B")
    assert checks.clock(now, tmp_path).state == "warn"
    synchronised = tmp_path / "run/systemd/timesync/synchronized"
    synchronised.parent.mkdir(parents=True)
    synchronised.touch()
    assert checks.clock(now, tmp_path).state == "ok"


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warn", 1), ("fail", 1)])
def test_a_warning_alone_is_not_all_well(
    state: Literal["ok", "warn", "fail"],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "_check", lambda _settings, note, **_: note(Finding("clock", state, "as it is")))
    assert doctor.run(argparse.Namespace(config=None, json=True, no_ask=True)) == code
    assert json.loads(capsys.readouterr().out)["ok"] is (code == 0)


@pytest.mark.parametrize(("tokens", "state"), [(300, "warn"), (1024, "ok")])
def test_room_in_the_model_s_window(tokens: int, state: str) -> None:
    settings = Settings(ctx_tokens=tokens + 512, max_tokens=512)
    assert checks.context(settings, {"a": Agent(name="a", system="x" * 60)}).state == state


def test_a_prompt_that_leaves_no_room() -> None:
    settings = Settings(ctx_tokens=1024, max_tokens=512)
    assert checks.context(settings, {"a": Agent(name="a", system="x" * 6000)}).state == "fail"


def test_prompt_files(tmp_path: Path) -> None:
    agents, finding = local.prompts(Settings())
    assert finding.state == "ok"
    assert "general" in agents
    assert local.prompts(Settings(default_agent="nobody"))[1].state == "fail"
    assert local.prompts(Settings(voice_agent="nobody"))[1].state == "fail"
    (tmp_path / "broken.md").write_text("---\nnonsense: 1\n---\nHello.\n")
    agents, finding = local.prompts(Settings(prompts_dir=str(tmp_path)))
    assert (agents, finding.state) == ({}, "fail")
    assert "broken.md" in finding.detail


async def _remembered(path: Path) -> Settings:
    """Have the daemon's store write a memory file."""
    settings = Settings(memory_url=f"sqlite://{path}")
    store = SqliteStore(settings, FakeClock())
    await store.start()
    turns = tuple(Turn("user", "y" * 500, datetime(2026, 11, 1, tzinfo=UTC)) for _ in range(20))
    await store.commit(Outcome("kitchen", "r1", terminal=b"{}", agent="general", turns=turns))
    await store.aclose()
    return settings


async def test_the_memory_file(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    assert local.memory(Settings(memory_url=f"sqlite://{path}")).detail == f"{path} comes with the first conversation"
    settings = await _remembered(path)
    assert local.memory(settings) == Finding("memory", "ok", f"{path} is whole")
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP TABLE notes")  # files of version 0.1 have none
    assert local.memory(settings).state == "ok"
    content = bytearray(path.read_bytes())
    content[-4096:] = bytes(4096)
    path.write_bytes(content)
    finding = local.memory(settings)
    assert finding.state == "fail"
    assert "damaged" in finding.detail
    assert path.read_bytes() == bytes(content)


@pytest.mark.parametrize(
    ("change", "detail", "remedy"),
    [
        ("PRAGMA user_version = 99", "cannot be used: the file has version 99", "Install the piagent that wrote it"),
        ("UPDATE histories SET dropped = 7", "is damaged: a row does not match", "Restart the daemon"),
        ("DROP TABLE boot", "is damaged: no such table", "Restart the daemon"),
    ],
)
async def test_a_memory_file_that_the_daemon_would_set_aside(
    tmp_path: Path, change: str, detail: str, remedy: str
) -> None:
    path = tmp_path / "memory.db"
    settings = await _remembered(path)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(change)
    before = path.read_bytes()
    finding = local.memory(settings)
    assert finding.state == "fail"
    assert finding.detail.startswith(f"{path} {detail}")
    assert finding.remedy.startswith(remedy)
    assert path.read_bytes() == before


def test_the_file_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "photos.db"
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE foo (a)")
    finding = local.memory(Settings(memory_url=f"sqlite://{path}"))
    assert (finding.state, finding.detail) == ("fail", f"{path} cannot be used: the file belongs to another program")
    assert "a file of its own" in finding.remedy


def test_what_is_no_memory_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        finding = local.memory(Settings(memory_url=f"sqlite://{tmp_path}/{name}"))
        assert (finding.state, finding.detail) == (
            "fail",
            f"{tmp_path}/{name} cannot be used: it is not a regular file",
        )
        assert "Name a file" in finding.remedy


def test_a_place_where_no_memory_file_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in ("/proc/x.db", f"{tmp_path}/file/x.db"):
        finding = local.memory(Settings(memory_url=f"sqlite://{path}"))
        assert finding.state == "fail"
        assert finding.detail.startswith(f"{path} cannot be written: ")
        assert "Choose another place" in finding.remedy


@pytest.mark.parametrize(
    ("name", "trouble"),
    [
        ("loop", "Too many levels of symbolic links"),
        ("loop/x.db", "Too many levels of symbolic links"),
        ("away", "a link leads to {0}/none/x.db, and {0}/none is not there"),
        ("nowhere/x.db", "a link leads to {0}/none, and {0}/none is not there"),
        ("nowhere/deep/x.db", "a link leads to {0}/none, and {0}/none is not there"),
        ("new", None),
        ("home/x.db", None),
        ("home/deep/x.db", None),
    ],
)
async def test_links_are_followed_as_the_daemon_does(tmp_path: Path, name: str, trouble: str | None) -> None:
    (tmp_path / "folder").mkdir()
    links = {"loop": "loop", "away": "none/x.db", "nowhere": "none", "new": "folder/x.db", "home": "folder"}
    for link, target in links.items():
        (tmp_path / link).symlink_to(target)
    settings = Settings(memory_url=f"sqlite://{tmp_path}/{name}")
    finding = local.memory(settings)
    if trouble is None:
        assert (finding.state, finding.detail) == ("ok", f"{tmp_path}/{name} comes with the first conversation")
    else:
        assert finding.state == "fail"
        assert finding.detail == f"{tmp_path}/{name} cannot be written: {trouble.format(tmp_path)}"
        assert "Choose another place" in finding.remedy
    store = SqliteStore(settings, FakeClock())
    await store.start()
    assert (store.problem is None) is (trouble is None)
    await store.aclose()


def test_a_memory_file_that_another_program_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piagent_daemon.stores.checkup.BUSY_S", 0.01)
    path = tmp_path / "memory.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("BEGIN EXCLUSIVE")
        finding = local.memory(Settings(memory_url=f"sqlite://{path}"))
    assert (finding.state, finding.detail) == ("fail", f"{path} cannot be used: database is locked")
    assert "fuser" in finding.remedy


def test_a_memory_file_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(local, "try_folder", refuse)
    finding = local.memory(Settings(memory_url=f"sqlite://{tmp_path}/x.db"))
    assert (finding.state, finding.detail) == ("fail", f"{tmp_path}/x.db cannot be written by this user")
    assert "sudo -u piagent" in finding.remedy


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_FREE_BYTES", 10**18)
    finding = local.memory(Settings(memory_url=f"sqlite://{tmp_path}/x.db"))
    assert (finding.state, finding.detail) == ("warn", f"the disk of {tmp_path} is nearly full")


@pytest.mark.parametrize("name", ["x?y.db", "x#y.db", "x%3Fy%00.db"])
@pytest.mark.parametrize("enable_memory", [True, False])
def test_a_memory_url_that_the_daemon_refuses(tmp_path: Path, name: str, *, enable_memory: bool) -> None:
    finding = local.memory(Settings(memory_url=f"sqlite://{tmp_path}/{name}", enable_memory=enable_memory))
    assert finding.state == "fail"
    assert finding.detail.startswith("MEMORY_URL: ")


def test_the_memory_file_is_the_daemon_s(tmp_path: Path) -> None:
    folder = tmp_path / "my folder"
    folder.mkdir()
    finding = local.memory(Settings(memory_url=f"sqlite://{tmp_path}/my%20folder/x.db"))
    assert finding.detail.startswith(f"{folder}/x.db ")


def test_memory_that_needs_no_file() -> None:
    assert local.memory(Settings()).state == "ok"
    assert local.memory(Settings(enable_memory=False)).state == "ok"


def test_wyoming_is_looked_at_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Settings(wyoming_uri="tcp://127.0.0.1:10500")
    assert [found.state for found in local.check_local(wanted) if found.check == "wyoming"] == ["ok"]
    assert not [found for found in local.check_local(Settings()) if found.check == "wyoming"]
    monkeypatch.setattr(local, "find_spec", lambda _name: None)
    finding = local.wyoming(wanted)
    assert finding.state == "fail"
    assert "piagent-daemon[wyoming]" in finding.remedy
