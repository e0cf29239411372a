"""The process and its machine: signals, kills, defects, clocks, disks, file descriptors, secrets (faults 40 to 50).

What a memory file may suffer by itself is in `test_store_faults`.
"""

import asyncio
import json
import os
import random
import resource
import signal
import time
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import BrokerFactory
from tests.fakes.answers import admin, check_answer
from tests.fakes.broker import free_port
from tests.fakes.daemon import DaemonProcess
from tests.fakes.ollama import DEFAULT_MODEL, FakeOllama
from tests.fault.conftest import HouseFactory
from tests.fault.house import API_KEY, PASSWORD, SAID, House, faketime

both = pytest.mark.parametrize("protocol", ["5", "311"])
WORDS: Final = [f" w{number}" for number in range(40)]


def sabotage(folder: Path, code: str) -> dict[str, str]:
    """Return an environment in which the daemon runs `code` before anything else: a defect of our making."""
    (folder / "sabotage").mkdir()
    (folder / "sabotage/sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(folder / "sabotage")}


# ------------------------------------------------------------------------------------------- stopped or killed: 40, 42


@both
async def test_40_a_stop_under_load_loses_nothing(house: HouseFactory, tmp_path: Path, protocol: str) -> None:
    url = f"sqlite://{tmp_path}/memory.db"
    async with house(protocol=protocol, memory_url=url, shutdown_grace_s=0.3, max_concurrent=2) as home:
        home.server.runners.parallel = 2
        ids = [await home.post(f"room{number}", wait=False) for number in range(60)]
        await home.observer.until(lambda: sum(bool(home.ends(one)) for one in ids) > 10)
        home.server.tokens, home.server.tokens_per_s = WORDS, 20
        begun = time.monotonic()
        assert await home.process.stop() == 0
        assert time.monotonic() - begun < 10
        await home.health(lambda now: now == {"status": "offline"})
        assert "shutting_down" not in str(home.observer.messages[-30:])
        home.server.tokens, home.server.tokens_per_s = None, 0
        home.process.start()
        await home.process.ready()
        for request_id in ids:
            assert (await home.observer.terminal(request_id, 20))["type"] == "final"


async def test_40_a_stop_right_after_the_start(house: HouseFactory) -> None:
    async with house() as home:
        for _ in range(6):
            assert await home.process.stop(10) == 0
            home.process.start()
            await home.process.ready()
        await home.well()


DEAD_RESOLVER: Final = """
import socket
import threading

real = socket.getaddrinfo

def getaddrinfo(host, *args, **kwargs):
    if host == "model.test":
        threading.Event().wait()
    return real(host, *args, **kwargs)

socket.getaddrinfo = getaddrinfo
"""


async def test_40_a_name_server_that_never_answers_does_not_keep_the_process(
    house: HouseFactory, tmp_path: Path
) -> None:
    chosen = {"ollama_host": "http://model.test:11434", "connect_timeout_s": 1, "max_retries": 0}
    async with house(env=sabotage(tmp_path, DEAD_RESOLVER), **chosen) as home:
        assert (await home.ask("k"))["code"] == "provider_unavailable"
        begun = time.monotonic()
        assert await home.process.stop() == 0
        assert time.monotonic() - begun < 5
        home.process.start()
        await home.process.ready()


@both
async def test_42_kill_9_in_mid_answer(house: HouseFactory, tmp_path: Path, protocol: str) -> None:
    moments = random.Random(42)  # noqa: S311  moments, not secrets
    url = f"sqlite://{tmp_path}/memory.db"
    async with house(protocol=protocol, memory_url=url, max_concurrent=2) as home:
        home.server.runners.parallel = 2
        home.server.tokens, home.server.tokens_per_s = WORDS[:10], 100
        ids = []
        for life in range(3):
            ids += [await home.post(f"room{life}-{number}") for number in range(10)]
            await home.speaking(ids[moments.randrange(life * 10, life * 10 + 5)])
            home.process.kill()
            home.process.start()
            await home.process.ready()
        for request_id in ids:
            assert (await home.observer.terminal(request_id, 30))["type"] == "final"
        last = [check_attempt(home, request_id) for request_id in ids]
        assert max(last) > 1
        offline = [now for now in home.healths if now == {"status": "offline"}]
        assert len(offline) == (0 if protocol == "5" else 3), "a quick return is not seen where the will can wait"


@both
async def test_42_an_admin_request_that_brings_the_daemon_down_is_not_tried_for_ever(
    house: HouseFactory, tmp_path: Path, protocol: str
) -> None:
    async with house(protocol=protocol, memory_url=f"sqlite://{tmp_path}/memory.db") as home:
        observer = home.observer
        home.server.tokens, home.server.tokens_per_s = WORDS, 1
        asked = {"model": DEFAULT_MODEL, "messages": [{"role": "user", "content": "boom"}], "transaction": 7}
        await observer.publish(f"{observer.base}/request/llm/chat", asked)
        for life in (1, 2):
            await home.server.until(partial(boomed, times=life))
            home.process.kill()
            home.process.start()
            await home.process.ready()
        told = await observer.wait(lambda message: message.field("transaction") == 7)
        assert told.json["error"]["code"] == "internal"
        assert "twice" in told.json["error"]["message"]
        assert boomed(home.server, 2)


def boomed(server: FakeOllama, times: int) -> bool:
    return sum("boom" in json.dumps(question.body) for question in server.questions) == times


def check_attempt(home: House, request_id: str) -> int:
    """Check the last attempt at a request, and return its number."""
    told = home.observer.events(request_id)
    events = [event for number, event in enumerate(told) if event not in told[:number]]  # the end may come twice
    attempts = [event["attempt"] for event in events]
    assert attempts == sorted(attempts)
    begun = max(number for number, event in enumerate(events) if event["type"] == "accepted")
    check_answer(events[begun:], attempt=attempts[-1])
    return int(attempts[-1])


# -------------------------------------------------------------------------------------------------- configuration: 41


async def test_41_a_broken_configuration(house: HouseFactory, tmp_path: Path) -> None:
    config, prompts = tmp_path / "piagent.toml", tmp_path / "prompts"
    prompts.mkdir()
    good = f'prompts_dir = "{prompts}"\n'
    config.write_text(good)
    mistakes = {
        f"{good}\n[\n": "piagent.toml:3",
        f'{good}max_tokens = "{API_KEY}"\n': "MAX_TOKENS",
        f"{good}mqtt_pasword = '{PASSWORD}'\n": "piagent.toml:2: mqtt_pasword",
        "prompts_dir = '/nowhere'\n": "PROMPTS_DIR",
        "\xff": "piagent.toml",
    }
    async with house(config=config) as home:
        pid = home.process.pid
        home.server.next(tokens=WORDS, tokens_per_s=40)
        running = await home.post("slow")
        for number, (text, name) in enumerate(mistakes.items()):
            config.write_bytes(text.encode("latin-1"))
            start = len(home.process.notifications)
            home.process.hup()
            await home.process.notified("READY=1", start=start)
            assert name in home.log
            assert (await home.now())["reasons"] == ["config_rejected"]
            await home.post(f"room{number}")
        config.write_text(good)
        home.process.hup()
        await home.good()
        assert (await home.observer.terminal(running))["type"] == "final"
        assert home.process.pid == pid


async def test_41_a_broken_configuration_at_the_start(house: HouseFactory, tmp_path: Path) -> None:
    config = tmp_path / "piagent.toml"
    config.write_text(f"max_waiting = -1\nmqtt_password = ['{PASSWORD}']\n")
    async with house() as home:
        broken = DaemonProcess(tmp_path / "broken", config=config, mqtt_port=home.broker.port)
        async with broken:
            assert await broken.wait_exit() == 78
            assert "MAX_WAITING" in broken.output
            assert "MQTT_PASSWORD" in broken.output
            assert PASSWORD not in broken.output
            assert not broken.notifications
        await home.well()


# --------------------------------------------------------------------------------------------------------- defects: 43

DEFECT: Final = """
import signal
from piagent_daemon.doors.mqtt_inbox import Inbox
from piagent_daemon.scheduler import Scheduler
from piagent_daemon.turn import Assistant

def broken(real, where):
    def replaced(self, *args, **kwargs):
        if where in repr(getattr(args[0], "payload", None) or getattr(args[0], "request", None)):
            raise RuntimeError("a defect")
        if where == "[room turn]" and "[room frozen]" in repr(args[0].request):
            signal.pause()  # holds the loop until the signal that ends the process
        return real(self, *args, **kwargs)
    return replaced

Inbox.on_message = broken(Inbox.on_message, "[room callback]")
Inbox._hand_over = broken(Inbox._hand_over, "[room inbox]")
Scheduler.submit = broken(Scheduler.submit, "[room intake]")
Assistant.answer = broken(Assistant.answer, "[room turn]")
"""


async def test_43_a_defect_in_one_request_stops_no_other(house: HouseFactory, tmp_path: Path) -> None:
    async with house(env=sabotage(tmp_path, DEFECT), memory_url=f"sqlite://{tmp_path}/memory.db") as home:
        for where in ("turn", "intake", "inbox"):
            error = await home.ask(where)
            assert (error["code"], error["status_code"]) == ("internal", 500)
            assert "defect" not in error["message"]
            assert "a defect" in home.log, "the trace is in the log"
        lost = await home.post("callback")
        await home.well()
        assert not home.ends(lost)
        # not acknowledged: a daemon without the defect answers it
        await home.process.stop()
        (tmp_path / "sabotage/sitecustomize.py").write_text("")
        home.process.start()
        assert (await home.observer.terminal(lost))["type"] == "final"


async def test_43_a_blocked_loop_is_seen_by_the_watchdog(house: HouseFactory, tmp_path: Path) -> None:
    async with house(env=sabotage(tmp_path, DEFECT), memory_url=f"sqlite://{tmp_path}/memory.db") as home:
        await home.well()
        request_id = await home.post("frozen")
        await home.observer.wait(lambda one: one.field("request_id") == request_id)
        await home.server.until(lambda _: home.lag_s() > 1)
        home.process.send(signal.SIGABRT)  # as systemd does after WatchdogSec
        assert await home.process.wait_exit() == -signal.SIGABRT
        assert "sitecustomize.py" in home.log, "where it hung"
        assert "Current thread" in home.log
        (tmp_path / "sabotage/sitecustomize.py").write_text("")
        home.process.start()
        assert (await home.observer.terminal(request_id))["attempt"] == 2


DEAD_TASK: Final = """
import asyncio
from piagent_daemon.watch import ProviderWatch

async def look(self):
    await asyncio.sleep(0.5)
    raise RuntimeError("a defect")

ProviderWatch.look = look
"""


async def test_43_a_dead_task_ends_the_process(house: HouseFactory, tmp_path: Path) -> None:
    async with house(env=sabotage(tmp_path, DEAD_TASK), shutdown_grace_s=0.2) as home:
        home.server.mode = "hang"
        request_id = await home.post("k")
        assert await home.process.wait_exit() == 1
        assert "'watch the model server' died" in home.log
        (tmp_path / "sabotage/sitecustomize.py").write_text("")
        home.server.mode = "ok"
        home.process.start()
        assert (await home.observer.terminal(request_id))["type"] == "final"


# ----------------------------------------------------------------------------------------------------------- clock: 44


async def test_44_the_clock_jumps(house: HouseFactory, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    env = faketime() | {
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    limits = {"idle_timeout_s": 2, "memory_ttl_min": 10, "health_interval_s": 1}
    async with house(env=env, memory_url=f"sqlite://{tmp_path}/memory.db", **limits) as home:
        await home.ask("k", "My name is Ada")
        stamps = [(await home.now())["ts"]]
        for jump in ("+7200", "-7200"):
            home.server.next(tokens=WORDS, tokens_per_s=16)  # longer than the clock takes to notice
            running = await home.post("k", "Who am I?")
            waiting = await home.post("hall", expires_s=60)
            await home.speaking(running)
            clock.write_text(jump)
            final = await home.observer.terminal(running)
            assert final["finish_reason"] == "stop"
            assert final["timing"]["total_s"] < 5
            assert (await home.observer.terminal(waiting))["type"] == "final"
            stamps.append((await home.now())["ts"])
            await home.logged(f"the clock jumped by {jump[0]}")
        assert "Ada" in str(home.server.questions[-2].body), "nothing was forgotten"
        assert stamps[2] < stamps[0] < stamps[1], "the clock did jump"


async def test_44_a_clock_that_begins_in_1970(house: HouseFactory, tmp_path: Path) -> None:
    env = faketime() | {"FAKETIME": "@1970-01-01 00:00:30", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "TZ": "UTC"}
    async with house(env=env, memory_url=f"sqlite://{tmp_path}/memory.db") as home:
        final = await home.well()
        assert final["ts"].startswith("1970-01-01")
        await home.process.restart()
        turns = (await admin(home.observer, "memory/get", {"conversation_id": "still-well"}))["data"]["turns"]
        assert len(turns) == 2


# ------------------------------------------------------------------------------------------------------- disk: 45, 46


async def test_45_a_memory_that_cannot_be_written(house: HouseFactory, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text("no folder")
    async with house(memory_url=f"sqlite://{state}/memory.db", fast=10) as home:
        await home.reason("memory_not_persisted")
        await home.ask("k", "My name is Ada")
        await home.ask("k", "Who am I?")
        assert "Ada" in str(home.server.questions[-1].body)
        assert home.log.count("ERROR") == 1
        state.unlink()
        state.mkdir()
        await home.good()
        await home.process.restart()
        await home.ask("k", "And now?")
        assert "Ada" in str(home.server.questions[-1].body), "what was said meanwhile is written, too"


async def test_46_a_damaged_memory(house: HouseFactory, tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    async with house(memory_url=f"sqlite://{file}", health_interval_s=1) as home:
        await home.ask("k", "My name is Ada")
        for damage in (b"garbage" * 2000, b""):
            await home.process.stop()
            file.write_bytes(damage)
            start = len(home.observer.messages)
            home.process.start()
            await home.process.ready()
            if damage:
                await home.health(lambda now: now.get("reasons") == ["memory_not_persisted"], start=start)
            await home.health(lambda now: now["status"] == "ok", start=start)
            await home.ask("k", "Who am I?")
            assert "Ada" not in str(home.server.questions[-1].body)
        assert kept(tmp_path) == [b"garbage" * 2000]


def kept(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.glob("memory.db.corrupt-*")]


DEAD_DISK: Final = """
import threading

from piagent_daemon.stores import database, sqlite

sqlite.DISK_TIMEOUT_S = 0.5
database.Database.write = lambda *_: threading.Event().wait()
"""


async def test_45_a_disk_that_never_answers_does_not_keep_the_process(house: HouseFactory, tmp_path: Path) -> None:
    async with house(env=sabotage(tmp_path, DEAD_DISK), memory_url=f"sqlite://{tmp_path}/memory.db") as home:
        assert (await home.ask("k"))["type"] == "final"
        await home.health(lambda now: "memory_not_persisted" in now["reasons"])
        begun = time.monotonic()
        assert await home.process.stop() == 0
        assert time.monotonic() - begun < 5
        await home.health(lambda now: now == {"status": "offline"})
        assert "changes are lost" in home.log
        (tmp_path / "sabotage/sitecustomize.py").write_text("")
        home.process.start()
        await home.process.ready()
        await home.well()


# ------------------------------------------------------------------------------------ memory, files, log reader: 47, 48


DEADLY: Final = """
import os
from piagent_daemon.turn import Assistant

real = Assistant.answer

def answer(self, job):
    if "[room deadly]" in job.request.message:
        os.kill(os.getpid(), 9)
    return real(self, job)

Assistant.answer = answer
"""


@both
async def test_47_a_request_that_kills_is_given_up(house: HouseFactory, tmp_path: Path, protocol: str) -> None:
    """As when the kernel ends the process for its memory, at each try at this request."""
    url = f"sqlite://{tmp_path}/memory.db"
    async with house(protocol=protocol, env=sabotage(tmp_path, DEADLY), memory_url=url) as home:
        request_id = await home.post("deadly")
        innocent = await home.post("innocent")
        for _ in range(2):
            assert await home.process.wait_exit() == -signal.SIGKILL
            home.process.start()
        error = await home.observer.terminal(request_id)
        assert (error["code"], error["retryable"], error["attempt"]) == ("internal", False, 3)
        assert (await home.observer.terminal(innocent))["type"] == "final"


async def test_48_no_more_file_descriptors(house: HouseFactory, new_broker: BrokerFactory) -> None:
    broker = new_broker()
    async with house(broker, max_retries=0, fast=10) as home:
        await home.well()
        _, hard = resource.prlimit(home.process.pid, resource.RLIMIT_NOFILE)
        await home.server.stop()  # so that its connections are gone
        await home.server.start()
        resource.prlimit(home.process.pid, resource.RLIMIT_NOFILE, (3, hard))  # what is open stays open
        error = await home.ask("k")
        assert error["code"] == "provider_unavailable"
        assert "Too many open files" in error["message"]
        await home.reason("provider_unavailable")
        broker.restart()
        await home.logged("Too many open files; trying again")
        resource.prlimit(home.process.pid, resource.RLIMIT_NOFILE, (256, hard))
        await home.good(20)
        await home.well("again")


async def test_48_nobody_reads_the_log(house: HouseFactory, tmp_path: Path) -> None:
    (tmp_path / "daemon0").mkdir()
    pipe = tmp_path / "daemon0/daemon.log"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    async with house(log_level="debug") as home:
        said = b""
        for number in range(120):
            await home.ask(f"room{number}")
        assert home.lag_s() < 1
        said += os.read(reader, 1 << 20)
        await home.well()
        said += os.read(reader, 1 << 20)
        assert b"log lines before this one were dropped" in said
        os.close(reader)
        pipe.unlink()
        pipe.write_bytes(said)  # the invariants look at it


# --------------------------------------------------------------------------------------------------------- secrets: 49


@both
async def test_49_secrets_stay_secret(house: HouseFactory, protocol: str) -> None:
    """At the most talkative level, through failures of every part that holds one."""
    async with house(protocol=protocol, log_level="debug", fast=5) as home:
        home.server.api_key = "another key"
        error = await home.ask("k", metadata={"a": 1})
        assert error["code"] == "unauthorized"
        home.server.api_key = API_KEY
        await home.well()
        shown = (await admin(home.observer, "config/get"))["data"]
        assert {shown["mqtt_password"], shown["ollama_api_key"]} == {"********"}
        await home.raw("k", {"message": SAID, "colour": 1})
        home.process.hup()
        await home.good()
    user = f"http://ada:{API_KEY}@127.0.0.1:{free_port()}"
    async with house(protocol=protocol, log_level="debug", ollama_host=user, ollama_api_key=None) as home:
        error = await home.ask("k")
        assert error["code"] == "provider_unavailable"
        shown = (await admin(home.observer, "config/get"))["data"]
        assert API_KEY not in str(shown)


# --------------------------------------------------------------------------------------------------------- systemd: 50


async def test_50_systemd_does_not_listen(house: HouseFactory) -> None:
    async with house(fast=20) as home:
        home.watched = False
        sock = home.process._socket
        assert sock is not None
        asyncio.get_running_loop().remove_reader(sock)  # its queue is full within a second
        for number in range(40):
            await home.ask(f"room{number}")
        start = len(home.process.notifications)
        asyncio.get_running_loop().add_reader(sock, home.process._read)
        await home.process.notified("WATCHDOG=1", start=start)
        home.process.hup()
        await home.process.notified("READY=1", start=start)


@pytest.mark.parametrize("address", [None, "/nowhere/notify", "@nobody-listens", "relative", "/" + "x" * 200])
async def test_50_no_systemd(house: HouseFactory, address: str | None) -> None:
    env = {} if address is None else {"NOTIFY_SOCKET": address}
    async with house(notify=False, wait=False, env=env) as home:
        home.watched = False
        await home.good()
        await home.well()
