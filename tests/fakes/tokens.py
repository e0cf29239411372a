"""Counting tokens, and what a prompt cache saves, as llama-server does it.

The tokeniser is plain and deterministic: about one token a word in Latin script, one a character elsewhere.
"""

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

IMAGE_TOKENS = 256
MIN_SHARE = 0.1
"""A slot is chosen for its cache when that shares at least this much of the prompt (llama-server's -sps)."""

_PIECE = re.compile(r"\s?[A-Za-z0-9_\u00c0-\u024f]{1,12}|\s+|.", re.DOTALL)


def tokenise(text: str) -> list[str]:
    """Split `text` into tokens; joined they are the text again."""
    return _PIECE.findall(text)


def render(messages: Sequence[dict[str, Any]], *, answer: bool = True) -> list[str]:
    """Return the prompt tokens of a conversation in ChatML, with the opening of the answer."""
    tokens: list[str] = []
    for message in messages:
        tokens += ["<|im_start|>", message.get("role") or "user", "\n"]
        for image in message.get("images") or ():
            # by content: another image must not match in the cache
            tokens += [hashlib.md5(image.encode(), usedforsecurity=False).hexdigest()] + [""] * (IMAGE_TOKENS - 1)
        tokens += tokenise(message.get("content") or "")
        tokens += ["<|im_end|>", "\n"]
    return [*tokens, "<|im_start|>", "assistant", "\n"] if answer else tokens


def shared(left: Sequence[str], right: Sequence[str]) -> int:
    """Return the length of the longest common prefix."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count


@dataclass(eq=False)
class Slot:
    """One place where an answer is made; `cache` is what it has read and written last."""

    cache: list[str] = field(default_factory=list)


class Slots:
    """The slots of one loaded model. Requests wait for a free one without limit, in order of arrival.

    `ram_cache` keeps every earlier cache as well (the RAM prompt cache of newer llama-servers).
    """

    def __init__(self, count: int, *, ram_cache: bool = False) -> None:
        self._count = count
        self._free = asyncio.Semaphore(count)
        self._idle = deque(Slot() for _ in range(count))  # least recently used first
        self._stored: list[list[str]] | None = [] if ram_cache else None

    async def take(self, prompt: Sequence[str]) -> tuple[Slot, int]:
        """Wait for a slot; return it with the number of prompt tokens that must be read (at least the last one)."""
        await self._free.acquire()
        slot = max(self._idle, key=lambda one: shared(one.cache, prompt))
        if shared(slot.cache, prompt) < MIN_SHARE * len(prompt):
            slot = self._idle[0]
        self._idle.remove(slot)
        known = shared(slot.cache, prompt)
        if self._stored is not None:
            self._stored.append(slot.cache)
            known = max(shared(cache, prompt) for cache in self._stored)
        return slot, max(1, len(prompt) - known) if prompt else 0

    def give(self, slot: Slot, cache: list[str]) -> None:
        """Free a slot, which now knows `cache`."""
        slot.cache = cache
        self._idle.append(slot)
        self._free.release()

    async def drained(self) -> None:
        """Wait until nothing runs, and let nothing start any more."""
        taken = 0
        try:
            for _ in range(self._count):
                await self._free.acquire()
                taken += 1
        except asyncio.CancelledError:
            for _ in range(taken):
                self._free.release()
            raise
