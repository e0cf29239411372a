"""Run the daemon until SIGTERM or SIGINT."""

import argparse
import faulthandler

from piagent_daemon import app
from piagent_daemon.log import STDERR
from piagent_daemon.settings import load_settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Add nothing: everything about the daemon is a setting."""


def run(args: argparse.Namespace) -> int:
    """Run the daemon; return its exit code."""
    loaded = load_settings(args.config)
    faulthandler.enable(STDERR)  # systemd's watchdog ends a hanging loop by SIGABRT: this says where it hung
    return app.run(loaded)
