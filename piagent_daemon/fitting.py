"""What is sent of a conversation: the prompt and as much history as fit into the model's window beside the answer."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from piagent_daemon import prompt, window
from piagent_daemon.agents import Agent
from piagent_daemon.errors import ContextOverflow
from piagent_daemon.job import Job
from piagent_daemon.settings import PROMPT_ROOM_TOKENS, Settings
from piagent_daemon.values import ChatRequest, Conversation, Message, Turn
from piagent_daemon.window import Ledger

ORDINARY_SHARE: Final = 4
"""A turn whose newest message takes more than this part of the room is large: what it leaves out is not forgotten."""


class Plan(NamedTuple):
    """What is sent: `drop` remembered turns are left out; `estimate` tokens in all, `history` of them remembered.

    `forget` of those that are left out are forgotten: all but those for which a large turn alone has no room.
    """

    request: ChatRequest
    drop: int
    forget: int
    estimate: int
    history: int


def plan(
    job: Job,
    conversation: Conversation,
    facts: str,
    *,
    settings: Settings,
    ledger: Ledger,
    model: str,
    context_tokens: int,
    most: int | None,
) -> Plan:
    """Fit the prompt into the model's context, with at most `most` tokens of history. Raises ContextOverflow."""
    agent, request, turns = job.agent, job.request, conversation.turns
    options = _options(settings, agent, request.options.model_dump(exclude_none=True), context_tokens)

    def messages(kept: tuple[Turn, ...]) -> tuple[Message, ...]:
        if job.messages is not None:
            return prompt.attach(job.messages, request)
        return prompt.build(agent, kept, request, facts)

    def cut(budget: int) -> int:
        return window.cut(sizes, max_turns=settings.memory_max_turns, budget=budget)

    room = context_tokens - options["num_predict"]
    sent = messages(())
    if (least := ledger.least(model, sent)) > room:
        raise ContextOverflow(
            f"The message needs about {least} tokens of the model's context, and {room} are left for it. "
            "Shorten it, or raise CTX_TOKENS."
        )
    bare = ledger.tokens(model, sent)
    ordinary = ledger.tokens(model, sent[:1]) + room // ORDINARY_SHARE
    sizes = [ledger.turn(model, turn) for turn in turns]
    drop = cut(min(room - bare, room if most is None else most))
    sent = messages(turns[drop:]) if turns else sent
    # What stands around the turns, such as that one was interrupted, is no part of their sizes.
    while (over := ledger.tokens(model, sent) - room) > 0 and drop < len(turns):
        drop = cut(sum(sizes[drop:]) - over)
        sent = messages(turns[drop:])
    return Plan(
        ChatRequest(
            model=model,
            messages=sent,
            options=options,
            context_tokens=context_tokens,
            prompt=prompt.xml(sent) if settings.prompt_style == "xml" else None,
            think=settings.think if agent.think is None else agent.think,
            format=request.format if request.format is not None else agent.format,
            singly=settings.chunk_interval_ms == 0,
        ),
        drop,
        drop if bare <= ordinary else min(drop, cut(room - ordinary)),
        room + over,
        sum(sizes[drop:]),
    )


def _options(settings: Settings, agent: Agent, asked: Mapping[str, Any], context_tokens: int) -> dict[str, Any]:
    """Merge sampling options: the request's over the agent's over the settings'; never more than MAX_TOKENS.

    Where that leaves too little of the window for a prompt, the answer may take half of it.
    """
    options = {"temperature": settings.temperature, "num_predict": settings.max_tokens}
    options |= agent.options.model_dump(exclude_none=True)
    options |= asked
    options["num_predict"] = min(options["num_predict"], settings.max_tokens)
    if context_tokens - options["num_predict"] < PROMPT_ROOM_TOKENS:
        options["num_predict"] = context_tokens // 2
    return options
