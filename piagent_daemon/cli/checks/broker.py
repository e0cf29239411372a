"""The broker: reachable, credentials, protocol, permissions proven by an own echo, and the daemon behind it."""

import json
import secrets
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from piagent_daemon.checks import Finding
from piagent_daemon.doors.mqtt_client import ClosedEarly, MqttClient, Received, Refused
from piagent_daemon.errors import DoorError
from piagent_daemon.settings import Settings
from piagent_daemon.topics import DOCTOR, Topics
from piagent_daemon.wire import object_in

ECHO_WAIT_S: Final = 2.0
_DAEMON_WAIT_S: Final = 3.0


def check_broker(settings: Settings) -> Iterator[Finding]:
    """Look at everything about the broker; stops at what makes the rest pointless."""
    client = MqttClient(settings, "piagent-doctor")
    where = f"{settings.mqtt_host}:{settings.mqtt_port}"
    user = settings.mqtt_username or "nobody (no MQTT_USERNAME)"
    try:
        protocol = client.connect()
    except Refused as refusal:
        yield Finding("broker", "ok", f"{where} answers")
        yield _refused(refusal, user)
        return
    except DoorError as error:
        yield Finding("broker", "fail", str(error), _reach_remedy(error))
        return
    try:
        yield Finding("broker", "ok", f"{where} answers")
        yield Finding("credentials", "ok", f"accepted as {user}")
        detail = "MQTT 5" if protocol == "5" else "MQTT 3.1.1: no response topics, and the broker bounds the queue"
        yield Finding("protocol", "ok", detail)
        yield from _permissions_and_daemon(client, settings, user)
    except DoorError as error:
        yield Finding("broker", "fail", str(error), "Look at the broker's log: `journalctl -u mosquitto`.")
    finally:
        client.close()


def _reach_remedy(error: DoorError) -> str:
    if isinstance(error.__cause__, ssl.SSLError) or isinstance(error, ClosedEarly):
        return (
            "Look at MQTT_TLS, MQTT_PORT, MQTT_HOST and MQTT_CA_FILE: what listens there speaks otherwise than we do."
        )
    return "Install one with `sudo apt install mosquitto`, or set MQTT_HOST."


def _refused(refusal: Refused, user: str) -> Finding:
    if refusal.credentials:
        remedy = "Set MQTT_USERNAME and MQTT_PASSWORD as in the broker's password file (`mosquitto_passwd`)."
        return Finding("credentials", "fail", f"refused as {user}", remedy)
    return Finding("protocol", "fail", str(refusal), "Set MQTT_PROTOCOL=auto, or look at the broker's settings.")


def _permissions_and_daemon(client: MqttClient, settings: Settings, user: str) -> Iterator[Finding]:
    topics = Topics(settings.mqtt_base_topic)
    nonce = f"{DOCTOR}{secrets.token_hex(6)}"
    try:
        client.subscribe(*topics.filters, *((topic, 1) for topic in (topics.out(nonce), topics.health, topics.info)))
        client.subscribe(*((topics.response(method), 1) for method in ("health", nonce)))
    except Refused as refusal:
        yield Finding("permissions", "fail", str(refusal), _acl_remedy(settings, user))
        return
    heard = _Heard(client, topics, nonce)
    yield _permissions(client, heard, settings, user)
    yield _daemon(heard)


class _Heard:
    """What came so far: topics of our own echoes, the daemon's health and its answer to us."""

    def __init__(self, client: MqttClient, topics: Topics, nonce: str) -> None:
        self.echoes: set[str] = set()
        self.health: dict[str, Any] | None = None
        self.answered = False
        self._client = client
        self.topics = topics
        self.nonce = nonce

    def wait(self, done: Callable[[], bool], wait_s: float) -> bool:
        """Listen until `done()` or for `wait_s` seconds; tell whether it came true."""
        deadline = time.monotonic() + wait_s
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if message := self._client.receive(left):
                self._note(message)
        return True

    def _note(self, message: Received) -> None:
        if message.topic == self.topics.health:
            self.health = object_in(message.payload)
        elif message.topic == self.topics.response("health"):
            self.answered |= object_in(message.payload).get("transaction") == self.nonce
        elif self.nonce in message.topic or self.nonce.encode() in message.payload:
            self.echoes.add(message.topic)


def _permissions(client: MqttClient, heard: _Heard, settings: Settings, user: str) -> Finding:
    """Write where the daemon reads and writes, and hear it back: brokers refuse silently.

    Nothing here makes a running daemon work: it does not read `…/out`; cancel and reset name a conversation that
    does not exist; what goes to `…/in` has the shape of an event, which it drops; and what it subscribes to comes at
    QoS 0, which no broker keeps for a stopped daemon.
    """
    topics, nonce = heard.topics, heard.nonce
    event = {"type": "status", "conversation_id": nonce, "request_id": nonce, "seq": 0, "attempt": 1}
    probes = {
        topics.out(nonce): (nonce.encode(), 1),
        topics.cancel(nonce): (json.dumps({"id": nonce}).encode(), 0),
        topics.reset(nonce): (b"", 0),
        topics.inbox(nonce): (json.dumps(event).encode(), 0),
        topics.request("health"): (json.dumps({"transaction": nonce}).encode(), 0),
        topics.response(nonce): (nonce.encode(), 1),
    }
    mute = set()
    for topic, (payload, qos) in probes.items():
        try:
            client.publish(topic, payload, qos)
        except Refused:
            mute.add(topic)
    heard.wait(lambda: heard.echoes >= probes.keys() - mute, ECHO_WAIT_S)
    missing = sorted(topic.replace(nonce, "+") for topic in probes.keys() - heard.echoes)
    if missing:
        return Finding("permissions", "fail", f"no echo on {', '.join(missing)}", _acl_remedy(settings, user))
    return Finding("permissions", "ok", f"own messages came back on {settings.mqtt_base_topic}/…")


def _acl_remedy(settings: Settings, user: str) -> str:
    base = settings.mqtt_base_topic
    return (
        f"Let {user} read and write `{base}/#` in the broker's ACL (`topic readwrite {base}/#`) and restart the broker."
    )


def _daemon(heard: _Heard) -> Finding:
    """Look whether a daemon is there, is well, and answers."""
    heard.wait(lambda: heard.health is not None, ECHO_WAIT_S)
    health = heard.health
    start = "Start it: `sudo systemctl start piagent`, or `piagent run`."
    if health is None:
        start += f" If it runs, the broker does not let it write there: allow its user `{heard.topics.base}/#`."
        return Finding("daemon", "fail", f"no daemon shows itself on {heard.topics.health}", start)
    if health.get("status") == "offline":
        return Finding("daemon", "fail", "it is stopped", start)
    if not heard.wait(lambda: heard.answered, _DAEMON_WAIT_S):
        return Finding(
            "daemon", "fail", "its health is there but it does not answer", "Look at its log: `journalctl -u piagent`."
        )
    if health.get("status") != "ok":
        provider = health.get("provider")
        why = str(provider.get("error") or "") if isinstance(provider, dict) else ""
        reasons = ", ".join(map(str, health.get("reasons") or ["no reason given"]))
        return Finding("daemon", "fail", f"degraded: {reasons}", why or "Look at its log: `journalctl -u piagent`.")
    return Finding("daemon", "ok", f"version {health.get('version')} answers")
