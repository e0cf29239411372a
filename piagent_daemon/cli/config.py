"""Show the settings in force and where each came from; secrets are masked."""

import argparse
import json
from typing import Any

from piagent_daemon.cli import FINE
from piagent_daemon.cli.terminal import stdout
from piagent_daemon.settings import load_settings


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print an object of {value, origin} by setting")


def run(args: argparse.Namespace) -> int:
    loaded = load_settings(args.config)
    rows = {
        name.upper(): (value, loaded.origins.get(name, "default")) for name, value in loaded.settings.masked().items()
    }
    out = stdout()
    if args.json:
        table = {name: {"value": value, "origin": origin} for name, (value, origin) in rows.items()}
        out.write(json.dumps(table, indent=2, ensure_ascii=False) + "\n")
        return FINE
    width = max(map(len, rows))
    value_width = min(48, max(len(_words(value)) for value, _ in rows.values()))
    for name, (value, origin) in rows.items():
        text = f"{name:<{width}}  {_words(value):<{value_width}}  {origin}"
        out.line(text, "dim" if origin == "default" else None)
    return FINE


def _words(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return str(value).lower()
        case list():
            return ",".join(map(str, value)) or "-"
        case float():
            return f"{value:g}"
        case _:
            return str(value)
