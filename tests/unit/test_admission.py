"""Phrases that only want silence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon.admission import wants_silence
from piagent_daemon.agents import Agent, load_agents

AGENT = Agent("voice", "Speak.", stop_phrases=("never mind", "Stopp!", "arrête", "别说了", "रुको"))


@pytest.mark.parametrize(
    "message",
    ["never mind", "Never mind.", "NEVER  MIND!!", "nevermind", "…never—mind?", "stopp", "Arrête !", "ARRÊTE",
     "arre\u0302te", "别说了。", "ｎｅｖｅｒ ｍｉｎｄ", "रुको!", "\u200bnever mind"],
)  # fmt: skip
def test_case_punctuation_and_spaces_do_not_matter(message: str) -> None:
    assert wants_silence(AGENT, message)


@pytest.mark.parametrize("message", ["", "?!", "never", "never mind the gap", "stop", "arrete", "说", "mind never"])
def test_everything_else_is_a_question(message: str) -> None:
    assert not wants_silence(AGENT, message)


@given(st.text())
def test_an_agent_without_phrases_never_wants_silence(message: str) -> None:
    assert not wants_silence(Agent("a", "s"), message)
    assert not wants_silence(Agent("a", "s", stop_phrases=("...",)), message)


def test_the_voice_that_comes_along_knows_some_in_several_languages() -> None:
    voice = load_agents(None)["voice"]
    assert all(
        wants_silence(voice, word)
        for word in ("Stop!", "Never mind.", "Vergiss es!", "Arrête.", "¡Para!", "停", "やめて")
    )
    assert not wants_silence(voice, "Stop the music")
