"""Where a sentence ends in a text that is still growing; pure, and the same however the text arrives.

Own code, because what there is (sentence-stream, pySBD, NLTK) waits for the capital of the next sentence, knows neither
German ordinals nor quotes, brings a compiled dependency, or wants the whole text.
"""

import re
from typing import Final, Literal, NamedTuple

from piagent_daemon import abbreviations as known

WIDE: Final = "。！？｡"
ENDERS: Final = f".!?…؟।॥۔։{WIDE}"
CLAUSE_CHARS: Final = 10
"""A first clause has at least so many letters and digits; one of Chinese or Japanese counts threefold."""
CLAUSE_REACH: Final = 300
"""A first sentence that is this long without a clause is not looked at for one any more, in characters."""
REACH: Final = 240
"""How far a quote, bracket, code span or tag is believed to be closed, in characters; also the longest look ahead."""
LONGEST_RUN: Final = 64

_CLOSES: Final = {
    ")": "(", "]": "[", "}": "{", "）": "（", "】": "【", "》": "《", "」": "「", "』": "『",
    "”": "“„", "“": "„", "»": "«", "«": "»", "›": "‹", '"': '"',
}  # fmt: skip
"""What each sign closes; German writes „so“ and »so«."""
_OPENING: Final = frozenset('([{（【《「『“„«»‹"')
_MARKUP: Final = "*_~"
_LEADING: Final = "\"'“”„‘’«»‹›()[]{}¿¡*_~`—–/"

_SIGNS: Final = re.compile(rf'[{ENDERS}"“”„«»‹›「」『』()（）\[\]{{}}【】《》`\\<]')
_SIGNS_AND_CLAUSES: Final = re.compile(rf'[{ENDERS}"“”„«»‹›「」『』()（）\[\]{{}}【】《》`\\<,;:—–，；：、،؛]|(?<=\s)-')
_ENDS: Final = re.compile(rf"[{ENDERS}]+")
_SOLID: Final = re.compile(r"\S")
_NEXT_WORD: Final = re.compile(r"[\s*_~\"'“„«‘(\[¿¡]*([^\W\d_]+(?:['’][^\W\d_]+)?)")
_ACRONYM: Final = re.compile(r"(?:[^\W\d_]\.-?)+[^\W\d_]")
_ZONE: Final = re.compile(r"[A-Z]{1,3}T|UTC")
_ELISION: Final = re.compile(r"\A(?:[cdjlmnst]|qu)['’](?=\w)", re.IGNORECASE)
_ROMAN: Final = re.compile(r"[IVXLC]{2,}")
_ENTITY: Final = re.compile(r"&#?\w{2,6}\Z")
"""`&amp` before its semicolon."""
_LIKELY_END: Final = re.compile(rf"[.!?؟।॥۔։{WIDE}][*_~]*\Z")
_LIKELY_CLAUSE: Final = re.compile(r"(?<=[^\W\d_])[,;:،؛，；：、][*_~]*\Z")


class Verdict(NamedTuple):
    """What a sign means: read on at `at`, wait for more text, or a sentence ends at `at`."""

    kind: Literal["go", "wait", "cut"]
    at: int = 0


WAIT: Final = Verdict("wait")


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

        Where `find` waits for the next character to be certain, this does not. It is wrong for a name with a stop in
        it (`config.yaml`) whose parts come one by one.
        """
        at = self._at
        token = (text[max(0, at - LONGEST_RUN) : at].split() or [""])[-1]
        if at >= len(text) or self._open or any(sign in token for sign in ("/", "@", "www.")):
            return 0
        if _LIKELY_END.match(text, at):
            return len(text) if text[at] != "." or _plain_word(text, at) else 0
        if clauses and at < CLAUSE_REACH and _LIKELY_CLAUSE.match(text, at):
            if text[at] == ";" and _ENTITY.search(text[max(0, at - 8) : at]):
                return 0
            scheme = text[at] == ":" and text[max(0, at - 6) : at].lower().endswith(("http", "https", "ftp", "mailto"))
            japanese = text[at] != "、" or _has_kana(text[:at])
            return len(text) if japanese and not scheme and _weight(text[:at]) >= CLAUSE_CHARS else 0
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
        while after < len(text) and (text[after] in _MARKUP or _close(still_open, text[after], text[after - 1])):
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
            return cut if ender in "!?" and not closed and _is_wide(follows) else go
        solid = _SOLID.search(text, after)
        begins = _first_letter(text, after)
        if closed or end - at > 1 or ender == "…":
            if ender in "!?" and not closed:
                return cut
            if begins is None:
                return WAIT
            return go if begins.islower() or (solid and text[solid.start()] in ENDERS) else cut
        return cut if ender != "." else self._full_stop(text, at, after, begins)

    def _full_stop(self, text: str, at: int, after: int, begins: str | None) -> Verdict:
        """Judge a single full stop with white space behind it; `begins`: how the next word begins, if known."""
        go, cut = Verdict("go", after), Verdict("cut", after)
        word, before = _word(text, at)
        low = word.lower()
        if not word or low in known.ALWAYS:
            return go
        if word.isdecimal() and self.fresh and text[:at].strip(_LEADING + " \n") == word:
            return go
        if low in known.BEFORE_NUMBER or low.endswith("str"):
            if begins is None:
                return WAIT
            if begins.isdecimal():
                return go
        if (len(word) == 1 and word.isalpha()) or _ACRONYM.fullmatch(word):
            if begins is None or begins.islower():
                return go if begins else WAIT
            if low in known.HOURS:
                return _after_hour(text, after)
            unit = before[-1:].isdecimal() or text[at - len(word) - 1 : at - len(word)] in {"°", "º"}
            return cut if unit or _is_wide(word) or low in known.OFTEN_LAST else _unless_starter(text, after)
        if word.isdecimal():
            return _number(text, after, word, before, begins)
        if low in known.OFTEN_LAST or len(word) <= 4 or not word.isalpha() or _ROMAN.fullmatch(word):
            if begins is None:
                return WAIT
            small = begins.islower() or (low in known.OFTEN_LAST and begins.isdecimal())
            return go if small and word[-1].isalnum() else cut
        return cut

    # ------------------------------------------------------------------------------------------- quotes and brackets

    def _quote(self, text: str, at: int) -> Verdict:
        """Open or close a quote or bracket; French puts a space before its closing one: « Oui. »."""
        sign, before, still_open = text[at], text[at - 1 : at], list(self._open)
        if self.lenient:
            return Verdict("go", at + 1)
        if _close(still_open, sign, before):
            inside = text[:at].rstrip()
            if not still_open and len(inside) < at and inside[-1:] in ENDERS:
                begins = _first_letter(text, at + 1)
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
    if at >= CLAUSE_REACH or (sign == ";" and _ENTITY.search(text[max(0, at - 8) : at])):
        return go
    if sign in "，；：、":
        long_enough = _weight(text[:at]) >= CLAUSE_CHARS and (sign != "、" or _has_kana(text[:at]))
        return Verdict("cut", end) if long_enough else go
    while text[end : end + 1] and text[end] in (sign if sign == "—" else _MARKUP):
        end += 1
    if end == len(text):
        return WAIT if end - at < LONGEST_RUN else go
    if sign == "—":
        fits = not (text[at - 1 : at].isdecimal() and text[end].isdecimal())
    elif sign in "–-":
        fits = text[at - 1 : at].isspace() and text[end].isspace()
    else:
        fits = text[end].isspace()
    return Verdict("cut", end) if fits and _weight(text[:at]) >= CLAUSE_CHARS else go


def _number(text: str, after: int, word: str, before: str, begins: str | None) -> Verdict:
    """Judge a full stop after a whole number: an ordinal (3. Oktober, das 2. Mal), or the end of a sentence."""
    go, cut = Verdict("go", after), Verdict("cut", after)
    if begins is None:
        return WAIT
    if begins.islower() or len(word) > 3:
        return go if begins.islower() else cut
    if begins.isdecimal():
        return go if len(word) <= 2 else cut
    found = _NEXT_WORD.match(text, after)
    if found is None:
        return cut
    if found.end() == len(text):
        return WAIT if found.end() - after < LONGEST_RUN else cut
    following = found[1].lower()
    after_article = before.lower().strip(_LEADING) in known.ORDINAL_BEFORE
    ordinal = following in known.MONTHS or (after_article and following not in known.STARTERS)
    return go if ordinal else cut


def _after_hour(text: str, after: int) -> Verdict:
    """Go on to what tells more of a time: a day, a month, or a zone such as PST."""
    found = _NEXT_WORD.match(text, after)
    if found is None:
        return Verdict("cut", after)
    if found.end() == len(text):
        return WAIT if found.end() - after < LONGEST_RUN else Verdict("cut", after)
    word = found[1]
    return Verdict("go" if word.lower() in known.DAYS | known.MONTHS or _ZONE.fullmatch(word) else "cut", after)


def _unless_starter(text: str, after: int) -> Verdict:
    """Go on, unless the next word begins many sentences."""
    found = _NEXT_WORD.match(text, after)
    if found is None:
        return Verdict("cut", after)
    if found.end() == len(text):
        return WAIT if found.end() - after < LONGEST_RUN else Verdict("go", after)
    initial = len(found[1]) == 1 and text[found.end()] == "."
    return Verdict("cut" if found[1].lower() in known.STARTERS and not initial else "go", after)


def _word(text: str, at: int) -> tuple[str, str]:
    """Return the word that ends at `at`, without quotes and markup around it, and the word before it."""
    words = text[max(0, at - LONGEST_RUN) : at].split()
    if not words or text[at - 1].isspace():
        return "", ""
    word = re.split(r"[—–/(\[“„\"]", words[-1].rstrip(_MARKUP))[-1].strip(_LEADING)
    word = _ELISION.sub("", word)
    return word, words[-2] if len(words) > 1 else ""


def _plain_word(text: str, at: int) -> bool:
    """Tell whether the full stop at `at` follows an ordinary word, which nothing but a new sentence can follow."""
    token = (text[max(0, at - LONGEST_RUN) : at].split() or [""])[-1]
    word, low = token.strip(_LEADING), token.strip(_LEADING).lower()
    if low in known.ALWAYS | known.BEFORE_NUMBER | known.OFTEN_LAST or low.endswith("str") or _ROMAN.fullmatch(word):
        return False
    if len(word) <= 4 and low not in known.SHORT_LAST:  # "Sat.", "tbsp.", "www.": the next sign will tell
        return False
    letters = word.replace("-", "").replace("’", "").replace("'", "")
    return not text[at - 1 : at].isspace() and len(word) > 1 and letters.isalpha()


def _first_letter(text: str, at: int) -> str | None:
    """Return the first sign from `at` on that is neither space, markup nor opening quote; None: not there yet."""
    limit = at + LONGEST_RUN
    while at < min(len(text), limit) and (text[at].isspace() or text[at] in "*_~`\"'“„«‘([¿¡"):
        at += 1
    return text[at] if at < len(text) else None


def _is_wide(sign: str) -> bool:
    return sign >= "\u2e80"


def _has_kana(text: str) -> bool:
    return any("\u3040" <= sign <= "\u30ff" for sign in text)


def _weight(text: str) -> int:
    return sum((3 if _is_wide(sign) else 1) for sign in text if sign.isalnum())
