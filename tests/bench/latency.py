"""How much later a bridge makes things: one question at a time, each answered with a handful of tokens."""

import statistics
from collections.abc import Sequence

from tests.bench.client import Client
from tests.bench.harness import Figure, Lab, alternate, ask, collect, figure, median_of, settle
from tests.bench.model_server import Plan
from tests.bench.process import pause

QUESTIONS, CONVERSATIONS, ROUNDS = 80, 8, 5
GAP_S = 0.01
PLAN = Plan(tokens=5, interval_s=0.004)


def run(sides: Sequence[str], rounds: int | None = None) -> list[Figure]:
    """Measure publish to request at the model, first token to first chunk, last token to terminal event (ms)."""
    with Lab() as lab, lab.client() as client:
        for side in sides:
            lab.start(side)
        settle()
        lab.model.plan(PLAN)
        for side in sides:
            one_round(lab, client, side, "warm")
        results = alternate(sides, rounds or ROUNDS, lambda side, at: one_round(lab, client, side, str(at)))
    ways = {name: median_of(results, name) for name in ("request", "chunk", "both", "terminal")}
    return [
        figure("publish to request at the model", "ms", ways["request"]),
        figure("first token to first chunk", "ms", ways["chunk"]),
        figure("both together", "ms", ways["both"], ratio_at_most=1.3),
        figure("last token to terminal event", "ms", ways["terminal"], ratio_at_most=1.5),
    ]


def one_round(lab: Lab, client: Client, side: str, number: str) -> dict[str, float]:
    """Return the medians of one round, in ms."""
    published = {}
    for index in range(QUESTIONS):
        tag = f"{side}-{number}-{index}"
        published[tag] = ask(client, side, f"c{number}-{index % CONVERSATIONS}", tag)
        collect(client, 1, 10)
        pause(GAP_S)
    records = lab.model.records()
    first_chunk: dict[str, float] = {}
    terminal: dict[str, float] = {}
    for arrival in client.take():
        if arrival.event["type"] == "chunk":
            first_chunk.setdefault(arrival.tag, arrival.at)
        elif arrival.event["type"] == "final":
            terminal[arrival.tag] = arrival.at
    request = {tag: records[tag].arrived - published[tag] for tag in published}
    chunk = {tag: first_chunk[tag] - records[tag].first for tag in published}
    ways = {
        "request": list(request.values()),
        "chunk": list(chunk.values()),
        "both": [request[tag] + chunk[tag] for tag in published],
        "terminal": [terminal[tag] - records[tag].last for tag in published],
    }
    return {name: 1000 * statistics.median(values) for name, values in ways.items()}
