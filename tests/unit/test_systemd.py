"""What systemd hears: over a socket of the kind that it listens on."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from piagent_daemon.systemd import Notifier, memory_limit_live


class Systemd:
    """The listening end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(65536).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    address = {"path": str(tmp_path / "notify"), "abstract": f"@piagent-test-{os.getpid()}"}[request.param]
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    systemd = Systemd(address)
    yield systemd
    systemd.socket.close()


@pytest.fixture
def notifier(systemd: Systemd) -> Iterator[Notifier]:
    del systemd
    notifier = Notifier()
    yield notifier
    assert notifier._peer
    notifier._peer.socket.close()


def test_each_message_is_a_datagram(systemd: Systemd, notifier: Notifier) -> None:
    assert notifier.ready()
    assert notifier.status("ok; 3 answered")
    assert notifier.watchdog()
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert notifier.reloading()
    assert notifier.stopping()
    ready, status, watchdog, reloading, stopping = systemd.heard()
    assert (ready, status, watchdog, stopping) == ("READY=1", "STATUS=ok; 3 answered", "WATCHDOG=1", "STOPPING=1")
    word, moment = reloading.split("\n")
    assert word == "RELOADING=1"
    assert 0 <= int(moment.removeprefix("MONOTONIC_USEC=")) - before < 10_000_000


def test_a_status_in_any_script(systemd: Systemd, notifier: Notifier) -> None:
    assert notifier.status("gemma3 — warm ☺, café, \ud800")
    assert systemd.heard() == ["STATUS=gemma3 — warm ☺, café,"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.text(st.characters(codec=None)))
def test_a_status_is_one_short_line(systemd: Systemd, notifier: Notifier, text: str) -> None:
    assert notifier.status(text)
    (heard,) = systemd.heard()
    assert heard.startswith("STATUS=")
    assert heard.isprintable()
    assert len(heard) <= len("STATUS=") + 200


def test_nobody_reads(systemd: Systemd, notifier: Notifier) -> None:
    start = time.monotonic()
    assert not all(notifier.watchdog() for _ in range(5000))
    assert not notifier.ready()
    assert not notifier.status("x")
    assert time.monotonic() - start < 2
    assert set(systemd.heard()) == {"WATCHDOG=1"}
    assert notifier.watchdog()
    assert systemd.heard() == ["READY=1", "WATCHDOG=1"], "what could not be said is said as soon as possible"
    assert notifier.watchdog()
    assert systemd.heard() == ["WATCHDOG=1"]


def test_systemd_goes_away(systemd: Systemd, notifier: Notifier) -> None:
    systemd.socket.close()
    assert not notifier.ready()
    assert not notifier.watchdog()


@pytest.mark.parametrize("address", [None, "", "nonsense", "/nowhere/at/all", "vsock:2:1234", "/"])
def test_without_systemd_nothing_happens(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    notifier = Notifier()
    assert not any([notifier.ready(), notifier.reloading(), notifier.stopping(), notifier.status("x")])
    assert not notifier.watchdog()
    assert notifier.watchdog_interval() is None


@pytest.mark.parametrize(
    ("microseconds", "pid", "interval_s"),
    [("30000000", None, 7.5), ("30000000", "", 7.5), ("30000000", "own", 7.5), ("30000000", "1", None),
     ("0", None, None), (None, None, None), ("soon", None, None), ("-1", None, None)],
)  # fmt: skip
def test_the_watchdog_interval(
    notifier: Notifier,
    monkeypatch: pytest.MonkeyPatch,
    microseconds: str | None,
    pid: str | None,
    interval_s: float | None,
) -> None:
    if microseconds is not None:
        monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert notifier.watchdog_interval() == interval_s


@pytest.mark.parametrize(
    ("groups", "limit", "bytes_"),
    [
        ("0::/system.slice/piagent.service\n", "268435456\n", 268435456),
        ("4:memory:/x\n0::/system.slice/piagent.service\n", "268435456\n", 268435456),
        ("0::/system.slice/piagent.service\n", "max\n", None),
        ("0::/system.slice/piagent.service\n", None, None),
        ("4:memory:/x\n", "1\n", None),
        (None, None, None),
    ],
)
def test_the_memory_limit_live_in_force(
    tmp_path: Path, groups: str | None, limit: str | None, bytes_: int | None
) -> None:
    for path, content in (
        ("proc/self/cgroup", groups),
        ("sys/fs/cgroup/system.slice/piagent.service/memory.max", limit),
    ):
        if content is not None:
            (tmp_path / path).parent.mkdir(parents=True)
            (tmp_path / path).write_text(content)
    assert memory_limit_live(tmp_path) == bytes_


def test_the_memory_limit_live_of_this_very_process() -> None:
    assert memory_limit_live() is None or memory_limit_live() > 0  # type: ignore[operator]
