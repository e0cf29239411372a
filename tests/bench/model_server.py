"""A model server for benchmarks: Ollama's streaming protocol, exact pacing, and stamps of what happened when.

It runs as a process of its own (`python -m tests.bench.model_server PORT`), so that it shares no interpreter with what
it measures. `POST /_bench` takes a Plan as JSON and says how answers are made from then on; `GET /_bench` returns the
records of the tagged requests since the last call and forgets them. A request is tagged by `#name` in its newest
user message; untagged ones (priming, probes) get one token and no record. All stamps are `time.monotonic()`, which on
Linux is one clock for all processes.
"""

import asyncio
import itertools
import json
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

MODEL = "bench"
TEXT = (
    "The kitchen light is on now, and the heating in the living room follows at seven. It is dry outside with a mild "
    "wind from the west: you may want to open a window before the guests arrive. Shall I do it?"
)
WORDS = TEXT.split()
TAG = re.compile(r"#(\S+)")
TOKEN = re.compile(r"<\|\w+\|>|\n|\s?[^\s<]+|<|\s")


@dataclass(frozen=True)
class Plan:
    """How answers are made. Times in seconds; an `interval_s` of 0 writes the whole answer at once."""

    tokens: int = 20
    interval_s: float = 0.0
    scatter: int = 0
    """Start each stream at a random moment of its first interval, as independent conversations would: the seed, or 0.

    With the same seed the moments are the same, so that two bridges meet the same crowds.
    """
    stamped: bool = False
    """Each token is the time at which it was written."""
    leading: bool = False
    """The space stands before a word, as in real tokens, so that a stop comes without anything behind it."""
    numbered: bool = False
    """The answer begins with the number of the call, so that the same question asked twice is answered differently."""
    lines_per_write: int = 1
    """NDJSON lines in one HTTP chunk."""
    count_prefix: bool = False
    """Count the prompt tokens that one slot has to read again after the longest common prefix with its last use."""


@dataclass
class Record:
    """One tagged request: when it was there, when its first and last token and its first stop were written."""

    tag: str
    arrived: float
    first: float = 0.0
    last: float = 0.0
    stop: float = 0.0


class State:
    """What the connections share: the plan, the records, and the cache of the one slot."""

    def __init__(self) -> None:
        self.plan = Plan()
        self.moments = random.Random()  # noqa: S311 - no secrets
        self.records: list[Record] = []
        self.calls = 0
        self.numbers = itertools.count(1)
        self.slot: list[str] = []
        self.sent = 0
        self.read_again = 0

    def count(self, prompt: list[str], reply: list[str]) -> None:
        """Add one prompt to the totals. The last token of a prompt is always evaluated (as llama-server does)."""
        common = 0
        for ours, theirs in zip(prompt, self.slot, strict=False):
            if ours != theirs:
                break
            common += 1
        self.sent += len(prompt)
        self.read_again += len(prompt) - min(common, len(prompt) - 1)
        self.slot = prompt + reply

    def report(self) -> dict[str, Any]:
        """Return the records and totals so far, and begin anew."""
        report = {"records": [asdict(record) for record in self.records], "calls": self.calls}
        report |= {"sent": self.sent, "read_again": self.read_again}
        self.records, self.calls, self.sent, self.read_again = [], 0, 0, 0
        return report


def words(count: int) -> Iterator[str]:
    """Yield `count` tokens of plain English."""
    for index in range(count):
        yield WORDS[index % len(WORDS)] + " "


def chatml(body: dict[str, Any]) -> str:
    """Return the prompt text a ChatML template makes of the request."""
    messages = body.get("messages") or [{"role": "user", "content": body.get("prompt", "")}]
    turns = "".join(f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in messages)
    return turns + "<|im_start|>assistant\n"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Connection(asyncio.Protocol):
    """One keep-alive HTTP/1.1 connection."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.buffer = b""
        self.transport: asyncio.Transport
        self.loop = asyncio.get_running_loop()
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self.timer:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, rest = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        size = int(length[1]) if length else 0
        if len(rest) < size:
            return
        arrived = time.monotonic()
        body, self.buffer = rest[:size], rest[size:]
        method, target, _ = head.split(b" ", 2)
        self.handle(method.decode(), target.decode(), json.loads(body) if body else {}, arrived)

    def handle(self, method: str, target: str, body: dict[str, Any], arrived: float) -> None:
        if target == "/_bench" and method == "GET":
            self.whole(self.state.report())
        elif target == "/_bench":
            known = {field.name for field in fields(Plan)}
            self.state.report()
            self.state.slot = []
            self.state.plan = Plan(**{name: value for name, value in body.items() if name in known})
            self.state.moments.seed(self.state.plan.scatter)
            self.whole({})
        elif target in {"/api/chat", "/api/generate"}:
            self.answer(body, arrived, chat=target == "/api/chat")
        elif target == "/api/show":
            self.whole({"capabilities": ["completion"], "details": {}, "model_info": {"bench.context_length": 32768}})
        elif target in {"/api/tags", "/api/ps"}:
            model = {"name": MODEL, "model": MODEL, "size": 1, "details": {}, "context_length": 16384}
            self.whole({"models": [model]})
        else:
            self.whole({"version": "0.33.0"})

    def whole(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        self.transport.write(head % len(data) + data)

    def answer(self, body: dict[str, Any], arrived: float, *, chat: bool) -> None:
        asked = body["messages"][-1]["content"] if body.get("messages") else body.get("prompt", "")
        if not asked:
            self.whole(
                {"model": MODEL, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "load"}
            )
            return
        tag = TAG.search(asked)
        record = Record(tag[1] if tag else "", arrived)
        if tag:
            self.state.records.append(record)
        self.state.calls += 1
        plan = self.state.plan if tag else Plan(tokens=1, count_prefix=self.state.plan.count_prefix)
        stream = Stream(self, plan, record, chat=chat)
        prompt = self.prompt_tokens(body, plan, stream.texts)
        stream.done = json.dumps(stream.line("", done=True, prompt_tokens=prompt)).encode() + b"\n"
        if body.get("stream", True):
            stream.start()
        else:
            self.whole(stream.line("".join(stream.texts), done=True, prompt_tokens=prompt))

    def prompt_tokens(self, body: dict[str, Any], plan: Plan, texts: list[str]) -> int:
        if not plan.count_prefix:
            return sum(len(each["content"]) for each in body.get("messages", [])) // 4 + 1
        prompt = TOKEN.findall(chatml(body))
        self.state.count(prompt, TOKEN.findall("".join(texts)))
        return len(prompt)


class Stream:
    """One answer on its way."""

    def __init__(self, connection: Connection, plan: Plan, record: Record, *, chat: bool) -> None:
        self.connection, self.plan, self.record, self.chat = connection, plan, record, chat
        self.texts = list(words(plan.tokens))
        if plan.numbered:
            self.texts[0] = f"Answer {next(connection.state.numbers)}: "
        self.texts[-1] = self.texts[-1].rstrip()
        if plan.leading:
            self.texts = [f"{' ' * bool(at)}{text.rstrip()}" for at, text in enumerate(self.texts)]
        self.done = b""
        self.next = 0

    def line(self, text: str, *, done: bool, prompt_tokens: int = 0) -> dict[str, Any]:
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.chat else {"response": text}
        line = {"model": MODEL, "created_at": "2026-11-01T00:00:00.000000Z", **said, "done": done}
        if done:
            line |= {"done_reason": "stop", "total_duration": 2_000_000, "load_duration": 100_000}
            line |= {"prompt_eval_count": prompt_tokens, "prompt_eval_duration": 900_000}
            line |= {"eval_count": self.plan.tokens, "eval_duration": 1_000_000}
        return line

    def start(self) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        if self.plan.interval_s:
            self.connection.transport.write(head)
            wait = self.connection.state.moments.random() * self.plan.interval_s if self.plan.scatter else 0.0
            self.due = self.connection.loop.time() + wait
            self.connection.timer = self.connection.loop.call_at(self.due, self.step)
            return
        lines = [json.dumps(self.line(text, done=False)).encode() + b"\n" for text in self.texts]
        size = self.plan.lines_per_write
        parts = [chunked(b"".join(lines[at : at + size])) for at in range(0, len(lines), size)]
        self.record.first = time.monotonic()
        self.connection.transport.write(b"".join([head, *parts, chunked(self.done), b"0\r\n\r\n"]))
        self.record.last = time.monotonic()

    def step(self) -> None:
        """Write one token; the last is followed at once by the line that ends the answer."""
        now = time.monotonic()
        text = f"{now:.6f} " if self.plan.stamped else self.texts[self.next]
        data = chunked(json.dumps(self.line(text, done=False)).encode() + b"\n")
        self.record.first = self.record.first or now
        if not self.record.stop and text.rstrip()[-1:] in {",", ".", "?", ":"}:
            self.record.stop = now
        self.next += 1
        self.connection.transport.write(data)
        if self.next < len(self.texts):
            self.due += self.plan.interval_s
            self.connection.timer = self.connection.loop.call_at(self.due, self.step)
        else:
            self.record.last = now
            self.connection.transport.write(chunked(self.done) + b"0\r\n\r\n")


async def main(port: int) -> None:
    """Serve on loopback until the process is ended."""
    state = State()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(state), "127.0.0.1", port, backlog=512)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
