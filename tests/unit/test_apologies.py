"""What is said aloud when there is no answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon import apologies, errors
from piagent_daemon.apologies import UNSPEAKABLE, apology
from piagent_daemon.speech import speakable

CODES = sorted(
    {each.code for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.PiagentError)}
)


@pytest.mark.parametrize("code", [*CODES, UNSPEAKABLE])
def test_every_error_has_a_sentence_that_can_be_spoken(code: str) -> None:
    for language in ("en", "de", "fr", "es", "it", "nl", "zh", "ja"):
        sentence = apology(code, language)
        assert speakable(sentence) == sentence
        assert 8 < len(sentence) < 80
        assert sentence[-1] == ("。" if language in {"zh", "ja"} else ".")


def test_every_language_has_every_sentence() -> None:
    kinds = {frozenset(sentences) for sentences in apologies._SENTENCES.values()}
    assert len(kinds) == 1


@pytest.mark.parametrize(
    ("languages", "begins"),
    [
        ((), "Sorry, my"),
        ((None,), "Sorry, my"),
        (("de",), "Entschuldigung"),
        (("de_CH",), "Entschuldigung"),
        (("DE-at",), "Entschuldigung"),
        ((None, "fr-CA", "de"), "Désolé"),
        (("zh-Hans-CN", "es"), "抱歉"),
        (("ja_JP",), "すみません"),
        (("fi", "es"), "Lo siento"),
        (("fi",), "Sorry, my"),
    ],
)
def test_the_first_language_that_we_speak_is_used(languages: tuple[str | None, ...], begins: str) -> None:
    assert apology("provider_unavailable", *languages).startswith(begins)


def test_the_kinds_differ() -> None:
    kinds = ("provider_unavailable", "busy", "timeout", "invalid_request", "internal", UNSPEAKABLE)
    assert len({apology(code, "en") for code in kinds}) == len(kinds)


@given(st.text(), st.lists(st.none() | st.text()))
def test_whatever_is_asked_for_gives_a_sentence(code: str, languages: list[str | None]) -> None:
    assert apology(code, *languages)
