"""Run the daemon until SIGTERM or SIGINT."""

import argparse
import faulthandler

from piagent_daemon import app
from piagent_daemon.settings import load_settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Add nothing: everything about the daemon is a setting."""


def run(args: argparse.Namespace) -> int:
    """Run the daemon; return its exit code."""
    faulthandler.enable()  # systemd's watchdog ends a hanging loop by SIGABRT: this says where it hung
    return app.run(load_settings(args.config))
