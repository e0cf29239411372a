"""What the commands know of the terminal: colours, safe text, what is typed, and where notes go."""

import io
import os
import sys
from typing import Final, Literal, TextIO

from piagent_daemon.cli import writing
from piagent_daemon.errors import PiagentError

Style = Literal["bold", "dim", "red", "green", "yellow", "cyan"]

_CODES: Final[dict[Style, str]] = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

# A model's text may hold escape sequences (they retitle windows, hide text, answer to the shell): controls other than
# newline and tab become visible pictures (U+2400 …), C1 controls and the signs that turn the direction of what follows
# the replacement character, carriage returns vanish.
_NEUTRAL: Final = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t\r"},
    0x0D: None,
    0x7F: 0x2421,
    **dict.fromkeys((*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD),
}


def neutral(text: str) -> str:
    """Return `text` without anything that a terminal would obey."""
    return text.translate(_NEUTRAL)


class Terminal:
    """One output stream; colours and neutralising apply only when it is a terminal (see https://no-color.org)."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.interactive = stream.isatty()
        self.colour = self.interactive and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.at_line_start = True
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:  # a character that the terminal's encoding lacks must not end an answer
            reconfigure(errors="replace")

    def paint(self, text: str, style: Style) -> str:
        """Return `text` in a style where the stream shows colours, else as it is."""
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self.colour else text

    def write(self, text: str) -> None:
        """Write a piece of foreign text at once; exact for pipes and files, neutral on a terminal."""
        if text:
            self._put(neutral(text) if self.interactive else text)
            self.at_line_start = text.endswith("\n")

    def line(self, text: str = "", style: Style | None = None) -> None:
        """Write one line, beginning a new one when an unfinished one stands there."""
        self.end_line()
        shown = neutral(text) if self.interactive else text
        self._put((self.paint(shown, style) if style else shown) + "\n")

    def end_line(self) -> None:
        """Finish the line when text stands on it."""
        if not self.at_line_start:
            self._put("\n")
            self.at_line_start = True

    def _put(self, text: str) -> None:
        with writing(self._stream):
            self._stream.write(text)
            self._stream.flush()


def stdin() -> TextIO:
    """Return standard input; call it before anything is read. Bytes that are no text become replacement characters."""
    if sys.stdin is None:  # somebody closed it
        sys.stdin = io.StringIO()
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure:
        reconfigure(errors="replace")
    return sys.stdin


def stdout() -> Terminal:
    """Return standard output; PiagentError when somebody closed it."""
    if sys.stdout is None:
        raise PiagentError("stdout is closed: there is nowhere to write to")
    return Terminal(sys.stdout)


def stderr() -> Terminal:
    return Terminal(sys.stderr or io.StringIO())
