"""Tasks that must not end, and threads that nobody has to wait for."""

import asyncio

import pytest

from piagent_daemon.doors.mqtt_task import in_thread


@pytest.mark.parametrize("kind", [OSError, ValueError, RuntimeError, MemoryError])
async def test_whatever_ends_the_thread_reaches_who_waits(kind: type[Exception]) -> None:
    def call() -> None:
        raise kind

    with pytest.raises(kind):
        await asyncio.wait_for(in_thread(call, otherwise=lambda: None), 5)
