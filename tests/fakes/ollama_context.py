"""How Ollama makes a prompt fit into num_ctx: silently, unless it is told otherwise. Pure.

Two paths: "rendered" (Go template) and "native" (the model's own Jinja template).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tests.fakes.ollama_rules import Refusal, too_long
from tests.fakes.tokens import render, tokenise

NUM_KEEP = 4
LONGER = (
    "the prompt is longer than the context length currently available to the model; "
    "shorten the prompt, or use a model with a longer context"
)


def chat_prompt(body: Mapping[str, Any], num_ctx: int, path: str) -> tuple[list[str], bool]:
    """Return the prompt tokens of a /api/chat body, and whether Ollama cut them."""
    messages: Sequence[dict[str, Any]] = body["messages"]
    tokens = render(messages)
    if body.get("truncate") is False:
        if len(tokens) >= num_ctx:
            raise too_long(len(tokens), num_ctx)
        return tokens, False
    whole = len(tokens)
    for start in range(1, len(messages)):
        if len(tokens) <= num_ctx:
            break
        system = [message for message in messages[:start] if message.get("role") == "system"]
        tokens = render([*system, *messages[start:]])
    if len(tokens) < num_ctx:
        return tokens, len(tokens) < whole
    if path == "native":
        raise too_long(len(tokens), num_ctx)
    return _cut(tokens, num_ctx, body), True


def generate_prompt(body: Mapping[str, Any], num_ctx: int) -> tuple[list[str], bool]:
    """Return the prompt tokens of a /api/generate body, and whether Ollama cut them."""
    text = body.get("prompt") or ""
    if body.get("raw"):
        tokens = tokenise(text)
    else:
        system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
        tokens = render([*system, {"role": "user", "content": text, "images": body.get("images")}])
    if len(tokens) < num_ctx:
        return tokens, False
    if body.get("truncate") is False:
        raise too_long(len(tokens), num_ctx)
    return _cut(tokens, num_ctx, body), True


def _cut(tokens: list[str], num_ctx: int, body: Mapping[str, Any]) -> list[str]:
    """Keep the first tokens and the newest half: the system prompt is lost."""
    if body.get("shift") is False:
        raise Refusal(400, LONGER)
    return tokens[:NUM_KEEP] + tokens[len(tokens) - (num_ctx - NUM_KEEP) // 2 :]


def answer_limit(body: Mapping[str, Any], num_predict: int, num_ctx: int, prompt: int, path: str) -> float:
    """Return how many tokens the answer may have: by num_predict, and by the room left when `shift` is off."""
    limit: float = num_predict
    if num_predict < 0:
        limit = 10 * num_ctx
    elif num_predict == 0:
        limit = math.inf if path == "rendered" else 0
    return min(limit, num_ctx - prompt) if body.get("shift") is False else limit


def context_shifts(prompt: int, answer: int, num_ctx: int) -> int:
    """Return how often the context was shifted in mid-answer; each throws away the system prompt."""
    return max(0, math.ceil((prompt + answer - num_ctx) / max(1, (num_ctx - NUM_KEEP) // 2)))
