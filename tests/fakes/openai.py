"""A server that speaks OpenAI's protocol over real HTTP, in the dialect of each server that the presets name.

Sources: the OpenAI API reference; llama.cpp, tools/server; LM Studio, REST API; Ollama's /v1 as measured.
"""

import base64
import binascii
import json
import time
from collections.abc import Mapping
from typing import Any, Final

from tests.fakes.api_server import RETRY_AFTER, ApiServer, EventAnswer, Refusal, event, joined
from tests.fakes.httpd import Exchange, encode
from tests.fakes.ollama_library import _unit
from tests.fakes.ollama_runner import Model
from tests.fakes.ollama_script import Behaviour, Record

MODELS: Final = {
    "chatty": Model(),
    "thinker": Model(capabilities=frozenset({"completion", "thinking"})),
    "seer-vl": Model(capabilities=frozenset({"completion", "vision"})),
    "o4-fussy": Model(capabilities=frozenset({"completion"})),
    "words-embed": Model(capabilities=frozenset({"embedding"})),
}
"""`o4-fussy` takes neither a temperature nor max_tokens, as OpenAI's models that think."""
KNOWN: Final = {
    *("model", "messages", "stream", "stream_options", "temperature", "top_p", "seed", "stop"),
    *("max_tokens", "max_completion_tokens", "response_format", "reasoning_effort"),
}


def error(message: str, kind: str, code: Any = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class FakeOpenAI(ApiServer):
    """`flavour` is one of openai, llamacpp, lmstudio, huggingface, ollama: they differ in lists, errors and thought."""

    path = "/v1/chat/completions"

    def __init__(self, models: Mapping[str, Model] | None = None, *, flavour: str = "openai", **more: Any) -> None:
        super().__init__(MODELS if models is None else models, **more)
        self.flavour = flavour
        self.loaded = {"chatty"}

    def refusal(self, mode: str, body: Any) -> Refusal | None:
        if mode == "429":
            text = "Rate limit reached for requests"
            return Refusal(429, error(text, "requests", "rate_limit_exceeded"), RETRY_AFTER)
        if mode == "404":
            return self._unknown(body.get("model") if isinstance(body, dict) else "")
        return {
            "500": Refusal(500, error("The server had an error", "server_error")),
            "503": Refusal(503, error("The engine is currently overloaded", "overloaded")),
            "unauthorized": self._no_key("sk-wrong"),
        }.get(mode)

    def failure(self, error: str) -> bytes:
        if self.flavour == "lmstudio":
            return event({"error": {"message": error}, "message": error}, "error")
        if self.flavour == "llamacpp":
            return event({"error": {"code": 500, "message": error, "type": "server_error"}})
        return event({"error": {"message": error, "type": "server_error", "param": None, "code": None}})

    def check_key(self, exchange: Exchange) -> None:
        given = exchange.headers.get("authorization", "").removeprefix("Bearer ")
        if self.api_key is not None and given != self.api_key:
            raise self._no_key(given)

    def _no_key(self, given: str) -> Refusal:
        if self.flavour == "llamacpp":
            return Refusal(401, {"error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}})
        return Refusal(401, error(f"Incorrect API key provided: {given}.", "invalid_request_error", "invalid_api_key"))

    def _unknown(self, name: Any) -> Refusal:
        if self.flavour == "ollama":
            return Refusal(404, error(f"model '{name}' not found", "not_found_error"))
        if self.flavour == "huggingface":
            text = f"The requested model '{name}' does not exist"
            return Refusal(400, error(text, "invalid_request_error", "model_not_found", "model"))
        text = f"The model `{name}` does not exist or you do not have access to it."
        return Refusal(404, error(text, "invalid_request_error", "model_not_found"))

    def check(self, body: Any) -> Model:
        if not isinstance(body, dict) or not body.get("messages"):
            raise Refusal(400, error("you must provide messages", "invalid_request_error", None, "messages"))
        name = body.get("model")
        model = next(iter(self.models.values())) if self.flavour == "llamacpp" else self.models.get(str(name))
        if model is None:
            raise self._unknown(name)
        if self.flavour in {"openai", "huggingface"} and (unknown := body.keys() - KNOWN):
            text = f"Unrecognized request argument supplied: {unknown.pop()}"
            raise Refusal(400, error(text, "invalid_request_error"))
        if model.name == "o4-fussy":
            _check_fussy(body)
        for message in body["messages"]:
            _check_message(message, model)
        self._check_format(body)
        return model

    def _check_format(self, body: Mapping[str, Any]) -> None:
        kind = body.get("response_format", {"type": "text"})["type"]
        if kind == "json_object" and self.flavour == "lmstudio":
            raise Refusal(400, {"error": "'response_format.type' must be 'json_schema' or 'text'"})
        if kind == "json_object" and "json" not in json.dumps(body["messages"]).lower():
            text = (
                "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'."
            )
            raise Refusal(400, error(text, "invalid_request_error", None, "messages"))
        if kind == "json_schema" and not body["response_format"]["json_schema"].get("name"):
            raise Refusal(400, error("Missing required parameter: 'name'", "invalid_request_error"))

    def check_context(self, record: Record, model: Model, limit: float) -> None:
        tokens, window = len(record.prompt), model.num_ctx
        if tokens + (0 if limit == float("inf") else limit) <= window:
            return
        if self.flavour == "llamacpp":
            text = f"request ({tokens} tokens) exceeds the available context size ({window} tokens), try increasing it"
            kind = {"type": "exceed_context_size_error", "n_prompt_tokens": tokens, "n_ctx": window}
            raise Refusal(400, {"error": {"code": 400, "message": text, **kind}})
        if self.flavour == "lmstudio":
            text = f"Trying to keep the first {tokens} tokens when context the overflows. However, the model is loaded"
            raise Refusal(400, {"error": f"{text} with context length of only {window} tokens, which is not enough."})
        text = f"This model's maximum context length is {window} tokens. However, your messages resulted in {tokens}"
        raise Refusal(400, error(f"{text} tokens.", "invalid_request_error", "context_length_exceeded", "messages"))

    def plain(self, body: Mapping[str, Any]) -> dict[str, Any]:
        messages = []
        for message in body["messages"]:
            content = message["content"]
            parts = [] if isinstance(content, str) else content
            text = content if isinstance(content, str) else joined(parts)
            images = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
            messages.append({"role": message["role"], "content": text, "images": images})
        wanted = body.get("response_format", {})
        schema = wanted.get("json_schema", {}).get("schema")
        options = {"stop": body.get("stop")} if body.get("stop") else {}
        return {"messages": messages, "options": options, "format": schema or wanted.get("type")}

    def limit(self, body: Mapping[str, Any]) -> int | None:
        found: int | None = body.get("max_completion_tokens", body.get("max_tokens"))
        return found

    def thinks(self, body: Mapping[str, Any]) -> bool:
        return bool(body.get("chat_template_kwargs", {}).get("enable_thinking", True))

    def answer(self, exchange: Exchange, record: Record, behaviour: Behaviour, body: dict[str, Any]) -> EventAnswer:
        return ChunkAnswer(self, exchange, record, behaviour, body)

    # ------------------------------------------------------------------------------------------------- the other paths

    async def route(self, exchange: Exchange, record: Record) -> None:
        if exchange.path == "/v1/models":
            rows = [self._row(model) for model in self.models.values()]
            await exchange.send_json(200, {"object": "list", "data": rows})
        elif exchange.path == "/api/v0/models" and self.flavour == "lmstudio":
            await exchange.send_json(200, {"object": "list", "data": [self._rich(m) for m in self.models.values()]})
        elif exchange.path == "/v1/embeddings":
            await self._embed(exchange, record)
        elif self.flavour == "lmstudio":
            text = f"Unexpected endpoint or method. ({exchange.method} {exchange.path})"
            await exchange.send_json(200, {"error": text})
        else:
            await exchange.send(404, b"404 page not found", "text/plain")

    def _row(self, model: Model) -> dict[str, Any]:
        row: dict[str, Any] = {"id": model.name, "object": "model", "created": 1_700_000_000, "owned_by": self.flavour}
        if self.flavour == "llamacpp":
            row["meta"] = {"n_ctx_train": model.train_ctx, "n_params": 3_085_938_688, "size": model.size}
        if self.flavour == "huggingface":
            seeing = ["text", "image"] if "vision" in model.capabilities else ["text"]
            row["architecture"] = {"input_modalities": seeing, "output_modalities": ["text"]}
        return row

    def _rich(self, model: Model) -> dict[str, Any]:
        kind = "vlm" if "vision" in model.capabilities else "llm"
        kind = "embeddings" if "embedding" in model.capabilities else kind
        state = "loaded" if model.name in self.loaded else "not-loaded"
        more = {"quantization": model.quantization, "max_context_length": model.train_ctx, "capabilities": ["tool_use"]}
        return {"id": model.name, "object": "model", "type": kind, "state": state, **more}

    async def _embed(self, exchange: Exchange, record: Record) -> None:
        body = record.body
        if self.flavour != "llamacpp" and body.get("model") not in self.models:
            raise self._unknown(body.get("model"))
        given = body["input"] if isinstance(body["input"], list) else [body["input"]]
        for text in given:
            if len(text) > 30_000:
                words = "This model's maximum context length is 8192 tokens, however you requested 9000 tokens"
                raise Refusal(400, error(words, "invalid_request_error"))
        rows = [{"object": "embedding", "index": at, "embedding": _unit(text, 8)} for at, text in enumerate(given)]
        rows.reverse()  # the index counts, not the place
        await exchange.send_json(200, {"object": "list", "data": rows, "model": body.get("model"), "usage": {}})


def _check_fussy(body: Mapping[str, Any]) -> None:
    for name, instead in (("max_tokens", " Use 'max_completion_tokens' instead."), ("temperature", "")):
        if name in body:
            text = f"Unsupported parameter: '{name}' is not supported with this model.{instead}"
            raise Refusal(400, error(text, "invalid_request_error", "unsupported_parameter", name))


def _check_message(message: Any, model: Model) -> None:
    if not isinstance(message, dict) or message.get("role") not in {"system", "user", "assistant"}:
        raise Refusal(400, error("Invalid value: 'role'", "invalid_request_error", "invalid_value", "messages"))
    content = message.get("content")
    for part in content if isinstance(content, list) else ():
        if part["type"] != "image_url":
            continue
        if "vision" not in model.capabilities:
            raise Refusal(400, error("image_url is only supported by certain models", "invalid_request_error"))
        head, _, data = part["image_url"]["url"].partition(",")
        try:
            known = (
                head.startswith("data:image/") and head.endswith(";base64") and base64.b64decode(data, validate=True)
            )
        except binascii.Error:
            known = False
        if not known:
            raise Refusal(400, error("Invalid image", "invalid_request_error", "invalid_image_url"))


class ChunkAnswer(EventAnswer):
    """Chunks of a chat completion."""

    def __init__(
        self, server: FakeOpenAI, exchange: Exchange, record: Record, behaviour: Behaviour, body: dict[str, Any]
    ) -> None:
        super().__init__(exchange, record, behaviour, body)
        self._server = server
        self._spoke = False

    def error_line(self, error: str) -> bytes:
        return self._server.failure(error)

    def events(self, text: str, *, thought: bool) -> list[bytes]:
        name = "content"
        if thought:
            name = "reasoning" if self._server.flavour in {"ollama", "huggingface"} else "reasoning_content"
        return [event(self._chunk({name: text}))]

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        if not self._spoke:
            self._spoke = True
            delta = {"role": "assistant", "content": None, **delta}
        more = {"x_new": {"deep": [1, None]}} if self.behaviour.mode == "extra_fields" else {}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": self.model,
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, **more}],
            **({"usage": None} if self._server.flavour == "openai" else {}),
            **more,
        }

    async def done(self, reason: str) -> None:
        last = [event(self._chunk({}, reason))]
        usage = {"prompt_tokens": len(self.record.prompt), "completion_tokens": len(self.written)}
        usage["total_tokens"] = sum(usage.values())
        chunk = {**self._chunk({}), "choices": [], "usage": usage}
        if self._server.flavour == "llamacpp":
            spent_ms = (time.monotonic() - self._generating_since) * 1000
            chunk["timings"] = {"cache_n": 3, "prompt_n": len(self.record.prompt) - 3, "prompt_ms": 12.5}
            chunk["timings"] |= {"predicted_n": len(self.written), "predicted_ms": spent_ms}
        if (self.body.get("stream_options") or {}).get("include_usage"):
            last.append(event(chunk))
        await self.send([*last, event(b"[DONE]")])
        await self.exchange.end()

    async def unfinished(self) -> None:
        """As Ollama's /v1 does when the runner is gone: a chunk without a model, and the end."""
        await self.flush()
        await self.send([event({**self._chunk({}), "model": ""})])
        await self.exchange.end()


def raw(*values: Any) -> bytes:
    """Return events ready to be sent, for answers that no behaviour plays."""
    return b"".join(event(value if isinstance(value, bytes) else encode(value)) for value in values)
