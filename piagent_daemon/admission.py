"""What is decided of a request before it may wait: whether it is refused, or only wants silence."""

import unicodedata

from piagent_daemon.agents import Agent
from piagent_daemon.errors import InvalidRequest, PiagentError, ShuttingDown, UnknownAgent
from piagent_daemon.job import Job
from piagent_daemon.turn import Config


def refusal(job: Job, config: Config, *, draining: bool) -> PiagentError | None:
    """Return why a request is refused, None when it is not."""
    settings, asked = config.settings, job.request.agent
    if asked is not None and asked not in config.agents:
        return UnknownAgent(f'There is no agent "{asked[:64]}". Known: {", ".join(sorted(config.agents))}.')
    if settings.models_allowed and job.model and job.model not in settings.models_allowed:
        return InvalidRequest(f'The model "{job.model[:128]}" is not in MODELS_ALLOWED.')
    if job.request.files and settings.files_dir is None and any(file.path for file in job.request.files):
        return InvalidRequest("Files by path are refused: FILES_DIR is not set.")
    return ShuttingDown("The daemon stops; ask again in a moment.") if draining else None


def wants_silence(agent: Agent, message: str) -> bool:
    """Tell whether a message is one of the agent's stop phrases; case, punctuation and spaces do not matter."""
    if not agent.stop_phrases or len(message) > 2 * max(map(len, agent.stop_phrases)) + 32:
        return False
    words = _letters(message)
    return bool(words) and any(_letters(phrase) == words for phrase in agent.stop_phrases)


def _letters(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(sign for sign in folded if unicodedata.category(sign)[0] in "LMN")
