"""What it costs to have the daemon in the house: start, memory, sleep, imports."""

import itertools
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from piagent_daemon.doors import DOORS
from piagent_daemon.providers import PROVIDERS
from piagent_daemon.stores import STORES
from tests.bench.harness import PIAGENT, Figure, Lab, alternate, ask, collect, figure, settle
from tests.bench.model_server import Plan
from tests.bench.process import Process, pause, python

STARTS, IMPORTS = 7, 11
IDLE_S = 30
CONVERSATIONS, TURNS = 500, 8
QUESTION = "Which of the lamps on the ground floor are still on, and how warm will it be tomorrow at noon? " * 2
YARDSTICK = "import asyncio, paho.mqtt.client, httpx"
YARDSTICK_MS = 81
"""What these imports took on the machine on which the bounds of the start were set."""
LINE = re.compile(r"^import time:\s+(\d+) \|\s+\d+ \| +(\S+)$", re.MULTILINE)
NEVER = ("sqlite3", "tqdm", "amqtt", "httpcore", "anyio", "yaml")
USED = {"ollama", "memory", "mqtt"}
RIVALS = {
    path.partition(":")[0] for table in (PROVIDERS, STORES, DOORS) for name, path in table.items() if name not in USED
}
"""What the tables of providers, stores and doors name and this run does not use."""
CLI, RUN = "piagent_daemon.cli.", "piagent_daemon.cli.run"


def run(sides: Sequence[str], rounds: int | None = None) -> list[Figure]:
    """Measure start, resident memory, idle CPU and wake-ups, and imports."""
    figures = [*starts(sides, rounds or STARTS), *idle(sides), *imports(sides, rounds or IMPORTS), *memory(sides)]
    return [*figures, *at_reference_speed(figures)]


def at_reference_speed(figures: Sequence[Figure]) -> list[Figure]:
    """Give the figures in units of time once more, as they would be where the yardstick takes what it took then.

    The bounds are in seconds, and no two machines are equally fast.
    """
    known = {one.name: one.piagent for one in figures}
    yardstick, imported, started = (
        known["import time of the yardstick"],
        known["import time"],
        known["start to READY=1"],
    )
    if yardstick is None or imported is None or started is None:
        return []
    speed = YARDSTICK_MS / yardstick
    where = f"where the yardstick takes {YARDSTICK_MS} ms"
    return [
        Figure(f"import time {where}", "ms", piagent=imported * speed, at_most=200),
        Figure("start to READY=1 there", "s", piagent=started * speed, at_most=0.3),
    ]


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
    best = {side: min(values) for side, values in results.items()}
    return [figure("start to READY=1", "s", medians, at_most=0.3), figure("the same, best round", "s", best)]


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
    """Sum the import times of everything beyond a bare interpreter, and count what should not be there.

    The HTTP client is loaded after READY=1, beside the first look at the model server; it counts all the same.
    """
    with Lab() as lab:
        lab.flags = ("-X", "importtime")

        def alone(code: str) -> dict[str, float]:
            process = Process("alone", python(*lab.flags, "-c", code), lab.folder / str(next(numbers)))
            process.popen.wait(10)
            return imported(process)

        numbers = itertools.count()
        known = alone("pass")
        yardsticks: list[float] = []
        ready: dict[str, list[float]] = defaultdict(list)
        latest: dict[str, dict[str, float]] = {}

        def beyond(modules: dict[str, float]) -> dict[str, float]:
            return {name: ms for name, ms in modules.items() if name not in known}

        def measure(side: str, _: int) -> float:
            yardsticks.append(sum(beyond(alone(YARDSTICK)).values()))
            bridge = lab.launch(side)
            bridge.wait_ready()
            ready[side].append(sum(beyond(imported(bridge)).values()))
            settle()
            bridge.kill()
            latest[side] = beyond(imported(bridge))
            return sum(latest[side].values())

        alternate(sides, 1, measure)
        yardsticks.clear()
        ready.clear()
        in_all = alternate(sides, rounds, measure)
    figures = [
        figure("import time", "ms", {side: statistics.median(in_all[side]) for side in sides}, at_most=200),
        figure("the same, best round", "ms", {side: min(in_all[side]) for side in sides}),
        figure("of it until READY=1", "ms", {side: statistics.median(ready[side]) for side in sides}),
        Figure("import time of the yardstick", "ms", piagent=statistics.median(yardsticks)),
    ]
    return [*figures, *(contents(latest[PIAGENT]) if PIAGENT in sides else [])]


def contents(modules: Mapping[str, float]) -> list[Figure]:
    """Count the modules that should not be there, and name the packages that took longest."""
    unwanted = sorted(filter(is_unwanted, modules))
    name = ": ".join(["modules imported and not used", *([", ".join(unwanted)] if unwanted else [])])
    packages: dict[str, float] = defaultdict(float)
    for module, ms in modules.items():
        packages[module.partition(".")[0]] += ms
    slowest = sorted(packages.items(), key=lambda item: -item[1])[:6]
    return [
        Figure(name, "modules", piagent=len(unwanted), at_most=0),
        *(Figure(f"import time of {name}", "ms", piagent=ms) for name, ms in slowest),
    ]


def imported(process: Process) -> dict[str, float]:
    """Return the modules that `-X importtime` names, with the milliseconds that each took by itself."""
    return {name: int(us) / 1000 for us, name in LINE.findall(process.log.read_text())}


def is_unwanted(module: str) -> bool:
    """Tell whether the daemon's run has no use for `module`."""
    return (
        module.partition(".")[0] in NEVER or module in RIVALS or (module.startswith(CLI) and not module.startswith(RUN))
    )


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
