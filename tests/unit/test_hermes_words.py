"""Hermes in, Hermes out: pure translation."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon.doors import hermes_words as words
from piagent_daemon.doors.hermes_words import Question
from piagent_daemon.doors.mqtt_guest import FOREIGN
from piagent_daemon.errors import InvalidRequest

CAPTURED, NOT_RECOGNIZED, QUERY = words.QUESTIONS
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
NAMES = st.sampled_from(["text", "input", "siteId", "sessionId", "id", "lang", "termination", "reason", "customData"])
OBJECTS = st.dictionaries(NAMES | st.text(), JSON | st.dictionaries(NAMES, JSON), max_size=6)


def read(said: words.Said) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said.payload)
    return found


# What Rhasspy 2.5 sends, word for word; then what others leave out.
HEARD: list[tuple[str, dict[str, Any], Question]] = [
    (
        CAPTURED,
        {
            "text": "how warm is it",
            "likelihood": 0.98,
            "seconds": 2.1,
            "siteId": "kitchen",
            "sessionId": "kitchen-porcupine-1",
            "wakewordId": "porcupine",
            "asrTokens": [[{"value": "how", "confidence": 1.0, "rangeStart": 0, "rangeEnd": 3, "time": None}]],
            "lang": None,
        },
        Question("textCaptured", "how warm is it", "kitchen", "kitchen-porcupine-1"),
    ),
    (CAPTURED, {"text": " hi \n"}, Question("textCaptured", "hi")),
    (CAPTURED, {"text": "", "siteId": "", "sessionId": ""}, Question("textCaptured", "")),
    (CAPTURED, {"siteId": "hall"}, Question("textCaptured", "", "hall")),
    (
        NOT_RECOGNIZED,
        {"sessionId": "s1", "input": "tell me a joke", "siteId": "hall", "customData": None},
        Question("intentNotRecognized", "tell me a joke", "hall", "s1"),
    ),
    (NOT_RECOGNIZED, {"sessionId": "s1"}, Question("intentNotRecognized", "", "default", "s1")),
    (
        QUERY,
        {"input": "wie warm ist es", "intentFilter": None, "id": "q1", "siteId": "bad", "lang": "de", "text": "x"},
        Question("query", "wie warm ist es", "bad", None, "q1", "de"),
    ),
    (CAPTURED, {"text": "hi", "id": "no query"}, Question("textCaptured", "hi")),
    (
        NOT_RECOGNIZED,
        {"sessionId": "s1", "input": "hi", "customData": "from the hall"},
        Question("intentNotRecognized", "hi", "default", "s1", custom_data=b'"from the hall"'),
    ),
]


@pytest.mark.parametrize(("topic", "payload", "question"), HEARD)
def test_what_is_heard(topic: str, payload: dict[str, Any], question: Question) -> None:
    assert words.question(topic, json.dumps(payload).encode()) == question


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"how warm is it",
        b'"how warm"',
        b"[1]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"text": 7}',
        b'{"text": "hi", "siteId": ["a"]}',
        b'{"text": "hi", "siteId": "\\ud800"}',
        json.dumps({"text": "hi", "sessionId": "x" * 1001}).encode(),
        json.dumps({"text": "x" * 1_000_000}).encode(),
    ],
)
def test_what_is_no_question_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidRequest):
        words.question(CAPTURED, payload)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"sessionId": "s1", "siteId": "hall", "termination": {"reason": "abortedByUser"}}, "abortedByUser"),
        ({"sessionId": "s1", "termination": "timeout"}, "timeout"),
        ({"sessionId": "s1", "termination": {"reason": 7}}, ""),
        ({"sessionId": "s1"}, ""),
    ],
)
def test_the_end_of_a_session_in_both_forms(payload: dict[str, Any], reason: str) -> None:
    assert words.ended(json.dumps(payload).encode()) == words.Ended("s1", reason)


def test_a_wake_word_belongs_to_a_site() -> None:
    assert words.detected(b'{"modelId": "porcupine", "siteId": "hall"}') == "hall"
    assert words.detected(b"{}") == "default"
    assert words.is_hotword("hermes/hotword/hey jarvis/detected")
    assert not words.is_hotword("hermes/hotword/toggleOn")
    assert not words.is_hotword("hermes/hotword/a/b/detected")


def test_every_topic_that_is_read_is_known_as_foreign() -> None:
    assert set(FOREIGN) == {*words.QUESTIONS, words.HOTWORD, words.SESSION_ENDED, words.SAY_FINISHED}


ASKED = Question("query", "how warm", "kitchen", "s1", "q1", "de")
ALONE = Question("query", "how warm", "kitchen", None, "q1")


@pytest.mark.parametrize(
    ("said", "topic", "payload"),
    [
        (
            words.end_session(ASKED, "Warm. ☀"),
            "hermes/dialogueManager/endSession",
            {"siteId": "kitchen", "sessionId": "s1", "text": "Warm. ☀"},
        ),
        (
            words.end_session(ASKED),
            "hermes/dialogueManager/endSession",
            {"siteId": "kitchen", "sessionId": "s1"},
        ),
        (
            words.continue_session(ASKED, "Where?"),
            "hermes/dialogueManager/continueSession",
            {"siteId": "kitchen", "sessionId": "s1", "text": "Where?", "sendIntentNotRecognized": True},
        ),
        (
            words.say(ASKED, "Warm.", "u1"),
            "hermes/tts/say",
            {"siteId": "kitchen", "sessionId": "s1", "text": "Warm.", "id": "u1", "lang": "de"},
        ),
        (
            words.not_recognized(ALONE),
            "hermes/nlu/intentNotRecognized",
            {"siteId": "kitchen", "input": "how warm", "id": "q1"},
        ),
        (
            words.not_recognized(Question("query", "")),
            "hermes/nlu/intentNotRecognized",
            {"siteId": "default", "input": ""},
        ),
    ],
)
def test_what_is_said(said: words.Said, topic: str, payload: dict[str, Any]) -> None:
    assert (said.topic, read(said)) == (topic, payload)


@pytest.mark.parametrize("custom", ["from the hall", "", 0, False, {"a": [1.5, None, "\ud800", "ä"]}, [[]]])
def test_the_custom_data_of_a_session_is_handed_on_as_it_came(custom: Any) -> None:
    raw = json.dumps({"input": "hi", "sessionId": "s1", "customData": custom}).encode()
    asked = words.question(QUERY, raw)
    for said in (words.end_session(asked), words.continue_session(asked, "Where?"), words.intent(asked, "Warm.")):
        assert read(said)["customData"] == custom
    assert "customData" not in read(words.say(asked, "Warm.", "u1"))


def test_custom_data_that_cannot_be_written_again_is_refused() -> None:
    for depth in (10, 300, 900, 960, 980, 5000, 100_000):
        raw = b'{"input": "hi", "customData": ' + b"[" * depth + b"]" * depth + b"}"
        with suppress(InvalidRequest):
            words.end_session(words.question(QUERY, raw), "Warm.")


def test_the_answer_to_a_query_is_an_intent_with_one_slot() -> None:
    said = words.intent(ALONE, "It is warm.")
    data = read(said)
    assert said.topic == "hermes/intent/piagent"
    assert (data["input"], data["id"], data["siteId"]) == ("how warm", "q1", "kitchen")
    assert data["intent"] == {"intentName": "piagent", "confidenceScore": 1.0}
    (slot,) = data["slots"]
    assert (slot["slotName"], slot["value"]["value"]) == ("answer", "It is warm.")


@given(st.sampled_from(list(words.QUESTIONS)), OBJECTS | JSON, st.text())
def test_whatever_comes_is_read_or_refused_and_can_be_answered(topic: str, payload: Any, text: str) -> None:
    raw = json.dumps(payload).encode()
    try:
        question = words.question(topic, raw)
        words.detected(raw)
        words.ended(raw)
        words.finished(raw)
    except InvalidRequest:
        if asker := words.asker(topic, raw):
            assert read(words.end_session(asker, "Sorry."))["sessionId"] == asker.session
        return
    speech = text.encode("utf-8", "ignore").decode()
    for said in (
        words.end_session(question, speech),
        words.continue_session(question, speech),
        words.say(question, speech, "1"),
        words.intent(question, speech),
        words.not_recognized(question),
    ):
        assert read(said)["siteId"] == question.site


@given(st.binary())
def test_bytes_of_any_kind_are_read_or_refused(payload: bytes) -> None:
    with suppress(InvalidRequest):
        words.question(CAPTURED, payload)
