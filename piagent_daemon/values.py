"""What passes through the seams: frozen values without behaviour, for the Protocols in `ports`.

Named tuples: they are made a token, and a class of them costs the start a fifth of what a dataclass does.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

from piagent_daemon.contract import Request, Usage


class Message(NamedTuple):
    """One turn as a model reads it; `images` are plain base64 strings without a `data:` prefix."""

    role: Literal["system", "user", "assistant"]
    content: str
    images: tuple[str, ...] = ()


class ChatRequest(NamedTuple):
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


class Finish(NamedTuple):
    """How a complete answer ended; durations in seconds, 0.0 where the server does not tell.

    `cached`: no model was asked, an earlier answer was given again.
    """

    reason: Literal["stop", "length"]
    usage: Usage = Usage()
    load_s: float = 0.0
    prompt_s: float = 0.0
    generate_s: float = 0.0
    cached: bool = False


class Delta(NamedTuple):
    """What a provider yields: text or thought as it comes, and `finish` on the last one only.

    One delta may hold several tokens, all that arrived in one read from the network, unless they are wanted singly.
    """

    text: str = ""
    thinking: str = ""
    finish: Finish | None = None


class ProviderState(NamedTuple):
    """What a short look at a model server showed; `error` is a sentence with a remedy, or None, `code` its kind."""

    reachable: bool
    model_loaded: bool | None = None
    model_found: bool | None = None
    error: str | None = None
    code: str | None = None


class ModelInfo(NamedTuple):
    """A model that the server has; `size` in bytes, 0 where unknown."""

    name: str
    size: int = 0
    parameters: str = ""
    quantization: str = ""
    capabilities: tuple[str, ...] = ()


class PullProgress(NamedTuple):
    """One step of a download; `completed` and `total` in bytes of the layer `digest`, 0 where the server is silent."""

    status: str
    digest: str = ""
    completed: int = 0
    total: int = 0


class Turn(NamedTuple):
    """One remembered message; `interrupted` marks an answer that was cut off by cancel or barge-in.

    `tokens` is the size of an assistant's answer as the model server counted it, or None.
    """

    role: Literal["user", "assistant"]
    content: str
    ts: datetime
    interrupted: bool = False
    tokens: int | None = None


class Conversation(NamedTuple):
    """What is remembered of one conversation, oldest turn first.

    `dropped` counts the turns that were cut from its front since it began; `agent` was named last, None when none was.
    `epoch` dates this reading: hand it on in the Outcome, so that a `clear` in between is noticed.
    """

    turns: tuple[Turn, ...] = ()
    dropped: int = 0
    agent: str | None = None
    epoch: int = 0


class ConversationInfo(NamedTuple):
    """One row of the list of conversations."""

    conversation_id: str
    turns: int
    agent: str | None
    last_used: datetime


class Delivery(NamedTuple):
    """How a request came in. `key` names the delivery: the same message delivered again has the same key.

    `key` rests on the client's request id where it gave one; else (`by_id` False) on the transport's packet id and a
    digest, and then it only counts when the transport says that the message is `redelivered`. `durable` tells whether
    the transport brings the message back when it is not settled.
    """

    key: str
    by_id: bool
    redelivered: bool
    durable: bool


class Ticket(NamedTuple):
    """What the store knows of a delivery: its ids, the number of the coming attempt, its earlier end.

    `crashes` counts attempts that ended with the process; `terminal` is the stored terminal event as JSON, or None.
    """

    conversation_id: str
    request_id: str
    attempt: int = 1
    crashes: int = 0
    terminal: bytes | None = None


class Outcome(NamedTuple):
    """The end of one request, stored as one unit: its terminal event and what the conversation becomes.

    `agent` is the one that the request named; with None the conversation keeps the one it has, if any. `turns` are
    appended after `drop` turns were cut from the front of the history that the turn began with. `epoch` is that of the
    Conversation which the turn loaded: when the conversation was cleared after that, only the terminal event is stored.
    """

    conversation_id: str
    request_id: str
    terminal: bytes
    agent: str | None = None
    turns: tuple[Turn, ...] = ()
    drop: int = 0
    epoch: int = 0


class Incoming(NamedTuple):
    """A request as a door understood it. `conversation_id` None asks for a new conversation.

    `received` is the monotonic time in seconds at which it came in; `size` is that of its payload in bytes.
    """

    request: Request
    conversation_id: str | None
    delivery: Delivery
    received: float
    size: int = 0


class DoorState(NamedTuple):
    """How a door stands. `reasons` are health reasons (`acl_publish` …); `detail` is for people."""

    connected: bool
    protocol: Literal["5", "3.1.1"] | None = None
    reasons: tuple[str, ...] = ()
    detail: str = ""
