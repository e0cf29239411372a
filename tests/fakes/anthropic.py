"""A server that speaks Anthropic's Messages API over real HTTP.

Sources: the API reference; "Streaming messages", "Errors", "Troubleshooting thinking", "Structured outputs".
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

from tests.fakes.api_server import RETRY_AFTER, ApiServer, EventAnswer, Refusal, event, joined
from tests.fakes.httpd import Exchange
from tests.fakes.ollama_runner import Model
from tests.fakes.ollama_script import Behaviour, Record

MODELS: Final = {
    "chatty": Model(capabilities=frozenset({"completion", "vision", "tools"})),
    "thinker": Model(capabilities=frozenset({"completion", "vision", "tools", "thinking"})),
    "fussy": Model(capabilities=frozenset({"completion", "vision", "tools", "thinking"})),
}
"""`thinker` thinks by a budget of tokens, as models before 4.6; `fussy` takes no sampling options and always thinks."""
KNOWN: Final = {
    *("model", "max_tokens", "messages", "system", "stream", "temperature", "top_p", "top_k", "stop_sequences"),
    *("thinking", "output_config"),
}


def error(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def invalid(message: str) -> Refusal:
    return Refusal(400, error("invalid_request_error", message))


class FakeAnthropic(ApiServer):
    """Demands its version header, and a key where `api_key` is set."""

    path = "/v1/messages"

    def __init__(self, models: Mapping[str, Model] | None = None, **more: Any) -> None:
        super().__init__(MODELS if models is None else models, **more)

    def refusal(self, mode: str, body: Any) -> Refusal | None:
        model = body.get("model") if isinstance(body, dict) else ""
        return {
            "404": Refusal(404, error("not_found_error", f"model: {model}")),
            "429": Refusal(429, error("rate_limit_error", "This request would exceed your rate limit"), RETRY_AFTER),
            "500": Refusal(500, error("api_error", "Internal server error")),
            "503": Refusal(529, error("overloaded_error", "Overloaded")),
            "unauthorized": Refusal(401, error("authentication_error", "invalid x-api-key")),
        }.get(mode)

    def failure(self, error: str) -> bytes:
        kind = "overloaded_error" if error == "Overloaded" else "api_error"
        return event({"type": "error", "error": {"type": kind, "message": error}}, "error")

    def check_key(self, exchange: Exchange) -> None:
        if self.api_key is not None and exchange.headers.get("x-api-key") != self.api_key:
            raise Refusal(401, error("authentication_error", "invalid x-api-key"))
        if exchange.headers.get("anthropic-version") != "2023-06-01":
            raise invalid("anthropic-version: header is required")

    def check(self, body: Any) -> Model:
        if not isinstance(body, dict) or not isinstance(body.get("max_tokens"), int):
            raise invalid("max_tokens: Field required")
        if unknown := body.keys() - KNOWN:
            raise invalid(f"{unknown.pop()}: Extra inputs are not permitted")
        model = self.models.get(str(body.get("model")))
        if model is None:
            raise Refusal(404, error("not_found_error", f"model: {body.get('model')}"))
        self._check_messages(body["messages"])
        self._check_thinking(body, model)
        if not 0 <= body.get("temperature", 0) <= 1:
            raise invalid("temperature: range: 0..1")
        if model.name == "fussy" and (refused := body.keys() & {"temperature", "top_p", "top_k"}):
            raise invalid(f"`{refused.pop()}` is deprecated for this model.")
        wanted = body.get("output_config", {}).get("format")
        if wanted and model.name != "fussy":
            raise invalid("output_config.format: this model does not support structured outputs")
        if wanted and '"object"' in json.dumps(wanted) and '"additionalProperties": false' not in json.dumps(wanted):
            raise invalid("For 'object' type, 'additionalProperties' must be explicitly set to false")
        return model

    def _check_messages(self, messages: list[dict[str, Any]]) -> None:
        if not messages or messages[0]["role"] != "user":
            raise invalid('messages: first message must use the "user" role')
        for at, message in enumerate(messages):
            if message["role"] not in {"user", "assistant"}:
                raise invalid(f"messages.{at}: Input should be 'user' or 'assistant'")
            content = message["content"]
            if not content or (isinstance(content, str) and not content.strip()):
                raise invalid(f"messages.{at}: user messages must have non-empty content")
            for part in content if isinstance(content, list) else ():
                _check_part(part)

    def _check_thinking(self, body: Mapping[str, Any], model: Model) -> None:
        kind = body.get("thinking", {}).get("type")
        if kind == "adaptive" and model.name != "fussy":
            raise invalid("adaptive thinking is not supported on this model")
        if kind in {"enabled", "disabled"} and model.name == "fussy":
            text = f'"thinking.type.{kind}" is not supported for this model. Use "thinking.type.adaptive" and '
            raise invalid(f'{text}"output_config.effort" to control thinking behavior.')
        if kind == "enabled" and not 1024 <= body["thinking"]["budget_tokens"] < body["max_tokens"]:
            raise invalid("`max_tokens` must be greater than `thinking.budget_tokens`")
        if kind in {"enabled", "adaptive"} and body.get("temperature", 1) != 1:
            raise invalid("`temperature` may only be set to 1 when thinking is enabled.")

    def check_context(self, record: Record, model: Model, limit: float) -> None:
        tokens, window = len(record.prompt), model.num_ctx
        if tokens > window:
            raise invalid(f"prompt is too long: {tokens} tokens > {window} maximum")
        if tokens + limit > window:
            text = f"input length and `max_tokens` exceed context limit: {tokens} + {limit:g} > {window}"
            raise invalid(f"{text}, decrease input length or `max_tokens` and try again")

    def plain(self, body: Mapping[str, Any]) -> dict[str, Any]:
        messages = [{"role": "system", "content": body["system"]}] if "system" in body else []
        for message in body["messages"]:
            content = message["content"]
            parts = [] if isinstance(content, str) else content
            text = content if isinstance(content, str) else joined(parts)
            images = [part["source"]["data"] for part in parts if part["type"] == "image"]
            messages.append({"role": message["role"], "content": text, "images": images})
        options = {"stop": body["stop_sequences"]} if body.get("stop_sequences") else {}
        schema = body.get("output_config", {}).get("format", {}).get("schema")
        return {"messages": messages, "options": options, "format": schema}

    def limit(self, body: Mapping[str, Any]) -> int | None:
        found: int = body["max_tokens"]
        return found

    def thinks(self, body: Mapping[str, Any]) -> bool:
        return body["model"] == "fussy" or body.get("thinking", {}).get("type") in {"enabled", "adaptive"}

    def answer(self, exchange: Exchange, record: Record, behaviour: Behaviour, body: dict[str, Any]) -> EventAnswer:
        return BlockAnswer(self, exchange, record, behaviour, body)

    async def route(self, exchange: Exchange, record: Record) -> None:  # noqa: ARG002 - the shared signature
        head, _, name = exchange.path.partition("/v1/models")
        if head or exchange.method != "GET" or not exchange.path.startswith("/v1/models"):
            raise Refusal(404, error("not_found_error", "Not found"))
        if not name:
            rows = [self._row(model) for model in self.models.values()]
            await exchange.send_json(200, {"data": rows, "has_more": False})
            return
        model = self.models.get(unquote(name.removeprefix("/")))
        if model is None:
            raise Refusal(404, error("not_found_error", f"model: {name.removeprefix('/')}"))
        await exchange.send_json(200, self._row(model))

    def _row(self, model: Model) -> dict[str, Any]:
        capabilities = {
            "image_input": {"supported": "vision" in model.capabilities},
            "thinking": {"supported": "thinking" in model.capabilities},
        }
        return {"type": "model", "id": model.name, "display_name": model.name, "capabilities": capabilities}


def _check_part(part: Mapping[str, Any]) -> None:
    if part["type"] == "text":
        if not part["text"].strip():
            raise invalid("messages: text content blocks must be non-empty")
        return
    source = part["source"]
    try:
        good = (
            part["type"] == "image" and source["type"] == "base64" and base64.b64decode(source["data"], validate=True)
        )
    except binascii.Error:
        good = False
    if not good or not source["media_type"].startswith("image/"):
        raise invalid("messages: Could not process image")


class BlockAnswer(EventAnswer):
    """Content blocks: thought in the first, text in the second."""

    def __init__(
        self, server: FakeAnthropic, exchange: Exchange, record: Record, behaviour: Behaviour, body: dict[str, Any]
    ) -> None:
        super().__init__(exchange, record, behaviour, body)
        self._server = server
        self._index = -1
        self._kind = ""

    def error_line(self, error: str) -> bytes:
        return self._server.failure(error)

    def line(self, text: str, *, thought: bool = False) -> bytes:
        return self.events(text, thought=thought)[-1]

    def events(self, text: str, *, thought: bool) -> list[bytes]:
        kind = "thinking" if thought else "text"
        found = [] if kind == self._kind else self._open(kind)
        delta = {"type": f"{kind}_delta", kind: text}
        return [*found, self._event("content_block_delta", index=self._index, delta=delta)]

    def _open(self, kind: str) -> list[bytes]:
        found = self._start() if self._index < 0 else self._close()
        self._index += 1
        self._kind = kind
        block = {"type": kind, kind: "", **({"signature": ""} if kind == "thinking" else {})}
        return [*found, self._event("content_block_start", index=self._index, content_block=block)]

    def _start(self) -> list[bytes]:
        usage = {"input_tokens": len(self.record.prompt) - 2, "cache_creation_input_tokens": 0}
        usage |= {"cache_read_input_tokens": 2, "output_tokens": 1}
        message: dict[str, Any] = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self.model,
        }
        message |= {"stop_reason": None, "stop_sequence": None, "usage": usage}
        return [self._event("message_start", message=message), self._event("ping")]

    def _close(self) -> list[bytes]:
        signature = {"type": "signature_delta", "signature": "EqQB"}
        signed = [self._event("content_block_delta", index=self._index, delta=signature)]
        return [*(signed if self._kind == "thinking" else []), self._event("content_block_stop", index=self._index)]

    def _event(self, name: str, **fields: Any) -> bytes:
        more = {"x_new": {"deep": [1, None]}} if self.behaviour.mode == "extra_fields" else {}
        return event({"type": name, **fields, **more}, name)

    async def done(self, reason: str) -> None:
        last = self._start() if self._index < 0 else self._close()
        delta = {"stop_reason": {"stop": "end_turn", "length": "max_tokens"}[reason], "stop_sequence": None}
        last.append(self._event("message_delta", delta=delta, usage={"output_tokens": len(self.written)}))
        await self.send([*last, self._event("message_stop")])
        await self.exchange.end()
