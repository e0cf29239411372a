"""A plain MQTT client for the command line: connect, subscribe, publish, receive, each with a time limit.

It uses paho's own network thread and a clean session under a random client id, so it never disturbs a daemon. MQTT 5
comes first, and 3.1.1 when the broker refuses it: paho itself would try 5 for ever.
"""

import queue
import secrets
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from piagent_daemon import tls
from piagent_daemon.doors.mqtt_paho import no_delay
from piagent_daemon.doors.mqtt_trouble import (
    BAD_CREDENTIALS,
    NOT_AUTHORIZED,
    UNSUPPORTED_PROTOCOL,
    End,
    Protocol,
    explain,
)
from piagent_daemon.errors import DoorError
from piagent_daemon.settings import Settings

_KEEPALIVE_S: Final = 30


class Refused(DoorError):
    """The broker said no; `reason` is its MQTT 5 reason code (3.1.1 codes are translated by paho)."""

    def __init__(self, message: str, reason: int) -> None:
        super().__init__(message)
        self.reason = reason

    @property
    def credentials(self) -> bool:
        """Tell whether user name or password are the trouble."""
        return self.reason in {BAD_CREDENTIALS, NOT_AUTHORIZED}


class ClosedEarly(DoorError):
    """The broker took the connection and closed it, or stayed silent, before its CONNACK."""


@dataclass(frozen=True, slots=True)
class Received:
    """One message; `correlation` is its MQTT 5 correlation data or None."""

    topic: str
    payload: bytes
    retained: bool
    correlation: bytes | None = None


class MqttClient:
    """One connection to the broker of `settings`, as a context manager; every method raises DoorError.

    Times are in seconds. Messages wait in a queue until `receive` takes them.
    """

    def __init__(self, settings: Settings, name: str, timeout_s: float = 5.0) -> None:
        self.protocol: Protocol = "5"
        self._settings = settings
        self._timeout_s = timeout_s
        self._client_id = f"{name}-{secrets.token_hex(4)}"
        self._inbox: queue.SimpleQueue[Received | DoorError] = queue.SimpleQueue()
        self._client: paho.Client | None = None
        self._answers: dict[tuple[str, int], list[ReasonCode]] = {}
        self._changed = threading.Condition()
        self._connack: ReasonCode | None = None
        self._lost: str | None = None
        self._closing = False

    @property
    def connected(self) -> bool:
        return self._client is not None and self._lost is None

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> Protocol:
        """Connect and return the protocol in use; a broker that refuses MQTT 5 is asked again with 3.1.1."""
        wanted = self._settings.mqtt_protocol
        if wanted == "311":
            return self._attempt("3.1.1")
        try:
            return self._attempt("5")
        except Refused as refusal:
            if wanted == "5" or refusal.reason != UNSUPPORTED_PROTOCOL:
                raise
        except ClosedEarly:
            if wanted == "5":
                raise
        return self._attempt("3.1.1")

    def subscribe(self, *filters: tuple[str, int]) -> None:
        """Subscribe to (filter, QoS) pairs and wait for the broker's word."""
        client = self._require()
        wanted = (
            [(name, SubscribeOptions(qos=qos)) for name, qos in filters]
            if self.protocol == "5"
            else [(name, qos) for name, qos in filters]
        )
        code, mid = client.subscribe(wanted)
        if code != paho.MQTT_ERR_SUCCESS or mid is None:
            raise DoorError(f"The subscription could not be sent: {paho.error_string(code)}.")
        for (name, _), reason in zip(filters, self._answer("suback", mid, "the subscription"), strict=False):
            if reason.is_failure:
                raise Refused(f'The broker refuses the subscription to "{name}": {reason}.', reason.value)

    def publish(
        self,
        topic: str,
        payload: bytes,
        qos: int = 1,
        *,
        retain: bool = False,
        reply_to: str | None = None,
        correlation: bytes | None = None,
    ) -> None:
        """Publish and, at QoS 1, wait for the acknowledgement; `reply_to` and `correlation` need MQTT 5."""
        client = self._require()
        properties = None
        if self.protocol == "5" and (reply_to or correlation):
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            if reply_to:
                properties.ResponseTopic = reply_to
            if correlation:
                properties.CorrelationData = correlation
        info = client.publish(topic, payload, qos, retain, properties)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise DoorError(f"The message could not be sent: {paho.error_string(info.rc)}.")
        reasons = self._answer("puback", info.mid, "the message")
        if reasons and reasons[0].is_failure:
            raise Refused(f'The broker refuses to take a message on "{topic}": {reasons[0]}.', reasons[0].value)

    def receive(self, timeout_s: float) -> Received | None:
        """Return the next message, or None after `timeout_s`; raises DoorError when the connection is lost."""
        try:
            found = self._inbox.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None
        if isinstance(found, DoorError):
            raise found
        return found

    def close(self) -> None:
        """Say goodbye to the broker and end the network thread."""
        self._closing = True
        client, self._client = self._client, None
        if client:
            client.disconnect()
            client.loop_stop()

    def _require(self) -> paho.Client:
        if self._client is None or self._lost is not None:
            raise DoorError(self._lost or "There is no connection to the MQTT broker.")
        return self._client

    def _attempt(self, protocol: Protocol) -> Protocol:
        self.close()
        self._closing, self._connack, self._lost = False, None, None
        self._inbox = queue.SimpleQueue()  # what the last connection left behind, its loss above all, is no news
        client = self._make(protocol)
        where = f"{self._settings.mqtt_host}:{self._settings.mqtt_port}"
        try:
            client.connect(self._settings.mqtt_host, self._settings.mqtt_port, keepalive=_KEEPALIVE_S)
        except (OSError, ValueError) as error:
            why = explain(End("failed", error=error), tls=self._settings.mqtt_tls)
            raise DoorError(f"No connection to the MQTT broker at {where}: {why}.") from error
        self._client = client
        client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._connack is not None or self._lost is not None, self._timeout_s)
        if self._connack is None:
            self.close()
            why = explain(End("unheard"), tls=self._settings.mqtt_tls)
            raise ClosedEarly(f"What listens at {where} {why}.")
        if self._connack.is_failure:
            reason = self._connack
            self.close()
            why = explain(End("refused", code=reason.value), tls=self._settings.mqtt_tls)
            raise Refused(f"The MQTT broker at {where} refuses the connection: {why}.", reason.value)
        self.protocol = protocol
        return protocol

    def _make(self, protocol: Protocol) -> paho.Client:
        settings = self._settings
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if protocol == "5" else True,
            protocol=MQTTProtocolVersion.MQTTv5 if protocol == "5" else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = self._timeout_s
        client.suppress_exceptions = True
        client.on_socket_open = no_delay
        if settings.mqtt_username is not None:
            password = settings.mqtt_password
            client.username_pw_set(settings.mqtt_username, password.get_secret_value() if password else None)
        if settings.mqtt_tls:
            try:
                context = ssl.create_default_context(cafile=settings.mqtt_ca_file)
                tls.take_home_made(context)
                if settings.mqtt_cert_file:
                    context.load_cert_chain(settings.mqtt_cert_file, settings.mqtt_key_file)
            except (OSError, ssl.SSLError) as error:
                raise DoorError(f"The TLS files cannot be used: {error}.") from error
            client.tls_set_context(context)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        return client

    def _answer(self, kind: str, mid: int, what: str) -> list[ReasonCode]:
        """Wait for the broker's acknowledgement of packet `mid` and return its reason codes."""
        key = (kind, mid)
        deadline = time.monotonic() + self._timeout_s
        with self._changed:
            while key not in self._answers:
                if self._lost is not None:
                    raise DoorError(self._lost)
                if not self._changed.wait(deadline - time.monotonic()):
                    raise DoorError(f"The MQTT broker did not acknowledge {what} within {self._timeout_s:g} s.")
            return self._answers.pop(key)

    # Called by paho's network thread.

    def _on_connect(self, _c: paho.Client, _u: object, _f: object, reason: ReasonCode, _p: object) -> None:
        with self._changed:
            self._connack = reason
            self._changed.notify_all()

    def _on_disconnect(self, _c: paho.Client, _u: object, _f: object, reason: ReasonCode, _p: object) -> None:
        if self._closing:
            return
        with self._changed:
            self._lost = f"The connection to the MQTT broker was lost: {reason}."
            self._changed.notify_all()
        self._inbox.put(DoorError(self._lost))

    def _on_message(self, _c: paho.Client, _u: object, message: paho.MQTTMessage) -> None:
        correlation = getattr(message.properties, "CorrelationData", None)
        self._inbox.put(Received(message.topic, bytes(message.payload), message.retain, correlation))

    def _on_subscribe(self, _c: paho.Client, _u: object, mid: int, reasons: Sequence[ReasonCode], _p: object) -> None:
        self._note("suback", mid, list(reasons))

    def _on_publish(self, _c: paho.Client, _u: object, mid: int, reason: ReasonCode, _p: Any) -> None:
        self._note("puback", mid, [reason])

    def _note(self, kind: str, mid: int, reasons: list[ReasonCode]) -> None:
        with self._changed:
            self._answers[kind, mid] = reasons
            self._changed.notify_all()
