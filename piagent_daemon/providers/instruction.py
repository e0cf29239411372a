"""A structured answer asked for in words, where a protocol or a server has no other way."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from piagent_daemon.values import ChatRequest, Message


def wants(form: str | Mapping[str, Any]) -> str:
    """Return the words that ask for a format: "json" or a JSON Schema."""
    text = "Answer with one JSON value and nothing else: no words around it, no code fence."
    return text if isinstance(form, str) else f"{text} It must fit this JSON Schema:\n{json.dumps(form)}"


def instructed(messages: Sequence[Message], words: str) -> list[Message]:
    """Return `messages` with `words` at the end of the system text: some templates take only one system message."""
    if messages and messages[0].role == "system":
        return [messages[0]._replace(content=f"{messages[0].content}\n\n{words}"), *messages[1:]]
    return [Message("system", words), *messages]


def in_words(request: ChatRequest) -> ChatRequest:
    """Return a request that asks for its format in words alone."""
    if request.format is None:
        return request
    words = wants(request.format)
    text = None if request.prompt is None else f"{words}\n\n{request.prompt}"
    return request._replace(messages=tuple(instructed(request.messages, words)), prompt=text, format=None)
