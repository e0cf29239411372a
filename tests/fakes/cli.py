"""The command line as a process of its own, in a pipe or on a terminal."""

import asyncio
import contextlib
import os
import pty
import signal
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]


class Cli:
    """`piagent ARGV…` with `settings` in its environment; an async context manager that ends it.

    With `tty`, stdin, stdout and stderr are one pseudo terminal and `out` holds all of it; `type` writes keys. `tty`
    "err" makes only stderr one. `full`: standard output takes nothing.
    """

    def __init__(
        self,
        *argv: str,
        tty: bool = False,
        full: bool = False,
        stdin: str | bytes | None = None,
        env: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.out = ""
        self.err = ""
        self._argv = argv
        self._tty = tty
        self._full = full
        self._stdin = stdin
        keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self._env = {
            **keep,
            "PYTHONPATH": str(ROOT),
            "PYTHONUTF8": "1",
            "TERM": "xterm",
            **{f"PIAGENT_{name.upper()}": str(value) for name, value in settings.items()},
            **(env or {}),
        }
        self._changed = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._master = -1
        self._readers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        # A shell ignores Ctrl-C for what runs in its background, and so would every child.
        command = ["env", "--default-signal=INT", sys.executable, "-m", "piagent_daemon", *self._argv]
        if self._tty:
            self._master, slave = pty.openpty()
            _no_echo(slave)
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=slave, stdout=slave, stderr=slave, env=self._env, cwd="/"
            )
            os.close(slave)
            asyncio.get_running_loop().add_reader(self._master, self._read_master)
            return self
        pipe = asyncio.subprocess.PIPE
        full = os.open("/dev/full", os.O_WRONLY)
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=full if self._full else pipe, stderr=pipe, env=self._env, cwd="/"
        )
        os.close(full)
        streams = {"out": self._process.stdout, "err": self._process.stderr}
        assert self._process.stdin
        self._readers = [
            asyncio.create_task(self._read(stream, name), name=f"read std{name}")
            for name, stream in streams.items()
            if stream
        ]
        if self._stdin is not None:
            self._process.stdin.write(self._stdin if isinstance(self._stdin, bytes) else self._stdin.encode())
            self._process.stdin.close()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await asyncio.gather(*self._readers)
        self._close_master()

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    async def interrupt_prompt(self) -> None:
        """Press Ctrl-C at the prompt, again when it came just before Python began to wait for input."""
        for _ in range(10):
            self.interrupt()
            with contextlib.suppress(TimeoutError):
                await self.until(lambda: not self.out.endswith("> "), 1.0)
                return
        raise TimeoutError("Ctrl-C does nothing")

    async def until(self, condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
        """Wait until `condition()` holds; it is looked at after each output."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(f"not in {timeout_s} s; out {self.out[-2000:]!r}, err {self.err[-2000:]!r}") from None

    async def shows(self, text: str, timeout_s: float = 10.0) -> None:
        """Wait until `text` stands in the output."""
        await self.until(lambda: text in self.out, timeout_s)

    async def end(self, timeout_s: float = 15.0) -> int:
        """Wait for it to end by itself; return the exit code, with all output read."""
        try:
            async with asyncio.timeout(timeout_s):
                code = await self.process.wait()
                await asyncio.gather(*self._readers)
        except TimeoutError:
            raise TimeoutError(
                f"runs after {timeout_s} s; out {self.out[-2000:]!r}, err {self.err[-2000:]!r}"
            ) from None
        while self._master >= 0 and self._read_master():
            pass
        return code

    async def _read(self, stream: asyncio.StreamReader, name: str) -> None:
        while data := await stream.read(65_536):
            setattr(self, name, getattr(self, name) + data.decode())
            self._changed.set()

    def _read_master(self) -> bool:
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # the other side is closed
            data = b""
        if not data:
            self._close_master()
            return False
        self.out += data.decode("utf-8", "replace")
        self._changed.set()
        return True

    def _close_master(self) -> None:
        if self._master >= 0:
            asyncio.get_running_loop().remove_reader(self._master)
            os.close(self._master)
            self._master = -1


def _no_echo(terminal: int) -> None:
    mode = termios.tcgetattr(terminal)
    mode[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, mode)
