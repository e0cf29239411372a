"""One answer of the fake model server on its way out: lines, pacing, counts."""

import asyncio
import functools
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from json.encoder import encode_basestring as quote  # ten times as fast as json.dumps for one string
from typing import Any

from tests.fakes.httpd import Exchange, encode
from tests.fakes.ollama_script import Behaviour, Piece, Record

BATCH = 64
EXTRA = {"x_new_field": {"deep": [1, None, "ü"]}, "logprobs": None, "remote_host": "", "done_soon": False}
NDJSON = "application/x-ndjson"
Fault = Callable[["Answer"], Awaitable[bool]]
"""Plays something bad in mid-answer and returns whether the answer is over."""


@functools.lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def timestamp() -> str:
    """Return the wall clock as Go prints it."""
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    return f"{_second(seconds)}.{rest:09d}Z"


class Answer:
    """Writes an answer in the shape of /api/chat or /api/generate, streamed or whole.

    Other protocols override the shape: `content_type`, `line`, `_lines`, `error_line`, `done` and `unfinished`.
    """

    content_type = NDJSON

    def __init__(self, exchange: Exchange, record: Record, behaviour: Behaviour, body: dict[str, Any]) -> None:
        self.exchange = exchange
        self.record = record
        self.behaviour = behaviour
        self.body = body
        self.chat = exchange.path == "/api/chat"
        self.stream = body.get("stream") is not False
        self.model = str(body["model"])
        self.load_ns = 0
        self.prompt_ns = 0
        self.written: list[str] = []
        """Every token, thought included: what the model's cache then holds."""
        self._thought: list[str] = []
        self._held: list[Piece] = []
        self._begun = False
        self._before = f'{{"model":{quote(self.model)},"created_at":"'
        self._middle = '","message":{"role":"assistant","content":' if self.chat else '","response":'
        self._after = '},"done":false}\n' if self.chat else ',"done":false}\n'
        self._generating_since = time.monotonic()

    def line(self, text: str, *, thought: bool = False) -> bytes:
        """Return one line that is not the last."""
        return self._lines([(text, thought)])[0]

    def around(self) -> tuple[bytes, bytes]:
        """Return what stands before and after the text in a line."""
        start, _, end = self.line("!").partition(b"!")
        return start, end

    def error_line(self, error: str) -> bytes:
        """Return the line that reports a failure in mid-answer."""
        return encode({"error": error}) + b"\n"

    def _lines(self, pieces: Iterable[Piece]) -> list[bytes]:
        """Return the lines of tokens that leave together."""
        if self.behaviour.mode == "extra_fields":
            return [self._long_line(*piece) for piece in pieces]
        before, after = f"{self._before}{timestamp()}{self._middle}", self._after
        return [
            self._long_line(token, True) if thought else f"{before}{quote(token)}{after}".encode()
            for token, thought in pieces
        ]

    def _long_line(self, token: str, thought: bool) -> bytes:
        return encode(self._shape("" if thought else token, token if thought else "")) + b"\n"

    def _shape(self, text: str, thinking: str, *, done: bool = False) -> dict[str, Any]:
        value: dict[str, Any] = {"model": self.model, "created_at": timestamp()}
        more: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if self.chat:
            value["message"] = {"role": "assistant", "content": text, **more}
        else:
            value.update(response=text, **more)
        if self.behaviour.mode == "extra_fields":
            value.update(EXTRA)
            value.get("message", {}).update(EXTRA)
        return {**value, "done": done}

    async def run(self, pieces: Iterable[Piece], limit: float, fault: Fault | None = None) -> str:
        """Write the tokens at their pace; return the done_reason, or "" when `fault` ended the answer.

        The fault comes after `after` tokens, or at the end of a shorter answer.
        """
        await self._wait_first()
        rate, after, reason = self.behaviour.tokens_per_s, self.behaviour.after, "stop"
        start = self._generating_since = time.monotonic()
        for count, (token, thought) in enumerate(pieces):
            if count >= limit:
                reason = "length"
                break
            if fault and count == after:
                await self.flush()
                if await fault(self):
                    return ""
                fault = None
            if rate:
                await asyncio.sleep(max(0.0, start + count / rate - time.monotonic()))
            self._put(token, thought=thought)
            if rate or count == 0 or len(self._held) >= BATCH:
                await self.flush()
        await self.flush()
        return "" if fault and await fault(self) else reason

    async def _wait_first(self) -> None:
        wait_s = self.behaviour.first_wait_s()
        if math.isinf(wait_s):
            await asyncio.Event().wait()
        elif wait_s:
            await asyncio.sleep(wait_s)

    def _put(self, token: str, *, thought: bool) -> None:
        if self.behaviour.stamp:
            token = f"{time.monotonic():.6f} "
        self.written.append(token)
        (self._thought if thought else self.record.pieces).append(token)
        self._held.append((token, thought))

    async def flush(self) -> None:
        """Write the tokens that are held back."""
        held, self._held = self._held, []
        if not held:
            return
        now = time.monotonic()
        self.record.first_token = self.record.first_token or now
        self.record.last_token = now
        self.record.tokens += len(held)
        if self.stream:
            await self.send(self._lines(held))
        if not self.behaviour.tokens_per_s:
            await asyncio.sleep(0)  # let other streams run, and notice a client that left

    async def send(self, lines: list[bytes]) -> None:
        """Write lines, each as a chunk of its own, the header before the first."""
        if not self._begun:
            self._begun = True
            self.exchange.head(200, self.content_type)
        if self.behaviour.mode == "split":
            for byte in b"".join(lines):
                await self.exchange.chunk(bytes((byte,)))
                await asyncio.sleep(0)
        else:
            await self.exchange.raw(b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in lines))

    async def done(self, reason: str) -> None:
        """Write the last line, or the whole answer when it is not streamed."""
        now = time.monotonic()
        text, thought = ("", "") if self.stream else self.text()
        value = self._shape(text, thought, done=True)
        if self.behaviour.tool_calls:
            value["message"]["tool_calls"] = self.behaviour.tool_calls
        value["done_reason"] = reason
        counts = {
            "total_duration": int((now - self.record.arrived) * 1e9),
            "load_duration": self.load_ns,
            "prompt_eval_count": len(self.record.prompt),
            "prompt_eval_duration": self.prompt_ns,
            "eval_count": len(self.written),
            "eval_duration": int((now - self._generating_since) * 1e9) if self.written else 0,
        }
        value.update({name: count for name, count in counts.items() if count})
        if not self.chat:
            value["context"] = list(range(min(16, len(self.record.prompt) + len(self.written))))
        if self.stream:
            await self.send([encode(value) + b"\n"])
            await self.exchange.end()
        else:
            await self.exchange.send_json(200, value)

    async def unfinished(self) -> None:
        """End in good order but without `done`: an incomplete answer, and no error anywhere."""
        await self.flush()
        if self.stream:
            await self.send([])
            await self.exchange.end()
        else:
            await self.exchange.send_json(200, self._shape(*self.text()))

    def text(self) -> tuple[str, str]:
        """Return what was said so far: text and thought."""
        return self.record.text, "".join(self._thought)
