"""What is decided of a request before it may wait: whether it is refused, or only wants silence."""

import unicodedata
from collections.abc import Iterable
from typing import Final

from piagent_daemon.agents import Agent
from piagent_daemon.errors import Expired, InvalidRequest, PiagentError, ShuttingDown, UnknownAgent
from piagent_daemon.job import Job
from piagent_daemon.setting_types import allows
from piagent_daemon.turn import Config

LARGE_BYTES: Final = 65_536
LARGE_WAITING_BYTES: Final = 32_000_000
"""What requests with large files or images may take together while they wait; one more is told busy."""


def refusal(job: Job, config: Config, waited_s: float, *, draining: bool) -> PiagentError | None:
    """Return why a request is refused that came in `waited_s` seconds ago, None when it is not."""
    settings, asked = config.settings, job.request.agent
    if asked is not None and asked not in config.agents:
        return UnknownAgent(f'There is no agent "{asked[:64]}". Known: {", ".join(sorted(config.agents))}.')
    named = job.request.model  # those of the settings and agents are their owner's choice
    if named and not allows(settings.models_allowed, named):
        return InvalidRequest(f'The model "{named[:128]}" is not in MODELS_ALLOWED.')
    if job.request.files and settings.files_dir is None and any(file.path for file in job.request.files):
        return InvalidRequest("Files by path are refused: FILES_DIR is not set.")
    if job.request.expires_s and waited_s >= job.request.expires_s:  # with 0 it is answered if that can be at once
        return expired(job)
    return ShuttingDown() if draining else None


def expired(job: Job) -> Expired:
    """Return why a request is not answered that waited too long."""
    return Expired(f"The request waited longer than {job.request.expires_s:g} seconds.")


def is_too_large(job: Job, waiting: Iterable[Job]) -> bool:
    """Tell whether a request with large files or images has to go away, as others like it wait."""
    held = [other.size for other in waiting] if job.size > LARGE_BYTES else []
    return bool(held) and sum(held) + job.size > LARGE_WAITING_BYTES


def wants_silence(agent: Agent, message: str) -> bool:
    """Tell whether a message is one of the agent's stop phrases; case, punctuation and spaces do not matter."""
    if not agent.stop_phrases or len(message) > 2 * max(map(len, agent.stop_phrases)) + 32:
        return False
    words = _letters(message)
    return bool(words) and any(_letters(phrase) == words for phrase in agent.stop_phrases)


def _letters(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(sign for sign in folded if unicodedata.category(sign)[0] in "LMN")
