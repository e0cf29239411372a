"""The words of Hermes, the MQTT messages of Rhasspy and Snips: JSON objects in camelCase. Pure.

Source: the Hermes protocol as the Rhasspy 2.5 documentation and its `rhasspy-hermes` package have it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from piagent_daemon.errors import InvalidRequest
from piagent_daemon.setting_types import HermesKind
from piagent_daemon.wire import is_sendable

QUESTIONS: Final[Mapping[str, HermesKind]] = {
    "hermes/asr/textCaptured": "textCaptured",
    "hermes/dialogueManager/intentNotRecognized": "intentNotRecognized",
    "hermes/nlu/query": "query",
}
"""Topics of what may be a question."""
HOTWORD: Final = "hermes/hotword/+/detected"
SESSION_ENDED: Final = "hermes/dialogueManager/sessionEnded"
CONTINUE_SESSION: Final = "hermes/dialogueManager/continueSession"
END_SESSION: Final = "hermes/dialogueManager/endSession"
SAY: Final = "hermes/tts/say"
SAY_FINISHED: Final = "hermes/tts/sayFinished"
INTENT_NAME: Final = "piagent"
INTENT: Final = f"hermes/intent/{INTENT_NAME}"
NOT_RECOGNIZED: Final = "hermes/nlu/intentNotRecognized"
CARRIERS: Final = frozenset({CONTINUE_SESSION, END_SESSION, INTENT})
"""What has a field `customData`, of those that we send."""

DEFAULT_SITE: Final = "default"
ABORTED: Final = "abortedByUser"
MAX_NAME_CHARS: Final = 1000
MAX_BYTES: Final = 1_000_000
"""No message that we read has use for more."""


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody asked, at a site, and within a session if there is one. `text` may be empty: nothing was heard.

    `query_id` is the name that the asker of a query gave it. `custom_data` is what the session carries along, as JSON:
    it is handed on and never looked at.
    """

    kind: HermesKind
    text: str
    site: str = DEFAULT_SITE
    session: str | None = None
    query_id: str | None = None
    language: str | None = None
    custom_data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """A session is over."""

    session: str
    reason: str


@dataclass(frozen=True, slots=True)
class Said:
    """One message of ours."""

    topic: str
    payload: bytes


# ------------------------------------------------------------------------------------------------------------- hearing


def is_hotword(topic: str) -> bool:
    """Tell whether a topic is `hermes/hotword/<wake word>/detected`."""
    return topic.startswith("hermes/hotword/") and topic.endswith("/detected") and topic.count("/") == 3


def question(topic: str, payload: bytes) -> Question:
    """Read a message on one of the topics in QUESTIONS. Raises InvalidRequest."""
    kind, data = QUESTIONS[topic], _object(payload)
    return Question(
        kind=kind,
        text=(_text(data, "text" if kind == "textCaptured" else "input", None) or "").strip(),
        site=_site(data),
        session=_text(data, "sessionId"),
        query_id=_text(data, "id") if kind == "query" else None,
        language=_text(data, "lang"),
        custom_data=_custom_data(data),
    )


def asker(topic: str, payload: bytes) -> Question | None:
    """Return what can be read of a message that `question` refuses; None when its session is not among that."""
    try:
        data = _object(payload)
    except InvalidRequest:
        return None
    session, language = _legible(data, "sessionId"), _legible(data, "lang")
    if session is None:
        return None
    return Question(QUESTIONS[topic], "", _legible(data, "siteId") or DEFAULT_SITE, session, language=language)


def _legible(data: Mapping[str, Any], name: str) -> str | None:
    try:
        return _text(data, name)
    except InvalidRequest:
        return None


def gist(text: str) -> str:
    """Return by what a text is known again: a recogniser may change case and white space."""
    return " ".join(text.casefold().split())[:MAX_NAME_CHARS]


def detected(payload: bytes) -> str:
    """Return the site at which a wake word was heard. Raises InvalidRequest."""
    return _site(_object(payload))


def finished(payload: bytes) -> str:
    """Return the id of what was said to its end, or an empty text. Raises InvalidRequest."""
    return _text(_object(payload), "id") or ""


def ended(payload: bytes) -> Ended:
    """Read that a session is over; its reason is a string or an object with one. Raises InvalidRequest."""
    data = _object(payload)
    termination = data.get("termination")
    reason = termination.get("reason") if isinstance(termination, dict) else termination
    return Ended(_text(data, "sessionId") or "", reason if isinstance(reason, str) else "")


def _object(payload: bytes) -> dict[str, Any]:
    if len(payload) > MAX_BYTES:
        raise InvalidRequest(f"The payload has {len(payload)} bytes; at most {MAX_BYTES} are read.")
    try:
        data = json.loads(payload)
    except (ValueError, RecursionError):
        raise InvalidRequest("The payload is not JSON.") from None
    if not isinstance(data, dict):
        raise InvalidRequest("The payload is not a JSON object.")
    return data


def _site(data: Mapping[str, Any]) -> str:
    return _text(data, "siteId") or DEFAULT_SITE


def _text(data: Mapping[str, Any], name: str, most: int | None = MAX_NAME_CHARS) -> str | None:
    """Return a field of at most `most` characters that we can send back; None when it is empty or not there."""
    value = data.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise InvalidRequest(f'The field "{name}" is not a text.')
    if (most is not None and len(value) > most) or not is_sendable(value):
        raise InvalidRequest(f'The field "{name}" is too long or not valid Unicode text.')
    return value


def _custom_data(data: Mapping[str, Any]) -> bytes | None:
    value = data.get("customData")
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        # Half a character can only be written as an escape; all others take less as they are.
        return None if value is None else (text if is_sendable(text) else json.dumps(value)).encode()
    except RecursionError:
        raise InvalidRequest('The field "customData" is nested too deeply.') from None
    except ValueError:  # a number that JSON does not have: the dialogue manager would drop our answer for it
        return None


# ------------------------------------------------------------------------------------------------------------- speaking


def end_session(asked: Question, text: str = "") -> Said:
    """Say something and end the session; without text, only end it."""
    return _said(END_SESSION, asked, text=text or None)


def continue_session(asked: Question, text: str) -> Said:
    """Ask back: say something and listen. What is heard then comes to us again, also when it is no known intent."""
    return _said(CONTINUE_SESSION, asked, text=text, sendIntentNotRecognized=True)


def say(asked: Question, text: str, utterance_id: str) -> Said:
    """Say something outside a session."""
    return _said(SAY, asked, text=text, id=utterance_id, lang=asked.language)


def intent(asked: Question, text: str) -> Said:
    """Tell the asker of a query what was recognised: our own intent, with the answer as its one slot."""
    slot = {
        "entity": "answer",
        "slotName": "answer",
        "confidence": 1.0,
        "rawValue": text,
        "value": {"kind": "Unknown", "value": text},
        "range": {"start": 0, "end": len(asked.text), "rawStart": 0, "rawEnd": len(asked.text)},
    }
    return _said(
        INTENT,
        asked,
        input=asked.text,
        id=asked.query_id,
        intent={"intentName": INTENT_NAME, "confidenceScore": 1.0},
        slots=[slot],
    )


def not_recognized(asked: Question) -> Said:
    """Tell the asker of a query that there is no answer."""
    return _said(NOT_RECOGNIZED, asked, input=asked.text, id=asked.query_id)


def _said(topic: str, asked: Question, **fields: Any) -> Said:
    """Return a message to the asker's site and session; fields without a value are left out."""
    data = {"siteId": asked.site, "sessionId": asked.session, **fields}
    filled = {name: value for name, value in data.items() if value is not None}
    payload = json.dumps(filled, ensure_ascii=False).encode()
    if asked.custom_data is not None and topic in CARRIERS:
        payload = payload[:-1] + b', "customData": ' + asked.custom_data + b"}"
    return Said(topic, payload)
