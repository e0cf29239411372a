"""A model server that speaks Ollama's protocol over real HTTP, and can go wrong in every way Ollama does.

    async with FakeOllama() as server:
        server.reply = "Good evening."            # standing; also mode, tokens, tokens_per_s, first_token_delay_s
        server.next("rst", after=3)               # the next question only
        ...
        assert server.questions[0].body["messages"][-1]["content"] == "Hello"

As a process of its own: `python -m tests.fakes.ollama --help`; it is then steered over HTTP at /_fake.
Source: Ollama 0.33, measured.
"""

import asyncio
import contextlib
import ipaddress
import json
import math
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

from tests.fakes import ollama_rules as rules
from tests.fakes.httpd import Exchange, HttpServer
from tests.fakes.ollama_answer import Answer, timestamp
from tests.fakes.ollama_context import answer_limit, chat_prompt, context_shifts, generate_prompt
from tests.fakes.ollama_faults import FAULTS, refuse
from tests.fakes.ollama_library import Library
from tests.fakes.ollama_rules import Refusal
from tests.fakes.ollama_runner import Model, Models, Runner, Runners
from tests.fakes.ollama_script import REFUSING, SERVER_WIDE, Behaviour, Record, is_question

__all__ = ["DEFAULT_MODEL", "Behaviour", "FakeOllama", "Model", "Record"]
DEFAULT_MODEL = "qwen2.5:3b-instruct"
T = TypeVar("T")


class _Scripted(Generic[T]):
    """An attribute of the standing behaviour, reachable on the server itself."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, server: "FakeOllama", owner: type) -> T:
        value: T = getattr(server.script, self._name)
        return value

    def __set__(self, server: "FakeOllama", value: T) -> None:
        setattr(server.script, self._name, value)


@dataclass
class _Once:
    behaviour: Behaviour
    match: Callable[[Any], bool]


class FakeOllama:
    """An async context manager; listens on loopback under `url`, also known before `start` when `port` is given.

    `parallel` slots a model; `load_s` seconds a (re)load; `prompt_tokens_per_s` reading speed (0 = no time);
    `ram_cache` keeps earlier prompts cached; `api_key` is demanded as bearer key when set; `pullable` names models
    that /api/pull can fetch. With `tls` it speaks https.
    """

    mode = _Scripted[str]()
    reply = _Scripted[str | Callable[[dict[str, Any]], str] | None]()
    tokens = _Scripted[Iterable[str] | None]()
    tokens_per_s = _Scripted[float]()
    first_token_delay_s = _Scripted[float]()

    def __init__(
        self,
        models: Mapping[str, Model] | None = None,
        *,
        port: int = 0,
        parallel: int = 1,
        load_s: float = 0.0,
        prompt_tokens_per_s: float = 0.0,
        ram_cache: bool = False,
        max_queue: int = 512,
        api_key: str | None = None,
        pullable: Iterable[str] = (),
        pull_step_s: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        chosen = {DEFAULT_MODEL: Model()} if models is None else models
        self.models = Models(chosen)
        self.script = Behaviour()
        self.requests: list[Record] = []
        self.prompt_tokens_per_s = prompt_tokens_per_s
        self.api_key = api_key
        self.library = Library(self.models, set(pullable), pull_step_s)
        self.runners = Runners(parallel=parallel, load_s=load_s, ram_cache=ram_cache, max_queue=max_queue)
        self._queue: deque[_Once] = deque()
        self._changed = asyncio.Event()
        self._http = HttpServer(self._handle, port, tls)

    # ---------------------------------------------------------------------------------------------------- for tests

    @property
    def url(self) -> str:
        return f"{'https' if self._http.tls else 'http'}://127.0.0.1:{self._http.port}"

    @property
    def port(self) -> int:
        return self._http.port

    @property
    def connections(self) -> int:
        """How many connections were accepted so far."""
        return self._http.accepted

    @property
    def open_connections(self) -> int:
        return len(self._http.connections)

    @property
    def questions(self) -> list[Record]:
        """The requests for an answer, without preloads and priming."""
        return [record for record in self.requests if record.is_question]

    @property
    def reloads(self) -> int:
        """How often a loaded model was loaded again because a load-time option changed."""
        return self.runners.reloads

    @property
    def tokens_sent(self) -> int:
        """Prompt tokens of all requests."""
        return sum(len(record.prompt) for record in self.requests)

    @property
    def tokens_evaluated(self) -> int:
        """Prompt tokens that were not in a cache and had to be read."""
        return sum(record.evaluated for record in self.requests)

    def next(
        self, mode: str = "ok", *, times: int = 1, match: Callable[[Any], bool] = is_question, **changes: Any
    ) -> None:
        """Answer the next `times` requests whose body matches in this mode; `changes` are fields of Behaviour."""
        behaviour = replace(self.script, mode=mode, **changes)
        self._queue.extend(_Once(behaviour, match) for _ in range(times))

    async def until(self, condition: Callable[["FakeOllama"], Any], timeout_s: float = 5.0) -> None:
        """Wait until `condition(server)` holds; it is looked at whenever a request comes, starts to answer or ends."""
        async with asyncio.timeout(timeout_s):
            while not condition(self):
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 0.05)

    def forget(self) -> None:
        """Drop the records, the one-shot behaviours and the standing one; models stay loaded."""
        self.requests.clear()
        self._queue.clear()
        self.script = Behaviour()

    async def start(self) -> None:
        await self._http.start()

    async def stop(self) -> None:
        """Stop as if killed: streams are cut, loaded models are gone. `start` brings it back on the same port."""
        await self._http.stop()
        self.runners.clear()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    # --------------------------------------------------------------------------------------------------- requests

    async def _handle(self, exchange: Exchange) -> None:
        if exchange.path == "/_fake":
            from tests.fakes.ollama_control import control  # noqa: PLC0415  it imports this module

            await control(self, exchange)
            return
        body: Any = exchange.body
        with contextlib.suppress(ValueError):
            body = json.loads(exchange.body)
        record = Record(exchange.method, exchange.path, exchange.headers, body, exchange.arrived_at)
        self.requests.append(record)
        exchange.on_gone = lambda: self._gone(record, exchange)
        self._changed.set()
        behaviour = self._behaviour(exchange.path, body)
        record.mode = behaviour.mode
        try:
            if behaviour.mode in SERVER_WIDE | REFUSING:
                await refuse(exchange, behaviour, body)
            else:
                await self._route(exchange, record, behaviour)
        except Refusal as refusal:
            await exchange.send_json(refusal.status, {"error": refusal.error})
        finally:
            record.status = exchange.status
            record.ended = None if record.disconnected else time.monotonic()
            self._changed.set()

    def _gone(self, record: Record, exchange: Exchange) -> None:
        record.disconnected_at = exchange.gone_at
        self._changed.set()

    def _behaviour(self, path: str, body: Any) -> Behaviour:
        """Choose how to answer: a matching one-shot behaviour, else the standing one as far as it concerns `path`."""
        generating = path in {"/api/chat", "/api/generate"}
        for once in self._queue if generating else ():
            if once.match(body):
                self._queue.remove(once)
                return once.behaviour
        mode = self.script.mode
        concerned = (
            mode in SERVER_WIDE
            or (mode in REFUSING and (generating or path == "/api/embed"))
            or (generating and is_question(body))
        )
        return self.script if concerned else replace(self.script, mode="ok")

    async def _route(self, exchange: Exchange, record: Record, behaviour: Behaviour) -> None:
        if not _is_local(exchange.headers):
            await exchange.send(403, b"", "text/plain")
            return
        if self.api_key is not None and exchange.headers.get("authorization") != f"Bearer {self.api_key}":
            raise Refusal(401, "unauthorized")
        generating = exchange.path in {"/api/chat", "/api/generate"}
        routes = {"/api/embed": ("POST", self._embed), "/api/ps": ("GET", self._ps), **self.library.routes()}
        method, handler = ("POST", None) if generating else routes.get(exchange.path, ("", None))
        if not method:
            await exchange.send(404, b"404 page not found", "text/plain")
        elif exchange.method != method and (method, exchange.method) != ("GET", "HEAD"):
            await exchange.send(405, b"405 method not allowed", "text/plain")
        elif handler is None:
            await self._answer(exchange, record, behaviour)
        else:
            await handler(exchange)

    async def _ps(self, exchange: Exchange) -> None:
        await exchange.send_json(200, {"models": [runner.as_json() for runner in self.runners.loaded()]})

    # ---------------------------------------------------------------------------------------------------- answers

    async def _answer(self, exchange: Exchange, record: Record, behaviour: Behaviour) -> None:
        chat = exchange.path == "/api/chat"
        body = rules.decode(exchange.body)
        rules.check_types(body, "ChatRequest" if chat else "GenerateRequest")
        keep_s = rules.keep_alive(body, self.runners.keep_s)
        model, capabilities = self._find(body, chat=chat)
        empty = not (body.get("messages") if chat else body.get("prompt"))
        if empty and keep_s == 0:
            self.runners.unload(model.name)
            await exchange.send_json(200, _loaded(body, "unload", chat=chat))
            return
        thinks = rules.think(body, body["model"], capabilities)
        rules.check_format(body)
        runner, load_s = await self.runners.get(model, rules.options(body), body.get("shift"), keep_s)
        if empty:
            await exchange.send_json(200, _loaded(body, "load", chat=chat))
            return
        num_ctx = runner.num_ctx
        fit, record.truncated = chat_prompt(body, num_ctx, model.path) if chat else generate_prompt(body, num_ctx)
        record.prompt = fit
        if body.get("_debug_render_only"):
            await exchange.send_json(200, {"model": model.name, "_debug_info": {"rendered_template": "".join(fit)}})
            return
        answer = Answer(exchange, record, behaviour, body)
        answer.load_ns = int(load_s * 1e9)
        async with self.runners.use(runner, record, answer.written, keep_s):
            await self._generate(answer, runner, thinks=thinks)

    def _find(self, body: dict[str, Any], *, chat: bool) -> tuple[Model, frozenset[str]]:
        name = body.get("model") or ""
        if not name and chat:
            raise Refusal(400, "model is required")
        if name:
            rules.check_name(name)
        model = self.models.get(rules.full_name(name))
        if model is None:
            raise Refusal(404, f"model '{name}' not found")
        if "completion" not in model.capabilities:
            raise Refusal(400, f'"{name}" does not support {"chat" if chat else "generate"}')
        for wanted, capability, word in (("tools", "tools", "tools"), ("suffix", "insert", "insert")):
            if body.get(wanted) and capability not in model.capabilities:
                full = f"registry.ollama.ai/library/{rules.full_name(name)}"
                raise Refusal(400, f"{full} does not support {word}")
        messages: list[dict[str, Any]] = body.get("messages") or [body]
        if "vision" not in model.capabilities and any(message.get("images") for message in messages):
            text = "Multimodal data provided, but model does not support multimodal requests."
            raise Refusal(400, rules.nested(400, text))
        return model, model.capabilities

    async def _generate(self, answer: Answer, runner: Runner, *, thinks: bool) -> None:
        record, body, mode = answer.record, answer.body, answer.behaviour.mode
        seconds = record.evaluated / (self.prompt_tokens_per_s or 10_000)
        answer.prompt_ns = int(seconds * 1e9)
        if self.prompt_tokens_per_s:
            await asyncio.sleep(seconds)
        wanted = rules.options(body).get("num_predict", -1)
        limit = answer_limit(body, wanted, runner.num_ctx, len(record.prompt), runner.model.path)
        limit = math.inf if mode == "endless" else limit
        reason = await answer.run(answer.behaviour.pieces(body, thinks=thinks), limit, FAULTS.get(mode))
        record.shifts = context_shifts(len(record.prompt), len(answer.written), runner.num_ctx)
        if mode == "runner_dies":
            self.runners.unload(runner.model.name)
        if not reason:
            return
        if mode in {"nodone", "repeat_guard"}:
            await answer.unfinished()
        else:
            await answer.done("length" if mode == "thinking_only" else reason)

    async def _embed(self, exchange: Exchange) -> None:
        body = rules.decode(exchange.body)
        name = str(body.get("model") or "")
        model = self.models.get(rules.full_name(name))
        if model is None:
            raise Refusal(404, f'model "{name}" not found, try pulling it first')
        if "embedding" not in model.capabilities:
            raise Refusal(501, "This server does not support embeddings. Start it with `--embeddings`")
        keep_s = rules.keep_alive(body, self.runners.keep_s)
        runner, _ = await self.runners.get(model, rules.options(body), None, keep_s)
        vectors, count = self.library.embed(body, runner.num_ctx)
        value = {"model": name, "embeddings": vectors, "total_duration": 1_000_000, "prompt_eval_count": count}
        await exchange.send_json(200, {key: item for key, item in value.items() if item or key == "embeddings"})


def _loaded(body: Mapping[str, Any], reason: str, *, chat: bool) -> dict[str, Any]:
    text = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    return {"model": body["model"], "created_at": timestamp(), **text, "done": True, "done_reason": reason}


def _is_local(headers: Mapping[str, str]) -> bool:
    """Ollama refuses foreign Host and Origin headers (DNS rebinding)."""
    host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
    origin = headers.get("origin", "http://localhost").partition("://")[2].partition(":")[0]
    return all(_is_local_name(name) for name in (host, origin))


def _is_local_name(name: str) -> bool:
    if not name or name == "localhost" or name.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    from tests.fakes.ollama_control import main

    main()
