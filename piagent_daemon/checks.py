"""What `piagent doctor` and `diagnose` look at: checks that each say how something stands and what to do about it."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from piagent_daemon.agents import Agent
from piagent_daemon.ports import Provider
from piagent_daemon.settings import Settings

State = Literal["ok", "warn", "fail"]

REMEDIES: Final = {
    "busy": "Try again in a moment.",
    "timeout": "Try again; the first answer after a start takes long, as the model is loaded then.",
    "provider_unavailable": "`piagent doctor` looks for the reason.",
    "model_not_found": "`piagent models list` shows what is there, `piagent models pull NAME` brings a model.",
    "unauthorized": "Correct the key that the message names.",
    "internal": "The daemon's log has the details: `journalctl -u piagent`.",
}
"""What to do about an error code."""
OLDEST_YEAR: Final = 2025
"""A clock before this has not been set since the machine started: it has none of its own."""
_CHARS_PER_TOKEN: Final = 3
_ROOM_TOKENS: Final = 512


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `remedy` is a plain sentence for `warn` (works, but will bite) and `fail`."""

    check: str
    state: State
    detail: str
    remedy: str = ""


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


def prompts(settings: Settings, agents: Mapping[str, Agent]) -> Finding:
    """Look whether the agents that settings name are among those that were read."""
    for name, agent in (("DEFAULT_AGENT", settings.default_agent), ("VOICE_AGENT", settings.voice_agent)):
        if agent not in agents:
            detail = f"{name} is {agent}, which has no prompt file"
            return Finding("prompts", "fail", detail, f"Choose one of {', '.join(agents)}.")
    return Finding("prompts", "ok", f"agents {', '.join(agents)}")


def context(settings: Settings, agents: Mapping[str, Agent]) -> Finding:
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


async def server(provider: Provider, models: Sequence[str]) -> AsyncGenerator[Finding, None]:
    """Look whether a model server answers and has these models, of which the first is for all who name none."""
    general = models[0]
    state = await provider.probe(general)
    label = f"server {provider.name}"
    if not state.reachable:
        detail = state.error or "it does not answer"
        remedy = "Start it, or correct its address (`piagent config` shows it)."
        if provider.name == "ollama":
            remedy = "Start it (`sudo systemctl start ollama`), or set OLLAMA_HOST."
        yield Finding(label, "fail", detail, remedy)
        return
    if state.error and state.model_found is None:
        yield Finding(label, "fail", state.error, "Correct the key or the address (`piagent config` shows them).")
        return
    yield Finding(label, "ok", "answers")
    for model in models:
        found = state if model == general else await provider.probe(model)
        if found.model_found is False:
            yield Finding("model", "fail", f"{model} is not there", f"{found.error or f'Bring {model} to the server'}.")
        elif found.model_found is None:
            yield Finding("model", "ok", f"{model}: {found.error or 'the server does not say whether it has it'}")
        else:
            yield Finding("model", "ok", f"{model} is there{', loaded' if found.model_loaded else ''}")
