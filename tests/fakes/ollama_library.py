"""The models of the fake model server on disk: list, show, pull, delete, embed."""

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable
from typing import Any

from tests.fakes import ollama_rules as rules
from tests.fakes.httpd import Exchange, encode
from tests.fakes.ollama_answer import NDJSON
from tests.fakes.ollama_rules import Refusal
from tests.fakes.ollama_runner import Model, Models
from tests.fakes.tokens import tokenise

VERSION = "0.33.0-rc2"
DIMENSIONS = 8
_MODIFIED = "2026-11-01T12:00:00.123456789+01:00"
Route = tuple[str, Callable[[Exchange], Awaitable[None]]]


class Library:
    """Keeps `models` in step with pulls and deletes. A pull takes `steps` progress lines, `step_s` seconds apart."""

    def __init__(self, models: Models, pullable: set[str], step_s: float) -> None:
        self.models = models
        self.pullable = {rules.full_name(name) for name in pullable}
        self.step_s = step_s
        self.steps = 4

    def routes(self) -> dict[str, Route]:
        return {
            "/": ("GET", self._root),
            "/api/version": ("GET", self._version),
            "/api/tags": ("GET", self._tags),
            "/api/show": ("POST", self._show),
            "/api/pull": ("POST", self._pull),
            "/api/delete": ("DELETE", self._delete),
        }

    async def _root(self, exchange: Exchange) -> None:
        await exchange.send(200, b"Ollama is running", "text/plain; charset=utf-8")

    async def _version(self, exchange: Exchange) -> None:
        await exchange.send_json(200, {"version": VERSION})

    async def _tags(self, exchange: Exchange) -> None:
        models = [
            {
                "name": name,
                "model": name,
                "modified_at": _MODIFIED,
                "size": model.size,
                "digest": model.digest,
                "details": model.details(),
                "capabilities": ["completion"],  # not the truth: /api/show knows
            }
            for name, model in self.models.items()
        ]
        await exchange.send_json(200, {"models": models})

    async def _show(self, exchange: Exchange) -> None:
        model = self._named(exchange)
        value = {
            "modelfile": f"FROM {model.name}",
            "parameters": f"num_ctx {model.num_ctx}",
            "template": "{{ .Prompt }}",
            "details": model.details(),
            "model_info": {
                "general.architecture": model.family,
                "general.parameter_count": 3_085_938_688,
                f"{model.family}.context_length": model.train_ctx,
            },
            "capabilities": sorted(model.capabilities),
            "modified_at": _MODIFIED,
        }
        await exchange.send_json(200, value)

    async def _delete(self, exchange: Exchange) -> None:
        body = rules.decode(exchange.body)
        name = str(body.get("model") or body.get("name") or "")
        if self.models.pop(rules.full_name(name), None) is None:
            raise Refusal(404, f"model '{name}' not found")
        await exchange.send(200, b"", "text/plain")

    def _named(self, exchange: Exchange) -> Model:
        body = rules.decode(exchange.body)
        rules.check_types(body, "ShowRequest")
        name = str(body.get("model") or body.get("name") or "")
        if not name:
            raise Refusal(400, "model is required")
        if rules.full_name(name) not in self.models:
            raise Refusal(404, f"model '{rules.full_name(name)}' not found")
        return self.models[rules.full_name(name)]

    async def _pull(self, exchange: Exchange) -> None:
        body = rules.decode(exchange.body)
        name = rules.full_name(str(body.get("model") or body.get("name") or ""))
        known = name in self.pullable or name in self.models
        if body.get("stream") is False:
            if not known:
                raise Refusal(500, "pull model manifest: file does not exist")
            self._add(name)
            await exchange.send_json(200, {"status": "success"})
            return
        exchange.head(200, NDJSON)
        await self._progress(exchange, {"status": "pulling manifest"})
        if not known:
            await self._progress(exchange, {"error": "pull model manifest: file does not exist"})
        else:
            await self._layers(exchange, self.models.get(name, Model(name=name)))
            self._add(name)
            await self._progress(exchange, {"status": "success"})
        await exchange.end()

    async def _layers(self, exchange: Exchange, model: Model) -> None:
        line: dict[str, Any] = {"status": f"pulling {model.digest[:12]}", "digest": f"sha256:{model.digest}"}
        for step in range(self.steps + 1):
            done = model.size * step // self.steps
            more = {"completed": done} if done else {}  # zero is left out
            await self._progress(exchange, {**line, "total": model.size, **more})
            await asyncio.sleep(self.step_s)
        for status in ("verifying sha256 digest", "writing manifest"):
            await self._progress(exchange, {"status": status})

    def _add(self, name: str) -> None:
        if name not in self.models:
            self.models[name] = Model()

    async def _progress(self, exchange: Exchange, line: dict[str, Any]) -> None:
        await exchange.chunk(encode(line) + b"\n")

    def embed(self, body: dict[str, Any], num_ctx: int) -> tuple[list[list[float]], int]:
        """Return a unit vector for each input, and the tokens read; equal texts have equal vectors."""
        given = body.get("input")
        texts = [] if given is None else [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Refusal(400, "invalid input type")
        vectors, count = [], 0
        for text in texts:
            tokens = tokenise(text)
            if len(tokens) > num_ctx and body.get("truncate") is False:
                raise Refusal(400, "the input length exceeds the context length")
            tokens = tokens[: num_ctx - 2]
            count += len(tokens)
            vectors.append(_unit("".join(tokens), body.get("dimensions") or DIMENSIONS))
        return vectors, count


def _unit(text: str, dimensions: int) -> list[float]:
    digest = hashlib.sha256(text.encode()).digest()
    values = [digest[at % len(digest)] - 127.5 for at in range(min(dimensions, DIMENSIONS))]
    length = math.sqrt(sum(value * value for value in values))
    return [value / length for value in values]
