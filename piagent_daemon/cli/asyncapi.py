"""Print the AsyncAPI 3 document of the daemon's MQTT interface."""

import argparse
import json

from pydantic import TypeAdapter, ValidationError

from piagent_daemon.cli import FINE
from piagent_daemon.cli.terminal import stdout
from piagent_daemon.problems import explain
from piagent_daemon.setting_types import Topic
from piagent_daemon.settings import load_settings


def configure(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="JSON (the default)")
    form.add_argument("--yaml", action="store_true", help="YAML instead of JSON")
    parser.add_argument("--base", type=_topic, metavar="TOPIC", help="the base topic (default: MQTT_BASE_TOPIC)")


def _topic(value: str) -> str:
    try:
        return TypeAdapter[str](Topic).validate_python(value)
    except ValidationError as error:
        raise argparse.ArgumentTypeError("; ".join(finding.message for finding in explain(error))) from None


def run(args: argparse.Namespace) -> int:
    from piagent_daemon.cli.asyncapi_document import document  # noqa: PLC0415  it knows every admin request

    found = document(args.base or load_settings(args.config).settings.mqtt_base_topic)
    if args.yaml:
        import yaml  # noqa: PLC0415  only this form needs it

        text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=120)
    else:
        text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    stdout().write(text)
    return FINE
