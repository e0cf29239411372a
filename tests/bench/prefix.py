"""How much of each prompt the model server has to read again, by the longest common prefix with one slot's cache.

A conversation of 30 turns: 200 tokens of system prompt, questions of 40 tokens, answers of 80. Beside ours stand two
habits of other clients, played here against the same server: the window that loses its oldest message at every turn,
and the clock in the system prompt.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tests.bench.harness import PIAGENT, Figure, Lab, ask, collect, figure, settle
from tests.bench.model_server import MODEL, Plan, words

TURNS, SYSTEM_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 30, 200, 40, 80
CONTEXT_TOKENS = 8192
PLAN = Plan(tokens=ANSWER_TOKENS, count_prefix=True, lines_per_write=ANSWER_TOKENS, numbered=True)
SYSTEM = "".join(words(SYSTEM_TOKENS)).strip()

Messages = list[dict[str, str]]


def run(sides: Sequence[str], rounds: int | None = None) -> list[Figure]:
    """Measure the share of prompt tokens sent that was read again, in percent; the result does not vary."""
    del rounds
    figures = []
    with Lab() as lab:
        if PIAGENT in sides:
            figures += [
                ours(lab, "MEMORY_MAX_TURNS 16, a clock fact on each turn", 25, 16, clock),
                ours(lab, "MEMORY_MAX_TURNS 24, no clock", 10, 24, None),
            ]
        figures += [
            simulated(lab, "another client: sliding window of 8 messages", lambda _, past: (SYSTEM, past[-7:])),
            simulated(lab, "another client: sliding window of 16 messages", lambda _, past: (SYSTEM, past[-15:])),
            simulated(
                lab, "another client: clock in the system prompt", lambda turn, past: (f"{clock(turn)}\n{SYSTEM}", past)
            ),
        ]
    return figures


def clock(turn: int) -> str:
    """Return a fact of some 30 tokens that is never the same twice."""
    spelled = " ".join(f"12:{turn:02}:{second:02}" for second in range(20))
    return f"It is now, by the clock in the kitchen: {spelled}."


def question(turn: int) -> str:
    start = f"Question {turn}: "
    return start + "".join(words(QUESTION_TOKENS - len(start.split()) - 1)).strip()


def ours(lab: Lab, name: str, bound: float, turns: int, fact: Callable[[int], str] | None) -> Figure:
    """Hold the conversation with the daemon; what it sends for priming counts, too."""
    prompts = lab.folder / "prompts"
    prompts.mkdir(exist_ok=True)
    (prompts / "general.md").write_text(SYSTEM)
    lab.model.plan(PLAN)
    bridge = lab.start(PIAGENT, memory_max_turns=turns, ctx_tokens=CONTEXT_TOKENS, prompts_dir=prompts)
    settle()
    with lab.client() as client:
        for turn in range(TURNS):
            more = {"context": fact(turn)} if fact else {}
            ask(client, PIAGENT, f"p{turns}", f"p{turns}-{turn}", question(turn), **more)
            collect(client, 1, 10)
    bridge.stop()
    return figure(name, "% read again", {PIAGENT: share(lab)}, at_most=bound)


def simulated(lab: Lab, name: str, choose: Callable[[int, Messages], tuple[str, Messages]]) -> Figure:
    """Hold it as a client that sends the system text and the history that `choose` returns."""
    lab.model.plan(PLAN)
    past: Messages = []
    for turn in range(TURNS):
        system, history = choose(turn, past)
        newest = {"role": "user", "content": f"{question(turn)} #other-{turn}"}
        messages = [{"role": "system", "content": system}, *history, newest]
        answer: Any = lab.model.call("/api/chat", {"model": MODEL, "messages": messages, "stream": False})
        past += [newest, answer["message"]]
    return Figure(name, "% read again", floor=share(lab))


def share(lab: Lab) -> float:
    sent, read_again = lab.model.prefix()
    return 100 * read_again / sent
