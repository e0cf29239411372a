"""The daemon as a process of its own, watched as systemd would."""

import asyncio
import os
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from tests.fakes.processes import Child

SO_TIMESTAMP: Final = 29
"""Linux, <asm-generic/socket.h>: the kernel notes when a datagram was sent; Python has no name for it."""


class DaemonProcess(Child):
    """`python -m piagent_daemon run` in `folder`, with nothing in its environment but what is given here.

    `settings` are the contract's names in lower case; `env` goes in as it is; `watchdog_s` sets WATCHDOG_USEC;
    `config` is a path for `--config`. Its output is in `output`, what it told systemd in `notifications`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        env: Mapping[str, str] | None = None,
        watchdog_s: float | None = None,
        config: Path | None = None,
        notify: bool = True,
        **settings: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "piagent_daemon", "run"]
        if config is not None:
            command += ["--config", str(config)]
        super().__init__(command, folder / "daemon.log", None, folder)
        self.settings = settings
        self.notifications: list[tuple[float, str]] = []
        """What it told systemd, with monotonic times in seconds: when it was sent, however late it is read."""
        self.started_at = 0.0
        self._more = dict(env or {})
        if watchdog_s is not None:
            self._more["WATCHDOG_USEC"] = str(int(watchdog_s * 1e6))
        self._notify = notify
        # a short path: a Unix socket's name has room for 107 bytes only
        self._socket_folder = tempfile.TemporaryDirectory(prefix="piagent-")
        self._socket: socket.socket | None = None
        self._heard = asyncio.Event()

    def start(self) -> None:
        """Start it, again if need be, with the settings as they now are; does not wait."""
        self.notifications.clear()
        self._listen()
        keep = {name: os.environ[name] for name in ("PATH", "LANG", "SYSTEMROOT") if name in os.environ}
        self.env = {
            **keep,
            "HOME": str(self.folder),
            "PYTHONUNBUFFERED": "1",
            **({"NOTIFY_SOCKET": self._address} if self._notify else {}),
            **{f"PIAGENT_{name.upper()}": _text(value) for name, value in self.settings.items() if value is not None},
            **self._more,
        }
        self.started_at = time.monotonic()
        self.spawn()

    @property
    def _address(self) -> str:
        return str(Path(self._socket_folder.name) / "notify")

    def _listen(self) -> None:
        if self._socket is not None or not self._notify:
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
        self._socket.bind(self._address)
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def _read(self) -> None:
        assert self._socket is not None
        while True:
            try:
                data, notes, _, _ = self._socket.recvmsg(65_536, 256)
            except BlockingIOError:
                break
            age_s = max((time.time() - _sent(note) for _, kind, note in notes if kind == SO_TIMESTAMP), default=0.0)
            self.notifications.append((time.monotonic() - age_s, data.decode("utf-8", "replace")))
        self._heard.set()

    async def notified(self, line: str, timeout_s: float = 15.0, *, start: int = 0) -> float:
        """Wait for a notification that has a line beginning with `line`, from number `start` on; return its time."""
        deadline = time.monotonic() + timeout_s
        while True:
            for when, text in self.notifications[start:]:
                if any(one.startswith(line) for one in text.splitlines()):
                    return when
            if not self.running:
                raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.output[-4000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {line} in {timeout_s} s: {self.notifications}\n{self.output[-4000:]}")
            self._heard.clear()
            try:
                await asyncio.wait_for(self._heard.wait(), 0.1)
            except TimeoutError:
                continue

    async def ready(self, timeout_s: float = 15.0) -> float:
        """Wait for READY=1; return the seconds since the start."""
        return await self.notified("READY=1", timeout_s) - self.started_at

    @property
    def status(self) -> str:
        """The last STATUS= it told systemd."""
        lines = [line for _, text in self.notifications for line in text.splitlines()]
        return next((line.removeprefix("STATUS=") for line in reversed(lines) if line.startswith("STATUS=")), "")

    def terminate(self) -> None:
        """Ask it to stop; does not wait."""
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        """End it as the kernel would, and wait until it is gone."""
        self.end(signal.SIGKILL)

    def hup(self) -> None:
        """Ask it to read its configuration anew."""
        self.send(signal.SIGHUP)

    async def stop(self, timeout_s: float = 30.0) -> int:
        """Stop it in good order; return the exit code."""
        if self.running:
            self.terminate()
        return await self.wait_exit(timeout_s)

    async def restart(self, *, kill: bool = False) -> None:
        """Stop it (or kill it), start it with the same settings and wait until it is ready."""
        if kill:
            self.kill()
        else:
            await self.stop()
        self.start()
        await self.ready()

    async def close(self) -> None:
        """End it however it stands, and remove the socket."""
        if self._process is not None and self.running:
            self.resume()
            self.kill()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        self._socket_folder.cleanup()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _sent(note: bytes) -> float:
    seconds, microseconds = struct.unpack("@ll", note)
    return float(seconds + microseconds / 1e6)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ",".join(str(one) for one in value)
    return str(value)
