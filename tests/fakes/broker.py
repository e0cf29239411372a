"""A real mosquitto on loopback, and other things that may stand at a port."""

import base64
import contextlib
import hashlib
import os
import shutil
import signal
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.fakes.processes import Child, wait_for


def find_mosquitto() -> str | None:
    """Return the path of the program, or None when it is not installed (Debian keeps it in /usr/sbin)."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Mosquitto(Child):
    """A broker with its files in `folder`. Keeps sessions over restarts and kills, unless `persistence` is off.

    `users` maps names to passwords and forbids anonymous clients; `acl` is the text of an acl_file; `certificate` is
    (CA file, certificate file, key file) and makes the port TLS; `extra` are further lines of its configuration.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        persistence: bool = True,
        max_inflight: int = 20,
        users: Mapping[str, str] | None = None,
        acl: str | None = None,
        certificate: tuple[Path, Path, Path] | None = None,
        extra: Iterable[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__([find_mosquitto() or "mosquitto", "-v"], folder / "mosquitto.log", None, folder)
        self.port = port or free_port()
        self.persistence = persistence
        self.max_inflight = max_inflight
        self.users = users
        self.acl = acl
        self.certificate = certificate
        self.extra = list(extra)

    def start(self) -> None:
        """Write the configuration and start; return when connections are accepted."""
        path = self.folder / "mosquitto.conf"
        path.write_text("\n".join(self._configuration()) + "\n", "utf-8")
        self.command = [self.command[0], "-v", "-c", str(path)]
        self.spawn()
        wait_for(self._accepts, 10, f"mosquitto does not listen on {self.port}")

    def _configuration(self) -> list[str]:
        lines = [
            f"listener {self.port} 127.0.0.1",
            "set_tcp_nodelay true",
            "max_queued_messages 100000",
            f"max_inflight_messages {self.max_inflight}",
            f"allow_anonymous {'false' if self.users else 'true'}",
            "log_dest stderr",  # stdout would come in blocks
            "connection_messages true",
        ]
        if os.geteuid() == 0:
            lines.append("user root")
        if self.persistence:
            lines += ["persistence true", f"persistence_location {self.folder}/"]
            lines += ["autosave_on_changes true", "autosave_interval 1"]
        if self.users:
            hashed = "".join(f"{name}:{_hash(password)}\n" for name, password in self.users.items())
            lines.append(f"password_file {self._file('passwords', hashed)}")
        if self.acl is not None:
            lines.append(f"acl_file {self._file('acl', self.acl)}")
        if self.certificate:
            names = ("cafile", "certfile", "keyfile")
            lines += [f"{name} {file}" for name, file in zip(names, self.certificate, strict=True)]
        return [*lines, *self.extra]

    def _file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, "utf-8")
        path.chmod(0o600)
        return path

    def _accepts(self) -> bool:
        assert self.running, f"mosquitto ended:\n{self.output[-2000:]}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def stop(self) -> None:
        """End it in good order; it saves its sessions."""
        self.end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would, when it has written what it acknowledged: it loses the rest, whoever asks."""
        if self.persistence:
            wait_for(self._paused_when_saved, 20, "mosquitto wrote nothing")
        self.end(signal.SIGKILL)

    def _paused_when_saved(self) -> bool:
        self.pause()
        log = self.output
        saved = log.rfind("PUBACK") <= log.rfind("Saving in-memory database")
        if saved and not (self.folder / "mosquitto.db.new").exists():
            return True
        self.resume()
        return False

    def restart(self, *, kill: bool = False) -> None:
        """Stop it (or kill it) and start it on the same port with the same files."""
        (self.kill if kill else self.stop)()
        self.start()

    def reload(self) -> None:
        """Write the configuration again and let it read passwords and ACL anew."""
        self._configuration()
        self.send(signal.SIGHUP)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.running:
            self.stop()


def _hash(password: str) -> str:
    """Return a password as mosquitto_passwd writes it: PBKDF2 with SHA-512."""
    salt = os.urandom(12)
    key = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 101)
    return f"$7$101${base64.b64encode(salt).decode()}${base64.b64encode(key).decode()}"


class BlackHole:
    """A port whose connections are never accepted: its backlog is full, so a connect waits until it times out."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._fillers: list[socket.socket] = []
        self.port = 0

    def __enter__(self) -> Self:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.port = self._listener.getsockname()[1]
        for _ in range(8):
            filler = socket.socket()
            self._fillers.append(filler)
            filler.settimeout(0.2)
            try:
                filler.connect(("127.0.0.1", self.port))
            except TimeoutError:
                break
        return self

    def __exit__(self, *exc: object) -> None:
        for one in (self._listener, *self._fillers):
            one.close()
