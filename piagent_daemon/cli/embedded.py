"""Parts of a home's set-up inside this process: an MQTT broker, and an event loop in a thread of its own."""

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, Final, TypeVar

from piagent_daemon.errors import DoorError

T = TypeVar("T")

START_S: Final = 10.0
STOP_S: Final = 30.0
BROKER_STOP_S: Final = 5.0


@asynccontextmanager
async def broker() -> AsyncGenerator[int, None]:
    """Run an MQTT 3.1.1 broker on a free loopback port; yields the port. Raises DoorError."""
    try:
        from amqtt.broker import Broker  # noqa: PLC0415  an optional part, and slow to load
        from amqtt.errors import AMQTTError  # noqa: PLC0415
    except ImportError as error:
        raise DoorError(
            f"The demo needs an embedded broker: `{sys.executable} -m pip install amqtt` brings it."
        ) from error
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    logging.getLogger("transitions").setLevel(logging.CRITICAL)
    port = _free_port()
    try:
        server = Broker(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
                "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            }
        )
        await server.start()
    except (AMQTTError, OSError) as error:
        raise DoorError(f"The embedded broker cannot start: {error}.") from error
    try:
        yield port
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(BROKER_STOP_S):
                await server.shutdown()


@contextmanager
def in_background(make: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """Enter an async context in an event loop of its own thread; leave it, and end the thread, with this context.

    Whatever entering raises is raised here.
    """
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(_quiet)
    thread = threading.Thread(target=loop.run_forever, name="background event loop")
    thread.start()
    context = make()
    try:
        entering = asyncio.run_coroutine_threadsafe(_enter(context), loop)
        interrupted = None
        try:
            value = entering.result(START_S)
        except KeyboardInterrupt as error:  # what is half there cannot be left in good order
            value = entering.result(START_S)
            interrupted = error
        try:
            if interrupted:
                raise interrupted
            yield value
        finally:
            asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(STOP_S)
    finally:
        asyncio.run_coroutine_threadsafe(_cancel_rest(), loop).result(STOP_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _quiet(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Keep off the terminal what the embedded broker leaves undone; the daemon looks after its own tasks."""
    logging.getLogger("piagent.demo").debug("%s", context.get("message"), exc_info=context.get("exception"))


async def _enter(context: AbstractAsyncContextManager[T]) -> T:
    return await context.__aenter__()


async def _cancel_rest() -> None:
    """End what a part of the set-up forgot."""
    me: asyncio.Task[Any] | None = asyncio.current_task()
    while rest := asyncio.all_tasks() - {me}:  # what is cancelled may start something on its way out
        for task in rest:
            task.cancel()
        await asyncio.wait(rest, timeout=1.0)
    await asyncio.get_running_loop().shutdown_default_executor()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
