"""The daemon's life as systemd and the broker see it: start, health, reload, stop (contract sections 4, 7 and 10)."""

import asyncio
import functools
import itertools
import logging
import re
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from piagent_daemon import app
from piagent_daemon.daemon import Daemon
from piagent_daemon.settings import load_settings
from piagent_daemon.turn import Config
from tests.conftest import BrokerFactory, DaemonFactory
from tests.fakes.answers import admin, ask, check_answer
from tests.fakes.broker import Mosquitto, free_port
from tests.fakes.daemon import DaemonProcess
from tests.fakes.echo_engine import until
from tests.fakes.observer import Message, Observer
from tests.fakes.ollama import DEFAULT_MODEL, FakeOllama

LONG = [f" word{number}" for number in range(400)]
OFFLINE = {"status": "offline"}
HEALTH = {"status", "reasons", "version", "protocol", "started_at", "ts", "provider", "queue", "memory", "totals"}
HEALTH |= {"providers", "speed", "process"}
TOTALS = {"requests", "replies", "errors", "cancelled", "refused", "duplicates", "prompt_tokens", "completion_tokens"}
PROMPT = "You are the keeper of the lighthouse. Answer briefly."


def healths(observer: Observer) -> list[Any]:
    """Return the health messages so far."""
    return [one.json for one in observer.on(f"{observer.base}/health")]


async def health_like(observer: Observer, **wanted: Any) -> Message:
    """Wait for a health message, from the newest on, that has these values."""
    topic = f"{observer.base}/health"

    def is_it(message: Message) -> bool:
        return message.topic == topic and all(message.field(name) == value for name, value in wanted.items())

    newest = max((number for number, one in enumerate(observer.messages) if one.topic == topic), default=0)
    return await observer.wait(is_it, 10, start=newest)


def lines(process: DaemonProcess) -> list[str]:
    """Return all that systemd was told, without the pings."""
    told = [line for _, text in process.notifications for line in text.splitlines()]
    return [line for line in told if line != "WATCHDOG=1"]


def beginnings(server: FakeOllama) -> list[str]:
    """Return the system prompts that the model was primed with, in order."""
    calls = [one for one in server.requests if one.path == "/api/chat" and not one.is_question]
    return [one.body["messages"][0]["content"] for one in calls if one.body.get("messages")]


# ---------------------------------------------------------------------------------------------------- start and health


async def test_a_start_primes_the_model_and_tells_everybody(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    process = await daemon(
        ollama_host=model_server.url, health_interval_s=0.4, ctx_tokens=2048, max_tokens=512, wait=False
    )
    assert await process.ready() < 5, "by the SUBACK, not because 10 s passed"
    await model_server.until(lambda server: len(beginnings(server)) == 2)
    assert "voice assistant" in beginnings(model_server)[0]
    assert "helpful, efficient" in beginnings(model_server)[1], "the default agent is primed last: it stays warmest"
    await health_like(observer, status="ok")
    await ask(observer, "k", "Hello")
    record = model_server.questions[0]
    assert record.evaluated < len(record.prompt) / 2, "the system prompt was in the cache already"
    assert {one.body["options"]["num_ctx"] for one in model_server.requests if one.path == "/api/chat"} == {2048}
    await ask(observer, "hall", {"message": "Hello", "agent": "nobody"})
    async with Observer(observer.port, base=observer.base) as late:  # both are retained
        await late.subscribe(f"{observer.base}/+")
        kept = [
            await late.wait(lambda one: one.topic.endswith("/health") and one.retain),
            await late.wait(lambda one: one.topic.endswith("/info") and one.retain),
        ]
        assert [(one.qos, one.properties["ContentType"]) for one in kept] == [(1, "application/json")] * 2
        state, info = (one.json for one in kept)
    first = await health_like(observer, status="ok")
    second = await observer.wait(lambda one: one.topic == first.topic, start=len(observer.messages))
    assert 0.2 < second.time - first.time < 1.5, "health comes every HEALTH_INTERVAL_S"
    assert (first.qos, first.retain) == (1, True)
    state = second.json
    assert state.keys() == HEALTH
    assert (state["status"], state["reasons"], state["protocol"]) == ("ok", [], "5")
    assert state["provider"] == {
        "name": "ollama",
        "reachable": True,
        "model": DEFAULT_MODEL,
        "model_loaded": True,
        "error": None,
    }
    assert state["queue"] == {"active": 0, "waiting": 0, "limit": 100}
    assert state["memory"] == {"conversations": 1, "store": "memory"}
    assert state["totals"].keys() == TOTALS
    assert (state["totals"]["requests"], state["totals"]["replies"], state["totals"]["errors"]) == (2, 1, 1)
    assert state["totals"]["prompt_tokens"] == len(record.prompt)
    assert state["totals"]["completion_tokens"] == record.tokens
    assert state["speed"]["first_token_s"] > 0
    assert state["speed"]["tokens_per_s"] > 0
    assert {one["protocol"] for one in healths(observer)} == {"5"}, "also the very first names it"
    assert 10 < state["process"]["rss_mb"] < 100
    assert state["process"]["uptime_s"] > 0
    assert datetime.fromisoformat(state["started_at"]) < datetime.fromisoformat(state["ts"])
    assert info.keys() >= {"version", "contract", "agents", "limits", "provider", "model", "models", "topics"}
    assert [agent["name"] for agent in info["agents"]] == ["general", "voice"]
    assert (info["provider"], info["model"], info["limits"]["ctx_tokens"]) == ("ollama", DEFAULT_MODEL, 2048)
    assert info["topics"]["out"] == f"{observer.base}/<convo>/out"
    told = lines(process)
    assert told.count("READY=1") == 1
    assert process.status.startswith("ok; 1 answered")
    assert not any(one.startswith("WATCHDOG") for _, one in process.notifications)


async def test_a_death_is_seen_and_a_quick_return_is_not(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    process = await daemon(ollama_host=model_server.url)
    await health_like(observer, status="ok")
    await process.restart(kill=True)
    await ask(observer, "k", {"message": "Back?"})
    assert OFFLINE not in healths(observer)
    assert await process.stop() == 0
    old = await daemon(ollama_host=model_server.url, mqtt_protocol="311")  # its will knows no delay
    await health_like(observer, protocol="3.1.1")
    assert {one["protocol"] for one in healths(observer) if one != OFFLINE} == {"5", "3.1.1"}
    died_at = time.monotonic()
    old.kill()
    gone = await health_like(observer, status="offline")
    assert gone.json == OFFLINE
    assert gone.time - died_at < 2
    async with Observer(observer.port, base=observer.base) as late:
        await late.subscribe(f"{observer.base}/health")
        assert (await late.wait(lambda one: one.retain)).json == OFFLINE


async def test_a_model_server_that_is_away_degrades_health_until_it_is_back(
    daemon: DaemonFactory, observer: Observer
) -> None:
    async with FakeOllama({"other:1b": next(iter(FakeOllama().models.values()))}) as server:
        port = server.port
        await daemon(ollama_host=server.url)
        state = (await health_like(observer, status="degraded")).json
        assert state["reasons"] == ["model_not_found"]
        assert f"ollama pull {DEFAULT_MODEL}" in state["provider"]["error"]
        assert state["provider"]["reachable"] is True
        assert (await ask(observer, "k", "Hello"))["code"] == "model_not_found"
    error = await ask(observer, "k", "Anybody there?")
    assert error["code"] == "provider_unavailable"
    state = (await health_like(observer, reasons=["provider_unavailable"])).json
    assert (state["status"], state["provider"]["reachable"]) == ("degraded", False)
    async with FakeOllama(port=port):
        state = (await health_like(observer, status="ok")).json
        assert (state["reasons"], state["provider"]["error"]) == ([], None)


async def test_a_start_without_a_broker_counts_after_10_s_and_pings_go_on(
    daemon: DaemonFactory, model_server: FakeOllama, new_broker: BrokerFactory, base_topic: str
) -> None:
    port = free_port()
    process = await daemon(ollama_host=model_server.url, mqtt_port=port, watchdog_s=1.2, wait=False)
    await process.notified("STATUS=waiting for the broker")
    after_s = await process.ready()
    assert 10 < after_s < 11.5
    assert f"127.0.0.1:{port}" in process.status
    pings = [when for when, text in process.notifications if text == "WATCHDOG=1"]
    gaps = [after - before for before, after in itertools.pairwise(pings)]
    assert len(pings) > 30
    assert sorted(gaps)[len(gaps) // 2] == pytest.approx(0.3, abs=0.1)
    assert max(gaps) < 1.2
    assert not any("WATCHDOG=1" in text and text != "WATCHDOG=1" for _, text in process.notifications)
    assert len([line for line in process.output.splitlines() if "connection refused" in line]) <= 2, "said once"
    new_broker(port=port)
    async with Observer(port, base=base_topic) as observer:
        await observer.subscribe(f"{base_topic}/#", no_local=True)
        await observer.wait(lambda one: one.field("status") == "ok", 35)
        await ask(observer, "k", {"message": "Hello"})
    assert process.status.startswith("ok")


BUSY = """---
context: "{% for a in range(900) %}{% set c = ('x' * 999) | list | sort %}{% endfor %}"
---
You are stuck.
"""


async def test_nothing_is_pinged_while_the_loop_stands_still(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer, tmp_path: Path
) -> None:
    (tmp_path / "stuck.md").write_text(BUSY)
    process = await daemon(ollama_host=model_server.url, prompts_dir=tmp_path, watchdog_s=0.2)
    await ask(observer, "k", "Hello")
    await process.notified("WATCHDOG=1", start=len(process.notifications))
    await ask(observer, "k", {"message": "Hello", "agent": "stuck"}, timeout_s=30)
    await process.notified("WATCHDOG=1", start=len(process.notifications))
    pings = [when for when, text in process.notifications if text == "WATCHDOG=1"]
    assert max(after - before for before, after in itertools.pairwise(pings)) > 0.2


async def test_it_runs_without_systemd(daemon: DaemonFactory, model_server: FakeOllama, observer: Observer) -> None:
    process = await daemon(ollama_host=model_server.url, notify=False, wait=False)
    await health_like(observer, status="ok")
    assert (await ask(observer, "k", "Hello"))["type"] == "final"
    process.send(signal.SIGINT)
    assert await process.wait_exit() == 0
    await observer.catch_up()
    assert healths(observer)[-1] == OFFLINE


# ------------------------------------------------------------------------------------------------------ configuration


async def test_a_bad_configuration_ends_with_78_and_a_line_for_each_mistake(
    daemon: DaemonFactory, tmp_path: Path
) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/cook.md").write_text("---\ncolour: red\n---\nYou cook.\n")
    (tmp_path / "bad.toml").write_text('ctx_tokens = "many"\nmqtt_hots = "here"\n')
    (tmp_path / "secret.toml").write_text('mqtt_password = ["hunter2"]\n')
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"max_waiting": -1, "mqtt_port": 70000}, ["MAX_WAITING", "MQTT_PORT"]),
        ({"env": {"PIAGENT_MQTT_HOTS": "here"}}, ["MQTT_HOTS"]),
        ({"config": tmp_path / "bad.toml", "env": {}}, ["CTX_TOKENS", "MQTT_HOTS"]),
        ({"config": tmp_path / "none.toml"}, ["none.toml"]),
        ({"config": tmp_path / "secret.toml"}, ["MQTT_PASSWORD"]),
        ({"prompts_dir": tmp_path / "prompts"}, ["cook.md:2"]),
        ({"default_agent": "nobody"}, ["DEFAULT_AGENT"]),
        ({"provider": "oracle"}, ["PROVIDER"]),
        ({"memory_url": "sqlite:relative.db"}, ["MEMORY_URL"]),
        ({"ctx_tokens": 1000, "max_tokens": 1000}, ["MAX_TOKENS"]),
    ]
    for half in (cases[: len(cases) // 2], cases[len(cases) // 2 :]):
        started = [await daemon(wait=False, **arguments) for arguments, _ in half]
        for process, (arguments, names) in zip(started, half, strict=True):
            assert await process.wait_exit() == 78, arguments
            told = [line for line in process.output.splitlines() if any(name.lower() in line.lower() for name in names)]
            assert len(told) >= len(names), process.output
            assert "Traceback" not in process.output
            assert "hunter2" not in process.output
            assert not any(line == "READY=1" for line in lines(process))


async def test_a_reload_changes_prompts_and_settings_and_a_broken_one_changes_nothing(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer, tmp_path: Path
) -> None:
    prompts, config = tmp_path / "prompts", tmp_path / "piagent.toml"
    prompts.mkdir()
    config.write_text(f'prompts_dir = "{prompts}"\ntemperature = 0.1\n')
    process = await daemon(ollama_host=model_server.url, config=config, watchdog_s=1)
    await model_server.until(lambda server: len(beginnings(server)) == 2)

    async def reload() -> float:
        model_server.forget()
        start = len(process.notifications)
        process.hup()
        begun = await process.notified("RELOADING=1", start=start)
        text = next(text for when, text in process.notifications[start:] if "RELOADING=1" in text)
        stamp = re.search(r"MONOTONIC_USEC=(\d+)", text)
        assert stamp
        assert abs(int(stamp[1]) / 1e6 - begun) < 1
        return await process.notified("READY=1", start=start)

    await ask(observer, "k", "Hello")
    assert model_server.questions[0].body["options"]["temperature"] == 0.1
    (prompts / "general.md").write_text(PROMPT)
    (prompts / "cook.md").write_text("---\ndescription: Cooks\noptions:\n  top_k: 3\n---\nYou cook.\n")
    config.write_text(f'prompts_dir = "{prompts}"\ntemperature = 0.2\nmax_concurrent = 2\n')
    await reload()
    await model_server.until(lambda server: len(beginnings(server)) == 2)
    assert beginnings(model_server) == ["You cook.", PROMPT], "only what changed is primed, the default agent last"
    assert "MAX_CONCURRENT" in process.output, "this needs a restart, and it is said"
    await ask(observer, "k", "Hello")
    body = model_server.questions[0].body
    assert body["messages"][0]["content"] == PROMPT
    assert len(body["messages"]) == 4, "the conversation goes on"
    assert body["options"]["temperature"] == 0.2
    assert (await ask(observer, "c", {"message": "Soup?", "agent": "cook"}))["agent"] == "cook"
    infos = [one.json for one in observer.on(f"{observer.base}/info")]
    assert [agent["name"] for agent in infos[-1]["agents"]] == ["cook", "general", "voice"]
    # an answer that runs goes on as it began
    model_server.next(tokens=LONG[:40], tokens_per_s=100)
    await observer.publish(f"{observer.base}/e/in", {"message": "A story", "id": "story"})
    await observer.wait(lambda one: one.field("type") == "chunk" and one.field("request_id") == "story")
    await reload()
    assert (await observer.terminal("story"))["reply"] == "".join(LONG[:40])
    # broken: the old ones stay in force, and everybody is told
    for path, broken, names in (
        (prompts / "cook.md", "---\ncolour: red\n---\nYou burn.\n", ["cook.md:2", "colour"]),
        (config, f'prompts_dir = "{prompts}"\ntemperature = "hot"\n', ["TEMPERATURE"]),
    ):
        good = path.read_text()
        path.write_text(broken)
        await reload()
        state = (await health_like(observer, status="degraded")).json
        assert state["reasons"] == ["config_rejected"]
        assert all(name in process.output for name in names)
        assert (await ask(observer, "d", {"message": "Soup?", "agent": "cook"}))["type"] == "final"
        body = model_server.questions[-1].body
        assert (body["messages"][0]["content"], body["options"]["temperature"]) == ("You cook.", 0.2)
        path.write_text(good)
        await reload()
        assert (await health_like(observer, status="ok")).field("reasons") == []
    assert process.running


async def test_a_reload_with_another_model_looks_for_it_and_loads_it(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer, tmp_path: Path
) -> None:
    config = tmp_path / "piagent.toml"
    config.write_text("health_interval_s = 600\n")
    process = await daemon(ollama_host=model_server.url, config=config)
    await model_server.until(lambda server: len(beginnings(server)) == 2)
    model_server.forget()
    config.write_text("health_interval_s = 600\nctx_tokens = 2048\n")
    process.hup()
    await model_server.until(lambda server: len(beginnings(server)) == 2)
    config.write_text('health_interval_s = 600\nollama_model_general = "not-there:1b"\n')
    process.hup()
    state = (await health_like(observer, status="degraded")).json
    assert (state["reasons"], state["provider"]["model"]) == (["model_not_found"], "not-there:1b")


async def test_a_model_server_that_comes_later_is_primed_and_again_when_it_was_started_anew(
    daemon: DaemonFactory,
) -> None:
    """Ollama's unit is started before it listens: on a Pi the daemon is ready first."""
    port = free_port()
    process = await daemon(ollama_host=f"http://127.0.0.1:{port}", health_interval_s=0.5)
    await until(lambda: "not primed with agent" in process.output)
    for _ in range(2):
        async with FakeOllama(port=port) as server:
            await server.until(lambda server: len(beginnings(server)) == 2, 15)
            assert "helpful, efficient" in beginnings(server)[1]
        await until(lambda: process.output.count("provider_unavailable") > process.output.count("well again"))


async def test_a_reload_that_changes_nothing_lets_the_model_load(daemon: DaemonFactory) -> None:
    async with FakeOllama(load_s=1.0) as server:
        process = await daemon(ollama_host=server.url)
        await server.until(lambda server: bool(beginnings(server)))
        process.hup()
        await process.notified("RELOADING=1")
        await server.until(lambda server: len(beginnings(server)) == 2)
        assert not [one for one in server.requests if one.disconnected]


def inside(said: list[str], config: Path | None = None) -> Daemon:
    """Return a daemon in this process, with no broker; `said` collects what it tells systemd of its state."""
    environ = {} if config else {"MQTT_PORT": str(free_port()), "PROVIDER": "echo"}
    made = app.build(load_settings(config, environ=environ))
    for state in ("ready", "reloading", "stopping"):
        setattr(made._notifier, state, functools.partial(said.append, state))
    return made


@pytest.mark.parametrize("part", ["scheduler", "door"])
async def test_nothing_is_pinged_while_a_part_makes_no_progress(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    made = inside(said)
    looks = 0

    def stuck(_part: object) -> bool:
        nonlocal looks
        looks += 1
        return False

    monkeypatch.setattr(made._notifier, "watchdog_interval", lambda: 0.001)
    monkeypatch.setattr(made._notifier, "watchdog", functools.partial(said.append, "ping"))
    async with made.running():
        await until(lambda: said.count("ping") > 2)
        monkeypatch.setattr(type(made._scheduler if part == "scheduler" else made._doors[0]), "alive", property(stuck))
        said.clear()
        await until(lambda: looks > 2)
        assert said == []


async def test_the_memory_is_swept_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piagent_daemon.daemon.SWEEP_S", 0.001)
    made, sweeps = inside([]), 0

    async def sweep() -> None:
        nonlocal sweeps
        sweeps += 1

    monkeypatch.setattr(made._store, "sweep", sweep)
    async with made.running():
        await until(lambda: sweeps > 2)


async def test_a_reload_before_the_start_is_over_waits_for_it() -> None:
    said: list[str] = []
    made = inside(said)
    opened = asyncio.Event()
    made._doors[0].ready = opened.wait  # type: ignore[method-assign, assignment]
    async with made.running():
        made.reload()
        for _ in range(5):
            await asyncio.sleep(0)
        assert said == []
        opened.set()
        await until(lambda: len(said) == 3)
        assert said == ["ready", "reloading", "ready"]


async def test_reloads_are_handled_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piagent_daemon.daemon.DOORS_PATIENCE_S", 0.0)
    said: list[str] = []
    made = inside(said)
    async with made.running():
        made.reload()
        made.reload()
        await until(lambda: len(said) == 5)
        assert said == ["ready", "reloading", "ready", "reloading", "ready"]


async def test_a_reload_changes_what_is_logged_and_makes_providers_that_only_new_agents_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("piagent_daemon.daemon.DOORS_PATIENCE_S", 0.0)
    said: list[str] = []
    config = tmp_path / "piagent.toml"
    config.write_text(f'log_level = "warning"\nmqtt_port = {free_port()}\nprompts_dir = "{tmp_path}"\n')
    made = inside(said, config)
    async with made.running():
        await until(lambda: said == ["ready"])
        config.write_text(config.read_text().replace("warning", "debug"))
        (tmp_path / "parrot.md").write_text("---\nprovider: echo\n---\nYou repeat.\n")
        assert "echo" not in made._ladder.known
        made.reload()
        await until(lambda: len(said) == 3)
        assert made._ladder.known["echo"].name == "echo"
        assert logging.getLogger("piagent").getEffectiveLevel() == logging.DEBUG


async def test_a_reload_that_meets_a_defect_changes_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("piagent_daemon.daemon.DOORS_PATIENCE_S", 0.0)
    said: list[str] = []
    made = inside(said)

    async def fail() -> Config:
        raise MemoryError

    made._reload = fail
    async with made.running():
        agents = made.config.agents
        made.reload()
        await until(lambda: len(said) == 3)
        assert said == ["ready", "reloading", "ready"]
        assert made._reporting.health().reasons == ["config_rejected"]
        assert made.config.agents is agents
        assert not made.stopping.is_set()
    assert "MemoryError" in caplog.text


# --------------------------------------------------------------------------------------------------------------- stop


async def test_nothing_gets_ready_any_more_once_the_stop_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piagent_daemon.daemon.DOORS_PATIENCE_S", 0.0)
    said: list[str] = []
    made = inside(said)
    async with made.running():
        made.reload()  # neither this nor the start has come to its end
    made.reload()
    assert said == ["stopping"]
    assert made._warmup._task is None


async def test_a_stop_finishes_what_runs_and_says_goodbye(
    daemon: DaemonFactory, model_server: FakeOllama, new_broker: BrokerFactory, base_topic: str
) -> None:
    broker: Mosquitto = new_broker()
    async with Observer(broker.port, base=base_topic) as observer:
        await observer.subscribe(f"{base_topic}/#", no_local=True)
        process = await daemon(ollama_host=model_server.url, mqtt_port=broker.port, mqtt_client_id="daemon-under-test")
        model_server.next(tokens=LONG[:60], tokens_per_s=100)
        await observer.publish(f"{base_topic}/k/in", {"message": "A story", "id": "story"})
        await observer.wait(lambda one: one.field("type") == "chunk")
        process.terminate()
        await process.notified("STOPPING=1")
        process.hup()  # nothing is reloaded any more, and READY=1 is not said again
        # too late: at QoS 0 it is told so, at QoS 1 it stays with the broker
        await observer.publish(f"{base_topic}/hall/in", {"message": "Quick", "id": "late0"}, qos=0)
        await observer.publish(f"{base_topic}/hall/in", {"message": "Quick", "id": "late1"})
        assert await process.wait_exit() == 0
        await observer.catch_up()
        final = check_answer(observer.events("story"))
        assert (final["type"], final["reply"]) == ("final", "".join(LONG[:60]))
        late = observer.events("late0")
        assert [(one["code"], one["status_code"], one["retryable"]) for one in late] == [("shutting_down", 503, True)]
        assert not observer.events("late1")
        assert healths(observer)[-1] == OFFLINE
        assert observer.messages[-1].json == OFFLINE, "offline is the last word"
        states = [line for line in lines(process) if line.startswith(("READY", "RELOADING", "STOPPING"))]
        assert states == ["READY=1", "STOPPING=1"]
        process.start()
        assert (await observer.terminal("late1"))["reply"] == "You said: Quick"
        assert await process.stop() == 0
        broker.stop()  # it then writes its log to the end
        assert broker.output.count("Client daemon-under-test disconnected.") == 2
        assert "daemon-under-test closed its connection" not in broker.output


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_what_a_stop_cuts_off_is_answered_after_the_restart(
    daemon: DaemonFactory, observer: Observer, tmp_path: Path, store: str
) -> None:
    url = "memory:" if store == "memory" else f"sqlite://{tmp_path}/memory.db"
    async with FakeOllama(parallel=4) as server:
        process = await daemon(ollama_host=server.url, shutdown_grace_s=0.3, max_concurrent=2, memory_url=url)
        server.tokens, server.tokens_per_s = LONG, 100.0
        for name, qos in {"run1": 1, "run0": 0, "wait1": 1, "wait0": 0}.items():
            payload = {"message": f"Tell me {name}", "id": name, "metadata": {"of": name}}
            await observer.publish(f"{observer.base}/c-{name}/in", payload, qos)
        await observer.until(lambda: observer.events("run0")[1:] and observer.events("run1")[1:])
        await observer.until(lambda: observer.events("wait0"))
        begun = time.monotonic()
        assert await process.stop() == 0
        assert 0.3 < time.monotonic() - begun < 2
        cut, never = await observer.terminal("run0"), await observer.terminal("wait0")
        for error in (cut, never):
            assert (error["code"], error["status_code"], error["retryable"]) == ("shutting_down", 503, True)
            assert error["metadata"] == {"of": error["request_id"]}
        assert cut["partial"].startswith(" word0")
        assert never["partial"] == ""
        for name in ("run0", "wait0"):
            check_answer(observer.events(name))
        assert not [one for name in ("run1", "wait1") for one in observer.events(name) if one["type"] == "final"]
        assert len([one for one in server.questions if one.disconnected]) == 2
        server.forget()
        process.start()
        assert (await observer.terminal("run1"))["attempt"] == 2
        assert (await observer.terminal("wait1"))["attempt"] == (1 if store == "sqlite" else 2)
        assert {one.body["messages"][-1]["content"] for one in server.questions} == {"Tell me run1", "Tell me wait1"}
        turns = (await admin(observer, "memory/get", {"conversation_id": "c-run1"}))["data"]["turns"]
        assert [one["content"] for one in turns] == ["Tell me run1", "You said: Tell me run1"]


async def test_a_second_signal_ends_the_drain(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    process = await daemon(ollama_host=model_server.url, shutdown_grace_s=60)
    model_server.next("hang")
    await observer.publish(f"{observer.base}/k/in", {"message": "Take your time", "id": "slow"})
    await observer.wait(lambda one: one.field("type") == "chunk")
    process.terminate()
    await process.notified("STOPPING=1")
    assert process.running
    begun = time.monotonic()
    process.terminate()
    assert await process.wait_exit() == 0
    assert time.monotonic() - begun < 1
    await observer.catch_up()
    assert healths(observer)[-1] == OFFLINE
    process.start()
    assert (await observer.terminal("slow"))["type"] == "final"


async def test_a_stop_without_broker_or_model_server_is_quick(daemon: DaemonFactory, mosquitto: Mosquitto) -> None:
    ports = {"ollama_host": f"127.0.0.1:{free_port()}"}
    lonely = await daemon(mqtt_port=free_port(), wait=False, **ports)
    deaf = await daemon(mqtt_port=mosquitto.port, **ports)
    await lonely.notified("STATUS=waiting for the broker")
    begun = time.monotonic()
    assert list(await asyncio.gather(lonely.stop(), deaf.stop())) == [0, 0]
    assert time.monotonic() - begun < 4
