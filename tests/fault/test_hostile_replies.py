"""A model that says one thing for ever: no reader of its answer may take long over it."""

import re
import time

import pytest

from piagent_daemon.sentences import Splitter
from piagent_daemon.speech import expects_reply, speakable
from tests.fakes.hostile import HEADS, PIECES

each = pytest.mark.parametrize("piece", PIECES)


@each
def test_a_whole_reply_takes_no_time(piece: str) -> None:
    text = (piece * 100_000)[:100_000]
    start = time.process_time()
    speakable(text)
    speakable(f"{text}\nx")
    expects_reply(text)
    assert time.process_time() - start < 1.5  # at most 0.5 on a quiet machine; anything quadratic takes seconds


@pytest.mark.parametrize("head", HEADS)
@each
def test_what_begins_and_never_ends_takes_no_time(head: str, piece: str) -> None:
    text = head + (piece * 20_000)[:20_000]
    start = time.process_time()
    speakable(text)
    assert time.process_time() - start < 0.5  # at most 0.1 on a quiet machine; anything quadratic takes a second


@each
def test_a_reply_that_comes_piece_by_piece_takes_no_time(piece: str) -> None:
    text = (piece * 6_000)[:6_000]
    start = time.process_time()
    for pieces in ([text], re.findall(r"(?s).{1,3}", text)):
        splitter = Splitter()
        for one in pieces:
            splitter.feed(one)
        splitter.close()
    assert time.process_time() - start < 1  # about 0.05 on a quiet machine; anything quadratic takes much longer
