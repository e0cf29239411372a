"""What the fault tests share."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import DaemonFactory
from tests.fakes.broker import Mosquitto
from tests.fakes.ollama import FakeOllama
from tests.fault.house import House

HouseFactory = Callable[..., House]


@pytest.fixture
def house(
    request: pytest.FixtureRequest, daemon: DaemonFactory, model_server: FakeOllama, base_topic: str
) -> HouseFactory:
    """Make a House: `async with house(protocol="311", max_concurrent=2) as home`; without `broker` the run's own."""

    def make(broker: Mosquitto | None = None, **arguments: Any) -> House:
        where = broker or request.getfixturevalue("mosquitto")
        return House(daemon, model_server, where, base_topic, **arguments)

    return make
