"""Child processes of the tests: start, signals, exit, readings from /proc. None of them outlives the tests."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

_LIVING: Final[set[subprocess.Popen[bytes]]] = set()
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Child:
    """One program whose output goes to the file `log`; can be started more than once."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None, folder: Path) -> None:
        self.command = list(command)
        self.log = log
        self.env = env
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        """Start the program; its output is appended to the log."""
        assert not self.running, "it runs already"
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.env, cwd=self.folder
            )
        _LIVING.add(self._process)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it was never started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def output(self) -> str:
        """All it has printed so far."""
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def pause(self) -> None:
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.send(signal.SIGCONT)

    def end(self, number: signal.Signals, timeout_s: float = 10.0) -> int:
        """Send a signal and wait for the end; return the exit code (negative: by signal)."""
        if self.running:
            self.send(number)
            self.resume()  # a paused process takes no signal but SIGKILL
        code = self.process.wait(timeout_s)
        _LIVING.discard(self.process)
        return code

    async def wait_exit(self, timeout_s: float = 10.0) -> int:
        """Wait for the program to end by itself; return its exit code."""
        process = self.process
        if process.poll() is None:
            ended = asyncio.Event()
            watch = os.pidfd_open(process.pid)
            loop = asyncio.get_running_loop()
            loop.add_reader(watch, ended.set)
            try:
                async with asyncio.timeout(timeout_s):
                    await ended.wait()
            finally:
                loop.remove_reader(watch)
                os.close(watch)
        _LIVING.discard(process)
        return process.wait()

    # ----------------------------------------------------------------------------------------------- from /proc

    def rss_mb(self) -> float:
        """Resident memory in MB (10**6 bytes)."""
        return self._status("VmRSS") * 1024 / 1e6

    def peak_rss_mb(self) -> float:
        return self._status("VmHWM") * 1024 / 1e6

    def cpu_s(self) -> float:
        """Processor time used so far, user and system, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def starved_s(self) -> float:
        """Seconds that its main thread was ready to run so far while the machine ran something else."""
        return int(Path(f"/proc/{self.pid}/schedstat").read_text("ascii").split()[1]) / 1e9

    def wakeups(self) -> int:
        """How often its threads went to sleep and were woken so far."""
        total = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += _field((task / "status").read_text("utf-8"), "voluntary_ctxt_switches")
        return total

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def threads(self) -> int:
        return self._status("Threads")

    def _status(self, name: str) -> int:
        return _field(Path(f"/proc/{self.pid}/status").read_text("utf-8"), name)


def _field(status: str, name: str) -> int:
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))


def end_leftovers() -> list[str]:
    """Kill every child that still runs; return their command lines."""
    left = [process for process in _LIVING if process.poll() is None]
    for process in left:
        process.kill()
        process.wait(10)
    _LIVING.clear()
    return [" ".join(map(str, process.args)) if isinstance(process.args, list) else "" for process in left]


def wait_for(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Wait, without a loop, until `condition()` is true; raise TimeoutError naming `what`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} after {timeout_s} s")
        time.sleep(0.005)
