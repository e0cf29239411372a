"""How a streamed answer is relayed: what counts as begun, what is wrong behind good lines, deadlines between reads."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, cast

import pytest

from piagent_daemon.errors import ProviderError, ProviderTimeout
from piagent_daemon.providers.answer import Hear, Heard, in_batches, relay, vectors
from piagent_daemon.providers.client import LineStream
from piagent_daemon.providers.config import ProviderConfig
from piagent_daemon.providers.deadlines import Deadlines
from piagent_daemon.values import ChatRequest, Delta, Finish, Message

REQUEST = ChatRequest("m", (Message("user", "hi"),), {}, 4096)


class Stream:
    """Plays reads: lists of objects, or what is raised."""

    def __init__(self, *reads: list[dict[str, Any]] | Exception, late: ProviderError | None = None) -> None:
        self.reads = list(reads)
        self.late = late
        self.started = self.complete = self.ended = False

    async def read(self) -> list[dict[str, Any]]:
        if not self.reads:
            self.ended = True
            return []
        read = self.reads.pop(0)
        if isinstance(read, Exception):
            raise read
        return read

    def check(self) -> None:
        if self.late:
            raise self.late


def hear(values: Sequence[dict[str, Any]]) -> Heard:
    text = "".join(value.get("text", "") for value in values)
    thinking = "".join(value.get("thinking", "") for value in values)
    return text, thinking, Finish("stop") if any(value.get("done") for value in values) else None


async def play(stream: Stream) -> list[Delta]:
    @asynccontextmanager
    async def opening(request: ChatRequest, deadlines: Deadlines) -> AsyncGenerator[tuple[LineStream, Hear], None]:  # noqa: ARG001
        yield cast("LineStream", stream), hear

    async with aclosing(relay(opening, REQUEST, ProviderConfig("m", "m"))) as deltas:
        return [delta async for delta in deltas]


async def test_a_thought_is_no_beginning_of_the_answer() -> None:
    stream = Stream([{"thinking": "hm"}], ProviderError("broke off"))
    with pytest.raises(ProviderError):
        await play(stream)
    assert not stream.started, "nothing was said yet, so another try does no harm"
    stream = Stream([{"thinking": "hm"}], [{"text": "Yes"}], ProviderError("broke off"))
    with pytest.raises(ProviderError):
        await play(stream)
    assert stream.started


async def test_a_model_that_thinks_must_go_on_thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    allow = Deadlines.allow

    def note(self: Deadlines, seconds: float, what: str) -> None:
        told.append(what)
        allow(self, seconds, what)

    monkeypatch.setattr(Deadlines, "allow", note)
    stream = Stream([{"thinking": "hm"}], ProviderError("broke off"))
    with pytest.raises(ProviderError):
        await play(stream)
    assert told == ["first token", "next token"]


async def test_what_is_wrong_behind_good_lines_is_told_at_once() -> None:
    stream = Stream([{"text": "Yes"}], [{"text": "never read"}], late=ProviderError("nonsense"))
    with pytest.raises(ProviderError, match="nonsense"):
        await play(stream)
    assert len(stream.reads) == 1
    assert [delta.text for delta in await play(Stream([{"text": "Yes", "done": True}]))] == ["Yes"]


async def test_a_deadline_that_passes_between_two_reads_is_not_lost() -> None:
    deadlines = Deadlines(60)
    deadlines.allow(0.01, "first token")
    loop = asyncio.get_running_loop()
    fired = loop.create_future()
    loop.call_later(0.03, fired.set_result, None)
    await fired
    with pytest.raises(ProviderTimeout, match="no first token"):
        await asyncio.wait_for(deadlines.read(asyncio.Event().wait()), 5)
    deadlines.allow(0.05, "next token")
    with pytest.raises(ProviderTimeout, match="no next token"):
        await asyncio.wait_for(deadlines.read(asyncio.Event().wait()), 5)
    deadlines.close()


async def test_no_other_deadline_is_later_than_that_of_the_whole_answer() -> None:
    deadlines = Deadlines(0.01)
    deadlines.allow(60, "first token")
    with pytest.raises(ProviderTimeout, match=r"not complete within 0\.01 s"):
        await asyncio.wait_for(deadlines.read(asyncio.Event().wait()), 5)
    deadlines.close()


async def test_many_texts_are_embedded_a_few_at_a_time_in_order() -> None:
    asked: list[int] = []

    async def embed(texts: Sequence[str]) -> list[list[float]]:
        asked.append(len(texts))
        return [[float(text)] for text in texts]

    assert await in_batches([str(number) for number in range(70)], embed) == [[float(number)] for number in range(70)]
    assert asked == [32, 32, 6]
    assert await in_batches([], embed) == []


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400, True, "1", None])
def test_what_is_no_number_of_an_embedding_is_refused(number: object) -> None:
    with pytest.raises(ProviderError, match="did not answer with 1 embeddings"):
        vectors([[0.5, number]], 1)
    assert vectors([[0.5, -2]], 1) == [[0.5, -2.0]]
