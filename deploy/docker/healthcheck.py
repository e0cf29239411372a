# ruff: noqa: INP001 - a program that runs in the image, not a module of the package
"""Healthy is a daemon whose retained health on the broker is fresh and not `offline`; exit code 0, else 1 and why."""

import json
import sys
import time
from datetime import UTC, datetime

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from piagent_daemon.settings import Settings, load_settings
from piagent_daemon.topics import Topics

PATIENCE_S = 5


def main() -> str | None:
    """Return what is wrong, or None."""
    settings = load_settings().settings
    try:
        payload = retained_health(settings)
    except OSError as error:
        return f"{settings.mqtt_host}: {error}"
    if payload is None:
        return f"no health from {settings.mqtt_host} within {PATIENCE_S} s"
    health = json.loads(payload)
    if health["status"] == "offline":
        return "the daemon is offline"
    age_s = (datetime.now(UTC) - datetime.fromisoformat(health["ts"])).total_seconds()
    return f"the last health is {age_s:.0f} s old" if age_s > 3 * settings.health_interval_s else None


def retained_health(settings: Settings) -> bytes | None:
    """Read what the broker holds, as a client of our own and not under the daemon's id. Raises OSError."""
    received: list[bytes] = []

    def on_message(_client: Client, _userdata: object, message: MQTTMessage) -> None:
        received.append(bytes(message.payload))

    client = Client(CallbackAPIVersion.VERSION2)
    client.on_connect = lambda client, *_: client.subscribe(Topics(settings.mqtt_base_topic).health)
    client.on_message = on_message
    if settings.mqtt_username is not None:
        password = settings.mqtt_password
        client.username_pw_set(settings.mqtt_username, password.get_secret_value() if password else None)
    if settings.mqtt_tls:
        client.tls_set(settings.mqtt_ca_file, settings.mqtt_cert_file, settings.mqtt_key_file)
    client.connect(settings.mqtt_host, settings.mqtt_port)
    deadline = time.monotonic() + PATIENCE_S
    while not received and time.monotonic() < deadline:
        if client.loop(1) != MQTTErrorCode.MQTT_ERR_SUCCESS:
            break
    client.disconnect()
    return received[0] if received else None


if __name__ == "__main__":
    sys.exit(main())
