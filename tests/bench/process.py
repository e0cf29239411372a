"""Processes under test, and what the kernel counts about them."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.bench.client import BenchError

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 20.0


def pause(seconds: float) -> None:
    """Let time pass that is itself part of the measurement."""
    threading.Event().wait(seconds)


def free_port() -> int:
    """Return a port on loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port


def wait_listening(port: int) -> None:
    """Wait until somebody accepts connections on `port`."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            pause(0.02)
        else:
            return
    raise BenchError(f"nobody listens on port {port} after {START_TIMEOUT_S} s")


class Process:
    """A child process in a working directory of its own, with its output in a file."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.log = name, folder / f"{name}.log"
        clean = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        clean |= {"PYTHONPATH": str(ROOT), **(env or {})}
        with self.log.open("ab") as log:
            self.started = time.monotonic()
            self.popen = subprocess.Popen(command, cwd=folder, env=clean, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def kill(self) -> None:
        """End it as a power cut would."""
        self.popen.kill()
        self.popen.wait(10)

    def stop(self) -> None:
        """Ask it to end, and end it when it does not within 10 s."""
        self.popen.send_signal(signal.SIGTERM)
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its threads, to the nanosecond (stat counts in steps of 10 ms)."""
        return sum(int(text.split()[0]) for text in self._of_threads("schedstat")) / 1e9

    def wakeups(self) -> int:
        """Return how often its threads went to sleep of their own will, and so were woken."""
        lines = (line for text in self._of_threads("status") for line in text.splitlines())
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))

    def rss_mb(self) -> float:
        """Return the resident memory in MB of 1024 kB, as ps and the figures of other bridges count it."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def _of_threads(self, name: str) -> Iterator[str]:
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            yield (task / name).read_text()


class Bridge(Process):
    """A process that says READY=1 over NOTIFY_SOCKET, as to systemd."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        address = folder / f"{name}.notify"
        address.unlink(missing_ok=True)
        self.status: list[str] = []
        self._ready = threading.Event()
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(address))
        threading.Thread(target=self._listen, name=f"notify-{name}", daemon=True).start()
        super().__init__(name, command, folder, {**env, "NOTIFY_SOCKET": str(address)})

    def wait_ready(self) -> float:
        """Wait for READY=1 and return the seconds since the start."""
        while not self._ready.wait(0.2):
            if self.popen.poll() is not None:
                raise BenchError(f"{self.name} ended with {self.popen.returncode} before READY=1:\n{self.tail()}")
            if time.monotonic() - self.started > START_TIMEOUT_S:
                self.kill()
                raise BenchError(f"{self.name} was not ready within {START_TIMEOUT_S} s:\n{self.tail()}")
        return self.ready_at - self.started

    def _listen(self) -> None:
        while True:
            text = self._notify.recv(4096).decode(errors="replace")
            if "READY=1" in text and not self._ready.is_set():
                self.ready_at = time.monotonic()
                self._ready.set()
            self.status.append(text)


def python(*arguments: str) -> list[str]:
    """Return a command that runs this interpreter."""
    return [sys.executable, *arguments]
