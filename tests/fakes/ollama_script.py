"""What the fake model server is told to do, and what it has seen."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.fakes.ollama_rules import instance
from tests.fakes.tokens import tokenise

SERVER_WIDE: Final = frozenset({"html502", "redirect", "wrong_service", "not_http", "unauthorized"})
"""Modes of a whole server: as standing mode they answer every path."""
REFUSING: Final = frozenset({"404", "429", "500", "503", "error_200_first_line", "gzipbomb"})
"""Modes that answer a call of the model before the model is asked; as standing mode also a preload."""
BREAKING: Final = frozenset(
    {"rst", "eof", "eof_clean", "bad", "err", "hang", "trickle", "hugeline", "utf8", "runner_dies"}
)
"""Modes that go wrong after `after` tokens."""
TALKING: Final = frozenset(
    {"ok", "noheader", "nodone", "split", "nel", "endless", "empty", "thinking_only", "thinking", "think_tags"}
    | {"repeat_guard", "leading_space", "extra_fields"}
)
"""Modes of a model that answers, if oddly."""
MODES: Final = SERVER_WIDE | REFUSING | BREAKING | TALKING

THOUGHT: Final = "The user wants an answer. I will give one."
ODD_TEXT: Final = "Grüße aus Zürich: 21 °C, 🏠 日本語 👩‍👩‍👧."
LINE_BREAKS: Final = "one\u0085two\u2028three\u2029four"

Piece = tuple[str, bool]
"""A token, and whether it is thought."""


@dataclass
class Behaviour:
    """One way to answer. `tokens` wins over `reply`, which wins over an echo of the newest user message."""

    mode: str = "ok"
    reply: str | Callable[[dict[str, Any]], str] | None = None
    tokens: Iterable[str] | None = None
    tokens_per_s: float = 0.0
    """0 = as fast as the socket takes them."""
    first_token_delay_s: float = 0.0
    after: int = 3
    """How many tokens go out before a breaking mode breaks."""
    delay_s: float | None = None
    """noheader: how late the answer comes; None = never."""
    trickle_s: float = 0.05
    size: int = 64 << 20
    """Bytes of the line in hugeline, and unpacked in gzipbomb."""
    error: str = "an error was encountered while running the model: unexpected EOF"
    thinking: str = THOUGHT
    tool_calls: list[dict[str, Any]] | None = None
    """Sent in the done line, as the native path does."""
    stamp: bool = False
    """Each token is the monotonic time in seconds of its writing, so that a reader elsewhere can tell its age."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "mode" and value not in MODES:
            raise ValueError(f"no mode {value!r}; there are {', '.join(sorted(MODES))}")
        super().__setattr__(name, value)

    def first_wait_s(self) -> float:
        if self.mode != "noheader":
            return self.first_token_delay_s
        return math.inf if self.delay_s is None else self.delay_s

    def pieces(self, body: dict[str, Any], *, thinks: bool) -> Iterable[Piece]:
        """Return the tokens of the answer, thought first."""
        text = self._text(body)
        thought = [(token, True) for token in tokenise(self.thinking)]
        if self.mode == "empty":
            return []
        if self.mode == "thinking_only":
            return thought
        if self.mode == "endless":
            return ((f" word{count}", False) for count in itertools.count())
        if self.mode == "repeat_guard":
            return [(" again", False)] * 31
        if self.mode == "leading_space":
            text = ["", " ", "", *text, ""]
        if self.mode == "think_tags":
            text = [*tokenise(f"<think>{self.thinking}</think>\n"), *text]
        content = ((token, False) for token in text)
        return itertools.chain(thought, content) if thinks or self.mode == "thinking" else content

    def _text(self, body: dict[str, Any]) -> Iterable[str]:
        if self.tokens is not None:
            return self.tokens
        if callable(self.reply):
            reply = self.reply(body)
        elif self.reply is not None:
            reply = self.reply
        elif self.mode == "nel":
            reply = LINE_BREAKS
        elif self.mode == "split":
            reply = ODD_TEXT
        elif body.get("format"):
            reply = json.dumps(instance(body["format"], newest(body)), ensure_ascii=False)
        else:
            reply = f"You said: {newest(body)}"
        for word in (body.get("options") or {}).get("stop") or ():
            reply = reply.split(word)[0] if word else reply
        return tokenise(reply)


def newest(body: Mapping[str, Any]) -> str:
    """Return the newest user message, or the prompt of /api/generate."""
    for message in reversed(body.get("messages") or ()):
        if message.get("role") == "user":
            return str(message.get("content") or "")
    return str(body.get("prompt") or "")


def is_question(body: Any) -> bool:
    """Tell whether a body asks for an answer: no preload, no priming of the prompt with one token or none."""
    if not isinstance(body, dict):
        return False
    wanted = (body.get("options") or {}).get("num_predict")
    messages = body.get("messages") or []
    asks = bool(body.get("prompt")) or (bool(messages) and messages[-1].get("role") in {"user", "tool"})
    return asks and wanted not in {0, 1}


@dataclass
class Record:
    """One request as the server saw it; times are monotonic seconds, tokens those of the prompt and the answer."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    arrived: float
    mode: str = "ok"
    status: int | None = None
    first_token: float | None = None
    last_token: float | None = None
    ended: float | None = None
    disconnected_at: float | None = None
    """When the client left before the answer was over."""
    tokens: int = 0
    """Tokens of the answer written so far."""
    pieces: list[str] = field(default_factory=list)
    """The answer itself so far, without thought."""
    prompt: list[str] = field(default_factory=list)
    """The prompt tokens that the model was given, after truncation."""
    evaluated: int = 0
    """How many of them were not in the cache."""
    truncated: bool = False
    shifts: int = 0

    @property
    def disconnected(self) -> bool:
        return self.disconnected_at is not None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def is_question(self) -> bool:
        return is_question(self.body)

    def summary(self) -> dict[str, Any]:
        """Return the figures as JSON values, without body and text."""
        left_out = {"headers", "body", "prompt", "pieces"}
        values = {name: value for name, value in vars(self).items() if name not in left_out}
        return {**values, "prompt_tokens": len(self.prompt), "question": self.is_question}
