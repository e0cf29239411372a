"""Waiting for something, but not for ever."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def woken(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, at most so many seconds; tell whether it came.

    Not `asyncio.wait_for`: before Python 3.12 that swallows a cancellation which comes together with the event, and a
    task that waits again and again then never ends.
    """
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def first_of(*waits: Coroutine[Any, Any, Any], timeout_s: float) -> None:
    """Wait for one of several, at most `timeout_s` seconds; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
