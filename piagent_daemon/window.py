"""Which remembered turns go when not all fit: history cut in blocks, by a count that the model server corrects.

A model server that has read a prompt reads only what differs from there on. A window that slides by one turn differs
from its first message on, so everything is read again at every turn; one that is cut rarely, and then by much, stays
the same for many turns (measured: 8 to 23 % of the prompt tokens are read again instead of about 70 %).
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from typing import Final, NamedTuple

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
"""Between 256 (Gemma) and some thousands (Qwen with large pictures), until the model server has counted one."""
MARGIN: Final = 1.04
FORGET: Final = 0.2
"""How far one answer moves what is known down; up it goes at once."""
GROW: Final = 1.25
"""By how much a refusal without a count moves it up."""
LEAST, MOST = 0.5, 8.0
LEAST_IMAGE, MOST_IMAGE = 64.0, 16_384.0
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


class Weights(NamedTuple):
    """What is known of a model: the tokens to one of our estimate, in text, and those that one image takes."""

    ratio: float = 1.0
    image: float = PER_IMAGE


class Ledger:
    """Sizes of prompts in tokens, corrected per model by what the model server counted.

    A ratio per model joins our estimate of text to the server's count; the size of an image stands beside it, since
    what a picture takes says nothing of text. Both rise at once and fall slowly, so that a prompt is rather counted too
    large: one that is too large for the window would be cut by the server, in silence, or refused.
    """

    def __init__(self) -> None:
        self._weights: OrderedDict[str, Weights] = OrderedDict()

    def tokens(self, model: str, messages: Sequence[Message]) -> int:
        """Return the size of a prompt, with what the model's template adds."""
        ratio, image = self._of(model)
        return ceil(_text(messages) * ratio + _images(messages) * image)

    def least(self, model: str, messages: Sequence[Message]) -> int:
        """Return what a prompt takes at least: small pictures may follow large ones, so the server judges."""
        ratio, image = self._of(model)
        return ceil(_text(messages) * ratio + _images(messages) * min(image, PER_IMAGE))

    def turn(self, model: str, turn: Turn) -> int:
        """Return what one remembered turn adds to a prompt.

        The server's own count of an answer is better than our estimate, but it includes thoughts that are not
        remembered: the smaller of the two holds.
        """
        size = ceil(_message(turn.content) * self._of(model).ratio)
        return size if turn.tokens is None else min(size, turn.tokens + PER_MESSAGE)

    def calibrate(self, model: str, messages: Sequence[Message], measured: int) -> None:
        """Learn from an answer: `measured` is how many tokens the server counted in these messages."""
        if measured <= 0:
            return
        known = self._of(model)
        found = _found(known, messages, measured)
        self._learn(model, Weights(*(_nearer(old, new) for old, new in zip(known, found, strict=True))))

    def overflowed(self, model: str, messages: Sequence[Message], actual: int | None) -> None:
        """Learn from a refusal: the server found these messages too large; `actual` is its count where it says one."""
        known = self._of(model)
        found = _found(known, messages, actual) if actual else known
        if _images(messages):
            self._learn(model, known._replace(image=max(found.image, known.image * GROW)))
        else:
            self._learn(model, known._replace(ratio=max(found.ratio, known.ratio * GROW)))

    def _of(self, model: str) -> Weights:
        return self._weights.get(model, Weights())

    def _learn(self, model: str, found: Weights) -> None:
        ratio, image = min(MOST, max(LEAST, found.ratio)), min(MOST_IMAGE, max(LEAST_IMAGE, found.image))
        self._weights[model] = Weights(ratio, image)
        self._weights.move_to_end(model)
        while len(self._weights) > MAX_MODELS:
            self._weights.popitem(last=False)


def _message(text: str) -> int:
    return (_known if len(text) <= KNOWN_CHARS else estimate)(text) + PER_MESSAGE


def _text(messages: Sequence[Message]) -> int:
    return PER_PROMPT + sum(_message(message.content) for message in messages)


def _images(messages: Sequence[Message]) -> int:
    return sum(len(message.images) for message in messages)


def _found(known: Weights, messages: Sequence[Message], measured: int) -> Weights:
    """Return what a count says: of images where there are some, and else of text."""
    text, images = _text(messages), _images(messages)
    if images:
        return known._replace(image=(measured - text * known.ratio) / images * MARGIN)
    return known._replace(ratio=measured / text * MARGIN)


def _nearer(old: float, new: float) -> float:
    return new if new > old else old + FORGET * (new - old)
