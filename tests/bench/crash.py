"""The promise under power cuts: kill -9 of the daemon at random moments, then broker restarts, under a stream.

The model server answers differently each time it is asked, so that a question put to it twice, with both answers
published, shows. The floor is the control: it promises nothing, and its losses show that this measurement sees losses.
"""

import json
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tests.bench.harness import FLOOR, PIAGENT, Figure, Lab
from tests.bench.model_server import Plan
from tests.bench.process import pause

MESSAGES, CONVERSATIONS = 200, 20
KILLS, BROKER_RESTARTS = 50, 20
CONTROL_MESSAGES, CONTROL_KILLS = 60, 15
KILL_AFTER_S, RESTART_AFTER_S = (0.05, 1.1), (0.3, 1.8)
DRAIN_S = 30.0
PLAN = Plan(tokens=5, interval_s=0.02, numbered=True)


class Stream:
    """A patient client: QoS 1 both ways on a persistent session, reconnecting for ever."""

    def __init__(self, port: int, side: str, name: str) -> None:
        self.side, self.name = side, name
        self.asked: list[str] = []
        self.ends: dict[str, set[str]] = defaultdict(set)
        self.repeated = 0
        self._all = threading.Condition()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, f"{side}-{name}", clean_session=False)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_message = self._on_message
        self._client.on_connect = lambda client, *_: client.subscribe(f"{side}/+/out", 1)
        self._client.connect("127.0.0.1", port, keepalive=10)

    def __enter__(self) -> Self:
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, count: int, interval_s: float) -> threading.Thread:
        """Send `count` messages, one per interval, from a thread of their own."""

        def send() -> None:
            for index in range(count):
                tag = f"{self.name}-{index}"
                self.asked.append(tag)
                payload = json.dumps({"id": tag, "message": f"What is next? #{tag}"})
                self._client.publish(f"{self.side}/{self.name}-{index % CONVERSATIONS}/in", payload, qos=1)
                pause(interval_s)

        thread = threading.Thread(target=send, name="bench-stream")
        thread.start()
        return thread

    def drain(self, timeout_s: float) -> None:
        """Wait until every message has its terminal event, or the time is up."""
        with self._all:
            self._all.wait_for(lambda: len(self.ends) >= len(self.asked), timeout_s)

    def counts(self) -> dict[str, float]:
        """Return how many ids got no end or more than one, and how often an end was said again."""
        return {
            "lost": sum(tag not in self.ends for tag in self.asked),
            "differ": sum(len(ends) > 1 for ends in self.ends.values()),
            "repeated": self.repeated,
        }

    def codes(self) -> dict[str, int]:
        """Return how many ids ended by each error code."""
        return Counter(
            end.removeprefix("error ") for ends in self.ends.values() for end in ends if end.startswith("error ")
        )

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        event = json.loads(message.payload)
        if event["type"] not in {"final", "error"}:
            return
        end = f"{event['type']} {event.get('reply', event.get('code'))}"
        with self._all:
            ends = self.ends[event["request_id"]]
            self.repeated += end in ends
            ends.add(end)
            self._all.notify_all()


def run(sides: Sequence[str], rounds: int | None = None) -> list[Figure]:
    """Count messages without an end, and request ids with two different ends."""
    kills, messages = (rounds, 4 * rounds) if rounds else (KILLS, MESSAGES)
    restarts = min(kills, BROKER_RESTARTS)
    figures = []
    if FLOOR in sides:
        with Lab(persistence=True) as lab:
            lost = under_kills(lab, FLOOR, CONTROL_KILLS, CONTROL_MESSAGES).counts()["lost"]
        name = f"control, {CONTROL_KILLS} x kill -9 under {CONTROL_MESSAGES} messages: lost"
        figures.append(Figure(name, "messages", floor=lost))
    if PIAGENT in sides:
        with Lab(persistence=True) as lab:
            figures += rows(f"{kills} x kill -9 under {messages} messages", under_kills(lab, PIAGENT, kills, messages))
        with Lab(persistence=True) as lab:
            figures += rows(
                f"{restarts} broker restarts under {messages} messages", under_restarts(lab, restarts, messages)
            )
    return figures


def rows(name: str, stream: Stream) -> list[Figure]:
    counts = stream.counts()
    return [
        Figure(f"{name}: lost", "messages", piagent=counts["lost"], at_most=0),
        Figure(f"{name}: two different answers", "ids", piagent=counts["differ"], at_most=0),
        *(Figure(f"{name}: ended by error {code}", "ids", piagent=count) for code, count in stream.codes().items()),
        Figure(f"{name}: the same end said again", "events", piagent=counts["repeated"]),
    ]


def settings(lab: Lab) -> dict[str, object]:
    return {"memory_url": f"sqlite://{lab.folder}/memory.db", "mqtt_client_id": "bench-crash", "max_concurrent": 4}


def under_kills(lab: Lab, side: str, kills: int, messages: int) -> Stream:
    """Kill and start again at random moments, some of them before READY=1."""
    lab.model.plan(PLAN)
    moments = random.Random(7)  # noqa: S311 - moments, not secrets
    interval_s = kills * sum(KILL_AFTER_S) / 2 / messages
    lab.start(side, **settings(lab)).kill()
    with Stream(lab.port, side, "k") as stream:
        publishing = stream.publish(messages, interval_s)
        for _ in range(kills):
            bridge = lab.launch(side, **settings(lab))
            pause(moments.uniform(*KILL_AFTER_S))
            bridge.kill()
        lab.start(side, **settings(lab))
        publishing.join()
        stream.drain(DRAIN_S if side == PIAGENT else 3)
        return stream


def under_restarts(lab: Lab, restarts: int, messages: int) -> Stream:
    """Restart the broker at random moments; it keeps its sessions in a file."""
    lab.model.plan(PLAN)
    moments = random.Random(8)  # noqa: S311 - moments, not secrets
    lab.start(PIAGENT, **settings(lab))
    with Stream(lab.port, PIAGENT, "b") as stream:
        publishing = stream.publish(messages, restarts * sum(RESTART_AFTER_S) / 2 / messages)
        for _ in range(restarts):
            pause(moments.uniform(*RESTART_AFTER_S))
            lab.broker.stop()
            lab.start_broker()
        publishing.join()
        stream.drain(DRAIN_S)
        return stream
