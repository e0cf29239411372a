"""An answer of 5,000 tokens as fast as the server can write it, its chunks joined at 25 ms on both sides."""

from collections.abc import Sequence

from tests.bench.client import BenchError, Client
from tests.bench.harness import Figure, Lab, alternate, ask, collect, figure, median_of, settle
from tests.bench.model_server import Plan
from tests.bench.process import Bridge

TOKENS, ANSWERS, ROUNDS = 5000, 6, 5
SETTINGS = {"chunk_interval_ms": 25, "ctx_tokens": 16384, "max_tokens": 8192, "memory_max_turns": 1}
SHAPES = {"joined writes": 64, "a write per token": 1}
"""Lines in one HTTP chunk: what buffers make of a blast, and Ollama's own flush per line."""


def run(sides: Sequence[str], rounds: int | None = None) -> list[Figure]:
    """Measure tokens per second and CPU per 1,000 tokens, and compare the joined chunks with the reply."""
    figures = []
    with Lab() as lab, lab.client() as client:
        bridges = {side: lab.start(side, **SETTINGS) for side in sides}
        settle()
        for shape, lines in SHAPES.items():
            lab.model.plan(Plan(tokens=TOKENS, lines_per_write=lines))

            def measure(side: str, number: int, shape: str = shape) -> dict[str, float]:
                return one_round(lab, client, bridges[side], f"{shape[0]}{number}")

            alternate(sides, 1, lambda side, _: measure(side, -1))
            results = alternate(sides, rounds or ROUNDS, measure)
            figures += [
                figure(f"{shape}: speed", "tokens/s", median_of(results, "speed"), ratio_at_least=0.7),
                figure(f"{shape}: CPU", "ms/1,000 tokens", median_of(results, "cpu"), ratio_at_most=1.6),
                figure(
                    f"{shape}: chunks joined differ from the reply", "answers", median_of(results, "wrong"), at_most=0
                ),
                figure(f"{shape}: chunk messages", "per answer", median_of(results, "chunks")),
            ]
    return figures


def one_round(lab: Lab, client: Client, bridge: Bridge, number: str) -> dict[str, float]:
    """Ask for some long answers, one after the other; return the means of the round."""
    side, before = bridge.name, bridge.cpu_s()
    for index in range(ANSWERS):
        ask(client, side, f"b{number}", f"{side}-{number}-{index}")
        collect(client, 1, 30)
    cpu = bridge.cpu_s() - before
    records, texts, seconds, wrong, chunks = lab.model.records(), dict[str, str](), 0.0, 0, 0
    for arrival in client.take():
        if arrival.event["type"] == "chunk":
            texts[arrival.tag] = texts.get(arrival.tag, "") + arrival.event["text"]
            chunks += 1
        elif arrival.event["type"] == "final":
            seconds += arrival.at - records[arrival.tag].first
            wrong += texts[arrival.tag] != arrival.event["reply"]
            if len(arrival.event["reply"].split()) != TOKENS:
                raise BenchError("the reply is not the whole answer")
    tokens = TOKENS * ANSWERS
    return {"speed": tokens / seconds, "cpu": cpu / tokens * 1e6, "wrong": wrong, "chunks": chunks / ANSWERS}
