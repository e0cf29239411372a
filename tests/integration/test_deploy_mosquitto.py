"""deploy/mosquitto in a real broker: what its rules allow and deny, shown by what arrives and what does not."""

import os
import queue
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

DEPLOY = Path(__file__).parents[2] / "deploy"
MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
DEADLINE_S = 10.0
USERS = ("piagent", "homeassistant", "kitchen", "observer")

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE_S} s: {what}"
        threading.Event().wait(0.02)


@dataclass
class Broker:
    """A mosquitto with Debian's main file and ours beside it, on a port of its own."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert MOSQUITTO is not None
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([MOSQUITTO, "-c", self.folder / "mosquitto.conf"], stdout=log, stderr=log)
        until(self._answers, "mosquitto listens")

    def stop(self, with_signal: signal.Signals = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(with_signal)
        self.process.wait(DEADLINE_S)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def install(folder: Path) -> Broker:
    """Lay out `/etc/mosquitto` as the installer does, below `folder`, with one more user who sees everything."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    (folder / "conf.d").mkdir()
    (folder / "mosquitto.conf").write_text(
        f"user root\npersistence true\npersistence_location {folder}/\nlog_dest stderr\ninclude_dir {folder}/conf.d\n"
    )
    ours = (DEPLOY / "mosquitto/piagent.conf").read_text()
    assert "\nlistener 1883\n" in ours
    ours = ours.replace("listener 1883\n", f"listener {port} 127.0.0.1\n").replace("/etc/mosquitto/", f"{folder}/")
    (folder / "conf.d/piagent.conf").write_text(ours)
    rules = (DEPLOY / "mosquitto/piagent.acl").read_text()
    (folder / "piagent.acl").write_text(rules + "\nuser observer\ntopic readwrite #\n")
    passwords = folder / "piagent.passwd"
    passwords.write_text("".join(f"{user}:secret of {user}\n" for user in USERS))
    subprocess.run(["mosquitto_passwd", "-U", passwords], check=True)
    return Broker(folder, port)


@contextmanager
def running(folder: Path) -> Iterator[Broker]:
    broker = install(folder)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with running(tmp_path_factory.mktemp("mosquitto")) as it:
        yield it


@dataclass
class Peer:
    """A client of the broker; what it receives is in `inbox` as (topic, payload)."""

    broker: Broker
    user: str | None
    password: str | None = None
    clean: bool = True
    inbox: "queue.Queue[tuple[str, bytes]]" = field(default_factory=queue.Queue)
    answers: "queue.Queue[int]" = field(default_factory=queue.Queue)

    def __enter__(self) -> Self:
        self.client = Client(
            CallbackAPIVersion.VERSION2, client_id=f"test-{self.user}", protocol=MQTTProtocolVersion.MQTTv5
        )
        if self.user is not None:
            self.client.username_pw_set(self.user, self.password or f"secret of {self.user}")
        self.client.on_connect = lambda _c, _u, _f, reason, _p: self.answers.put(reason.value)
        self.client.on_subscribe = lambda _c, _u, _mid, _reasons, _p: self.answers.put(0)
        self.client.on_message = self._on_message
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0 if self.clean else 3600
        self.client.connect("127.0.0.1", self.broker.port, clean_start=self.clean, properties=properties)
        self.client.loop_start()
        self.connected = self.answers.get(timeout=DEADLINE_S)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def _on_message(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        self.inbox.put((message.topic, bytes(message.payload)))

    def subscribe(self, topic: str) -> None:
        self.client.subscribe(topic, 1)
        self.answers.get(timeout=DEADLINE_S)

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:
        self.client.publish(topic, payload, 1, retain).wait_for_publish(DEADLINE_S)

    def received_until(self, fence: bytes) -> list[tuple[str, bytes]]:
        """All that came before the message with the payload `fence`: a broker keeps one sender's order."""
        seen = []
        while (message := self.inbox.get(timeout=DEADLINE_S))[1] != fence:
            seen.append(message)
        return seen


FENCE = {"piagent": "piagent/fence", "homeassistant": "homeassistant/fence", "kitchen": "piagent/kitchen/in"}

WRITES = [
    ("piagent", "piagent/kitchen/out", True),
    ("piagent", "piagent/health", True),
    ("piagent", "piagent/response/agents/list", True),
    ("piagent", "homeassistant/device/piagent/config", True),
    ("piagent", "homeassistant/status", False),
    ("piagent", "zigbee2mqtt/lamp/set", False),
    ("homeassistant", "piagent/in", True),
    ("homeassistant", "piagent/kitchen/in", True),
    ("homeassistant", "piagent/kitchen/cancel", True),
    ("homeassistant", "piagent/kitchen/reset", True),
    ("homeassistant", "piagent/request/agents/list", True),
    ("homeassistant", "homeassistant/status", True),
    ("homeassistant", "piagent/kitchen/out", False),
    ("homeassistant", "piagent/health", False),
    ("kitchen", "piagent/kitchen/cancel", True),
    ("kitchen", "piagent/kitchen/reset", True),
    ("kitchen", "piagent/bedroom/in", False),
    ("kitchen", "piagent/bedroom/cancel", False),
    ("kitchen", "piagent/in", False),
    ("kitchen", "piagent/kitchen/out", False),
    ("kitchen", "piagent/request/memory/clear", False),
    ("kitchen", "homeassistant/device/piagent/config", False),
]

READS = [
    ("piagent", "piagent/kitchen/in", True),
    ("piagent", "piagent/request/health", True),
    ("piagent", "homeassistant/status", True),
    ("piagent", "homeassistant/light/config", False),
    ("piagent", "zigbee2mqtt/lamp", False),
    ("homeassistant", "piagent/kitchen/out", True),
    ("homeassistant", "piagent/response/agents/list", True),
    ("homeassistant", "piagent/health", True),
    ("homeassistant", "zigbee2mqtt/lamp", False),
    ("kitchen", "piagent/kitchen/out", True),
    ("kitchen", "piagent/health", True),
    ("kitchen", "piagent/info", True),
    ("kitchen", "piagent/bedroom/out", False),
    ("kitchen", "piagent/bedroom/in", False),
    ("kitchen", "piagent/response/memory/get", False),
]


@pytest.mark.parametrize(("user", "topic", "allowed"), WRITES)
def test_who_may_write_what(broker: Broker, user: str, topic: str, allowed: bool) -> None:
    with Peer(broker, "observer") as observer, Peer(broker, user) as peer:
        observer.subscribe("#")
        peer.publish(topic, b"probe")
        peer.publish(FENCE[user], b"fence")
        assert ((topic, b"probe") in observer.received_until(b"fence")) is allowed


@pytest.mark.parametrize(("user", "topic", "allowed"), READS)
def test_who_may_read_what(broker: Broker, user: str, topic: str, allowed: bool) -> None:
    fence = "piagent/kitchen/out" if user == "kitchen" else FENCE[user]
    with Peer(broker, "observer") as observer, Peer(broker, user) as peer:
        for wanted in {topic, fence}:
            peer.subscribe(wanted)
        observer.publish(topic, b"probe")
        observer.publish(fence, b"fence")
        assert ((topic, b"probe") in peer.received_until(b"fence")) is allowed


def test_a_wildcard_subscription_does_not_widen_a_satellites_view(broker: Broker) -> None:
    with Peer(broker, "observer") as observer, Peer(broker, "kitchen") as peer:
        peer.subscribe("piagent/#")
        observer.publish("piagent/bedroom/out", b"private")
        observer.publish("piagent/kitchen/out", b"fence")
        assert peer.received_until(b"fence") == []


@pytest.mark.parametrize(("user", "password"), [(None, None), ("piagent", "wrong"), ("stranger", "x")])
def test_nobody_comes_in_without_a_right_password(broker: Broker, user: str | None, password: str | None) -> None:
    with Peer(broker, user, password) as peer:
        assert peer.connected == 135  # not authorized


def test_a_waiting_question_outlives_a_power_cut(tmp_path: Path) -> None:
    with running(tmp_path) as broker:
        with Peer(broker, "piagent", clean=False) as daemon:
            daemon.subscribe("piagent/+/in")
        with Peer(broker, "homeassistant") as peer:
            peer.publish("piagent/kitchen/in", b"what waits in the broker")
        database = tmp_path / "mosquitto.db"
        until(lambda: database.exists() and b"what waits in the broker" in database.read_bytes(), "it is on disk")
        broker.stop(signal.SIGKILL)
        broker.start()
        with Peer(broker, "piagent", clean=False) as daemon:
            assert daemon.inbox.get(timeout=DEADLINE_S) == ("piagent/kitchen/in", b"what waits in the broker")


def test_hermes_is_closed_until_its_lines_are_uncommented_and_the_broker_reloads(tmp_path: Path) -> None:
    """What the README says under "Rhasspy and Hermes", for piagent and for who tries it with mosquitto_pub."""
    rules = tmp_path / "piagent.acl"
    with running(tmp_path) as broker, Peer(broker, "piagent") as daemon, Peer(broker, "homeassistant") as person:
        for peer in (daemon, person):
            peer.subscribe("hermes/#")
        for peer, other in ((daemon, person), (person, daemon)):
            other.subscribe("piagent/health")
            peer.publish("hermes/tts/say", b"closed")
        with Peer(broker, "observer") as observer:
            observer.publish("piagent/health", b"fence")
        assert daemon.received_until(b"fence") == person.received_until(b"fence") == []
        rules.write_text(rules.read_text().replace("#topic readwrite hermes/#", "topic readwrite hermes/#"))
        assert broker.process is not None
        broker.process.send_signal(signal.SIGHUP)  # `systemctl reload mosquitto`
        until(lambda: "Reloading config" in (tmp_path / "log").read_text(), "the rules are read again")
        for peer, other in ((person, daemon), (daemon, person)):
            peer.publish("hermes/tts/say", b"open")
            assert other.inbox.get(timeout=DEADLINE_S) == ("hermes/tts/say", b"open")
            peer.inbox.get(timeout=DEADLINE_S)  # its own copy
