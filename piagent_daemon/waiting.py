"""Waiting for something, but not for ever."""

import asyncio


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
