"""What it costs to have the daemon in the house: start, memory, sleep, imports."""

import re
import statistics
from collections.abc import Sequence

from tests.bench.harness import PIAGENT, Figure, Lab, alternate, ask, collect, figure, settle
from tests.bench.model_server import Plan
from tests.bench.process import Process, pause, python

STARTS, IMPORTS = 7, 5
IDLE_S = 30
CONVERSATIONS, TURNS = 500, 8
QUESTION = "Which of the lamps on the ground floor are still on, and how warm will it be tomorrow at noon? " * 2
LINE = re.compile(r"^import time:\s+(\d+) \|\s+\d+ \| +(\S+)$", re.MULTILINE)
PACKAGE = "piagent_daemon"
NEVER = ("sqlite3", "tqdm", "amqtt", "trio")
NEEDED = {"cli": {"run"}, "providers": {"base", "ollama"}, "stores": {"base", "memory"}, "doors": {"base", "mqtt"}}
"""What a run with an Ollama server, MQTT and memory: uses of each family; any other module there is dead weight."""


def run(sides: Sequence[str], rounds: int | None = None) -> list[Figure]:
    """Measure start, resident memory, idle CPU and wake-ups, and imports."""
    return [*starts(sides, rounds or STARTS), *idle(sides), *imports(sides, rounds or IMPORTS), *memory(sides)]


def starts(sides: Sequence[str], rounds: int) -> list[Figure]:
    """Start each side again and again; the first time, which writes byte code, does not count."""
    with Lab() as lab:

        def measure(side: str, _: int) -> float:
            bridge = lab.launch(side)
            seconds = bridge.wait_ready()
            bridge.stop()
            return seconds

        alternate(sides, 1, measure)
        results = alternate(sides, rounds, measure)
    medians = {side: statistics.median(values) for side, values in results.items()}
    return [figure("start to READY=1", "s", medians, at_most=0.3)]


def idle(sides: Sequence[str]) -> list[Figure]:
    """Let both sides sleep beside each other, with the watchdog that the unit file asks for."""
    with Lab() as lab:
        bridges = {side: lab.start(side) for side in sides}
        pause(2)
        rss = {side: bridge.rss_mb() for side, bridge in bridges.items()}
        before = {side: (bridge.cpu_s(), bridge.wakeups()) for side, bridge in bridges.items()}
        pause(IDLE_S)
        after = {side: (bridge.cpu_s(), bridge.wakeups()) for side, bridge in bridges.items()}
    cpu = {side: after[side][0] - before[side][0] for side in sides}
    wakeups = {side: (after[side][1] - before[side][1]) / IDLE_S for side in sides}
    return [
        figure("resident memory after start", "MB", rss, at_most=45),
        figure(f"idle CPU in {IDLE_S} s", "s", cpu, at_most=0.03),
        figure("idle wake-ups", "1/s", wakeups, at_most=2.5),
    ]


def imports(sides: Sequence[str], rounds: int) -> list[Figure]:
    """Sum the import times of everything beyond a bare interpreter, and count what should not be there."""
    with Lab() as lab:
        bare = Process("bare", python("-X", "importtime", "-c", "pass"), lab.folder)
        bare.popen.wait(10)
        lab.flags = ("-X", "importtime")
        known = {name for _, name in LINE.findall(bare.log.read_text())}
        found: set[str] = set()

        def measure(side: str, _: int) -> float:
            bridge = lab.launch(side)
            bridge.wait_ready()
            settle()
            bridge.kill()
            modules = [(int(us), name) for us, name in LINE.findall(bridge.log.read_text()) if name not in known]
            if side == PIAGENT:
                found.update(name for _, name in modules)
            return sum(us for us, _ in modules) / 1000

        results = alternate(sides, rounds, measure)
    medians = {side: statistics.median(values) for side, values in results.items()}
    unwanted = sorted(filter(is_unwanted, found))
    name = "modules imported and not used" + (f": {', '.join(unwanted)}" if unwanted else "")
    count = {PIAGENT: float(len(unwanted))} if PIAGENT in sides else {}
    return [figure("import time", "ms", medians, at_most=200), figure(name, "modules", count, at_most=0)]


def is_unwanted(module: str) -> bool:
    """Tell whether the daemon's run has no use for `module`."""
    top, _, rest = module.partition(".")
    family, _, name = rest.partition(".")
    return top in NEVER or (top == PACKAGE and family in NEEDED and bool(name) and name not in NEEDED[family])


def memory(sides: Sequence[str]) -> list[Figure]:
    """Hold many conversations; the floor has no memory to fill."""
    if PIAGENT not in sides:
        return []
    with Lab() as lab, lab.client() as client:
        bridge = lab.start(PIAGENT, max_concurrent=16, max_waiting=2 * CONVERSATIONS)
        settle()
        lab.model.plan(Plan(tokens=80, lines_per_write=80))
        for turn in range(TURNS):
            for convo in range(CONVERSATIONS):
                ask(client, PIAGENT, f"m{convo}", f"{convo}-{turn}", QUESTION)
            collect(client, CONVERSATIONS, 30)
            client.take()
        settle()
        rss = {PIAGENT: bridge.rss_mb()}
    return [figure(f"resident memory after {CONVERSATIONS} conversations of {TURNS} turns", "MB", rss, at_most=60)]
