"""Check everything an answer needs, each with a plain remedy; exit 0 only when all is well.

A running daemon is not disturbed; the model is asked for one word, unless --no-ask is given.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Final

from piagent_daemon.checks import Finding, State
from piagent_daemon.cli import FAILED, FINE
from piagent_daemon.cli.checks.broker import check_broker
from piagent_daemon.cli.checks.local import check_local, prompts
from piagent_daemon.cli.checks.model import check_models
from piagent_daemon.cli.terminal import Style, Terminal, stdout
from piagent_daemon.settings import Settings, load_settings
from piagent_daemon.waiting import in_loop

_SHOWN: Final[dict[State, tuple[str, Style]]] = {
    "ok": ("ok  ", "green"),
    "warn": ("warn", "yellow"),
    "fail": ("FAIL", "red"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help='print {"ok": …, "checks": […]}')
    parser.add_argument("--no-ask", action="store_true", help="do not let the model answer, which may take a minute")


def run(args: argparse.Namespace) -> int:
    settings = load_settings(args.config).settings
    out = stdout()
    findings: list[Finding] = []

    def note(finding: Finding) -> None:
        findings.append(finding)
        if not args.json:
            show(out, finding)

    _check(settings, note, ask=not args.no_ask)
    well = all(finding.state == "ok" for finding in findings)
    if args.json:
        report = {"ok": well, "checks": [asdict(finding) for finding in findings]}
        out.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    else:
        out.line("All is well." if well else "Not all is well; begin with the first line that is not ok.", "bold")
    return FINE if well else FAILED


def show(out: Terminal, finding: Finding) -> None:
    """Write one line, and its remedy below it."""
    word, style = _SHOWN[finding.state]
    out.line(f"{word}  {finding.check:<14}  {finding.detail}", None if finding.state == "ok" else style)
    if finding.remedy:
        out.line(f"      {'':<14}  -> {finding.remedy}")


def _check(settings: Settings, note: Callable[[Finding], None], *, ask: bool) -> None:
    for finding in check_local(settings):
        note(finding)
    for finding in check_broker(settings):
        note(finding)
    agents, _ = prompts(settings)

    async def models() -> None:
        async with aclosing(check_models(settings, agents.values(), ask=ask)) as found:
            async for finding in found:
                note(finding)

    in_loop(models())
