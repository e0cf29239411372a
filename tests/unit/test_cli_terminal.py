"""Colours and foreign text on a terminal, in a pipe, and under NO_COLOR."""

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon.cli.terminal import Terminal, neutral

TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""What turns the direction of the text behind it."""


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


@given(st.text() | st.text(alphabet=TURNS))
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    shown = neutral(text)
    assert not [char for char in shown if unicodedata.category(char) == "Cc" and char not in "\n\t"]
    assert not [char for char in shown if char in TURNS]


@given(st.text(alphabet=st.characters(exclude_categories=["Cc"], exclude_characters=TURNS)))
def test_other_text_stays_as_it_is(text: str) -> None:
    assert neutral(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", "␛]0;owned␇"),
        ("a\x1b[2Jb", "a␛[2Jb"),
        ("one\r\ntwo\tthree", "one\ntwo\tthree"),
        ("secret\rshown", "secretshown"),
        ("\x9b31m", "\ufffd31m"),
        ("\x7f\x00", "␡␀"),
        ("Grüße 🌍", "Grüße 🌍"),
        ("run \u202egpj.sh\u202c", "run \ufffdgpj.sh\ufffd"),
        ("\u2067a\u2069 שלום\u200f", "\ufffda\ufffd שלום\u200f"),
    ],
)
def test_escape_sequences_become_visible(text: str, shown: str) -> None:
    screen = Screen()
    Terminal(screen).write(text)
    assert screen.getvalue() == shown


def test_a_pipe_gets_the_exact_text_and_no_colour() -> None:
    pipe = io.StringIO()
    out = Terminal(pipe)
    out.write("\x1b[2J\r\n")
    out.line("done", "green")
    assert pipe.getvalue() == "\x1b[2J\r\ndone\n"


def test_colours_on_a_terminal() -> None:
    screen = Screen()
    Terminal(screen).line("no\x1b", "red")
    assert screen.getvalue() == "\x1b[31mno␛\x1b[0m\n"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours_where_they_are_unwanted(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    screen = Screen()
    Terminal(screen).line("no", "red")
    assert screen.getvalue() == "no\n"


def test_a_line_begins_on_a_line_of_its_own() -> None:
    screen = Screen()
    out = Terminal(screen)
    out.write("half")
    out.line("whole")
    out.write("done\n")
    out.end_line()
    assert screen.getvalue() == "half\nwhole\ndone\n"


def test_what_the_encoding_lacks_ends_nothing() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Terminal(stream).write("Grüße \ud800\n")
    assert raw.getvalue() == b"Gr??e ?\n"
