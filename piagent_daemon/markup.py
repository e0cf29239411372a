"""Which lines of a growing Markdown text are for ears: paragraphs without thinking, code, tables, rules and formulas.

Pure. One reader for both, a whole reply and one that still grows; own code and not a Markdown parser, because those
want the whole text. Closer to what models write than to CommonMark: code may begin behind the text of a line.
"""

import re
from typing import Final, Literal, Protocol

PIECE: Final = 1000
HEAD: Final = 300
"""A line must have said what it is after so many characters."""
SPAN: Final = 2000
"""How far the end of a formula is looked for, in characters."""
LONGEST_FENCE: Final = 8
INDENT: Final = 4
DEEPEST: Final = 2 * INDENT  # white space before a line is not counted any further

_TAGS: Final = ("<think>", "<thinking>", "<reasoning>", "<!--", "</think>", "</thinking>", "</reasoning>")
_TAG: Final = re.compile(r"<(?:(/?)(think|thinking|reasoning)>|!--)", re.IGNORECASE | re.ASCII)
_SPECIAL: Final = re.compile(r"<(?=[/!trTR]|\Z)|`{3,}|`{1,2}\Z|\$\$|\$\Z|\\\[|\\\Z")
_LONGEST_CLOSING: Final = len("</reasoning>")
_FORMULA_ENDS: Final = {"$$": re.compile(r"\$\$|\n[ \t]*\n"), "\\[": re.compile(r"\\\]|\n[ \t]*\n")}

_FORMULA: Final = re.compile(r"[\\^_={}]")
_OTHER: Final = re.compile(r"[\n`<]")
_LANGUAGE: Final = re.compile(r"\s*[\w+#.-]*\s*")
_CODE: Final = re.compile(r".*[={};()<>$|\\].*|[^A-Z\u00c0-\u00de]*[^.,!?…]")  # verse and postal addresses are none

_WIDE: Final = "\u2e80-\u9fff\uac00-\ud7af\uff00-\uffef"
_MARKER: Final = re.compile(r"(?:[-*+•●○◦‣▪·–—]|#{1,6})(?:\s+|$)|>\s*|\[[ xX]\]\s+")
_MARKER_BEGINS: Final = re.compile(r"(?:[-*+•●○◦‣▪·–—]|#{1,6}|\[|\[[ xX]\]?)?")
_NUMBER: Final = re.compile(
    rf"\d{{1,9}}[.)](?:\s+|$)|\(\d{{1,3}}\)\s+|[A-Za-z]\)\s+"
    rf"|\d{{1,3}}(?:[.)](?=[{_WIDE}])|[、．）])|[一二三四五六七八九十]{{1,3}}、"
)
_NUMBER_BEGINS: Final = re.compile(r"\d{1,9}[.)]?|\(\d{0,3}\)?|[A-Za-z]\)?|[一二三四五六七八九十]{1,3}")
_RULE: Final = re.compile(r"[-*_=\s]+")
_TABLE_RULE: Final = re.compile(r"[\s|:-]+")
_RULERS, _TABLERS = frozenset("-*_="), frozenset("|:-")
_DEFINITION: Final = re.compile(
    r"\[\^[^\[\]\s]+\]:.*|\[[^\[\]]+\]:\s*(?:<[^<>]*>|\S*(?:://|#|@|[^\W\d]\.[^\W\d]{2})\S*)"
    r"(?:\s+(?:\"[^\"]*\"|'[^']*'|\([^()]*\)))?\s*"
)
"""`[1]: https://x.y "Title"`, and the text of a footnote."""
_DEFINITION_BEGINS: Final = re.compile(r"\[[^\[\]]*(?:\]|\]:.*)?")

Mode = Literal["head", "text", "drop"]


class Listener(Protocol):
    """Takes what is for ears."""

    def begin(self, text: str) -> None:
        """Take the beginning of a line of the paragraph."""

    def add(self, text: str) -> None:
        """Take more of the line."""

    def end(self) -> None:
        """End the paragraph, heading or list item, if there is one."""

    def table(self) -> None:
        """Note that the newest line, if it has a `|`, was the head of a table and is not for ears."""

    def unsaid(self) -> None:
        """Note that all so far was thinking."""


class Reader:
    """Takes a text in pieces of any size and tells a listener what of it is for ears.

    `raw` tells how much of the text, in characters, the listener has heard about.
    """

    def __init__(self, listener: Listener) -> None:
        self.raw = 0
        self._listener = listener
        self._read = 0
        self._held = ""
        self._until = ""
        self._unclosed = 0
        self._mode: Mode = "head"
        self._head = self._tail = ""
        self._fence = ""
        self._quoted = self._heading = False
        self._begun = self._table = self._list = self._code = self._blank = self._pipe = False

    @property
    def waits(self) -> bool:
        """Tell whether there is text of which the listener does not know yet."""
        return bool(self._held) or self._mode != "text"

    def feed(self, text: str) -> None:
        """Take the next piece."""
        for start in range(0, len(text), PIECE):
            piece = text[start : start + PIECE]
            self._read += len(piece)
            self._held += piece
            self._take(last=False)

    def close(self) -> None:
        """End the text; the last paragraph is left for the listener to end."""
        self._take(last=True)
        if self._mode == "head":
            self._classify(complete=True)

    # -------------------------------------------------------------------------- what is left out wherever it stands

    def _take(self, *, last: bool) -> None:
        """Pass on what is held, without thoughts, formulas and code, up to what may be the beginning of one."""
        while self._held:
            if self._until:
                found = re.search(re.escape(self._until), self._held, re.IGNORECASE | re.ASCII)
                if not found:
                    self._held = "" if last else self._held[-_LONGEST_CLOSING:]
                    return
                self._held, self._until = " " + self._held[found.end() :], ""
            found = _SPECIAL.search(self._held)
            if found is None:
                self._pass_on(len(self._held))
                return
            self._pass_on(found.start())
            if not self._special(last=last):
                return

    def _pass_on(self, count: int) -> None:
        text, self._held = self._held[:count], self._held[count:]
        self._lines(text)

    def _special(self, *, last: bool) -> bool:
        """Deal with the sign that `held` begins with; return False when the text has to go on first."""
        held = self._held
        fenced = self._fence or self._mode == "drop"
        if held[0] == "<" and not fenced:
            return self._thought(last=last)
        if held.startswith("```") and self._mode == "text":
            return self._loose_code(last=last)
        if not fenced and held[:2] in _FORMULA_ENDS:
            return self._formula(last=last)
        partial = self._mode == "text" if held[0] == "`" else len(held) == 1 and not fenced
        if partial and len(held) < 3 and not last:
            return False
        self._pass_on(1)
        return True

    def _thought(self, *, last: bool) -> bool:
        quoted = (self._tail if self._mode == "text" else self._head).endswith("`")
        tag = None if quoted else _TAG.match(self._held)
        if tag is None:
            if not (last or quoted) and any(each.startswith(self._held.lower()) for each in _TAGS):
                return False
            self._pass_on(1)
            return True
        self._held = self._held[tag.end() :]
        if tag[1]:
            self._listener.unsaid()
            self._held = " " + self._held
        else:
            self._until = f"</{tag[2]}>" if tag[2] else "-->"
        return True

    def _loose_code(self, *, last: bool) -> bool:
        """Leave out code that begins behind the text of a line; what is closed in its line is a word of the text."""
        run = len(self._held) - len(self._held.lstrip("`"))
        fence = "`" * min(run, LONGEST_FENCE)
        close, newline = self._held.find(fence, run, SPAN), self._held.find("\n", run, SPAN)
        if close >= 0 and not 0 <= newline < close:
            self._pass_on(close + len(fence))
        elif newline >= 0 and _LANGUAGE.fullmatch(self._held, run, newline):
            self._listener.end()
            self._until, self._held = fence, self._held[run:]
        elif newline >= 0 or last or len(self._held) >= SPAN:
            self._pass_on(run)
        else:
            return False
        return True

    def _formula(self, *, last: bool) -> bool:
        """Leave out a formula that stands by itself: `$$…$$`, or `\\[…\\]` that is not only escaped brackets."""
        opening, after = self._held[:2], self._held[2:3]
        if not (after or last):
            return False
        escaped = opening == "\\[" and self._mode != "head" and not after.isspace()
        begin = self._read - len(self._held)
        if escaped or after == "`" or begin < self._unclosed:
            self._pass_on(2)
            return True
        found = _FORMULA_ENDS[opening].search(self._held, 2, SPAN)
        if found and not found[0].isspace():
            if opening == "$$" and self._mode != "head" and not _OTHER.search(self._held, 2, found.start()):
                self._pass_on(found.end())  # in running text it is made speakable
            elif _FORMULA.search(self._held, 2, found.start()):
                self._held = " " + self._held[found.end() :]
            else:
                self._pass_on(2)
        elif found or last or len(self._held) >= SPAN:
            self._unclosed = begin + (found.start() if found else SPAN) if opening == "\\[" else 0
            self._pass_on(2)
        else:
            return False
        return True

    # -------------------------------------------------------------------------------------------------------- lines

    def _lines(self, text: str) -> None:
        while text:
            line, newline, text = text.partition("\n")
            end = self._read - len(self._held) - len(text)
            while self._mode == "head" and (line or newline):
                room = HEAD + 1 - len(self._head)
                head, line = self._head + line[:room], line[room:]
                self.raw = end - len(newline) - len(line)
                indent = len(head) - len(head.lstrip())
                self._head = head if indent <= DEEPEST else head[indent - DEEPEST :]
                self._classify(complete=bool(newline) and not line)
                if not line:
                    break
            self.raw = end - len(newline)
            if self._mode == "text" and line:
                self._listener.add(line)
                self._note(line)
            self.raw = end
            if newline:
                self._end_line()

    def _note(self, text: str) -> None:
        self._tail = (self._tail + text[-2:])[-2:]
        self._pipe = self._pipe or "|" in text

    def _end_line(self) -> None:
        if self._mode == "text":
            self._listener.add("\n")
            if self._heading or (not self._pipe and self._tail.endswith(("  ", "\\"))):
                self._listener.end()
        self._mode, self._head, self._tail, self._heading, self._pipe = "head", "", "", False, False

    def _classify(self, *, complete: bool) -> None:
        """Decide what the line is that begins with `head`, or leave it open; `complete`: that is all of it."""
        head = self._head.lstrip()
        decided = complete or len(self._head) > HEAD
        if self._fence:
            self._in_fence(head, decided=decided, complete=complete)
        elif not head:
            if complete:
                self._listener.end()
                self._table, self._blank = False, self._begun
        elif not self._odd(head, decided=decided):
            self._marked(head, decided=decided)

    def _marked(self, head: str, *, decided: bool) -> None:
        """Look behind the marks of lists, quotes and headings."""
        rest = head
        while (marker := _MARKER.match(rest)) and (decided or not _MARKER_BEGINS.fullmatch(rest)):
            rest = rest[marker.end() :]
        number = _NUMBER.match(rest)
        body = rest[number.end() :] if number else rest
        if not decided and (not body or _MARKER_BEGINS.fullmatch(rest) or _NUMBER_BEGINS.fullmatch(rest)):
            return
        marks = head[: len(head) - len(rest)]
        if body != head and body and self._odd(body, decided=decided):
            return
        if body[:1] in {"`", "~"} and (mark := _fence(body, decided=decided)) != "":
            if mark:
                self._drop()
                self._fence, self._quoted = mark, ">" in marks
        elif body.startswith("[") and _DEFINITION_BEGINS.fullmatch(body):
            if decided or body.startswith("[^"):
                self._definition(rest, marks, body, number=bool(number), decided=decided)
        else:
            self._begin(rest, marks, number=bool(number), decided=decided)

    def _definition(self, rest: str, marks: str, body: str, *, number: bool, decided: bool) -> None:
        if _DEFINITION.fullmatch(body):
            self._drop()
        elif decided:
            self._begin(rest, marks, number=number, decided=True)

    def _odd(self, line: str, *, decided: bool) -> bool:
        """Deal with a rule or a row of a table, also one that is not certain yet; tell whether it was one."""
        lead = line[0]
        if lead in _RULERS and _RULE.fullmatch(line):
            if decided:
                self._drop()
                self._table = False
        elif lead in _TABLERS and _TABLE_RULE.fullmatch(line):
            if not decided:
                return True
            if "|" not in line:
                return False
            if "-" in line:
                self._listener.table()
                self._table = True
            self._drop()
        elif "|" in line and (self._table or (lead == "|" and _is_row(line))):
            if decided or self._table:
                self._drop()
        elif lead != "|" or decided:
            return self._table and not decided
        return True

    def _drop(self) -> None:
        self._listener.end()
        self._mode, self._blank, self._begun = "drop", False, True

    def _begin(self, rest: str, marks: str, *, number: bool, decided: bool) -> None:
        """Take the line as text; behind four spaces it may be code, unless it belongs to a list or looks like verse."""
        indent = len(self._head.expandtabs(INDENT)) - len(self._head.expandtabs(INDENT).lstrip())
        item = number or bool(marks.strip("#> \t"))
        if indent >= INDENT and not (marks or number or self._list) and (self._blank or self._code):
            if decided and (self._code or _CODE.fullmatch(rest.rstrip())):
                self._code = True
                self._drop()
            if self._mode == "drop" or not decided:
                return
        if item or (self._blank and indent < 2) or marks:
            self._list = item
        self._code = self._blank = self._table = False
        if marks or number:
            self._listener.end()
        self._mode, self._heading, self._begun = "text", "#" in marks, True
        self._listener.begin(rest)
        self._note(rest)

    def _in_fence(self, head: str, *, decided: bool, complete: bool) -> None:
        if self._quoted and (complete if not head else head[0] != ">"):
            self._fence, self._quoted = "", False
            self._classify(complete=complete)
            return
        line = head.lstrip("> \t") if self._quoted else head
        closes = line.startswith(self._fence) and not any(sign.isalnum() for sign in line)
        if closes and complete:
            self._fence, self._quoted = "", False
        elif decided or not (closes or self._fence.startswith(line)):
            self._mode = "drop"


def _is_row(line: str) -> bool:
    row = line.rstrip()
    return row.endswith("|") and row.count("|") > 2


def _fence(line: str, *, decided: bool) -> str | None:
    """Return the fence that opens a code block, "" when the line opens none, or None when that is not known yet."""
    mark = line[: len(line) - len(line.lstrip(line[0]))]
    if mark == line and not decided:
        return None
    if len(mark) < 3 or (mark[0] == "`" and "`" in line[len(mark) :]):
        return ""
    return mark if decided or mark[0] == "~" else None
