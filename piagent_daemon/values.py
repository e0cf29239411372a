"""What passes through the seams: frozen values without behaviour, for the Protocols in `ports`."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from piagent_daemon.contract import Request, Usage


@dataclass(frozen=True, slots=True)
class Message:
    """One turn as a model reads it; `images` are plain base64 strings without a `data:` prefix."""

    role: Literal["system", "user", "assistant"]
    content: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One call of a model.

    `messages` go to a chat interface by role; when `prompt` is set it is one finished text instead (PROMPT_STYLE=xml).
    `options` are sampling options under Ollama's names, always with `num_predict`. `context_tokens` is the size of the
    model's window: a load-time option, so it must be the same on every call of a model. `singly` wants a delta of its
    own for each token, also for those that arrived in one read.
    """

    model: str
    messages: tuple[Message, ...]
    options: Mapping[str, Any]
    context_tokens: int
    prompt: str | None = None
    think: bool | str = False
    format: Literal["json"] | Mapping[str, Any] | None = None
    singly: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    """How a complete answer ended; durations in seconds, 0.0 where the server does not tell.

    `cached`: no model was asked, an earlier answer was given again.
    """

    reason: Literal["stop", "length"]
    usage: Usage = Usage()
    load_s: float = 0.0
    prompt_s: float = 0.0
    generate_s: float = 0.0
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """What a provider yields: text or thought as it comes, and `finish` on the last one only.

    One delta may hold several tokens, all that arrived in one read from the network, unless they are wanted singly.
    """

    text: str = ""
    thinking: str = ""
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class ProviderState:
    """What a short look at a model server showed; `error` is a sentence with a remedy, or None."""

    reachable: bool
    model_loaded: bool | None = None
    model_found: bool | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that the server has; `size` in bytes, 0 where unknown."""

    name: str
    size: int = 0
    parameters: str = ""
    quantization: str = ""
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PullProgress:
    """One step of a download; `completed` and `total` in bytes of the layer `digest`, 0 where the server is silent."""

    status: str
    digest: str = ""
    completed: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One remembered message; `interrupted` marks an answer that was cut off by cancel or barge-in.

    `tokens` is the size of an assistant's answer as the model server counted it, or None.
    """

    role: Literal["user", "assistant"]
    content: str
    ts: datetime
    interrupted: bool = False
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is remembered of one conversation, oldest turn first.

    `dropped` counts the turns that were cut from its front since it began; `agent` was named last, None when none was.
    `epoch` dates this reading: hand it on in the Outcome, so that a `clear` in between is noticed.
    """

    turns: tuple[Turn, ...] = ()
    dropped: int = 0
    agent: str | None = None
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class ConversationInfo:
    """One row of the list of conversations."""

    conversation_id: str
    turns: int
    agent: str | None
    last_used: datetime


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a request came in. `key` names the delivery: the same message delivered again has the same key.

    `key` rests on the client's request id where it gave one; else (`by_id` False) on the transport's packet id and a
    digest, and then it only counts when the transport says that the message is `redelivered`. `durable` tells whether
    the transport brings the message back when it is not settled.
    """

    key: str
    by_id: bool
    redelivered: bool
    durable: bool


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the store knows of a delivery: its ids, the number of the coming attempt, its earlier end.

    `crashes` counts attempts that ended with the process; `terminal` is the stored terminal event as JSON, or None;
    `duplicate` tells that this delivery was known before.
    """

    conversation_id: str
    request_id: str
    attempt: int = 1
    crashes: int = 0
    terminal: bytes | None = None
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one request, stored as one unit: its terminal event and what the conversation becomes.

    `agent` is the one that the request named; with None the conversation keeps the one it has, if any. `turns` are
    appended after `drop` turns were cut from the front of the history that the turn began with. With `turns` empty and
    `drop` 0 the conversation stays as it is. `epoch` is that of the Conversation which the turn loaded: when the
    conversation was cleared after that, only the terminal event is stored.
    """

    conversation_id: str
    request_id: str
    terminal: bytes
    agent: str | None = None
    turns: tuple[Turn, ...] = ()
    drop: int = 0
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as a door understood it. `conversation_id` None asks for a new conversation.

    `received` is the monotonic time in seconds at which it came in.
    """

    request: Request
    conversation_id: str | None
    delivery: Delivery
    received: float


@dataclass(frozen=True, slots=True)
class DoorState:
    """How a door stands. `reasons` are health reasons (`acl_publish` …); `detail` is for people."""

    connected: bool
    protocol: Literal["5", "3.1.1"] | None = None
    reasons: tuple[str, ...] = ()
    detail: str = ""
