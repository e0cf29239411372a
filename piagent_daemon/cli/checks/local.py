"""This machine: clock, prompt files, context sizes, memory file."""

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from piagent_daemon.agents import Agent, load_agents
from piagent_daemon.cli.checks import Finding
from piagent_daemon.errors import ConfigError
from piagent_daemon.settings import Settings
from piagent_daemon.stores.checkup import damage

OLDEST_YEAR: Final = 2025
"""A clock before this has not been set since the machine started: it has none of its own."""
_CHARS_PER_TOKEN: Final = 3
_ROOM_TOKENS: Final = 512
_FREE_BYTES: Final = 50_000_000


def check_local(settings: Settings) -> Iterator[Finding]:
    """Look at everything that needs no network."""
    yield clock(datetime.now(UTC), Path("/"))
    agents, finding = prompts(settings)
    yield finding
    yield context(settings, agents)
    yield memory(settings)


def clock(now: datetime, root: Path) -> Finding:
    """Look whether the clock can be right; a Pi before the 5 has none that outlives a power cut."""
    shown = now.isoformat(timespec="seconds")
    if now.year < OLDEST_YEAR:
        return Finding(
            "clock", "fail", f"it says {shown}", "Set it: `sudo timedatectl set-ntp true`, and check the network."
        )
    is_pi = (root / "proc/device-tree/model").exists()
    has_rtc = (root / "dev/rtc0").exists()
    synchronised = (root / "run/systemd/timesync/synchronized").exists()
    if is_pi and not has_rtc and not synchronised:
        return Finding(
            "clock",
            "warn",
            f"{shown}, but neither a real-time clock nor a synchronisation",
            "Switch it on: `sudo timedatectl set-ntp true`; without it the time stands still while the Pi is off.",
        )
    return Finding("clock", "ok", shown)


def prompts(settings: Settings) -> tuple[dict[str, Agent], Finding]:
    """Read the prompt files; return the agents (none when a file is broken) and the finding."""
    try:
        agents = dict(load_agents(Path(settings.prompts_dir) if settings.prompts_dir else None))
    except ConfigError as error:
        return {}, Finding("prompts", "fail", "; ".join(error.problems), "Correct the file; the daemon will not start.")
    if settings.default_agent not in agents:
        return agents, Finding(
            "prompts",
            "fail",
            f"DEFAULT_AGENT is {settings.default_agent}, which has no prompt file",
            f"Choose one of {', '.join(agents)}.",
        )
    return agents, Finding("prompts", "ok", f"agents {', '.join(agents)}")


def context(settings: Settings, agents: dict[str, Agent]) -> Finding:
    """Look whether system prompt, answer and some history fit the model's window together."""
    longest = max((len(agent.system) for agent in agents.values()), default=0) // _CHARS_PER_TOKEN
    room = settings.ctx_tokens - settings.max_tokens - longest
    sizes = f"CTX_TOKENS {settings.ctx_tokens}, MAX_TOKENS {settings.max_tokens}, longest prompt about {longest}"
    if room <= 0:
        return Finding(
            "context", "fail", sizes, "Nothing is left for a question: raise CTX_TOKENS or lower MAX_TOKENS."
        )
    if room < _ROOM_TOKENS:
        return Finding(
            "context",
            "warn",
            f"{sizes}: about {room} left for the conversation",
            "Raise CTX_TOKENS or lower MAX_TOKENS, else conversations are forgotten quickly.",
        )
    return Finding("context", "ok", sizes)


def memory(settings: Settings) -> Finding:
    """Look whether the memory file can be written and is whole; never changes it."""
    if not settings.enable_memory:
        return Finding("memory", "ok", "switched off (ENABLE_MEMORY)")
    if not settings.memory_url.startswith("sqlite:"):
        return Finding("memory", "ok", "in memory only; MEMORY_URL=sqlite:///… keeps conversations over restarts")
    path = Path(settings.memory_url.removeprefix("sqlite:").removeprefix("//"))
    return _file(path)


def _file(path: Path) -> Finding:
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.R_OK | os.W_OK)):
        return Finding(
            "memory",
            "fail",
            f"{path} cannot be written by this user",
            "Run the doctor as the daemon's user (`sudo -u piagent piagent doctor`), or `chown` the folder to it.",
        )
    if shutil.disk_usage(folder).free < _FREE_BYTES:
        return Finding("memory", "warn", f"the disk of {folder} is nearly full", "Free some space.")
    if not path.exists():
        return Finding("memory", "ok", f"{path} comes with the first conversation")
    if trouble := damage(path):
        return Finding(
            "memory",
            "fail",
            f"{path} is damaged: {trouble}",
            "Restart the daemon: it puts the file aside and begins a new one.",
        )
    return Finding("memory", "ok", f"{path} is whole")
