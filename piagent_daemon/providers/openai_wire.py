"""OpenAI's JSON, both ways: pure functions, and a listener for one answer.

Sources: the OpenAI API reference (chat completions, embeddings, models); llama.cpp, tools/server/README.md (`timings`,
`meta`); LM Studio, REST API; the Hugging Face router and OpenRouter (`architecture`). Ollama's /v1 as measured.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from piagent_daemon.contract import Usage
from piagent_daemon.errors import ProviderError
from piagent_daemon.providers.answer import DONE, Failure, Heard
from piagent_daemon.providers.images import media_type
from piagent_daemon.providers.instruction import in_words, instructed
from piagent_daemon.providers.openai_presets import Preset
from piagent_daemon.providers.untrusted import count, items, table, words
from piagent_daemon.providers.untrusted import rows as named_rows
from piagent_daemon.values import ChatRequest, Finish, Message, ModelInfo

OPTIONAL = {
    name: name
    for name in (
        *("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "repetition_penalty", "seed", "stop"),
        *("reasoning_effort", "chat_template_kwargs", "stream_options"),
    )
} | {"max_tokens": "max_completion_tokens"}
"""Fields that an answer can do without when a model refuses them, or in other words (`max_tokens`)."""
REASONING = re.compile(r"(?:openai/)?(?:o\d|gpt-5)(?!.*chat)")
"""Models of OpenAI's own that think before each answer."""


def chat_body(request: ChatRequest, preset: Preset, left_out: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the body of a call, without the fields in `left_out` and the options that this server does not know.

    A finished text (`request.prompt`) is one message of the user's. The size of the window cannot be set.
    """
    if not preset.structured:
        request = in_words(request)
    body: dict[str, Any] = {
        "model": request.model,
        "messages": _messages(request),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for name, value in request.options.items():
        if name == "num_predict":
            body["max_completion_tokens" if "max_tokens" in left_out else preset.limit] = value
        elif name == "stop":
            body["stop"] = [value] if isinstance(value, str) else list(value)
        elif name in preset.options:
            body[preset.options[name]] = value
    body |= _thinking(request, preset)
    if request.format is not None:
        body["response_format"] = _format(request.format, preset)
    return {name: value for name, value in body.items() if name not in left_out}


def unknown_options(request: ChatRequest, preset: Preset) -> set[str]:
    """Return the names of the wanted options that this server does not know."""
    return {name for name in request.options if name != "num_predict" and name not in preset.options}


def _messages(request: ChatRequest) -> list[dict[str, Any]]:
    if request.prompt is not None:
        images = tuple(image for message in request.messages for image in message.images)
        return [_message(Message("user", request.prompt, images))]
    messages = list(request.messages)
    if request.format == "json" and not any("json" in message.content.lower() for message in messages):
        # OpenAI refuses the format without the word, and without being told models write blanks for ever.
        messages = instructed(messages, "Answer with one JSON object.")
    return [_message(message) for message in messages]


def _message(message: Message) -> dict[str, Any]:
    if not message.images:
        return {"role": message.role, "content": message.content}
    parts: list[dict[str, Any]] = [{"type": "text", "text": message.content}] if message.content else []
    urls = (f"data:{media_type(image)};base64,{image}" for image in message.images)
    parts += [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": message.role, "content": parts}


def _thinking(request: ChatRequest, preset: Preset) -> Mapping[str, Any]:
    """Return what turns thinking on or off; who cannot be told thinks as it likes."""
    if isinstance(request.think, str):
        return {"reasoning_effort": "high" if request.think == "max" else request.think}
    if not request.think and not preset.quiet and preset.limit != "max_tokens" and REASONING.match(request.model):
        return {"reasoning_effort": "low"}  # the least that all of them know
    return {} if request.think else preset.quiet


def _format(wanted: str | Mapping[str, Any], preset: Preset) -> dict[str, Any]:
    if isinstance(wanted, Mapping):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted, "strict": _closed(wanted)}}
    if preset.plain_json:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}


def _closed(schema: Any) -> bool:
    """Tell whether a schema has all that OpenAI's strict mode asks for: every property required, no others allowed."""
    if isinstance(schema, Mapping):
        if "properties" in schema or schema.get("type") == "object":
            names = schema.get("properties")
            required = schema.get("required")
            known = set(names) if isinstance(names, Mapping) else set()
            if schema.get("additionalProperties") is not False or not isinstance(required, list):
                return False
            if {name for name in required if isinstance(name, str)} != known:
                return False
        return all(_closed(value) for value in schema.values())
    return all(_closed(value) for value in schema) if isinstance(schema, list | tuple) else True


# ------------------------------------------------------------------------------------------------------------ answers


class Listener:
    """Understands one answer. It is complete with a `finish_reason` and `[DONE]`, and with nothing less.

    Where the stream ends in good order, that stands for `[DONE]`: some servers send none.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}

    def hear(self, chunks: Sequence[dict[str, Any]]) -> Heard:
        """Return text and thinking of `chunks`, and how the answer ended when it did."""
        text = thinking = ""
        for chunk in chunks:
            if chunk is DONE:
                return text, thinking, self._end()
            if chunk.get("error"):
                return text, thinking, Failure(chunk["error"])
            if chunk.get("usage"):
                self._usage = table(chunk, "usage")
            if "timings" in chunk:
                self._timings = table(chunk, "timings")
            choices = chunk.get("choices")
            if not choices:
                continue
            try:
                choice = choices[0]
                delta = choice.get("delta") or {}
                said = delta.get("content") or delta.get("refusal")
                thought = delta.get("reasoning_content") or delta.get("reasoning")
                if said:
                    text += said
                if thought:
                    thinking += thought
                reason = choice.get("finish_reason")
            except (AttributeError, LookupError, TypeError):
                raise ProviderError(
                    f"the model server sent an event that is no piece of an answer: {json.dumps(chunk)[:200]}"
                ) from None
            if isinstance(reason, str):
                self._reason = reason
        return text, thinking, self._end() if self._reason and not chunks else None

    def _end(self) -> Finish | Failure:
        if not self._reason:
            return Failure(ProviderError("the model server ended the answer without a reason to stop"))
        if self._reason == "content_filter":
            return Failure(ProviderError("the model server's content filter cut the answer off"))
        if self._reason == "error":
            return Failure(ProviderError("the model server failed in the middle of the answer"))
        return finish(self._reason, self._usage, self._timings)


def finish(reason: str, usage: Mapping[str, Any], timings: Mapping[str, Any]) -> Finish:
    """Read usage, and llama-server's `timings` (milliseconds); what is missing or no number is zero."""
    prompt = count(usage, "prompt_tokens") or count(timings, "prompt_n") + count(timings, "cache_n")
    completion = count(usage, "completion_tokens") or count(timings, "predicted_n")
    return Finish(
        reason="length" if reason == "length" else "stop",
        usage=Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion),
        load_s=_seconds(timings, "load_ms"),
        prompt_s=_seconds(timings, "prompt_ms"),
        generate_s=_seconds(timings, "predicted_ms"),
    )


def embeddings(body: Mapping[str, Any]) -> list[Any]:
    """Return what stands for the vectors in an answer of /embeddings, in the order of the texts."""
    rows = [row for row in items(body, "data") if isinstance(row, dict)]
    rows.sort(key=lambda row: count(row, "index"))
    return [row.get("embedding") for row in rows]


# ------------------------------------------------------------------------------------------------------------- models


def rows(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the models in an answer of /models that have a name."""
    return named_rows(body, "data", "id")


def model(row: Mapping[str, Any]) -> ModelInfo:
    """Read one model of a list; `meta` is llama-server's."""
    meta = table(row, "meta")
    weights = count(meta, "n_params")
    quantization = row.get("quantization")
    return ModelInfo(
        name=row["id"],
        size=count(meta, "size"),
        parameters=f"{weights / 1e9:.1f}B" if weights else "",
        quantization=quantization if isinstance(quantization, str) else "",
        capabilities=tuple(sorted(abilities(row))),
    )


def named(row: Mapping[str, Any], name: str) -> bool:
    """Tell whether a row is the model of that name; the Hugging Face router takes `model:provider` too."""
    return row["id"] in {name, name.rpartition(":")[0]}


_VISION = re.compile(
    r"vision|llava|pixtral|moondream|internvl|minicpm-?v|[-_.\d]vl\b|gpt-4o|gpt-4\.1|gpt-5|^o[134]\b|gemma-?[34]"
    r"|claude|gemini|llama-?4|phi-[45]-multimodal|mistral-small-3\.[1-9]|omni"
)
_EMBEDDING = re.compile(r"embed|^(.*/)?(bge|e5|gte)-|minilm")
_NO_CHAT = re.compile(r"tts|audio|transcribe|realtime|whisper|image|dall-e|moderation")
_THINKING = re.compile(r"^(openai/)?(o\d|gpt-5)|gpt-oss|deepseek-r|qwen-?3|qwq|think|reason|magistral")
_WORDS = {
    "tool_use": "tools",
    "function_calling": "tools",
    "tools": "tools",
    "multimodal": "vision",
    "vision": "vision",
    "image": "vision",
    "embedding": "embedding",
    "embeddings": "embedding",
    "reasoning": "thinking",
    "thinking": "thinking",
    "vlm": "vision",
}


def abilities(row: Mapping[str, Any]) -> frozenset[str]:
    """Return a model's capabilities in Ollama's words: from what the list says of it, else from its name."""
    said = row.get("capabilities")
    found = {key for key, value in said.items() if value} if isinstance(said, dict) else set(words(row, "capabilities"))
    kind = row.get("type")
    found |= {kind} if kind in {"vlm", "embeddings"} else set()
    found |= {*words(table(row, "architecture"), "input_modalities"), *words(row, "supported_parameters")}
    known = {_WORDS[word] for word in found if word in _WORDS}
    guess = by_name(str(row.get("id", "")))
    if "embedding" in known or "embedding" in guess:
        return frozenset({"embedding"})
    told = isinstance(kind, str) or said is not None or "architecture" in row
    return frozenset(known | {"completion"}) if told else guess


def by_name(name: str) -> frozenset[str]:
    """Guess capabilities from a model's name, where nothing better is to be had; none when it says nothing."""
    name = name.lower()
    if _EMBEDDING.search(name):
        return frozenset({"embedding"})
    found = {"vision": _VISION, "thinking": _THINKING}
    words = {word for word, pattern in found.items() if pattern.search(name)}
    return frozenset({"completion", *words}) if words and not _NO_CHAT.search(name) else frozenset()


def _seconds(body: Mapping[str, Any], key: str) -> float:
    value = body.get(key)
    return value / 1000 if isinstance(value, int | float) and 0 <= value < 1e12 else 0.0
