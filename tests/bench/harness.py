"""The laboratory: one broker, one model server and one load, with both sides beside each other; and the table.

The other side is `floor_bridge.py`: paho and httpx with no feature at all, the least that a bridge can do.
"""

import getpass
import json
import statistics
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.bench.client import BenchError, Client
from tests.bench.model_server import MODEL, Plan, Record
from tests.bench.process import Bridge, Process, free_port, pause, python, wait_listening

T = TypeVar("T")
FLOOR, PIAGENT = "floor", "piagent"
CHUNK_INTERVAL_MS = 25
BROKER = """
listener {port} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true
max_inflight_messages 20000
max_queued_messages 100000
persistence {persistence}
persistence_location {folder}/
user {user}
log_type error
"""


# ------------------------------------------------------------------------------------------------------------ the lab


class Model:
    """The model server and the line to its back door."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.process = Process("model", python("-m", "tests.bench.model_server", str(self.port)), folder)
        wait_listening(self.port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send one request and return the decoded answer; a body makes it a POST."""
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=30) as answer:  # noqa: S310 - loopback
            return json.load(answer)

    def plan(self, plan: Plan) -> None:
        """Answer by `plan` from now on, and begin new counts."""
        self.call("/_bench", asdict(plan))

    def records(self) -> dict[str, Record]:
        """Return the records since the last call, by tag."""
        return {record["tag"]: Record(**record) for record in self.call("/_bench")["records"]}

    def prefix(self) -> tuple[int, int]:
        """Return the prompt tokens sent and read again since the last call."""
        report = self.call("/_bench")
        return report["sent"], report["read_again"]


class Lab:
    """Everything on loopback, ended at exit; `start` adds a bridge."""

    def __init__(self, *, persistence: bool = False) -> None:
        self._stack = ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self.port = free_port()
        self._config = self.folder / "mosquitto.conf"
        text = BROKER.format(
            port=self.port, folder=self.folder, persistence=str(persistence).lower(), user=getpass.getuser()
        )
        self._config.write_text(text)
        self._bridges = 0
        self.flags: Sequence[str] = ()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.push(self._stack)
            self.start_broker()
            self.model = Model(self.folder)
            self._stack.callback(self.model.process.kill)
            self._stack.push(stack.pop_all())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_broker(self) -> None:
        """Start mosquitto; after `broker.stop()` it comes back on the same port, with its stored sessions."""
        self.broker = Process("mosquitto", ["mosquitto", "-c", str(self._config)], self.folder)
        self._stack.callback(self.broker.stop)
        wait_listening(self.port)

    def client(self) -> Client:
        return Client(self.port, f"{FLOOR}/+/out", f"{PIAGENT}/+/out")

    def start(self, side: str, **settings: object) -> Bridge:
        """Start one side and wait until it is ready.

        `settings` are piagent's, in lower case; the floor gets its own words for those that it knows.
        """
        bridge = self.launch(side, **settings)
        bridge.wait_ready()
        return bridge

    def launch(self, side: str, **settings: object) -> Bridge:
        """Start one side and return at once; `self.flags` go to its interpreter."""
        self._bridges += 1
        folder = self.folder / f"{side}-{self._bridges}"
        common = {"MQTT_PORT": str(self.port), "MQTT_BASE_TOPIC": side, "OLLAMA_HOST": self.model.url}
        common["OLLAMA_MODEL_GENERAL"] = MODEL
        arguments, env = command(side, folder, common, settings)
        bridge = Bridge(side, python(*self.flags, *arguments), folder, env)
        self._stack.callback(bridge.kill)
        return bridge


def command(
    side: str, folder: Path, common: dict[str, str], settings: dict[str, object]
) -> tuple[list[str], dict[str, str]]:
    """Return the interpreter's arguments and the environment of one side."""
    if side == FLOOR:
        env = common | {"MQTT": "direct", "READ": "bytes"}
        env["INTERVAL_MS"] = str(settings.get("chunk_interval_ms", CHUNK_INTERVAL_MS))
        env["CONCURRENT"] = str(settings.get("max_concurrent", 1))
        return [str(Path(__file__).with_name("floor_bridge.py"))], env
    mine = {"mqtt_client_id": folder.name, "memory_url": "memory:", "chunk_interval_ms": CHUNK_INTERVAL_MS} | settings
    return ["-m", "piagent_daemon", "run"], {
        f"PIAGENT_{name.upper()}": str(value) for name, value in {**common, **mine}.items()
    }


# ------------------------------------------------------------------------------------------------------------ the load


def ask(client: Client, side: str, convo: str, tag: str, text: str = "What is next?", **more: object) -> float:
    """Send one tagged request and return the moment just before."""
    return client.publish(f"{side}/{convo}/in", {"id": tag, "message": f"{text} #{tag}", **more})


def collect(client: Client, count: int, timeout_s: float) -> None:
    """Wait for `count` terminal events; an error among them ends the measurement."""
    for _ in range(count):
        arrival = client.terminal(timeout_s)
        if arrival.event["type"] == "error":
            raise BenchError(f"answered with an error: {arrival.event}")


def alternate(sides: Sequence[str], rounds: int, measure: Callable[[str, int], T]) -> dict[str, list[T]]:
    """Measure each side in turn, so that both meet the same noise; return each side's results by round."""
    results: dict[str, list[T]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides:
            results[side].append(measure(side, number))
    return results


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of all lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median_of(results: dict[str, list[dict[str, float]]], key: str) -> dict[str, float]:
    """Return each side's median over its rounds of one figure."""
    return {side: statistics.median(each[key] for each in rounds) for side, rounds in results.items() if rounds}


def settle() -> None:
    """Let a process finish what it does after it said that it is ready, or after its last answer."""
    pause(0.5)


# ----------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Figure:
    """One row: a figure of both sides and at most one bound, on piagent's figure or on its ratio to the floor's."""

    name: str
    unit: str
    floor: float | None = None
    piagent: float | None = None
    at_most: float | None = None
    ratio_at_most: float | None = None
    ratio_at_least: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.piagent is None or not self.floor else self.piagent / self.floor

    @property
    def target(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        if self.ratio_at_most is not None:
            return f"<= {self.ratio_at_most:g} x"
        return f">= {self.ratio_at_least:g} x" if self.ratio_at_least is not None else ""

    @property
    def verdict(self) -> str:
        """Return `ok`, `MISS`, or nothing where there is no bound or no figure to hold against it."""
        if self.at_most is not None:
            kept = None if self.piagent is None else self.piagent <= self.at_most
        elif self.ratio is None or not self.target:
            kept = None
        elif self.ratio_at_most is not None:
            kept = self.ratio <= self.ratio_at_most
        else:
            kept = self.ratio >= (self.ratio_at_least or 0)
        return "" if kept is None else "ok" if kept else "MISS"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "target": self.target, "verdict": self.verdict}


def figure(name: str, unit: str, values: dict[str, float], **bound: float) -> Figure:
    """Return a row from each side's value."""
    return Figure(name, unit, values.get(FLOOR), values.get(PIAGENT), **bound)


def table(figures: Sequence[Figure]) -> Iterator[str]:
    """Yield the lines of a table."""
    rows = [("figure", "floor", "piagent", "unit", "ratio", "target", "")]
    for each in figures:
        ratio = "" if each.ratio is None else f"{each.ratio:.2f}"
        rows.append((each.name, number(each.floor), number(each.piagent), each.unit, ratio, each.target, each.verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if 0 < at < 5 and at != 3 else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
