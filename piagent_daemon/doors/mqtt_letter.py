"""One message as the broker brought it, and what its topic and properties mean. Pure."""

from hashlib import sha256
from typing import Final, NamedTuple
from urllib.parse import quote

import paho.mqtt.client as paho

from piagent_daemon.errors import OutOfBounds
from piagent_daemon.topics import Inbound, Topics, is_publishable
from piagent_daemon.values import Delivery


class Letter(NamedTuple):
    """A message on one of our topics. `received` is monotonic; `generation` is that of the connection it came on."""

    topic: str
    inbound: Inbound
    payload: bytes
    qos: int
    packet_id: int
    redelivered: bool
    generation: int
    received: float
    response_topic: str | None = None
    correlation: bytes | None = None

    @property
    def size(self) -> int:
        """Return how many bytes it holds: what an asker wants back can be as large as what is asked."""
        return len(self.payload) + len(self.topic) + len(self.response_topic or "") + len(self.correlation or b"")


def open_letter(message: paho.MQTTMessage, topic: str, inbound: Inbound, *, generation: int, received: float) -> Letter:
    """Read paho's message."""
    properties = message.properties
    return Letter(
        topic=topic,
        inbound=inbound,
        payload=bytes(message.payload),
        qos=message.qos,
        packet_id=message.mid,
        redelivered=message.dup,
        generation=generation,
        received=received,
        response_topic=getattr(properties, "ResponseTopic", None),
        correlation=getattr(properties, "CorrelationData", None),
    )


def delivery_of(letter: Letter, conversation_id: str | None, request_id: str | None) -> Delivery:
    """Name the delivery: by the client's request id, else by its MQTT 5 correlation data, else by the packet.

    A request id is unique only within its conversation, correlation data only for its asker. So a request without a
    conversation has the asker's response topic and data in its key beside the id. Since some clients use the same id,
    or send the same data, with every question, the payload belongs to such a key, too. Only an id makes two messages
    one: the same words with the same data are asked again, unless the broker says that it brings them again.
    """
    durable = letter.qos > 0
    where = quote(conversation_id or "", safe="")  # without a colon, so that no key can be read in two ways
    if request_id is not None and where:
        return Delivery(f"id:{where}:{request_id}", by_id=True, redelivered=letter.redelivered, durable=durable)
    said = (letter.topic.encode(), (letter.response_topic or "").encode(), letter.correlation or b"", letter.payload)
    digest = sha256(b"".join(b"%d:%b" % (len(part), part) for part in said)).hexdigest()[:32]
    if request_id is not None:
        return Delivery(f"id::{digest}:{request_id}", by_id=True, redelivered=letter.redelivered, durable=durable)
    if letter.correlation and letter.response_topic:
        key = f"correlation:{where}:{digest}"
    else:
        key = f"packet:{letter.packet_id}:{digest}"
    return Delivery(key, by_id=False, redelivered=letter.redelivered, durable=durable)


def check_response_topic(topic: str, prefixes: tuple[str, ...], topics: Topics) -> None:
    """Raise OutOfBounds unless answers may go to `topic`: else who may ask could make us write anywhere."""
    if not topic.startswith(prefixes):
        allowed = ", ".join(f'"{prefix}"' for prefix in prefixes)
        raise OutOfBounds(f"The response topic must begin with {allowed} (RESPONSE_TOPIC_PREFIXES).")
    if not is_publishable(topic) or len(topic.encode()) > MAX_RESPONSE_TOPIC_BYTES:
        raise OutOfBounds("The response topic is not one that can be published on.")
    if topic in {topics.health, topics.info} or topics.parse(topic):
        raise OutOfBounds("The response topic is one of the daemon's own.")


MAX_RESPONSE_TOPIC_BYTES: Final = 1024
