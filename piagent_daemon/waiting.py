"""Waiting for something, but not for ever."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


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


def fulfil(future: Future[T], call: Callable[[], T]) -> None:
    """Put what `call` returns or raises into `future`, unless that was cancelled before."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - whoever waits for it is told
        future.set_exception(error)


class LooseThreads(ThreadPoolExecutor):
    """Runs each call in a thread of its own, for which the end of the process does not wait.

    As the executor of an event loop (which takes no other kind) it looks host names up, and a name server that is away
    takes half a minute.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Have `fn` run at once."""
        future: Future[T] = Future()
        work = partial(fulfil, future, partial(fn, *args, **kwargs))
        threading.Thread(target=work, name="loose", daemon=True).start()
        return future


def in_loop(main: Coroutine[Any, Any, T]) -> T:
    """Return what `main` returns in an event loop of its own, whose end waits for no host name (`LooseThreads`)."""

    async def within() -> T:
        asyncio.get_running_loop().set_default_executor(LooseThreads())
        return await main

    return asyncio.run(within())


def _nothing() -> None:
    """Stand in where there is nothing to undo."""


async def in_thread(call: Callable[[], T], name: str, otherwise: Callable[[], object] = _nothing) -> T:
    """Return what `call` returns in a thread of its own, which does not hold up the end of the process.

    `otherwise` undoes it when nobody waits any more. Raises what `call` raises.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(settle: Callable[[], None]) -> None:
        (otherwise if done.cancelled() else settle)()

    def run() -> None:
        try:
            settle = partial(done.set_result, call())
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it; else they would wait for ever
            settle = partial(done.set_exception, error)
        try:
            loop.call_soon_threadsafe(tell, settle)
        except RuntimeError:  # the loop is closed: the process ends
            otherwise()

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        return await done
    except asyncio.CancelledError:
        if not done.cancelled():
            otherwise()
        raise


class Idle(asyncio.Event):
    """Set while nobody wants anything, as it is at first; knows for how long."""

    def __init__(self) -> None:
        super().__init__()
        self._since = -math.inf
        super().set()

    def set(self) -> None:
        if not self.is_set():
            self._since = time.monotonic()
        super().set()

    @property
    def lasts_s(self) -> float:
        """For how many seconds it has been set, 0.0 while it is not."""
        return time.monotonic() - self._since if self.is_set() else 0.0
