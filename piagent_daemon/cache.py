"""Answers that are given again: to an equal question without history in whose answer chance has no part.

Off unless CACHE_TTL_S is set. What counts is what the model would read and be told: two requests are equal when their
prompts are, so one with the time in its prompt is equal to none.
"""

import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from hashlib import sha256
from typing import Final, NamedTuple

from piagent_daemon.ports import Clock
from piagent_daemon.values import ChatRequest, Delta, Finish

MAX_ANSWERS: Final = 256
MAX_BYTES: Final = 1_048_576
"""Of all answers together."""

Ask = Callable[[ChatRequest], AsyncGenerator[Delta, None]]


class Answer(NamedTuple):
    """A complete answer; `until` is monotonic seconds, `size` bytes."""

    text: str
    finish: Finish
    until: float
    size: int


class AnswerCache:
    """Stands before a model; the answer that was used longest ago goes first."""

    def __init__(self, ask: Ask, clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()
        self._size = 0

    def chat(self, request: ChatRequest, ttl_s: float) -> AsyncGenerator[Delta, None]:
        """Return the answer to an equal request, if one is kept still, else the model's, kept for `ttl_s` seconds.

        Only repeatable requests have one (see `is_repeatable`). With `ttl_s` 0 nothing is kept any more.
        """
        if not ttl_s:
            self._answers.clear()
            self._size = 0
        if not (ttl_s and is_repeatable(request)):
            return self._ask(request)
        key = key_of(request)
        known = self._answers.get(key)
        if known and known.until > self._clock.monotonic():
            self._answers.move_to_end(key)
            return _again(known)
        return self._record(key, request, ttl_s)

    async def _record(self, key: bytes, request: ChatRequest, ttl_s: float) -> AsyncGenerator[Delta, None]:
        parts = []
        async with aclosing(self._ask(request)) as deltas:
            async for delta in deltas:
                parts.append(delta.text)
                if delta.finish and (text := "".join(parts)).strip():
                    self._keep(key, Answer(text, delta.finish, self._clock.monotonic() + ttl_s, len(text.encode())))
                yield delta

    def _keep(self, key: bytes, answer: Answer) -> None:
        self._drop(key)
        if answer.size > MAX_BYTES:
            return
        self._answers[key] = answer
        self._size += answer.size
        while len(self._answers) > MAX_ANSWERS or self._size > MAX_BYTES:
            self._drop(next(iter(self._answers)))

    def _drop(self, key: bytes) -> None:
        if answer := self._answers.pop(key, None):
            self._size -= answer.size


def is_repeatable(request: ChatRequest) -> bool:
    """Tell whether an equal request gets an equal answer, and none that belongs to a conversation."""
    settled = request.options.get("temperature") == 0 or request.options.get("seed") is not None
    return settled and not any(message.role == "assistant" for message in request.messages)


def key_of(request: ChatRequest) -> bytes:
    """Return what names all equal requests: model, prompt, options, format."""
    messages = [(message.role, message.content, message.images) for message in request.messages]
    whole = (
        request.model,
        messages,
        request.prompt,
        request.options,
        request.context_tokens,
        request.think,
        request.format,
    )
    text = json.dumps(whole, sort_keys=True, default=dict)
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


async def _again(answer: Answer) -> AsyncGenerator[Delta, None]:
    """Stream an answer as a model would; it has cost no tokens."""
    yield Delta(answer.text)
    yield Delta(finish=Finish(answer.finish.reason, cached=True))
