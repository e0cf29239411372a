"""What the tests of the command line share: a daemon that is played, and where it is."""

from typing import Any

import pytest

from tests.fakes.broker import Mosquitto
from tests.fakes.observer import Observer
from tests.fakes.responder import Responder


@pytest.fixture
async def responder(observer: Observer) -> Responder:
    responder = Responder(observer)
    await responder.show()
    return responder


@pytest.fixture
def place(mosquitto: Mosquitto, base_topic: str) -> dict[str, Any]:
    """Where a command finds the broker."""
    return {"mqtt_port": mosquitto.port, "mqtt_base_topic": base_topic}
