"""A task that lasts: it dies by a defect only to begin anew, until it is stopped."""

import pytest

from piagent_daemon.doors import mqtt_task
from piagent_daemon.doors.mqtt_task import LastingTask
from tests.fakes.echo_engine import until


async def test_a_task_that_dies_begins_anew_and_a_stop_is_for_good(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mqtt_task, "PAUSE_S", 0.0)
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        raise ZeroDivisionError

    task = LastingTask(work, "reader of tests")
    task.start()
    await until(lambda: begun > 2)
    assert "reader of tests" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    await task.stop()
    before = begun
    task.start()
    assert not task.running
    assert begun == before
