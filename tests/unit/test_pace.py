"""Joining text at a listener's pace."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

import pytest

from piagent_daemon.errors import ProviderError
from piagent_daemon.pace import Pace
from piagent_daemon.values import Delta, Finish


class Source:
    """A stream fed by hand."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        self.closed = False

    async def stream(self) -> AsyncGenerator[Delta, None]:
        try:
            while True:
                item = await self.queue.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish:
                    return
        finally:
            self.closed = True

    def feed(self, *items: Delta | Exception) -> None:
        for item in items:
            self.queue.put_nowait(item)


END = Delta(finish=Finish("stop"))


async def _texts(pace: Pace) -> list[str]:
    texts = []
    while True:
        await pace.wait()
        while pace.text_due:
            texts.append(pace.take())
        if pace.finish or pace.ended:
            return texts


async def test_the_first_text_goes_at_once_and_later_ones_are_joined() -> None:
    source = Source()
    async with Pace(source.stream(), interval_s=3600, max_chars=99) as pace:
        source.feed(Delta("a"))
        await asyncio.wait_for(pace.wait(), 5)
        assert pace.take() == "a"
        source.feed(Delta("b"), Delta("c"), END)
        assert await asyncio.wait_for(_texts(pace), 5) == ["bc"]


async def test_held_text_goes_when_the_interval_is_over() -> None:
    source = Source()
    async with Pace(source.stream(), interval_s=0.01, max_chars=99) as pace:
        source.feed(Delta("a"))
        await pace.wait()
        pace.take()
        source.feed(Delta("b"))
        await asyncio.wait_for(pace.wait(), 5)
        assert pace.take() == "b"
        source.feed(END)
        assert await asyncio.wait_for(_texts(pace), 5) == []


async def test_with_no_interval_every_delta_is_handed_out() -> None:
    source = Source()
    async with Pace(source.stream(), interval_s=0, max_chars=99) as pace:
        for text in "abc":
            source.feed(Delta(text))
            await asyncio.wait_for(pace.wait(), 5)
            assert pace.take() == text
        source.feed(END)
        await asyncio.wait_for(_texts(pace), 5)


async def test_with_no_interval_deltas_that_came_together_stay_apart() -> None:
    source = Source()
    async with Pace(source.stream(), interval_s=0, max_chars=99) as pace:
        for text in "abc":
            source.feed(Delta(text))
        source.feed(END)
        assert await asyncio.wait_for(_texts(pace), 5) == ["a", "b", "c"]


async def test_closing_ends_the_stream_and_closes_its_source() -> None:
    source = Source()
    async with Pace(source.stream(), interval_s=0, max_chars=99) as pace:
        source.feed(Delta("a"))
        await pace.wait()
        pace.take()
        pace.close()
        assert await asyncio.wait_for(_texts(pace), 5) == []
        assert source.closed
        pace.raise_failure()


async def test_closing_before_the_first_step_ends_it_too() -> None:
    source = Source()
    async with Pace(source.stream(), interval_s=0, max_chars=99) as pace:
        pace.close()
        assert await asyncio.wait_for(_texts(pace), 5) == []


async def test_leaving_early_closes_the_source() -> None:
    source = Source()
    with suppress(ZeroDivisionError):
        async with Pace(source.stream(), interval_s=0, max_chars=99) as pace:
            source.feed(Delta("a"))
            await pace.wait()
            raise ZeroDivisionError
    assert source.closed


async def test_a_failure_is_raised_after_the_text_before_it() -> None:
    source = Source()
    async with Pace(source.stream(), interval_s=3600, max_chars=99) as pace:
        source.feed(Delta("a"), Delta("b"), ProviderError("gone"))
        assert "".join(await asyncio.wait_for(_texts(pace), 5)) == "ab"
        with pytest.raises(ProviderError, match="gone"):
            pace.raise_failure()


async def test_the_stage_is_told_until_text_comes() -> None:
    source, stages = Source(), []
    async with Pace(source.stream(), interval_s=0, max_chars=99) as pace:
        stages.append(pace.stage)
        for delta in (Delta(thinking="hm"), Delta("a")):
            source.feed(delta)
            await asyncio.wait_for(pace.wait(), 5)
            stages.append(pace.stage)
        source.feed(END)
        await _texts(pace)
    assert stages == ["loading", "thinking", None]


async def test_waiting_ends_at_the_given_time() -> None:
    source = Source()
    async with Pace(source.stream(), interval_s=0, max_chars=99) as pace:
        await asyncio.wait_for(pace.wait(asyncio.get_running_loop().time()), 5)
        assert not pace.text_due
        assert not pace.ended
