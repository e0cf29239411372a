"""`python -m tests.bench latency burst … | all`: the project's numbers, each measured beside the floor in the same run.

A name is a module here with a function `run`. The exit code is 1 when a bound is missed.
"""

import argparse
import importlib
import json
import sys
from typing import Any

from tests.bench.client import BenchError
from tests.bench.harness import FLOOR, PIAGENT, Figure, table

NAMES = ("latency", "burst", "steady", "throughput", "footprint", "size", "prefix", "speech", "crash")
SIDES = {"both": (FLOOR, PIAGENT), FLOOR: (FLOOR,), PIAGENT: (PIAGENT,)}


def main() -> int:
    """Run the named benchmarks, print a table or JSON, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*NAMES, "all"], metavar="NAME", help=", ".join([*NAMES, "all"]))
    parser.add_argument("--side", choices=SIDES, default="both", help="measure one side alone")
    parser.add_argument("--rounds", type=int, help="rounds per side; the figures are medians over them")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args()
    names = NAMES if "all" in options.names else options.names
    report: dict[str, Any] = {}
    missed = False
    for name in names:
        try:
            figures: list[Figure] = importlib.import_module(f"tests.bench.{name}").run(
                SIDES[options.side], options.rounds
            )
        except BenchError as error:
            print(f"{name}: {error}", file=sys.stderr)
            missed = True
            continue
        missed |= any(each.verdict == "MISS" for each in figures)
        report[name] = [each.as_dict() for each in figures]
        if not options.json:
            print(f"{name}", *table(figures), "", sep="\n", flush=True)
    if options.json:
        print(json.dumps(report, indent=2))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
