"""What another vocabulary needs to live on the MQTT door's connection, and what it gets."""

from collections.abc import Callable
from typing import Final, Protocol

from piagent_daemon.doors.mqtt_letter import Letter
from piagent_daemon.doors.mqtt_reply import Receipt
from piagent_daemon.values import Delivery, DoorState

FOREIGN: Final = (
    "hermes/asr/textCaptured",
    "hermes/dialogueManager/intentNotRecognized",
    "hermes/dialogueManager/sessionEnded",
    "hermes/hotword/+/detected",
    "hermes/nlu/query",
    "hermes/tts/sayFinished",
)
"""Every filter that a guest may want. The session at the broker remembers those that a guest of old wanted, so what
nobody wants now is taken back."""


class Guest(Protocol):
    """Reads topics of its own; what comes at QoS 1 is acknowledged and redelivered by the rules of our own topics."""

    @property
    def filters(self) -> tuple[tuple[str, int], ...]:
        """What to subscribe to, as (filter, QoS)."""

    def claims(self, topic: str) -> bool:
        """Tell whether a topic is one of the guest's."""

    def overhear(self, letter: Letter) -> bool:
        """Act at once on what must not wait its turn; tell whether that was all. Must not raise."""

    async def take(self, letter: Letter, delivery: Delivery, receipt: Receipt) -> None:
        """Take a message in its turn; `receipt` is to be settled or forgotten when its answer is safe."""


class Ear:
    """A guest that listens to one topic and says nothing."""

    def __init__(self, topic: str, heard: Callable[[bytes], None]) -> None:
        self.filters = ((topic, 0),)
        self._topic = topic
        self._heard = heard

    def claims(self, topic: str) -> bool:
        return topic == self._topic

    def overhear(self, letter: Letter) -> bool:
        self._heard(letter.payload)
        return True

    async def take(self, letter: Letter, delivery: Delivery, receipt: Receipt) -> None:  # noqa: ARG002 the seam's
        """Never called: everything is overheard."""
        receipt.settle()


class Host(Protocol):
    """What the MQTT door does for its guests."""

    @property
    def state(self) -> DoorState: ...

    def invite(self, guest: Guest) -> None:
        """Read the guest's topics; call it before `start`."""

    def publish(self, topic: str, payload: bytes, done: Callable[[int], None]) -> None:
        """Publish at QoS 1; `done` hears the broker's reason code, or a code that says why it was never sent."""
