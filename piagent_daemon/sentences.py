"""A reply as it grows, sentence by sentence, as it is to be spoken: the incremental side of `speech`. Pure.

What Markdown leaves open (a code block, a table, a link, thinking) is waited for, so that nothing of it is ever spoken.
Own code and not a Markdown parser, because those want the whole text.
"""

import re
from typing import Final, Literal

from piagent_daemon import speech
from piagent_daemon.boundaries import REACH, Finder

LONGEST: Final = 600
"""A sentence that does not end is cut at white space before this many characters."""
SLACK: Final = REACH + 16
PIECE: Final = 1000
HEAD: Final = 300
"""A line must have said what it is after so many characters."""
CONTEXT: Final = 500

_OPENINGS: Final = {"<think>": "</think>", "<thinking>": "</thinking>", "<reasoning>": "</reasoning>", "<!--": "-->"}
_THOUGHT_TAGS: Final = (*_OPENINGS, "</think>", "</thinking>", "</reasoning>")
_MARKER: Final = re.compile(r"(?:[-*+•]|#{1,6})(?:\s+|$)|>\s*|\[[ xX]\]\s+")
_BARE_MARKER: Final = re.compile(r"(?:[-*+•]|#{1,6}|\[|\[[ xX]\]?)?")
_NUMBER_BEGINS: Final = re.compile(r"\d{1,9}[.)]?")
_RULERS, _TABLERS = frozenset("-*_="), frozenset("|:-")
_RULE: Final = re.compile(r"[-*_=\s]+")
_TABLE_RULE: Final = re.compile(r"[\s|:-]+")
_NUMBER: Final = re.compile(r"\d{1,9}[.)](?:\s|$)")
_STRAY: Final = ".!?:;,…*_~) ”»’\"'"

Mode = Literal["head", "text", "drop"]


class Splitter:
    """Takes a reply in pieces of any size and gives its sentences, ready to be spoken, as soon as each is certain.

    The first may be a clause, so that speaking can begin. `ends` tells for each sentence how much of the reply, in
    characters, was heard once it was spoken. `said` are the sentences with the white space between them.
    """

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.said: list[str] = []
        self._finder = Finder()
        self._ready: list[str] = []
        self._read = self._raw = 0
        self._held = ""
        self._thought = ""
        self._mode: Mode = "head"
        self._head = ""
        self._fence = ""
        self._table = self._heading = self._hurried = False
        self._text = ""
        self._line = self._row = 0
        self._anchors: list[tuple[int, int]] = []
        self._glue = ""
        self._context = ""

    def feed(self, text: str) -> list[str]:
        """Take the next piece of the reply; return the sentences that are now complete."""
        for start in range(0, len(text), PIECE):
            piece = text[start : start + PIECE]
            self._read += len(piece)
            self._held += piece
            self._take()
        return self._hand_out()

    def hurry(self) -> list[str]:
        """Return the first sentence or clause if it seems to end where the reply has come to, without being certain.

        Call it when no more text is there at the moment. White space in the result may then differ from `feed`'s.
        """
        if self.ends or self._row > 0 or self._held or self._mode != "text":
            return []
        if end := self._finder.likely(self._text, clauses=True):
            self._cut(end)
            self._hurried = True
        return self._hand_out()

    def close(self) -> list[str]:
        """End the reply; return what is left of it."""
        if not self._thought:
            rest, self._held = self._held, ""
            self._lines(rest)
        if self._mode == "head":
            self._classify(complete=True)
        self._end_block(last=True)
        return self._hand_out()

    def _hand_out(self) -> list[str]:
        ready, self._ready = self._ready, []
        return ready

    # ----------------------------------------------------------------------------------------------------- thoughts

    def _take(self) -> None:
        """Pass on what is held, without thoughts and comments, up to what may be the beginning of one."""
        while self._held:
            if self._thought:
                end = self._held.find(self._thought)
                if end < 0:
                    self._held = self._held[-len(self._thought) + 1 :]
                    return
                self._held = " " + self._held[end + len(self._thought) :]
                self._thought = ""
            at = self._held.find("<")
            if at < 0:
                at = len(self._held)
            text, self._held = self._held[:at], self._held[at:]
            self._lines(text)
            tag = next((tag for tag in _THOUGHT_TAGS if self._held.startswith(tag)), "")
            if tag:
                self._thought = _OPENINGS.get(tag, "")
                self._held = ("" if self._thought else " ") + self._held[len(tag) :]
            elif any(tag.startswith(self._held) for tag in _THOUGHT_TAGS):
                return
            else:
                sign, self._held = self._held[:1], self._held[1:]
                self._lines(sign)

    # -------------------------------------------------------------------------------------------------------- lines

    def _lines(self, text: str) -> None:
        while text:
            line, newline, text = text.partition("\n")
            self._raw = self._read - len(self._held) - len(text)
            while self._mode == "head" and (line or newline):
                room = HEAD + 1 - len(self._head)
                self._head, line = (self._head + line[:room]).lstrip(), line[room:]
                self._classify(complete=bool(newline) and not line)
                if not line:
                    break
            if self._mode == "text" and line:
                self._add(line)
            if newline:
                self._end_line()

    def _end_line(self) -> None:
        if self._mode == "text":
            self._add("\n")
            if self._heading:
                self._end_block()
        self._mode, self._head, self._heading = "head", "", False

    def _classify(self, *, complete: bool) -> None:
        """Decide what the line is that begins with `head`, or leave it open; `complete`: that is all of it."""
        head = self._head
        lead = head[:1]
        decided = complete or len(head) > HEAD
        if self._fence:
            self._in_fence(decided=decided, complete=complete)
        elif not head:
            if complete:
                self._end_block()
                self._table = False
        elif lead in "`~":
            mark = _fence(head, decided=decided)
            if mark:
                self._drop(fence=mark)
            elif mark is not None:
                self._begin(complete=decided)
        elif lead in _RULERS and _RULE.fullmatch(head):
            if decided:
                self._drop()
                self._table = False
        elif lead in _TABLERS and _TABLE_RULE.fullmatch(head):
            self._table_rule(decided=decided)
        elif lead == "|" or (self._table and "|" in head):
            self._drop()
        elif decided or not self._table:
            self._table = False
            self._begin(complete=decided)

    def _in_fence(self, *, decided: bool, complete: bool) -> None:
        if complete and self._head.startswith(self._fence) and not self._head.strip().strip(self._fence[0]):
            self._fence = ""
        elif decided or self._head.strip(f"{self._fence[0]} \t"):
            self._mode = "drop"

    def _table_rule(self, *, decided: bool) -> None:
        if not decided:
            return
        if "|" in self._head and "-" in self._head:
            if self._row > 0:
                self._text = self._text[: self._line]
            self._drop()
            self._table = True
        elif self._head[0] == "|":
            self._drop()
        else:
            self._begin(complete=True)

    def _drop(self, *, fence: str = "") -> None:
        self._end_block()
        self._fence = fence
        self._mode = "drop"

    def _begin(self, *, complete: bool) -> None:
        """Take the line as text, without the marks of lists, quotes and headings."""
        rest, marked, heading = self._head, False, False
        while not (not complete and _BARE_MARKER.fullmatch(rest)) and (marker := _MARKER.match(rest)):
            marked = True
            heading = heading or "#" in marker[0]
            rest = rest[marker.end() :]
        if not complete and (_BARE_MARKER.fullmatch(rest) or _NUMBER_BEGINS.fullmatch(rest)):
            return
        if marked or _NUMBER.match(rest):
            self._end_block()
        self._scan()
        self._mode, self._heading, self._row = "text", heading, 0
        self._line = len(self._text)
        self._add(rest)

    # ------------------------------------------------------------------------------------------------------- blocks

    def _add(self, text: str) -> None:
        """Add to the paragraph; from a `|` on, wait until the next line tells whether this was the head of a table.

        `row` counts what waits for that, in characters; it is negative in a line that is too long for a table.
        """
        if not self._row and "|" in text:
            before, pipe, after = text.partition("|")
            self._append(before)
            self._scan()
            text = pipe + after
            self._row = 1
        if self._row > 0:
            part, text = text[: LONGEST - self._row], text[LONGEST - self._row :]
            self._append(part)
            self._row += len(part)
            if self._row < LONGEST:
                return
            self._row = -1
        self._append(text)
        self._scan()

    def _append(self, text: str) -> None:
        if text:
            self._text += text
            self._anchors.append((len(self._text), self._raw))

    def _scan(self, *, whole: bool = False) -> None:
        """Cut off every sentence whose end is certain; `whole`: no more text will come."""
        while True:
            end = self._finder.find(self._text, clauses=not self.ends)
            if 0 < end <= LONGEST:
                self._cut(end)
            elif len(self._text) > LONGEST + (0 if whole else SLACK):
                end = max(self._text.rfind(" ", 1, LONGEST), self._text.rfind("\n", 1, LONGEST))
                self._cut(end if end > 0 else LONGEST)
            elif end and whole:
                self._cut(end)
            else:
                return

    def _end_block(self, *, last: bool = False) -> None:
        """End a paragraph, heading or item; one that ends without a stop gets it, so that the voice pauses there."""
        self._text += "\n"
        self._scan(whole=True)
        if self._finder.stuck(self._text):
            self._finder.reset(fresh=self._finder.fresh, lenient=True)
            self._scan(whole=True)
        self._say(self._text, self._raw_at(len(self._text)), stop=not last)
        self._text, self._line, self._row, self._glue = "", 0, 0, " "
        self._anchors.clear()
        self._finder.reset()

    def _cut(self, end: int) -> None:
        self._say(self._text[:end], self._raw_at(end), stop=False)
        self._text = self._text[end:]
        self._line = max(0, self._line - end)
        self._anchors = [(index - end, raw) for index, raw in self._anchors if index > end]
        self._finder.reset(fresh=False, lenient=self._finder.lenient)

    def _raw_at(self, index: int) -> int:
        """Return how far in the reply the sign before `index` of the paragraph was."""
        last = self._anchors[-1][1] if self._anchors else self._raw
        return next((raw - (at - index) for at, raw in self._anchors if at >= index), last)

    def _say(self, markdown: str, end: int, *, stop: bool) -> None:
        text = speech.speakable(markdown, context=self._context)
        self._context = (self._context + markdown)[-CONTEXT:]
        if markdown[:1].isspace():
            self._glue = " "
        if self._hurried and not markdown[:1].isspace():  # the rest of the sign that seemed to be the end
            text = text.lstrip(_STRAY)
        if not any(sign.isalnum() for sign in text):
            return
        if stop:
            text = speech.stopped(text)
        self.said.append(self._glue + text if self.said else text)
        self._glue, self._hurried = "", False
        self.ends.append(end)
        self._ready.append(text)


def _fence(head: str, *, decided: bool) -> str | None:
    """Return the fence that opens a code block, "" when the line is none, or None when that is not known yet."""
    mark = head[: len(head) - len(head.lstrip(head[0]))]
    if mark == head and not decided:
        return None
    if len(mark) < 3 or (mark[0] == "`" and "`" in head[len(mark) :]):
        return ""
    return mark if decided or mark[0] == "~" else None
