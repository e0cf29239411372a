"""The verbs of `piagent`: one module each, loaded only when it is the one that was called.

A verb's module has `configure(parser)`, which declares its arguments, and `run(args)`, which returns the exit code; its
docstring is its help.
"""

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Final, TextIO

from piagent_daemon import __version__
from piagent_daemon.errors import ConfigError, PiagentError

FINE: Final = 0
FAILED: Final = 1
"""Also what somebody broke off by Ctrl-C."""
USAGE: Final = 2
BAD_CONFIG: Final = 78
"""EX_CONFIG of sysexits.h: the unit file keeps systemd from trying again."""

VERBS: Final = {
    "run": ("piagent_daemon.cli.run", "run the daemon"),
    "demo": ("piagent_daemon.cli.demo", "try it without broker or model: everything on this machine, in one process"),
    "ask": ("piagent_daemon.cli.ask", "ask a running daemon one question"),
    "chat": ("piagent_daemon.cli.chat", "talk with a running daemon"),
    "doctor": ("piagent_daemon.cli.doctor", "check broker, model server, memory and clock, with remedies"),
    "models": ("piagent_daemon.cli.models", "list, pull and remove models"),
    "config": ("piagent_daemon.cli.config", "show the settings in force and where each came from"),
    "discovery": ("piagent_daemon.cli.discovery", "show what Home Assistant is told, or take it back"),
    "asyncapi": ("piagent_daemon.cli.asyncapi", "print the AsyncAPI 3 document of the MQTT interface"),
}


def main(argv: Sequence[str] | None = None, default: str | None = None) -> int:
    """Run one verb and return its exit code: 0 fine, 1 failed, 2 wrong usage, 78 bad configuration.

    `default` is the verb when `argv` names none; without it the help is printed.
    """
    try:
        code = _run(sys.argv[1:] if argv is None else list(argv), default)
        if sys.stdout is not None:
            with writing(sys.stdout):  # argparse leaves its help in there
                sys.stdout.flush()
    except ConfigError as error:
        _complain(error.problems)
        return BAD_CONFIG
    except PiagentError as error:
        _complain([str(error)])
        return FAILED
    except (KeyboardInterrupt, BrokenPipeError):  # the latter: the reader of our pipe has left
        return FAILED
    return code


@contextmanager
def writing(stream: TextIO) -> Iterator[None]:
    """Say in one sentence that a stream takes nothing; that the reader of a pipe has left stays a BrokenPipeError."""
    try:
        yield
    except OSError as error:
        # What is left in the stream would be tried once more at exit, and complained of.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise PiagentError(f"{stream.name.strip('<>')} cannot be written: {error.strerror}") from None


def _complain(problems: Iterable[str]) -> None:
    if sys.stderr is None:  # somebody closed it, and print would take standard output
        return
    with suppress(PiagentError, BrokenPipeError), writing(sys.stderr):
        for problem in problems:
            print(f"piagent: {problem}", file=sys.stderr)
        sys.stderr.flush()


def _run(words: Sequence[str], default: str | None) -> int:
    before = _options_before_verb(words)
    try:
        common = _top_parser().parse_args(words[:before])
        verb = words[before] if before < len(words) else default
        if verb is None:
            _top_parser().print_help()
            return FINE
        if verb not in VERBS:
            _top_parser().error(f'there is no "{verb}"; choose from {", ".join(VERBS)}')
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # else it asks every installed package for one
        gc.disable()  # loading leaves little garbage, and looking for it takes a tenth of the start
        module = importlib.import_module(VERBS[verb][0])
        gc.freeze()
        gc.enable()
        args = _verb_parser(verb, module).parse_args(words[before + 1 :], argparse.Namespace(**vars(common)))
    except SystemExit as leaving:  # argparse leaves by itself after --help, --version and wrong usage
        return leaving.code if isinstance(leaving.code, int) else USAGE
    code: int = module.run(args)
    return code


def _options_before_verb(words: Sequence[str]) -> int:
    at = 0
    while at < len(words) and words[at].startswith("-"):
        at += 2 if words[at] == "--config" else 1
    return min(at, len(words))


def _top_parser() -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {verb:<10} {summary}" for verb, (_, summary) in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="piagent",
        usage="piagent [--config PATH] COMMAND …",
        description="The assistant on your home's message bus: MQTT in, a local model, MQTT out.",
        epilog=f"commands:\n{verbs}\n\n`piagent COMMAND --help` tells more. First steps: `piagent demo`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"piagent {__version__}")
    _add_config(parser, None)
    return parser


def _verb_parser(verb: str, module: ModuleType) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"piagent {verb}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_config(parser, argparse.SUPPRESS)
    module.configure(parser)
    return parser


def _add_config(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="PATH", default=default, help="read the settings from this piagent.toml"
    )
