"""What a full stop with white space behind it means in a growing text: the end of a sentence or of an abbreviation."""

import re
from typing import Final, Literal, NamedTuple

from piagent_daemon import abbreviations as known

LONGEST_RUN: Final = 64
MARKUP: Final = "*_~"
_LEADING: Final = "\"'“”„‘’«»‹›()[]{}¿¡*_~`—–/"

_NEXT_WORD: Final = re.compile(r"[\s*_~\"'“„«‘(\[¿¡]*([^\W\d_]+(?:['’][^\W\d_]+)?)")
_ACRONYM: Final = re.compile(r"(?:[^\W\d_]\.-?)+[^\W\d_]")
_ZONE: Final = re.compile(r"[A-Z]{1,3}T|UTC")
_ELISION: Final = re.compile(r"\A(?:[cdjlmnst]|qu)['’](?=\w)", re.IGNORECASE)
_ROMAN: Final = re.compile(r"[IVXLC]{2,}")
_ORDINALS: Final = re.compile(r"(?<!\d)\d{1,3}\. (?:und|oder|bis|auf|u\.|/|&) \Z")
"""What stands before the second of two German ordinals: am 1. und 2. Mai."""

_PAIRS: Final = frozenset(word for word in known.ALWAYS | known.OFTEN_LAST | known.HOURS if "." in word)
_FIRST_HALVES: Final = frozenset(word.partition(".")[0] for word in _PAIRS)


class Verdict(NamedTuple):
    """What a sign means: read on at `at`, wait for more text, or a sentence ends at `at`."""

    kind: Literal["go", "wait", "cut"]
    at: int = 0


WAIT: Final = Verdict("wait")


def full_stop(text: str, at: int, after: int, *, fresh: bool) -> Verdict:
    """Judge the full stop at `at`; `after` is where the markup or quote that it closes ends.

    `fresh`: the text begins a paragraph or list item, so a number at its start is the item's.
    """
    go, cut = Verdict("go", after), Verdict("cut", after)
    begins = first_letter(text, after)
    word, before = _word(text, at)
    low = word.lower()
    if before.endswith(".") and (pair := f"{before.lower().lstrip(_LEADING)}{low}") in _PAIRS:
        low = pair  # written with a space: z. B.
    if not word:
        return cut if text[at - 1 : at] == "/" else go
    if low in known.ALWAYS or (word.isdecimal() and fresh and text[:at].strip(_LEADING + " \n") == word):
        return go
    if begins is None and _depends(word, low):
        return WAIT
    verdict = _before_number(text, after, word, begins) or _before_name(text, after, word, before, begins)
    if verdict:
        return verdict
    if (
        low == word.lower() and ((len(word) == 1 and word.isalpha()) or _ACRONYM.fullmatch(word))
    ) or low in known.HOURS:
        return _initial(text, at, after, low)
    if word.isdecimal():
        return _number(text, at, after, word)
    if low in known.OFTEN_LAST or len(word) <= 4 or not word.isalpha() or _ROMAN.fullmatch(word):
        small = begins and (begins.islower() or (low in known.OFTEN_LAST and begins.isdecimal()))
        return go if small and word[-1].isalnum() else cut
    return cut


def first_letter(text: str, at: int) -> str | None:
    """Return the first sign from `at` on that is neither space, markup nor opening quote; None: not there yet."""
    limit = at + LONGEST_RUN
    while at < min(len(text), limit) and (text[at].isspace() or text[at] in "*_~`\"'“„«‘([¿¡"):
        at += 1
    return text[at] if at < len(text) else None


def plain_word(text: str, at: int) -> bool:
    """Tell whether the full stop at `at` follows an ordinary word, which nothing but a new sentence can follow."""
    token = (text[max(0, at - LONGEST_RUN) : at].split() or [""])[-1]
    word, low = token.strip(_LEADING), token.strip(_LEADING).lower()
    if low in known.ALWAYS | known.BEFORE_NUMBER | known.OFTEN_LAST or low.endswith("str") or _ROMAN.fullmatch(word):
        return False
    if len(word) <= 4 and low not in known.SHORT_LAST:  # "Sat.", "tbsp.", "www.": the next sign will tell
        return False
    letters = word.replace("-", "").replace("’", "").replace("'", "")
    return not text[at - 1 : at].isspace() and len(word) > 1 and letters.isalpha()


def is_wide(sign: str) -> bool:
    """Tell whether a character is Chinese, Japanese or Korean."""
    return sign >= "\u2e80"


# ------------------------------------------------------------------------------------------------- kinds of words


def _depends(word: str, low: str) -> bool:
    """Tell whether the meaning hangs on what follows."""
    return len(word) <= 4 or not word.isalpha() or low in known.BEFORE_NUMBER | known.OFTEN_LAST or low.endswith("str")


def _before_number(text: str, after: int, word: str, begins: str | None) -> Verdict | None:
    """Judge what goes on before a number, a day before its month (Wed. Jan. 5), a part before its name (Vol. II)."""
    low = word.lower()
    day = low in known.DAYS_BEFORE_NUMBER or word in known.CAPITAL_DAYS
    if begins is None or not (low in known.BEFORE_NUMBER or low.endswith("str") or day):
        return None
    if begins.isdecimal():
        return Verdict("go", after)
    if not day and low not in known.PARTS:
        return None
    follows = _next_word(text, after)
    if follows is None:
        return WAIT
    month = follows.lower() in known.MONTHS | known.SHORT_MONTHS
    part = _ROMAN.fullmatch(follows) or (len(follows) == 1 and follows.isupper())
    return Verdict("go", after) if (month if day else part) else None


def _before_name(text: str, after: int, word: str, before: str, begins: str | None) -> Verdict | None:
    """Judge titles (Rep. Smith) and units after a number (8 oz. Philadelphia)."""
    if word in known.TITLES or (word.lower() in known.UNITS and before[-1:].isnumeric()):
        return Verdict("go", after) if begins and begins.islower() else _unless_starter(text, after)
    return None


def _initial(text: str, at: int, after: int, low: str) -> Verdict:
    """Judge a single letter or an acronym: J. Smith, 5 g., U.S., p.m."""
    word, before = _word(text, at)
    begins = first_letter(text, after)
    if begins is None or begins.islower():
        return Verdict("go", after) if begins else WAIT
    if low in known.HOURS:
        return _after_hour(text, after)
    if low in _FIRST_HALVES and (verdict := _second_half(text, after, low)):
        return verdict
    unit = before[-1:].isdecimal() or text[at - len(word) - 1 : at - len(word)] in {"°", "º"}
    if unit or is_wide(word) or low in known.OFTEN_LAST:
        return Verdict("cut", after)
    return _unless_starter(text, after, french=word == "M")


def _second_half(text: str, after: int, low: str) -> Verdict | None:
    """Go on from the first half of an abbreviation that is written with a space: 44 v. Chr."""
    follows = _next_word(text, after)
    if follows is None:
        return WAIT
    return Verdict("go", after) if f"{low}.{follows.lower()}" in _PAIRS else None


def _number(text: str, at: int, after: int, word: str) -> Verdict:
    """Judge a full stop after a whole number: an ordinal (3. Oktober, das 2. Mal), or the end of a sentence."""
    go, cut = Verdict("go", after), Verdict("cut", after)
    begins = first_letter(text, after)
    if begins is None:
        return WAIT
    if begins.islower() or len(word) > 3:
        return go if begins.islower() else cut
    if begins.isdecimal():
        return go if len(word) <= 2 else cut
    follows = _next_word(text, after)
    if not follows:
        return WAIT if follows is None else cut
    before = _word(text, at)[1].lower().strip(_LEADING)
    expected = before in known.ORDINAL_BEFORE or _ORDINALS.search(text[max(0, at - 20) : at - len(word)])
    low = follows.lower()
    ordinal = low in known.MONTHS | known.ORDINAL_NAMES or (expected and low not in known.STARTERS)
    return go if ordinal else cut


def _after_hour(text: str, after: int) -> Verdict:
    """Go on to what tells more of a time: a day, a month, or a zone such as PST."""
    follows = _next_word(text, after)
    if follows is None:
        return WAIT
    more = follows.lower() in known.DAYS | known.MONTHS or _ZONE.fullmatch(follows)
    return Verdict("go" if more else "cut", after)


def _unless_starter(text: str, after: int, *, french: bool = False) -> Verdict:
    """Go on, unless the next word begins many sentences; `french`: M. Le Pen."""
    follows = _next_word(text, after)
    if not follows:
        return WAIT if follows is None else Verdict("cut", after)
    found = _NEXT_WORD.match(text, after)
    initial = len(follows) == 1 and found is not None and text[found.end() : found.end() + 1] == "."
    named = initial or (french and follows.lower() in known.PARTICLES)
    return Verdict("cut" if follows.lower() in known.STARTERS and not named else "go", after)


def _next_word(text: str, after: int) -> str | None:
    """Return the next word with a straight apostrophe, "" when there is none, None when it may still grow."""
    found = _NEXT_WORD.match(text, after)
    if found is None:
        return ""
    end = found.end() + (text[found.end() : found.end() + 1] in {"'", "’"})
    return None if end == len(text) and end - after < LONGEST_RUN else found[1].replace("’", "'")


def _word(text: str, at: int) -> tuple[str, str]:
    """Return the word that ends at `at`, without quotes and markup around it, and the word before it."""
    words = text[max(0, at - LONGEST_RUN) : at].split()
    if not words or text[at - 1].isspace():
        return "", ""
    word = re.split(r"[—–/(\[“„\"]", words[-1].rstrip(MARKUP))[-1].strip(_LEADING)
    word = _ELISION.sub("", word)
    return word, words[-2] if len(words) > 1 else ""
