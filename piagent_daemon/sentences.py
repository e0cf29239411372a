"""A reply as it grows, sentence by sentence, as it is to be spoken: the incremental side of `speech`. Pure.

What Markdown leaves open (a code block, a link, thinking) is waited for. Only the words before the first `|` of a
table's head may be spoken, when they end a sentence: the head is known for one by the line below it.
"""

from typing import Final

from piagent_daemon import speech
from piagent_daemon.boundaries import REACH, Finder
from piagent_daemon.markup import Reader

LONGEST: Final = 600
"""A sentence that does not end is cut at white space before this many characters."""
SLACK: Final = REACH + 16
CONTEXT: Final = 500

_STRAY: Final = ".!?:;,…*_~) ”»’\"'"


class Splitter:
    """Takes a reply in pieces of any size and gives its sentences, ready to be spoken, as soon as each is certain.

    The first may be a clause, so that speaking can begin. `ends` tells for each sentence how much of the reply, in
    characters, was heard once it was spoken. `said` are the sentences with the white space between them.
    """

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.said: list[str] = []
        self._finder = Finder()
        self._reader = Reader(self)
        self._ready: list[str] = []
        self._hurried = False
        self._text = ""
        self._line = self._row = 0
        self._anchors: list[tuple[int, int]] = []
        self._glue = ""
        self._context = ""

    @property
    def begun(self) -> bool:
        """Tell whether a word of the reply has come that is to be spoken."""
        return bool(self.said) or any(sign.isalnum() for sign in self._text)

    def feed(self, text: str) -> list[str]:
        """Take the next piece of the reply; return the sentences that are now complete."""
        self._reader.feed(text)
        return self._hand_out()

    def hurry(self) -> list[str]:
        """Return the first sentence or clause if it seems to end where the reply has come to, without being certain.

        Call it when no more text is there at the moment. White space in the result may then differ from `feed`'s.
        """
        if self.ends or self._row > 0 or self._reader.waits:
            return []
        if end := self._finder.likely(self._text, clauses=True):
            self._cut(end)
            self._hurried = True
        return self._hand_out()

    def close(self) -> list[str]:
        """End the reply; return what is left of it."""
        self._reader.close()
        self._end(last=True)
        return self._hand_out()

    def _hand_out(self) -> list[str]:
        ready, self._ready = self._ready, []
        return ready

    # ------------------------------------------------------------------------------------- what the reader tells us

    def begin(self, text: str) -> None:
        """Take the beginning of a line; the line before it was no head of a table."""
        self._scan()
        self._row = 0
        self._line = len(self._text)
        self.add(text)

    def add(self, text: str) -> None:
        """Add to the paragraph; from a `|` on, wait until the next line tells whether this was the head of a table.

        `row` counts what waits for that, in characters; it is negative in a line that is too long for a table.
        """
        if not self._row and "|" in text:
            at = text.index("|")
            self._append(text[:at], left=len(text) - at)
            self._scan()
            text, self._row = text[at:], 1
        if self._row > 0:
            room = LONGEST - self._row
            self._append(text[:room], left=len(text[room:]))
            self._row += len(text[:room])
            if self._row < LONGEST:
                return
            text, self._row = text[room:], -1
        self._append(text)
        self._scan()

    def table(self) -> None:
        """Take the newest line back."""
        if self._row > 0:
            self._text = self._text[: self._line]

    def unsaid(self) -> None:
        """Go on: what was taken for an answer may have been spoken already."""

    def end(self) -> None:
        """End a paragraph, heading or item; one that ends without a stop gets it, so that the voice pauses there."""
        self._end(last=False)

    # ---------------------------------------------------------------------------------------------------- sentences

    def _append(self, text: str, *, left: int = 0) -> None:
        """Add to the paragraph; `left`: so much of what the reader told is still to be added."""
        if text:
            self._text += text
            self._anchors.append((len(self._text), self._reader.raw - left))

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

    def _end(self, *, last: bool) -> None:
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
        last = self._anchors[-1][1] if self._anchors else self._reader.raw
        return next((raw - (at - index) for at, raw in self._anchors if at >= index), last)

    def _say(self, markdown: str, end: int, *, stop: bool) -> None:
        text = speech.cleaned(markdown, context=self._context)
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
