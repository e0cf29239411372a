"""Log lines: to the journal with priorities, elsewhere for people; never blocking, never with a secret.

Nobody who reads our lines slowly may hold the event loop: a line is only written when it fits at once. The pipe or
socket itself is the queue (64 kB and more), so no thread is needed; what does not fit is dropped and counted.
"""

import logging
import os
import re
import select
from collections.abc import Iterable
from json import dumps
from urllib.parse import quote

from pydantic import BaseModel, SecretStr

from piagent_daemon.setting_types import secrets_in_address

STDERR = 2
ADDRESSES = ("host", "url", "uri")
"""How the names of settings end that may hold user and password."""
NOISY = ("httpx", "paho", "asyncio")
"""Libraries that log each request or each slow step: silent below WARNING, except at debug."""
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
AT_ONCE = select.PIPE_BUF
"""So many bytes are sure to fit into a pipe that reports room."""
SHORTEST_SECRET = 4

_USERINFO = re.compile(r"://[^/\s]*@")
_CONTROL = {code: f"\\x{code:02x}" for code in [*range(32), *range(127, 160)] if code not in {9, 10}}


def configure(level: str, log_format: str = "auto", secrets: Iterable[str] = (), fd: int = STDERR) -> None:
    """Send all log lines to standard error; called again, change how.

    `level`: debug, info, warning or error. `log_format`: journal (a `<N>` priority, no time), terminal, or auto: what
    standard error is. Each of `secrets` is masked wherever it would appear.
    """
    journal = log_format == "journal" or (log_format == "auto" and is_journal(fd))
    handler = LineHandler(fd)
    handler.setFormatter(Lines(journal=journal, secrets=secrets))
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, LineHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else logging.WARNING)


def is_journal(fd: int = STDERR) -> bool:
    """Tell whether a file descriptor is the one whose device and inode JOURNAL_STREAM names (systemd.exec(5))."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def secrets_in(settings: BaseModel) -> list[str]:
    """Return the values of all secret settings, and user and password of addresses, to be masked."""
    found: list[str] = []
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            found.append(value.get_secret_value())
        elif isinstance(value, str) and name.endswith(ADDRESSES):
            found += secrets_in_address(value)
    return found


class LineHandler(logging.Handler):
    """Writes to a file descriptor what fits without waiting; `dropped` counts the lines that did not."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._told = 0
        self._torn = False
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except (TypeError, ValueError, LookupError, AttributeError):
            # A defect in a log call must not end the work that it tells of.
            text = f"unreadable log record from {record.name}, {record.filename}:{record.lineno}"
        if lost := self.dropped - self._told:
            text = f"{text}\n{self._notice(lost)}"
        if self._write(text.encode("utf-8", "backslashreplace") + b"\n"):
            self._told += lost
        else:
            self.dropped += 1

    def _notice(self, lost: int) -> str:
        words = "%d log lines before this one were dropped: nobody read them"
        return self.format(logging.LogRecord("piagent.log", logging.WARNING, __file__, 0, words, (lost,), None))

    def _write(self, data: bytes) -> bool:
        """Write in portions that fit at once. A line that was torn is ended before the next begins."""
        data = b"\n" + data if self._torn else data
        while data:
            try:
                room = any(event & select.POLLOUT for _, event in self._poll.poll(0))
                written = os.write(self._fd, data[:AT_ONCE]) if room else 0
            except OSError:
                written = 0
            if not written:
                return False
            data = data[written:]
            self._torn = bool(data)
        return True


class Lines(logging.Formatter):
    """One record as text, tracebacks and all: secrets masked, control characters made visible, no line forged."""

    def __init__(self, *, journal: bool, secrets: Iterable[str] = ()) -> None:
        super().__init__("%(name)s: %(message)s" if journal else "%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        self._journal = journal
        self._mask = Mask(secrets)

    def format(self, record: logging.LogRecord) -> str:
        text = self._mask(super().format(record)).translate(_CONTROL)
        if not self._journal:
            return text.replace("\n", "\n    ")
        priority = PRIORITIES.get(record.levelno, 6)
        return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


class Mask:
    """Hides secrets, as they are and as they look inside URLs, JSON and reprs; and the user part of any URL."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        long_enough = [secret for secret in secrets if len(secret) >= SHORTEST_SECRET]
        forms = {form for secret in long_enough for form in _forms(secret)}
        # The longest first: one secret may begin with another.
        self._secrets = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _USERINFO.sub("://***@", text) if "@" in text else text


def _forms(secret: str) -> set[str]:
    return {secret, quote(secret, safe=""), quote(secret), dumps(secret)[1:-1], repr(secret)[1:-1]}
