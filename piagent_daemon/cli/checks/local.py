"""This machine: clock, prompt files, context sizes, memory file."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from piagent_daemon import checks
from piagent_daemon.agents import Agent, load_agents
from piagent_daemon.checks import Finding
from piagent_daemon.errors import ConfigError, StoreError
from piagent_daemon.settings import Settings
from piagent_daemon.stores import STORES
from piagent_daemon.stores.checkup import look, try_folder
from piagent_daemon.stores.database import Damage, Foreign, NoFile, OtherVersion
from piagent_daemon.stores.sqlite import path_of

_FREE_BYTES: Final = 50_000_000
_NOT_ALLOWED: Final = (
    "Run the doctor as the daemon's user (`sudo -u piagent piagent doctor`), or `chown` the folder to it."
)
_OTHER_PLACE: Final = "Choose another place in MEMORY_URL; until then the daemon remembers in memory only."
_REFUSED: Final[dict[type[StoreError], str]] = {
    Foreign: "Give piagent a file of its own in MEMORY_URL; the daemon leaves this one alone.",
    NoFile: "Name a file in MEMORY_URL, or take away what has its name.",
    OtherVersion: "Install the piagent that wrote it, to keep what it holds; "
    "this one puts the file aside and begins a new one.",
    Damage: "Restart the daemon: it puts the file aside and begins a new one.",
    StoreError: "See what else has it open (`sudo fuser -v FILE`), and whether the disk is well.",
}
"""The remedy for a file that the daemon would refuse: the first that fits."""


def check_local(settings: Settings) -> Iterator[Finding]:
    """Look at everything that needs no network."""
    yield checks.clock(datetime.now(UTC), Path("/"))
    agents, finding = prompts(settings)
    yield finding
    yield checks.context(settings, agents)
    yield memory(settings)
    if settings.wyoming_uri:
        yield wyoming(settings)


def prompts(settings: Settings) -> tuple[dict[str, Agent], Finding]:
    """Read the prompt files; return the agents (none when a file is broken) and the finding."""
    try:
        agents = dict(load_agents(Path(settings.prompts_dir) if settings.prompts_dir else None))
    except ConfigError as error:
        return {}, Finding("prompts", "fail", "; ".join(error.problems), "Correct the file; the daemon will not start.")
    return agents, checks.prompts(settings, agents)


def memory(settings: Settings) -> Finding:
    """Look whether the memory file can be written and is whole; never changes it."""
    kind = settings.memory_url.partition(":")[0]
    if kind not in STORES:
        detail = f"MEMORY_URL: no store is called {kind!r}"
        return Finding("memory", "fail", detail, f"Choose one of {', '.join(f'{name}:' for name in STORES)}.")
    try:
        path = path_of(settings.memory_url) if kind == "sqlite" else None
    except ConfigError as error:
        return Finding("memory", "fail", str(error), "Correct MEMORY_URL; the daemon will not start.")
    if not settings.enable_memory:
        return Finding("memory", "ok", "switched off (ENABLE_MEMORY)")
    if path is None:
        return Finding("memory", "ok", "in memory only; MEMORY_URL=sqlite:///… keeps conversations over restarts")
    return _file(path)


def wyoming(settings: Settings) -> Finding:
    """Look whether the package is there, without which the daemon does not start."""
    if find_spec("wyoming") is None:
        remedy = 'Run `pip install "piagent-daemon[wyoming]"`, or take WYOMING_URI out of the settings.'
        return Finding("wyoming", "fail", "the package wyoming is not installed", remedy)
    return Finding("wyoming", "ok", f"for Home Assistant's Assist at {settings.wyoming_uri}")


def _file(path: Path) -> Finding:
    try:
        folder = try_folder(path)
        if path.exists():
            look(path)
    except PermissionError:
        return _broken(f"{path} cannot be written by this user", _NOT_ALLOWED)
    except OSError as error:
        return _broken(f"{path} cannot be written: {error.strerror}", _OTHER_PLACE)
    except StoreError as error:
        trouble = "is damaged" if type(error) is Damage else "cannot be used"
        return _broken(
            f"{path} {trouble}: {error}", next(_REFUSED[kind] for kind in _REFUSED if isinstance(error, kind))
        )
    if shutil.disk_usage(folder).free < _FREE_BYTES:
        return Finding("memory", "warn", f"the disk of {folder} is nearly full", "Free some space.")
    return Finding("memory", "ok", f"{path} is whole" if path.exists() else f"{path} comes with the first conversation")


def _broken(detail: str, remedy: str) -> Finding:
    return Finding("memory", "fail", detail, remedy)
