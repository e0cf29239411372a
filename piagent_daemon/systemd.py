"""What systemd hears from us (sd_notify), over the sdnotify package and around its traps.

That package encodes text as Latin-1, blocks when nobody reads, and hides every error; see sd_notify(3) for the words.
"""

import os
import time
from pathlib import Path
from typing import Any

STATUS_LIMIT = 200


class Notifier:
    """Says to systemd how the service stands. Never blocks; without NOTIFY_SOCKET nothing happens.

    Each method returns whether its message was sent. A change of state (`ready`, `reloading`, `stopping`) that could
    not be sent is sent before whatever is said next.
    """

    def __init__(self) -> None:
        self._peer = _connected() if _somebody_listens() else None
        self._owed = ""

    def ready(self) -> bool:
        """Say that the start, or a reload, is complete."""
        return self._change("READY=1")

    def reloading(self) -> bool:
        """Say that a reload began; `ready` must follow, also when the new configuration is refused."""
        return self._change(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> bool:
        """Say that the stop began."""
        return self._change("STOPPING=1")

    def status(self, text: str) -> bool:
        """Show one line in `systemctl status`; a longer text is cut."""
        line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
        return self._pay() and self._send(f"STATUS={line[:STATUS_LIMIT]}")

    def watchdog(self) -> bool:
        """Say that the work goes on. A datagram of its own: nothing else in it can spoil it."""
        self._pay()
        return self._send("WATCHDOG=1")

    def watchdog_interval(self) -> float | None:
        """Return every how many seconds to call `watchdog`: a quarter of WATCHDOG_USEC; None when nobody waits."""
        microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
        if self._peer is None or not microseconds.isdecimal() or int(microseconds) == 0:
            return None
        return int(microseconds) / 4e6 if pid in {"", str(os.getpid())} else None

    def _change(self, message: str) -> bool:
        self._owed = message
        return self._pay()

    def _pay(self) -> bool:
        if self._owed and self._send(self._owed):
            self._owed = ""
        return not self._owed

    def _send(self, message: str) -> bool:
        if self._peer is None:
            return False
        try:
            # The package encodes as Latin-1: this text becomes our UTF-8 by that.
            self._peer.notify(message.encode("utf-8", "replace").decode("latin-1"))
        except OSError:
            return False
        return True


def _somebody_listens() -> bool:
    """Tell whether NOTIFY_SOCKET names a socket: by path or, with @, by abstract name."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    try:
        return address.startswith("@") or (address.startswith("/") and Path(address).is_socket())
    except OSError:
        return False


def _connected() -> Any | None:
    import sdnotify  # only under systemd  # noqa: PLC0415

    try:
        notifier = sdnotify.SystemdNotifier(debug=True)
    except OSError:
        return None
    notifier.socket.setblocking(False)
    return notifier


def memory_limit_live(root: Path = Path("/")) -> int | None:
    """Return the bytes of RAM that the kernel really allows our cgroup; None where no limit is in force.

    Raspberry Pi OS boots with the memory controller off: systemd then takes MemoryMax= without a word, and without
    effect.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
        path = next(line.removeprefix("0::") for line in groups if line.startswith("0::"))
        limit = (root / "sys/fs/cgroup" / path.strip("/") / "memory.max").read_text(encoding="ascii").strip()
    except (OSError, StopIteration, UnicodeDecodeError):
        return None
    return int(limit) if limit.isdecimal() else None
