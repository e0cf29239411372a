"""Which remembered turns go when not all fit: history cut in blocks, by a count that the model server corrects.

A model server that has read a prompt reads only what differs from there on. A window that slides by one turn differs
from its first message on, so everything is read again at every turn; one that is cut rarely, and then by much, stays
the same for many turns (measured: 8 to 23 % of the prompt tokens are read again instead of about 70 %).
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from typing import Final

from piagent_daemon.values import Message, Turn

_PAIR: Final = 2
"""A user's message and its answer stay together."""

_LETTERS: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIGITS: Final = b"0123456789"
_MARKS: Final = bytes(byte for byte in range(0x80) if byte not in _LETTERS + _DIGITS + b" \n")
_LEAD_2: Final = bytes(range(0xC0, 0xE0))
_LEAD_3: Final = bytes(range(0xE0, 0xF0))
_LEAD_CJK: Final = bytes(range(0xE3, 0xEE))
_LEAD_4: Final = bytes(range(0xF0, 0x100))

PER_MESSAGE: Final = 8
"""Marks of the role around a message; five in most chat templates, eight in the XML style."""
PER_PROMPT: Final = 12
PER_IMAGE: Final = 768
"""Between 256 (Gemma) and some thousands (Qwen with large pictures); calibration does the rest."""
MARGIN: Final = 1.04
FORGET: Final = 0.2
"""How far one answer moves the ratio down; up it goes at once."""
LEAST, MOST = 0.5, 8.0
MAX_MODELS: Final = 64
KNOWN: Final = 256
KNOWN_CHARS: Final = 4096
"""Of so many texts of at most this length the size is kept in mind."""


def cut(sizes: Sequence[int], *, max_turns: int, budget: int) -> int:
    """Return how many of the oldest turns must go, so that at most `max_turns` of at most `budget` tokens stay.

    `sizes` are tokens per turn, oldest first, user and assistant in turn. Nothing goes while all fit. When something
    must go, then so much that it lasts: a third of `max_turns` stays, and at most half of `budget`.
    """
    if len(sizes) <= max_turns and sum(sizes) <= budget:
        return 0
    keep, total = len(sizes), sum(sizes)
    if keep > max_turns:
        keep = min(max_turns, max(_PAIR, _even(ceil(max_turns / 3))))
    bound = budget // 2 if total > budget else total
    drop = min(len(sizes), _even(len(sizes) - keep))
    left = sum(sizes[drop:])
    while drop < len(sizes) and left > bound:
        left -= sum(sizes[drop : drop + _PAIR])
        drop += _PAIR
    return min(drop, len(sizes))


def _even(number: int) -> int:
    return number + number % 2


def estimate(text: str) -> int:
    """Return about how many tokens `text` is, rather too many than too few: at most one per byte of UTF-8.

    The weights were fitted to GPT-4's vocabulary, which Llama 3's and Qwen's resemble, and to Qwen's token per digit.
    """
    content = text.encode("utf-8", "replace")
    words = len(content.split())
    letters = _count(content, _LETTERS)
    # A word is a token or more; beyond 12 letters a word is no word (a key, base64).
    tokens = max(letters / 2.9, words) + 0.4 * max(0, letters - 12 * words)
    tokens += _count(content, _DIGITS) + content.count(b"\n") + 0.75 * _count(content, _MARKS)
    tokens += 0.07 * max(0, content.count(b" ") - words)  # a run of spaces is one token
    if not text.isascii():
        cjk = _count(content, _LEAD_CJK)
        tokens += 0.9 * _count(content, _LEAD_2) + 1.3 * cjk + 1.5 * (_count(content, _LEAD_3) - cjk)
        tokens += 3.0 * _count(content, _LEAD_4)
    return min(len(content), ceil(tokens))


def _count(content: bytes, kinds: bytes) -> int:
    return len(content) - len(content.translate(None, kinds))


_known: Final = lru_cache(maxsize=KNOWN)(estimate)
"""The system prompt, and the turns of who talks just now, are counted anew for each prompt."""


class Ledger:
    """Sizes of prompts in tokens, corrected per model by what the model server counted.

    A ratio per model joins our estimate to the server's count. It rises at once and falls slowly, so that a prompt is
    rather counted too large: one that is too large for the window would be cut by the server, in silence.
    """

    def __init__(self) -> None:
        self._ratios: OrderedDict[str, float] = OrderedDict()

    def tokens(self, model: str, messages: Sequence[Message]) -> int:
        """Return the size of a prompt, with what the model's template adds."""
        raw = PER_PROMPT + sum(self._raw(message.content) + PER_IMAGE * len(message.images) for message in messages)
        return ceil(raw * self._ratio(model))

    def turn(self, model: str, turn: Turn) -> int:
        """Return what one remembered turn adds to a prompt.

        The server's own count of an answer is better than our estimate, but it includes thoughts that are not
        remembered: the smaller of the two holds.
        """
        size = ceil(self._raw(turn.content) * self._ratio(model))
        return size if turn.tokens is None else min(size, turn.tokens + PER_MESSAGE)

    def calibrate(self, model: str, estimated: int, measured: int) -> None:
        """Learn from an answer: `estimated` is what was said here of the prompt, `measured` what the server counted."""
        if estimated <= 0 or measured <= 0:
            return
        ratio = self._ratio(model)
        target = ratio * measured / estimated * MARGIN
        self._learn(model, target if target > ratio else ratio + FORGET * (target - ratio))

    def overflowed(self, model: str, estimated: int, actual: int | None) -> None:
        """Learn from a refusal: the server found the prompt too large; `actual` is its count where it says one."""
        ratio = self._ratio(model)
        grown = ratio * actual / estimated * MARGIN if actual and estimated > 0 else 0.0
        self._learn(model, max(grown, ratio * 1.25))

    def _raw(self, text: str) -> int:
        return (_known if len(text) <= KNOWN_CHARS else estimate)(text) + PER_MESSAGE

    def _ratio(self, model: str) -> float:
        return self._ratios.get(model, 1.0)

    def _learn(self, model: str, ratio: float) -> None:
        self._ratios[model] = min(MOST, max(LEAST, ratio))
        self._ratios.move_to_end(model)
        while len(self._ratios) > MAX_MODELS:
            self._ratios.popitem(last=False)
