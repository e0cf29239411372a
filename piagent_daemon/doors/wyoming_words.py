"""The words of Wyoming that a `handle` service needs, over the `wyoming` package. Pure, except for reading a stream.

Frames are read here and not by the package, because it would take lines and lengths of any size into memory.
"""

import asyncio
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from wyoming.asr import Transcript
from wyoming.event import Event, write_event
from wyoming.handle import Handled, HandledChunk, HandledStart, HandledStop, NotHandled
from wyoming.info import Attribution, Describe, HandleModel, HandleProgram, Info, SelectProgram
from wyoming.ping import Ping, Pong

from piagent_daemon import __version__
from piagent_daemon.agents import Agent
from piagent_daemon.errors import DoorError
from piagent_daemon.wire import is_sendable

__all__ = ["Describe", "Event", "Ping", "SelectProgram", "Transcript"]

MAX_NAME_CHARS: Final = 1000
OWNER: Final = Attribution(name="piagent", url="")
_TAGS: Final = """
af am ar az be bg bn bs ca cs cy da de el en eo es et eu fa fi fil fr ga gl gu he hi hr hu hy id is it ja jv ka kk km kn
ko lb lo lt lv mk ml mn mr ms my nb ne nl nn no pa pl ps pt pt-BR ro ru si sk sl so sq sr su sv sw ta te th tl tr uk ur
uz vi zh zh-CN zh-HK zh-TW zu
"""
LANGUAGES: Final = tuple(_TAGS.split())
"""Home Assistant picks an agent by language, and neither an empty list nor a star matches any in all its versions."""
_WIDE: Final = tuple("。！？｡，、；：」』）】》")
_QUOTES: Final = "\"'”’"


class FrameError(DoorError):
    """What came in is no Wyoming, or too large: the connection cannot be read any further."""


@dataclass(frozen=True, slots=True)
class Header:
    """The line that begins each event; lengths in bytes of what follows it."""

    type: str
    data: dict[str, Any]
    data_length: int
    payload_length: int


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody asked; names are Home Assistant's. `text` may be empty."""

    text: str
    conversation: str | None = None
    device: str | None = None
    satellite: str | None = None
    language: str | None = None


# ------------------------------------------------------------------------------------------------------------- hearing


async def read_event(reader: asyncio.StreamReader, limit: int) -> Event | None:
    """Read one event without its payload; None at the end of the stream.

    Raises FrameError for what is no event or has more than `limit` bytes in any of its parts, OSError when the
    connection broke. The reader's own limit bounds the line.
    """
    try:
        line = await reader.readline()
        if not line:
            return None
        found = header(line, limit)
        data = found.data | _object(await reader.readexactly(found.data_length)) if found.data_length else found.data
        await reader.readexactly(found.payload_length)
    except asyncio.IncompleteReadError:
        return None
    except ValueError:  # the line is longer than the reader's limit
        raise FrameError("a line is too long") from None
    return Event(found.type, data)


def header(line: bytes, limit: int) -> Header:
    """Read the first line of an event. Raises FrameError."""
    fields = _object(line)
    kind, data = fields.get("type"), fields.get("data")
    lengths = [fields.get(name) or 0 for name in ("data_length", "payload_length")]
    if not isinstance(kind, str) or not (data is None or isinstance(data, dict)):
        raise FrameError("a line is no header of an event")
    if not all(type(length) is int and 0 <= length <= limit for length in lengths):
        raise FrameError("an event is too large")
    return Header(kind, data or {}, *lengths)


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise FrameError("a line is not JSON") from None
    if not isinstance(value, dict):
        raise FrameError("a line is not a JSON object")
    return value


def question(data: Mapping[str, Any]) -> Question:
    """Read what a `transcript` says; what cannot be used counts as not there."""
    context = data.get("context")
    context = context if isinstance(context, dict) else {}
    text = data.get("text")
    return Question(
        text=text.strip() if isinstance(text, str) else "",
        conversation=_name(context, "conversation_id"),
        device=_name(context, "device_id"),
        satellite=_name(context, "satellite_id"),
        language=_name(data, "language") or _name(context, "language"),
    )


def _name(data: Mapping[str, Any], key: str) -> str | None:
    value = data.get(key)
    usable = isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS and is_sendable(value)
    return value if usable and isinstance(value, str) else None


def chosen_agent(data: Mapping[str, Any], agents: Iterable[str]) -> str | None:
    """Return the agent that a `select-program` names, by itself or as its program; None when there is no such."""
    name = data.get("name")
    return next((agent for agent in agents if name in (agent, program_name(agent))), None)


# ------------------------------------------------------------------------------------------------------------ speaking


def encode(event: Event) -> bytes:
    """Return an event as it goes over the line."""
    buffer = io.BytesIO()
    write_event(event, buffer)
    return buffer.getvalue()


def program_name(agent: str) -> str:
    """Return what Home Assistant shows as the name of the conversation agent."""
    return f"piagent {agent}"


def info(agents: Mapping[str, Agent], first: str) -> Event:
    """Describe all agents, one program each; `first` leads, and is the one that Home Assistant takes."""
    names = sorted(agents, key=lambda name: (name != first, name))
    return Info(handle=[_program(agents[name]) for name in names]).event()


def _program(agent: Agent) -> HandleProgram:
    description = agent.description or f"The agent {agent.name} of piagent"
    model = HandleModel(
        name=agent.name,
        attribution=OWNER,
        installed=True,
        description=description,
        version=__version__,
        languages=list(languages(agent)),
    )
    return HandleProgram(
        name=program_name(agent.name),
        attribution=OWNER,
        installed=True,
        description=description,
        version=__version__,
        models=[model],
        supports_handled_streaming=True,
    )


def languages(agent: Agent) -> tuple[str, ...]:
    """Return the languages of an agent, one by one; all that there are for one that names none."""
    return tuple(name for name in agent.languages if name != "*") or LANGUAGES


def pong(data: Mapping[str, Any]) -> Event:
    """Answer a ping with its own text."""
    return Pong(text=_name(data, "text")).event()


def start(conversation_id: str) -> Event:
    """Begin to hand out an answer piece by piece."""
    return HandledStart(context={"conversation_id": conversation_id}).event()


def chunk(text: str) -> Event:
    """Hand out a piece of an answer."""
    return HandledChunk(text).event()


def joined(before: str, text: str) -> str:
    """Return a sentence as it is written after what came before it: with a space, but not in Chinese and Japanese."""
    spaceless = before.rstrip(_QUOTES).endswith(_WIDE)
    return f" {text}" if before and not spaceless else text


def handled(text: str, conversation_id: str) -> Event:
    """Hand out the whole answer: the one event that ends a turn for Home Assistant."""
    return Handled(text=text, context={"conversation_id": conversation_id}).event()


def not_handled(text: str) -> Event:
    """Say aloud that there is no answer; an `error` event would leave Home Assistant 2026.2 waiting for ever."""
    return NotHandled(text=text).event()


def stop() -> Event:
    """End what `start` began."""
    return HandledStop().event()
