"""Show what Home Assistant is told about the daemon, or take it back from the broker.

A running daemon with HA_DISCOVERY=true tells it again when Home Assistant starts: set that to false to be rid of the
device for good, or use `remove` before you change MQTT_BASE_TOPIC or HA_DISCOVERY_PREFIX.
"""

import argparse
import json
from typing import Any

from piagent_daemon import app, discovery, providers
from piagent_daemon.announcer import names_of
from piagent_daemon.cli import FINE
from piagent_daemon.cli.terminal import stderr, stdout
from piagent_daemon.doors.mqtt_client import MqttClient
from piagent_daemon.errors import PiagentError
from piagent_daemon.reporting import describe
from piagent_daemon.settings import Settings, load_settings
from piagent_daemon.waiting import in_loop


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="show|remove", required=True)
    show = verbs.add_parser("show", help="print the device and its entities as this configuration makes them")
    show.set_defaults(action=_show)
    remove = verbs.add_parser("remove", help="delete the message at the broker: the device leaves Home Assistant")
    remove.set_defaults(action=_remove)
    for verb in (show, remove):
        verb.add_argument("--json", action="store_true", help="print {topic, payload} instead of words")


def run(args: argparse.Namespace) -> int:
    code: int = args.action(load_settings(args.config).settings, args)
    return code


def _show(settings: Settings, args: argparse.Namespace) -> int:
    config = app.configure(settings)
    topic = discovery.topic(settings)
    found = json.loads(discovery.message(describe(config), settings, in_loop(_models(settings))))
    out = stdout()
    if args.json:
        out.write(json.dumps({"topic": topic, "payload": found}, indent=2, ensure_ascii=False) + "\n")
        return FINE
    out.line(f'{topic}: the device "{found["dev"]["name"]}"', "bold")
    parts = found["cmps"].values()
    width = max(len(part["default_entity_id"]) for part in parts)
    for part in parts:
        out.line(f"{part['default_entity_id']:<{width}}  {part['name']}{_options(part)}")
    if not settings.ha_discovery:
        stderr().line("HA_DISCOVERY is false: the daemon does not send this.", "yellow")
    return FINE


def _options(part: dict[str, Any]) -> str:
    return f": {', '.join(part['options'])}" if "options" in part else ""


async def _models(settings: Settings) -> list[str]:
    """Ask the model server which models it has, as the daemon does."""
    provider = providers.create(settings.provider.split(",")[0].strip(), settings)
    try:
        return names_of(await provider.models())
    except PiagentError as error:
        stderr().line(f"The model server does not list its models: {error}", "yellow")
        return []
    finally:
        await provider.aclose()


def _remove(settings: Settings, args: argparse.Namespace) -> int:
    topic = discovery.topic(settings)
    with MqttClient(settings, "piagent-discovery") as client:
        client.publish(topic, b"", retain=True)
    out = stdout()
    if args.json:
        out.write(json.dumps({"topic": topic, "payload": None}) + "\n")
    else:
        out.line(f"Removed: {topic}")
    if settings.ha_discovery:
        stderr().line("A running daemon tells it again; HA_DISCOVERY=false keeps it quiet.", "yellow")
    return FINE
