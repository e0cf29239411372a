"""What the fakes of OpenAI's and Anthropic's protocols share: events over HTTP, behaviours by script, records.

    async with FakeOpenAI() as server:
        server.next("rst", after=3)               # the next question only
        server.script.tokens_per_s = 50           # standing
        ...
        assert server.questions[0].body["messages"][-1]["content"] == "Hello"

The behaviours and their modes are those of the fake Ollama.
"""

import asyncio
import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from tests.fakes.httpd import Exchange, HttpServer, encode
from tests.fakes.ollama_answer import Answer
from tests.fakes.ollama_faults import FAULTS, refuse
from tests.fakes.ollama_runner import Model
from tests.fakes.ollama_script import REFUSING, SERVER_WIDE, Behaviour, Piece, Record
from tests.fakes.tokens import render

SSE = "text/event-stream; charset=utf-8"
RETRY_AFTER = {"Retry-After": "1"}


class Refusal(Exception):
    """An answer other than 200 before the first token; `body` is JSON."""

    def __init__(self, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(str(body))
        self.status = status
        self.body = body
        self.headers = dict(headers or {})


def event(value: Any, name: str = "") -> bytes:
    """Return one server-sent event with JSON (or ready text) as its data."""
    data = value if isinstance(value, bytes) else encode(value)
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"


class EventAnswer(Answer):
    """An answer as server-sent events."""

    content_type = SSE

    def line(self, text: str, *, thought: bool = False) -> bytes:
        return b"".join(self.events(text, thought=thought))

    def _lines(self, pieces: Any) -> list[bytes]:
        found: list[Piece] = list(pieces)
        return [line for text, thought in found for line in self.events(text, thought=thought)]

    def events(self, text: str, *, thought: bool) -> list[bytes]:
        """Return the events that say `text`."""
        raise NotImplementedError

    async def unfinished(self) -> None:
        """End in good order without saying so."""
        await self.flush()
        await self.send([])
        await self.exchange.end()


class ApiServer:
    """Listens on loopback under `url`; `api_key` is demanded when set."""

    path = ""
    """Where a model is asked."""

    def __init__(self, models: Mapping[str, Model], *, port: int = 0, api_key: str | None = None) -> None:
        self.models = {name: replace(model, name=name) for name, model in models.items()}
        self.script = Behaviour()
        self.requests: list[Record] = []
        self.api_key = api_key
        self._queue: deque[Behaviour] = deque()
        self._changed = asyncio.Event()
        self._http = HttpServer(self._handle, port)

    # ---------------------------------------------------------------------------------------------------- for tests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.port}"

    @property
    def connections(self) -> int:
        """How many connections were accepted so far."""
        return self._http.accepted

    @property
    def questions(self) -> list[Record]:
        """The requests for an answer."""
        return [record for record in self.requests if record.path == self.path]

    def next(self, mode: str = "ok", *, times: int = 1, **changes: Any) -> None:
        """Answer the next `times` questions in this mode; `changes` are fields of Behaviour."""
        self._queue.extend([replace(self.script, mode=mode, **changes)] * times)

    async def until(self, condition: Callable[[Self], Any], timeout_s: float = 5.0) -> None:
        """Wait until `condition(server)` holds."""
        async with asyncio.timeout(timeout_s):
            while not condition(self):
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 0.05)

    async def __aenter__(self) -> Self:
        await self._http.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.stop()

    # --------------------------------------------------------------------------------------------------- requests

    async def _handle(self, exchange: Exchange) -> None:
        body: Any = exchange.body
        with contextlib.suppress(ValueError):
            body = json.loads(exchange.body)
        record = Record(exchange.method, exchange.path, exchange.headers, body, exchange.arrived_at)
        self.requests.append(record)
        exchange.on_gone = lambda: self._gone(record, exchange)
        self._changed.set()
        asking = exchange.path == self.path
        concerned = asking or self.script.mode in SERVER_WIDE
        standing = self.script if concerned else replace(self.script, mode="ok")
        behaviour = self._queue.popleft() if asking and self._queue else standing
        record.mode = behaviour.mode
        try:
            await self._play(exchange, record, behaviour)
        except Refusal as refusal:
            await exchange.send(refusal.status, encode(refusal.body), "application/json", refusal.headers)
        finally:
            record.status = exchange.status
            record.ended = None if record.disconnected else time.monotonic()
            self._changed.set()

    def _gone(self, record: Record, exchange: Exchange) -> None:
        record.disconnected_at = exchange.gone_at
        self._changed.set()

    async def _play(self, exchange: Exchange, record: Record, behaviour: Behaviour) -> None:
        mode = behaviour.mode
        if (mode in SERVER_WIDE | REFUSING) and (refusal := self.refusal(mode, record.body)):
            raise refusal
        if mode == "error_200_first_line":
            exchange.head(200, SSE)
            await exchange.chunk(self.failure(behaviour.error))
            await exchange.end()
        elif mode in SERVER_WIDE | REFUSING:
            await refuse(exchange, behaviour, record.body)
        elif exchange.path == self.path:
            self.check_key(exchange)
            await self._answer(exchange, record, behaviour)
        else:
            self.check_key(exchange)
            await self.route(exchange, record)

    async def _answer(self, exchange: Exchange, record: Record, behaviour: Behaviour) -> None:
        body = record.body
        model = self.check(body)
        if body.get("stream") is not True:
            raise AssertionError("this fake only streams")
        plain = self.plain(body)
        record.prompt = render(plain["messages"])
        limit: float = self.limit(body) or math.inf
        self.check_context(record, model, limit)
        answer = self.answer(exchange, record, behaviour, {**body, **plain})
        mode = behaviour.mode
        thinks = "thinking" in model.capabilities and self.thinks(body)
        pieces = behaviour.pieces(answer.body, thinks=thinks)
        try:
            reason = await answer.run(pieces, math.inf if mode == "endless" else limit, FAULTS.get(mode))
        except Refusal as refusal:
            if answer.written:
                raise AssertionError("too late to refuse") from refusal
            raise
        if not reason:
            return
        if mode in {"nodone", "repeat_guard"}:
            await answer.unfinished()
        else:
            await answer.done("length" if mode == "thinking_only" else reason)

    # -------------------------------------------------------------------------------------------- what protocols say

    def refusal(self, mode: str, body: Any) -> Refusal | None:
        """Return how this protocol says that it refuses, or None where the mode has nothing to do with it."""
        raise NotImplementedError

    def failure(self, error: str) -> bytes:
        """Return the event for a failure in mid-stream."""
        raise NotImplementedError

    def check_key(self, exchange: Exchange) -> None:
        """Refuse a wrong key."""
        raise NotImplementedError

    def check(self, body: Any) -> Model:
        """Refuse what is no valid question; return the model that is asked."""
        raise NotImplementedError

    def check_context(self, record: Record, model: Model, limit: float) -> None:
        """Refuse a prompt that does not fit."""
        raise NotImplementedError

    def plain(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body in Ollama's words (messages, options, format), for the shared behaviours."""
        raise NotImplementedError

    def limit(self, body: Mapping[str, Any]) -> int | None:
        """Return how many tokens the answer may have."""
        raise NotImplementedError

    def thinks(self, body: Mapping[str, Any]) -> bool:
        """Tell whether the model is to think, if it can."""
        raise NotImplementedError

    def answer(self, exchange: Exchange, record: Record, behaviour: Behaviour, body: dict[str, Any]) -> EventAnswer:
        """Return the writer of one answer."""
        raise NotImplementedError

    async def route(self, exchange: Exchange, record: Record) -> None:
        """Answer everything but questions."""
        raise NotImplementedError


def joined(parts: Sequence[Mapping[str, Any]]) -> str:
    """Return the text in a list of content parts."""
    return "".join(str(part["text"]) for part in parts if part["type"] == "text")
