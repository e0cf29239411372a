"""One thread for calls to a disk that may never answer: no executor's, for which Python would wait at the end."""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from piagent_daemon.waiting import fulfil

T = TypeVar("T")


class Worker:
    """Runs calls one after the other. The thread begins with the first of them."""

    def __init__(self, name: str) -> None:
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=name, daemon=True)

    def submit(self, call: Callable[..., T], *arguments: Any) -> Future[T]:
        """Have `call` run; what it returns or raises is in the future."""
        future: Future[T] = Future()
        self._waiting.put(partial(fulfil, future, partial(call, *arguments)))
        if self._thread.ident is None:
            self._thread.start()
        return future

    def shutdown(self, *, wait: bool = True) -> None:
        """Let the thread end after the calls that wait; `wait` for that."""
        self._waiting.put(None)
        if wait and self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while self._run_next():
            pass  # a loop in here would hold the last call, and all it was given, until the next

    def _run_next(self) -> bool:
        work = self._waiting.get()
        if work is None:
            return False
        work()
        return True
