"""Where a sentence ends in a text that is still growing; pure, and the same however the text arrives.

Own code, because what there is (sentence-stream, pySBD, NLTK) waits for the capital of the next sentence, knows neither
German ordinals nor quotes, brings a compiled dependency, or wants the whole text.
"""

import re
from typing import Final

from piagent_daemon.stops import LONGEST_RUN, MARKUP, WAIT, Verdict, first_letter, full_stop, is_wide, plain_word

WIDE: Final = "。！？｡"
ENDERS: Final = f".!?…؟।॥۔։{WIDE}"
CLAUSE_CHARS: Final = 10
"""A first clause has at least so many letters and digits; one of Chinese or Japanese counts threefold."""
CLAUSE_REACH: Final = 300
"""A first sentence that is this long without a clause is not looked at for one any more, in characters."""
REACH: Final = 240
"""How far a quote, bracket, code span or tag is believed to be closed, in characters; also the longest look ahead."""

_CLOSES: Final = {
    ")": "(", "]": "[", "}": "{", "）": "（", "】": "【", "》": "《", "」": "「", "』": "『",
    "”": "“„", "“": "„", "»": "«", "«": "»", "›": "‹", '"': '"',
}  # fmt: skip
"""What each sign closes; German writes „so“ and »so«."""
_OPENING: Final = frozenset('([{（【《「『“„«»‹"')

_SIGNS: Final = re.compile(rf'[{ENDERS}"“”„«»‹›「」『』()（）\[\]{{}}【】《》`\\<]')
_SIGNS_AND_CLAUSES: Final = re.compile(rf'[{ENDERS}"“”„«»‹›「」『』()（）\[\]{{}}【】《》`\\<,;:—–，；：、،؛]|(?<=\s)-')
_ENDS: Final = re.compile(rf"[{ENDERS}]+")
_SOLID: Final = re.compile(r"\S")
_ENTITY: Final = re.compile(r"&#?\w{2,8}\Z")
"""`&amp` before its semicolon."""
_LIKELY_END: Final = re.compile(rf"[.!?؟।॥۔։{WIDE}][*_~]*\Z")
_LIKELY_CLAUSE: Final = re.compile(r"(?<=[^\W\d_])[,;،؛，；：、][*_~]*\Z")


class Finder:
    """Looks for the end of the first sentence in a text; remembers how far it has read, so that nothing is read twice.

    `fresh`: the text begins a paragraph or list item, so a number at its start may be the item's.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self, *, fresh: bool = True, lenient: bool = False) -> None:
        """Begin with another text; `lenient` takes no notice of quotes and brackets, which were never closed."""
        self._at = 0
        self._open: list[tuple[str, int]] = []
        self.fresh = fresh
        self.lenient = lenient

    def stuck(self, text: str) -> bool:
        """Tell whether `find` still hopes for the end of a quote, bracket, code span or tag."""
        return bool(self._open) or text[self._at : self._at + 1] in {"`", "<"}

    def find(self, text: str, *, clauses: bool) -> int:
        """Return where the first sentence ends (or clause, with `clauses`), 0 when that is not known yet.

        `text` is that of the last call, longer at its end; call `reset` when it was cut.
        """
        signs = _SIGNS_AND_CLAUSES if clauses else _SIGNS
        while found := signs.search(text, self._at):
            verdict = self._look(text, found.start())
            if verdict.kind == "go":
                self._at = verdict.at
                continue
            self._at = found.start()
            return verdict.at
        self._at = len(text)
        return 0

    def likely(self, text: str, *, clauses: bool) -> int:
        """Return the end of `text` when a sentence most probably ends there, else 0; `find` has just said 0.

        Where `find` waits for the next character to be certain, this does not, but after a colon, which may stand in
        a name (`localhost:1883`). It is wrong for a name with a stop in it (`config.yaml`) whose parts come one by one.
        """
        at = self._at
        token = (text[max(0, at - LONGEST_RUN) : at].split() or [""])[-1]
        if at >= len(text) or self._open or any(sign in token for sign in ("/", "@", "www.")):
            return 0
        if _LIKELY_END.match(text, at):
            return len(text) if text[at] != "." or plain_word(text, at) else 0
        if clauses and at < CLAUSE_REACH and _LIKELY_CLAUSE.match(text, at):
            if text[at] == ";" and _ENTITY.search(text[max(0, at - 10) : at]):
                return 0
            japanese = text[at] != "、" or _has_kana(text[:at])
            return len(text) if japanese and _weight(text[:at]) >= CLAUSE_CHARS else 0
        return 0

    # ---------------------------------------------------------------------------------------------------- one sign

    def _look(self, text: str, at: int) -> Verdict:
        sign = text[at]
        if self._open and at - self._open[0][1] > REACH:
            self._open.clear()
        if sign in ENDERS:
            return self._ender(text, at)
        if sign == "\\":
            return Verdict("go", at + 2) if at + 1 < len(text) else WAIT
        if sign in "`<" and not self.lenient:
            return _past_code(text, at) if sign == "`" else _past_tag(text, at)
        if sign in _OPENING or sign in _CLOSES:
            return self._quote(text, at)
        return Verdict("go", at + 1) if self._open or sign in "`<" else _clause(text, at)

    def _ender(self, text: str, at: int) -> Verdict:
        run = _ENDS.match(text, at)
        end = run.end() if run else at + 1
        still_open = list(self._open)
        after = end
        while after < len(text) and (text[after] in MARKUP or _close(still_open, text[after], text[after - 1])):
            after += 1
        if after == len(text):
            return WAIT if after - at < LONGEST_RUN else Verdict("go", after)
        closed = len(still_open) < len(self._open) or text[after - 1] in "\"”»’'"
        if still_open and not self.lenient:
            self._open = still_open
            return Verdict("go", after)
        verdict = self._decide(text, at, end, after, closed=closed)
        if verdict.kind == "go":
            self._open = still_open
        return verdict

    def _decide(self, text: str, at: int, end: int, after: int, *, closed: bool) -> Verdict:
        """Judge the signs `text[at:end]`; `after` is where what they close ends, and lies inside the text."""
        ender, follows = text[end - 1], text[after]
        go, cut = Verdict("go", after), Verdict("cut", after)
        if any(sign in WIDE for sign in text[at:end]):
            return go if closed and not follows.isspace() and follows not in _OPENING else cut
        if not follows.isspace():
            return cut if ender in "!?" and not closed and is_wide(follows) else go
        solid = _SOLID.search(text, after)
        begins = first_letter(text, after)
        if closed or end - at > 1 or ender == "…":
            if ender in "!?" and not closed:
                return cut
            if begins is None:
                return WAIT
            return go if begins.islower() or (solid and text[solid.start()] in ENDERS) else cut
        return cut if ender != "." else full_stop(text, at, after, fresh=self.fresh)

    # ------------------------------------------------------------------------------------------- quotes and brackets

    def _quote(self, text: str, at: int) -> Verdict:
        """Open or close a quote or bracket; French puts a space before its closing one: « Oui. »."""
        sign, before, still_open = text[at], text[at - 1 : at], list(self._open)
        if self.lenient:
            return Verdict("go", at + 1)
        if _close(still_open, sign, before):
            inside = text[:at].rstrip()
            if not still_open and len(inside) < at and inside[-1:] in ENDERS:
                begins = first_letter(text, at + 1)
                if begins is None or not begins.islower():
                    return Verdict("cut", at + 1) if begins else WAIT
        elif sign in _OPENING and not (before.isalnum() and sign == '"') and not (before.strip() and sign == "»"):
            still_open.append((sign, at))
        self._open = still_open
        return Verdict("go", at + 1)


# ------------------------------------------------------------------------------------------------------------ helpers


def _close(still_open: list[tuple[str, int]], sign: str, before: str) -> bool:
    """Take what `sign` closes from the list, if it closes anything; tell whether `sign` is a closing one here."""
    if still_open and still_open[-1][0] in _CLOSES.get(sign, ""):
        still_open.pop()
        return True
    return sign in "’'”" and not before.isspace()


def _past_code(text: str, at: int) -> Verdict:
    end = at + 1
    while text[end : end + 1] == "`":
        end += 1
    if end == len(text):
        return WAIT if end - at < LONGEST_RUN else Verdict("go", end)
    close = text.find(text[at:end], end, at + REACH)
    if close >= 0:
        return Verdict("go", close + end - at)
    return WAIT if len(text) < at + REACH else Verdict("go", end)


def _past_tag(text: str, at: int) -> Verdict:
    if at + 1 == len(text):
        return WAIT
    if not (text[at + 1].isalpha() or text[at + 1] in "/|!"):
        return Verdict("go", at + 1)
    close = text.find(">", at, at + REACH)
    if close >= 0:
        return Verdict("go", close + 1)
    return WAIT if len(text) < at + REACH else Verdict("go", at + 1)


def _clause(text: str, at: int) -> Verdict:
    sign, end = text[at], at + 1
    go = Verdict("go", end)
    if at >= CLAUSE_REACH or (sign == ";" and _ENTITY.search(text[max(0, at - 10) : at])):
        return go
    if sign in "，；：、":
        return _wide_clause(text, at)
    while text[end : end + 1] and text[end] in (sign if sign == "—" else MARKUP):
        end += 1
    if end == len(text):
        return WAIT if end - at < LONGEST_RUN else go
    counted = text[at - 1 : at].isdecimal()
    if sign == "—":
        fits = not (counted and text[end].isdecimal())
    else:
        fits = text[end].isspace() and (sign not in "–-" or text[at - 1 : at].isspace())
    if not fits or _weight(text[:at]) < CLAUSE_CHARS:
        return go
    return _unless_number(text, end) if sign in "–-" or (sign == "," and counted) else Verdict("cut", end)


def _wide_clause(text: str, at: int) -> Verdict:
    """Judge a Chinese or Japanese comma, colon or semicolon, which stands in a number or time, too."""
    end = at + 1
    if _weight(text[:at]) < CLAUSE_CHARS or (text[at] == "、" and not _has_kana(text[:at])):
        return Verdict("go", end)
    if not text[at - 1 : at].isdecimal():
        return Verdict("cut", end)
    if end == len(text):
        return WAIT
    return Verdict("go" if text[end].isdecimal() else "cut", end)


def _unless_number(text: str, end: int) -> Verdict:
    """Cut, unless a number comes: 10 - 3; July 20, 1969."""
    begins = first_letter(text, end)
    if begins is None:
        return WAIT
    return Verdict("go" if begins.isdecimal() else "cut", end)


def _has_kana(text: str) -> bool:
    return any("\u3040" <= sign <= "\u30ff" for sign in text)


def _weight(text: str) -> int:
    return sum((3 if is_wide(sign) else 1) for sign in text if sign.isalnum())
