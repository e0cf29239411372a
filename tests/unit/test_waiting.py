"""Waiting for something, but not for ever."""

import asyncio
import threading

import pytest

from piagent_daemon.waiting import in_thread, woken


async def test_it_tells_whether_the_event_came() -> None:
    event = asyncio.Event()
    assert not await woken(event, 0)
    assert not await woken(event, -1)
    asyncio.get_running_loop().call_soon(event.set)
    assert await woken(event, 5)
    assert await woken(event, 5)


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancellation_that_comes_with_the_event_counts(turns: int) -> None:
    event = asyncio.Event()

    async def again_and_again() -> None:
        while True:
            event.clear()
            await woken(event, 60)

    task = asyncio.create_task(again_and_again())
    for _ in range(3):
        await asyncio.sleep(0)
    event.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=1)
    assert task.cancelled()


@pytest.mark.parametrize("kind", [OSError, ValueError, RuntimeError, MemoryError])
async def test_whatever_ends_the_thread_reaches_who_waits(kind: type[Exception]) -> None:
    def call() -> None:
        raise kind

    with pytest.raises(kind):
        await asyncio.wait_for(in_thread(call, "fails"), 5)


async def test_a_thread_that_nobody_waits_for_is_undone() -> None:
    let_go, undone = threading.Event(), asyncio.Event()
    task = asyncio.create_task(in_thread(let_go.wait, "waits", otherwise=undone.set))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()
    let_go.set()
    await asyncio.wait_for(undone.wait(), 5)
