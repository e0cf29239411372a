"""How soon a voice can begin: the first sentence on the wire, after the model wrote the last character of it."""

import statistics
from collections.abc import Sequence

from tests.bench.client import Client
from tests.bench.harness import PIAGENT, Figure, Lab, ask, collect, quantile, settle
from tests.bench.model_server import Plan
from tests.bench.process import pause

QUESTIONS, CONVERSATIONS, ROUNDS = 60, 8, 3
GAP_S = 0.01
PLAN = Plan(tokens=12, interval_s=0.03, leading=True)
"""Slow enough that whoever waits for the next token is seen to wait."""


def run(sides: Sequence[str], rounds: int | None = None) -> list[Figure]:
    """Measure the last character of the first clause to its `sentence` event (ms); the floor knows no sentences."""
    if PIAGENT not in sides:
        return []
    with Lab() as lab, lab.client() as client:
        lab.start(PIAGENT)
        settle()
        lab.model.plan(PLAN)
        one_round(lab, client, "warm")
        waits = [wait for number in range(rounds or ROUNDS) for wait in one_round(lab, client, str(number))]
    return [
        Figure("first sentence after its last character", "ms", piagent=statistics.median(waits), at_most=5.0),
        Figure("the same, 95 of 100", "ms", piagent=quantile(waits, 0.95), at_most=5.0),
    ]


def one_round(lab: Lab, client: Client, number: str) -> list[float]:
    """Return the waits of one round, in ms."""
    for index in range(QUESTIONS):
        ask(client, PIAGENT, f"c{number}-{index % CONVERSATIONS}", f"{number}-{index}", stream="sentences")
        collect(client, 1, 10)
        pause(GAP_S)
    records = lab.model.records()
    first = {
        arrival.tag: arrival.at
        for arrival in client.take()
        if arrival.event["type"] == "sentence" and arrival.event["index"] == 0
    }
    return [1000 * (first[tag] - record.stop) for tag, record in records.items()]
