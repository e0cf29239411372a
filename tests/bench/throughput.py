"""A crowd: 2,000 messages over 100 conversations handed over at once, to a model that answers at once."""

from collections import defaultdict
from collections.abc import Sequence

from tests.bench.client import Client
from tests.bench.harness import Figure, Lab, alternate, ask, collect, figure, median_of, settle
from tests.bench.model_server import Plan
from tests.bench.process import Bridge

MESSAGES, CONVERSATIONS, CONCURRENT, ROUNDS = 2000, 100, 16, 3
SETTINGS = {"max_concurrent": CONCURRENT, "max_waiting": 2 * MESSAGES}


def run(sides: Sequence[str], rounds: int | None = None) -> list[Figure]:
    """Measure messages per second; count what is lost and what is answered out of order."""
    with Lab() as lab, lab.client() as client:
        bridges = {side: lab.start(side, **SETTINGS) for side in sides}
        settle()
        lab.model.plan(Plan(tokens=1))
        results = alternate(sides, rounds or ROUNDS, lambda side, at: one_round(client, bridges[side], at))
    return [
        figure("throughput", "messages/s", median_of(results, "speed"), ratio_at_least=0.6),
        figure("CPU", "ms/message", median_of(results, "cpu")),
        figure(
            "lost",
            "messages",
            {side: sum(each["lost"] for each in rounds) for side, rounds in results.items()},
            at_most=0,
        ),
        figure(
            "out of order",
            "messages",
            {side: sum(each["disorder"] for each in rounds) for side, rounds in results.items()},
            at_most=0,
        ),
    ]


def one_round(client: Client, bridge: Bridge, number: int) -> dict[str, float]:
    """Hand over all messages, wait for all answers."""
    side, asked, before = bridge.name, defaultdict(list), bridge.cpu_s()
    start = 0.0
    for index in range(MESSAGES):
        convo, tag = f"t{number}-{index % CONVERSATIONS}", f"{side}-{number}-{index}"
        at = ask(client, side, convo, tag)
        asked[convo].append(tag)
        start = start or at
    collect(client, MESSAGES, 30)
    cpu = bridge.cpu_s() - before
    answered, end = defaultdict(list), start
    for arrival in client.take():
        if arrival.event["type"] == "final":
            answered[arrival.event["conversation_id"]].append(arrival.tag)
            end = arrival.at
    lost = sum(len(set(tags) - set(answered[convo])) for convo, tags in asked.items())
    pairs = [(is_, due) for convo, tags in asked.items() for is_, due in zip(answered[convo], tags, strict=False)]
    return {
        "speed": MESSAGES / (end - start),
        "cpu": 1000 * cpu / MESSAGES,
        "lost": lost,
        "disorder": sum(is_ != due for is_, due in pairs),
    }
