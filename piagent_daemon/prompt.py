"""What the model reads: agent, history and request become messages; their beginning stays the same from turn to turn.

A model server keeps what it has read and reads only what differs. So the system message is exactly the agent's, history
is exactly what is remembered, and the facts of one turn (the time, the room) stand at the end of the newest message
alone, and are not remembered.
"""

import json
import logging
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from piagent_daemon import templates
from piagent_daemon.agents import Agent
from piagent_daemon.contract import File, Request
from piagent_daemon.values import Message, Turn
from piagent_daemon.wire import image_base64

log = logging.getLogger("piagent.prompt")

INTERRUPTS: Final = "[interrupts you]"
"""Before what somebody said who cut the answer off; it stays there in all later prompts."""

UNHEARD: Final = "…"
"""Stands for an answer of which nothing was heard: servers refuse an empty message."""

_TAGS: Final = re.compile(
    r"<(?=\s*+/?+\s*+(?:system|user|assistant)\b"  # our own; possessive, so that no text makes it slow
    r"|\||/?s>|<?/?SYS>|/?(?:start|end)_of_turn>)"  # those of Llama, Qwen, Mistral and Gemma
    r"|\[(?=/?INST\])",
    re.IGNORECASE,
)


def build(agent: Agent, turns: Sequence[Turn], request: Request, facts: str = "") -> tuple[Message, ...]:
    """Return the messages of one call: system, history, newest message with its `facts` (see `turn_facts`)."""
    text = user_text(request)
    images = tuple(image_base64(image) for image in request.images)
    return (
        Message("system", agent.system),
        *(
            Message(turn.role, _told(turn.content or UNHEARD, before))
            for before, turn in zip((None, *turns), turns, strict=False)
        ),
        Message("user", _told(f"{text}\n\n{facts}" if facts else text, turns[-1] if turns else None), images),
    )


def _told(content: str, before: Turn | None) -> str:
    """Tell that the answer before was cut off: with the user's words, so that the model does not learn to say it."""
    return f"{INTERRUPTS} {content}" if before is not None and before.interrupted else content


def user_text(request: Request) -> str:
    """Return what is remembered of a request: its files (read already, so each has a text), then its message."""
    return "\n\n".join([*(_fenced(file) for file in request.files if file.text is not None), request.message])


def attach(messages: Sequence[Message], request: Request) -> tuple[Message, ...]:
    """Return messages of somebody's own, with the request's files before the last user's words, its images at them."""
    texts = [_fenced(file) for file in request.files if file.text is not None]
    images = tuple(image_base64(image) for image in request.images)
    last = max((place for place, message in enumerate(messages) if message.role == "user"), default=len(messages))
    return tuple(
        Message("user", "\n\n".join([*texts, message.content]), images) if place == last else message
        for place, message in enumerate(messages)
    )


def turn_facts(agent: Agent, request: Request, *, now: datetime, conversation_id: str) -> str:
    """Return the facts of one turn, at most 4000 characters: the agent's template, else the request's `context`.

    `now` is the local time, aware; it is only in the prompt when the agent's template names it.
    """
    listed = _listed(request.context)
    if agent.context is not None and len(listed) > templates.MAX_CONTEXT_CHARS:
        log.warning("the context of a request is too large for the template of agent %s: listed as it is", agent.name)
    elif agent.context is not None:
        variables = {"now": now, "conversation_id": conversation_id, "agent": agent.name, "context": request.context}
        try:
            return templates.render_facts(agent.context, variables)
        except templates.TemplateProblem as problem:
            line = f" in line {problem.line}" if problem.line else ""
            # Not what it says, which may quote what somebody sent.
            log.warning("the context template of agent %s failed: %s%s", agent.name, problem.kind, line)
    return listed[: templates.MAX_FACTS_CHARS]


def xml(messages: Sequence[Message]) -> str:
    """Return the messages as one text for PROMPT_STYLE=xml, with an open `<assistant>` after a user's message.

    Tags and special tokens of models inside the messages are made harmless.
    """
    blocks = [f"<{message.role}>{neutral(message.content)}</{message.role}>\n" for message in messages]
    return "".join(blocks) + ("<assistant>" if messages and messages[-1].role == "user" else "")


def neutral(text: str) -> str:
    """Return `text` without anything that a model could take for the mark of a role; twice is the same as once."""
    return _TAGS.sub(lambda found: "&lt;" if found[0] == "<" else "&#91;", text)


def _listed(context: str | dict[str, Any] | None) -> str:
    if not context:
        return ""
    if isinstance(context, str):
        return f"Context: {context.strip()}"
    return "Context:\n" + "\n".join(f"{key}: {_compact(value)}" for key, value in context.items())


def _compact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _fenced(file: File) -> str:
    """Return a file in a fence longer than any in its text, so that the text cannot end it."""
    text = file.text or ""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    name = " ".join((file.name or file.path or "").split())[:128]
    return f"File {name}:\n{fence}\n{text.rstrip()}\n{fence}"
