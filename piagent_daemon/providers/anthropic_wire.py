"""Anthropic's JSON, both ways: pure functions, and a listener for one answer.

Sources: the Messages API reference, "Streaming messages", "Handling stop reasons", "Troubleshooting thinking",
"Structured outputs", the Models API.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from piagent_daemon.contract import Usage
from piagent_daemon.errors import ProviderError
from piagent_daemon.providers.answer import Failure, Heard
from piagent_daemon.providers.images import media_type
from piagent_daemon.providers.instruction import wants
from piagent_daemon.providers.untrusted import rows as named_rows
from piagent_daemon.values import ChatRequest, Finish, Message, ModelInfo

DEFAULT_TOKENS = 1024
MIN_BUDGET = 1024
"""The least thinking that can be asked for by a number of tokens; it must stay below the length of the answer."""
OPTIONAL = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "thinking": "thinking",
    "output_config": "output_config|effort|output_format|structured outputs?|json_schema",
}
"""Fields that an answer can do without when a model refuses them, and the words for them in a refusal."""
KNOWN_OPTIONS = frozenset({"temperature", "top_p", "top_k", "stop", "num_predict"})


def chat_body(request: ChatRequest, left_out: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the body of a call, without the fields in `left_out`.

    The system text is a field of its own; the first message must be the user's, and none may be empty. A finished text
    (`request.prompt`) is one message of the user's.
    """
    limit = request.options.get("num_predict") or DEFAULT_TOKENS
    thinking = _thinking(request.think, limit, left_out)
    body: dict[str, Any] = {"model": request.model, "max_tokens": limit, "stream": True}
    if thinking:
        body["thinking"] = thinking
    if not thinking or thinking["type"] == "disabled":
        body |= _sampling(request.options)
    if stop := request.options.get("stop"):
        words = [stop] if isinstance(stop, str) else list(stop)
        body["stop_sequences"] = [word for word in words if word.strip()]  # blanks alone are refused
    config: dict[str, Any] = {}
    if isinstance(request.think, str) and thinking and thinking["type"] == "adaptive":
        config["effort"] = request.think
    if isinstance(request.format, Mapping):
        config["format"] = {"type": "json_schema", "schema": closed(request.format)}
    if config:
        body["output_config"] = config
    body = {name: value for name, value in body.items() if name not in left_out}
    system = [message.content for message in request.messages if message.role == "system" and request.prompt is None]
    if request.format is not None and "format" not in body.get("output_config", {}):
        system.append(wants(request.format))
    if any(system):
        body["system"] = "\n\n".join(filter(None, system))
    body["messages"] = _messages(request)
    return body


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling options: temperature is at most 1 here, and newer models take only one of it and top_p."""
    found = {name: options[name] for name in ("temperature", "top_p", "top_k") if options.get(name) is not None}
    if "temperature" in found:
        found["temperature"] = min(found["temperature"], 1)
    if "top_p" in found:
        found.pop("temperature", None)
    return found


def _thinking(think: bool | str, limit: int, left_out: frozenset[str]) -> dict[str, Any] | None:
    """Return the first way of turning thinking on or off that the model has not refused."""
    if not think:
        ways: list[dict[str, Any]] = [{"type": "disabled"}]
    else:
        ways = [{"type": "adaptive"}]
        if limit > MIN_BUDGET:
            ways.append({"type": "enabled", "budget_tokens": max(MIN_BUDGET, limit // 2)})
    return next((way for way in ways if f"thinking.{way['type']}" not in left_out), None)


def closed(schema: Any) -> Any:
    """Return a schema whose objects allow no further properties: others are refused."""
    if isinstance(schema, Mapping):
        made = {key: closed(value) for key, value in schema.items()}
        if schema.get("type") == "object":
            made["additionalProperties"] = False
        return made
    return [closed(value) for value in schema] if isinstance(schema, list | tuple) else schema


def _messages(request: ChatRequest) -> list[dict[str, Any]]:
    if request.prompt is not None:
        images = tuple(image for message in request.messages for image in message.images)
        return [{"role": "user", "content": _content(Message("user", request.prompt, images))}]
    turns = [message for message in request.messages if message.role != "system" and _content(message)]
    if not turns or turns[0].role != "user":
        turns.insert(0, Message("user", "."))
    return [{"role": turn.role, "content": _content(turn)} for turn in turns]


def _content(message: Message) -> str | list[dict[str, Any]]:
    text = message.content if message.content.strip() else ""
    if not message.images:
        return text
    parts: list[dict[str, Any]] = [
        {"type": "image", "source": {"type": "base64", "media_type": media_type(image), "data": image}}
        for image in message.images
    ]
    return [*parts, {"type": "text", "text": text}] if text else parts


# ------------------------------------------------------------------------------------------------------------ answers


class Listener:
    """Understands one answer. It is complete with a `stop_reason` and `message_stop`, and with nothing less."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._prompt = 0
        self._completion = 0

    def hear(self, events: Sequence[dict[str, Any]]) -> Heard:
        """Return text and thinking of `events`, and how the answer ended when it did."""
        text = thinking = ""
        for event in events:
            kind = event.get("type")
            try:
                if kind == "content_block_delta":
                    delta = event["delta"]
                    if delta["type"] == "text_delta":
                        text += delta["text"]
                    elif delta["type"] == "thinking_delta":
                        thinking += delta["thinking"]
                elif kind == "content_block_start":
                    text += event["content_block"].get("text") or ""
                elif kind == "message_start":
                    self._count(event["message"].get("usage"))
                elif kind == "message_delta":
                    reason = event["delta"].get("stop_reason")
                    self._reason = reason if isinstance(reason, str) else self._reason
                    self._count(event.get("usage"))
            except (AttributeError, LookupError, TypeError):
                raise ProviderError(
                    f"the model server sent an event that is no piece of an answer: {json.dumps(event)[:200]}"
                ) from None
            if kind == "message_stop":
                return text, thinking, self._end()
            if kind == "error" or "error" in event:
                return text, thinking, Failure(event.get("error") or event)
        return text, thinking, None

    def _count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        numbers = {key: value for key, value in usage.items() if type(value) is int and 0 <= value < 1 << 63}
        cached = numbers.get("cache_creation_input_tokens", 0) + numbers.get("cache_read_input_tokens", 0)
        # What comes later is a running total, and does not repeat all of what came first.
        self._prompt = max(self._prompt, numbers.get("input_tokens", 0) + cached)
        self._completion = max(self._completion, numbers.get("output_tokens", 0))

    def _end(self) -> Finish | Failure:
        if not self._reason:
            return Failure(ProviderError("the model server ended the answer without a reason to stop"))
        if self._reason == "refusal":
            return Failure(ProviderError("the model server's safety filter cut the answer off"))
        total = self._prompt + self._completion
        return Finish(
            reason="length" if self._reason in {"max_tokens", "model_context_window_exceeded"} else "stop",
            usage=Usage(prompt_tokens=self._prompt, completion_tokens=self._completion, total_tokens=total),
        )


# ------------------------------------------------------------------------------------------------------------- models


def rows(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the models in an answer of /v1/models that have a name."""
    return named_rows(body, "data", "id")


def model(row: Mapping[str, Any]) -> ModelInfo:
    """Read one model of the list."""
    return ModelInfo(name=row["id"], capabilities=tuple(sorted(abilities(row))))


def abilities(row: Mapping[str, Any]) -> frozenset[str]:
    """Return capabilities in Ollama's words: all models have tools and eyes unless the list says that one has not."""
    found = {"completion", "tools", "vision"}
    said = row.get("capabilities")
    if isinstance(said, dict):
        for name, word in (("image_input", "vision"), ("thinking", "thinking")):
            entry = said.get(name)
            supported = entry.get("supported") if isinstance(entry, dict) else entry
            if supported is True:
                found.add(word)
            elif supported is False:
                found.discard(word)
    return frozenset(found)
