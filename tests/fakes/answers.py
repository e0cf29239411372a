"""What must hold of every answer on the wire (contract section 3), and how to ask the daemon about itself."""

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from tests.fakes.observer import TERMINAL, Observer

COMMON: Final = {"type", "conversation_id", "request_id", "attempt", "seq", "ts"}
FIELDS: Final = {
    "accepted": {"position", "agent", "model"},
    "status": {"stage", "detail"},
    "chunk": {"text"},
    "sentence": {"text", "index"},
    "final": {"reply", "speech", "model", "provider", "agent", "finish_reason", "expects_reply", "usage", "timing"}
    | {"context", "metadata"},
    "error": {"code", "message", "status_code", "retryable", "partial", "metadata"},
}
"""What each event adds; a `final` also has `data` when the request had a `format`, `cached` when it is given again."""

Event = dict[str, Any]


def texts(events: Sequence[Event]) -> list[str]:
    """Return the texts of the chunks."""
    return [event["text"] for event in events if event["type"] == "chunk"]


def check_answer(events: Sequence[Event], *, attempt: int = 1) -> Event:
    """Assert all that holds of the events of one attempt at one request; return the terminal one."""
    for event in events:
        assert event.keys() - {"data", "cached"} == COMMON | FIELDS[event["type"]], event
        assert (event["conversation_id"], event["request_id"]) == (
            events[0]["conversation_id"],
            events[0]["request_id"],
        )
        assert event["attempt"] == attempt
    assert [event["seq"] for event in events] == list(range(len(events)))
    times = [datetime.fromisoformat(event["ts"]) for event in events]
    assert times == sorted(times)
    assert {time.utcoffset() for time in times} == {timedelta(0)}
    kinds = [event["type"] for event in events]
    assert [kind for kind in kinds if kind in TERMINAL] == kinds[-1:]
    assert kinds.index("accepted") == 0 if "accepted" in kinds else kinds == ["error"]
    end = events[-1]
    spoken = [event for event in events if event["type"] == "sentence"]
    assert [event["index"] for event in spoken] == list(range(len(spoken)))
    assert not (spoken and texts(events))
    if chunks := texts(events):
        assert "".join(chunks) == (end["reply"] if end["type"] == "final" else end["partial"])
    return end


async def ask(observer: Observer, convo: str | None, payload: str | Event, **more: Any) -> Event:
    """Ask, check the events of the answer, return the terminal one."""
    return check_answer(await observer.ask(convo, payload, **more))


async def admin(observer: Observer, method: str, params: Event | None = None, timeout_s: float = 5.0) -> Event:
    """Send an admin request and return its response, the last one of a long request."""
    transaction = uuid.uuid4().hex
    await observer.publish(f"{observer.base}/request/{method}", {**(params or {}), "transaction": transaction})
    topic = f"{observer.base}/response/{method}"
    answer = await observer.wait(
        lambda one: (
            one.topic == topic and one.field("transaction") == transaction and one.field("status") != "progress"
        ),
        timeout_s,
    )
    response: Event = answer.json
    return response


async def health(observer: Observer) -> Event:
    """Ask for the health of this moment."""
    data: Event = (await admin(observer, "health"))["data"]
    return data
