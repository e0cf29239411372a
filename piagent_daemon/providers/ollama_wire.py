"""Ollama's JSON, both ways: pure functions.

Source: ollama/ollama, api/types.go and docs/api.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from piagent_daemon.contract import Usage
from piagent_daemon.errors import ProviderError
from piagent_daemon.providers.untrusted import count, table, text, words
from piagent_daemon.providers.untrusted import rows as named_rows
from piagent_daemon.values import ChatRequest, Finish, Message, ModelInfo, PullProgress


def keep_alive_value(text: str) -> int | str:
    """Return OLLAMA_KEEP_ALIVE as Ollama wants it: seconds as a number (negative: for ever), else a duration."""
    return int(text) if text.removeprefix("-").isdigit() else text


def chat_body(request: ChatRequest, think: bool | str, keep_alive: int | str) -> tuple[str, dict[str, Any]]:
    """Return path and body of a call of a model.

    `truncate` and `shift` are off on every call, so that the server refuses what does not fit instead of dropping the
    system prompt without a word; `num_ctx` and `shift` are load-time options: any other value would reload the model.

    A finished text (`request.prompt`) goes to /api/generate without `raw`: an instruct model then still sees the
    well-formed user turn that it was trained on, knows where to end and whether to think, and for a base model, whose
    template is the bare prompt, there is no difference.
    """
    options = {**request.options, "num_ctx": request.context_tokens}
    if (stop := options.get("stop")) is not None:
        options["stop"] = [stop] if isinstance(stop, str) else list(stop)
    body: dict[str, Any] = {
        "model": request.model,
        "stream": True,
        "think": think,
        "truncate": False,
        "shift": False,
        "keep_alive": keep_alive,
        "options": options,
    }
    if request.format is not None:
        body["format"] = request.format
    if request.prompt is None:
        body["messages"] = [_message(message) for message in request.messages]
        return "/api/chat", body
    body["prompt"] = request.prompt
    if images := [image for message in request.messages for image in message.images]:
        body["images"] = images
    return "/api/generate", body


def embed_body(inputs: Sequence[str], model: str, context_tokens: int, keep_alive: int | str) -> dict[str, Any]:
    """Return the body of /api/embed; `truncate` is off, so that a text that does not fit is refused and not cut."""
    return {
        "model": model,
        "input": list(inputs),
        "truncate": False,
        "keep_alive": keep_alive,
        "options": {"num_ctx": context_tokens},
    }


def _message(message: Message) -> dict[str, Any]:
    body: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        body["images"] = list(message.images)
    return body


def join(lines: Sequence[Mapping[str, Any]], *, chat: bool) -> tuple[str, str, Mapping[str, Any] | None]:
    """Return text and thinking of `lines` up to and with the line that ends the answer, and that line or None.

    A line ends the answer by `"done": true` or by an "error". Raises ProviderError for what cannot be an answer.
    """
    text = thinking = ""
    for line in lines:
        if line.get("error"):
            return text, thinking, line
        if chat:
            message = line.get("message")
            if type(message) is dict:
                said, thought = message.get("content"), message.get("thinking")
            elif message is None:
                said = thought = None
            else:
                raise _nonsense(line)
        else:
            said, thought = line.get("response"), line.get("thinking")
        try:
            if said:
                text += said
            if thought:
                thinking += thought
        except TypeError:
            raise _nonsense(line) from None
        if line.get("done") is True:
            return text, thinking, line
    return text, thinking, None


def _nonsense(line: Mapping[str, Any]) -> ProviderError:
    return ProviderError(f"the model server sent a line that is no piece of an answer: {repr(line)[:200]}")


def finish(line: Mapping[str, Any]) -> Finish:
    """Read the counts and nanoseconds of the last line; what is missing or no number is zero."""
    prompt, completion = count(line, "prompt_eval_count"), count(line, "eval_count")
    return Finish(
        reason="length" if line.get("done_reason") == "length" else "stop",
        usage=Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion),
        load_s=count(line, "load_duration") / 1e9,
        prompt_s=count(line, "prompt_eval_duration") / 1e9,
        generate_s=count(line, "eval_duration") / 1e9,
    )


def models(body: Mapping[str, Any]) -> list[ModelInfo]:
    """Read the answer of /api/tags."""
    return [
        ModelInfo(
            name=row["name"],
            size=count(row, "size"),
            parameters=text(table(row, "details"), "parameter_size"),
            quantization=text(table(row, "details"), "quantization_level"),
            capabilities=words(row, "capabilities"),
        )
        for row in rows(body)
    ]


def rows(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the models of an answer of /api/tags or /api/ps that have a name."""
    return named_rows(body, "models", "name")


def progress(line: Mapping[str, Any]) -> PullProgress:
    """Read one line of /api/pull; `total` and `completed` are missing there while they are zero."""
    return PullProgress(
        text(line, "status"), text(line, "digest"), completed=count(line, "completed"), total=count(line, "total")
    )


def canonical(model: str) -> str:
    """Return the one spelling of a model's name: `qwen2.5` is `library/qwen2.5:latest`, whatever the case.

    Source: ollama/ollama, types/model/name.go (default host, namespace and tag).
    """
    name = model.strip().lower().removeprefix("https://").removeprefix("http://")
    name = name.removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"
