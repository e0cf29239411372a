"""What the tests stand on: a real broker, a faithful model server, the daemon as a process."""

import itertools
import logging
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.fakes.broker import Mosquitto, find_mosquitto
from tests.fakes.daemon import DaemonProcess
from tests.fakes.observer import Observer
from tests.fakes.ollama import FakeOllama
from tests.fakes.processes import end_leftovers

# Few examples at each run, so that the unit tests take seconds; HYPOTHESIS_PROFILE=thorough looks harder.
hypothesis.settings.register_profile("quick", max_examples=12, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=1000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# Daemons start as where they are installed: compiled once, not at each start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

DaemonFactory = Callable[..., Awaitable[DaemonProcess]]
BrokerFactory = Callable[..., Mosquitto]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give what waits for real brokers and processes a second chance on a busy machine; the summary names it."""
    for item in items:
        if "unit" not in item.path.parts:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make what a test logged fit to be sent to another process: it may hold half characters."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    """Undo what a command that ran in this process did to the loggers."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in ("piagent", "httpx", "paho"))]
    levels = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in levels:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(scope="session", autouse=True)
def _no_leftovers() -> Iterator[None]:
    """End every process that a failed test left behind."""
    yield
    end_leftovers()


@pytest.fixture(scope="session")
def _session_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with Mosquitto(tmp_path_factory.mktemp("mosquitto"), persistence=False) as broker:
        yield broker


@pytest.fixture
def mosquitto(_session_broker: Mosquitto) -> Mosquitto:
    """The broker of the whole run. A test that stops or configures a broker makes its own with `new_broker`."""
    if not _session_broker.running:
        _session_broker.start()
    return _session_broker


@pytest.fixture
def new_broker(tmp_path: Path) -> Iterator[BrokerFactory]:
    """Make brokers for this test alone: `new_broker(persistence=False)` starts one, with Mosquitto's arguments."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    brokers: list[Mosquitto] = []

    def make(**arguments: Any) -> Mosquitto:
        broker = Mosquitto(tmp_path / f"broker{len(brokers)}", **arguments)
        brokers.append(broker)
        broker.start()
        return broker

    yield make
    for broker in brokers:
        if broker.running:
            broker.end(signal.SIGKILL)


@pytest.fixture
def base_topic() -> str:
    """A base topic of the test's own, so that retained messages of other tests are out of sight."""
    return f"piagent/{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def model_server() -> AsyncIterator[FakeOllama]:
    async with FakeOllama() as server:
        yield server


@pytest.fixture
async def observer(mosquitto: Mosquitto, base_topic: str) -> AsyncIterator[Observer]:
    """A client that sees everything below the test's base topic but its own messages, `retain` as it was published."""
    async with Observer(mosquitto.port, base=base_topic) as client:
        await client.subscribe(f"{base_topic}/#", no_local=True, as_published=True)
        yield client


@pytest.fixture
async def daemon(request: pytest.FixtureRequest, tmp_path: Path, base_topic: str) -> AsyncIterator[DaemonFactory]:
    """Start daemons: `await daemon(ollama_host=model_server.url)` returns one that is ready.

    Keywords are settings, or arguments of DaemonProcess. Without `mqtt_port` it is the run's broker; each daemon has
    a client id of its own. `wait=False` returns at once.
    """
    made: list[DaemonProcess] = []
    numbers = itertools.count()

    async def make(*, wait: bool = True, **arguments: Any) -> DaemonProcess:
        if "mqtt_port" not in arguments:
            arguments["mqtt_port"] = request.getfixturevalue("mosquitto").port
        arguments.setdefault("mqtt_base_topic", base_topic)
        arguments.setdefault("mqtt_client_id", f"test-{uuid.uuid4().hex[:12]}")
        process = DaemonProcess(tmp_path / f"daemon{next(numbers)}", **arguments)
        made.append(process)
        process.start()
        if wait:
            await process.ready()
        return process

    yield make
    for process in made:
        await process.close()
