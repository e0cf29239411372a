"""The nouns of the wire round-trip, and agree with the error tree."""

import inspect
import json
from datetime import UTC
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime, ValidationError

from piagent_daemon import contract, errors
from piagent_daemon.contract import AdminResponse, Event, Final, Noun

NOUNS = [
    kind
    for _, kind in inspect.getmembers(contract, inspect.isclass)
    if issubclass(kind, Noun) and kind.__module__ == contract.__name__ and kind is not Noun
]
for noun in NOUNS:
    noun.model_rebuild()  # its validator is made when it is first used, which Hypothesis does not know

CODES = {
    "invalid_request": (422, False),
    "unknown_agent": (404, False),
    "busy": (429, True),
    "expired": (408, False),
    "cancelled": (499, False),
    "timeout": (504, True),
    "provider_unavailable": (502, True),
    "model_not_found": (404, False),
    "provider_error": (502, False),
    "unauthorized": (502, False),
    "context_overflow": (413, False),
    "shutting_down": (503, True),
    "internal": (500, False),
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("abcü🙂", max_size=4),
    lambda part: st.lists(part, max_size=2) | st.dictionaries(st.text("ab", max_size=2), part, max_size=2),
    max_leaves=3,
)
st.register_type_strategy(AwareDatetime, st.datetimes(timezones=st.just(UTC)))
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))


def _strategy(kind: type[Noun]) -> st.SearchStrategy[Any]:
    overrides: dict[str, Any] = {name: JSON for name in ("data", "transaction") if name in kind.model_fields}
    for name in ("metadata",):
        if name in kind.model_fields:
            overrides[name] = st.dictionaries(st.text("ab", max_size=2), JSON, max_size=2)
    if kind is contract.File:
        return st.builds(contract.File, name=st.just("a"), text=st.text("abc"), path=st.none())
    if kind is contract.Request:
        overrides |= {
            "message": st.text("abc", min_size=1),
            "files": st.lists(_strategy(contract.File), max_size=1),
            "options": st.just(contract.Options(seed=1)),
            "format": st.none() | st.just("json") | st.just({"type": "object"}),
            "context": st.none() | st.text("ab") | st.just({"room": "x"}),
        }
    if kind is AdminResponse:
        overrides["error"] = st.none() | st.just(contract.AdminError(code="busy", message="m"))
    return st.builds(kind, **overrides)


@pytest.mark.parametrize("kind", NOUNS, ids=lambda kind: str(kind.__name__))
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_noun_survives_the_wire(kind: type[Noun], data: st.DataObject) -> None:
    value = data.draw(_strategy(kind))
    wire = value.encode()
    assert isinstance(json.loads(wire), dict)
    again = kind.model_validate_json(wire)
    assert again.encode() == wire


@pytest.mark.parametrize("kind", NOUNS, ids=lambda kind: str(kind.__name__))
def test_every_noun_is_frozen_and_refuses_unknown_fields(kind: type[Noun]) -> None:
    assert kind.model_config.get("frozen")
    assert kind.model_config.get("extra") == "forbid"


def test_every_event_carries_the_common_fields() -> None:
    events = [kind for kind in NOUNS if issubclass(kind, Event) and kind is not Event]
    assert {kind.model_fields["type"].default for kind in events} == {
        "accepted",
        "status",
        "chunk",
        "sentence",
        "final",
        "error",
    }
    for kind in events:
        assert {"type", "conversation_id", "request_id", "attempt", "seq", "ts"} <= kind.model_fields.keys()
        assert kind.terminal == (kind.model_fields["type"].default in {"final", "error"})


def test_error_codes_are_those_of_the_contract() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.PiagentError)]
    never_on_the_wire = {errors.ConfigError, errors.StoreError, errors.DoorError, errors.ProviderMisconfigured}
    found = {kind.code: (kind("x").status_code, kind.retryable) for kind in kinds if kind not in never_on_the_wire}
    assert found == CODES


def _final(**more: Any) -> Final:
    return Final(
        conversation_id="c",
        request_id="r",
        attempt=1,
        seq=0,
        ts="2026-01-02T03:04:05Z",
        reply="a",
        speech="a",
        model="m",
        provider="p",
        agent="g",
        finish_reason="stop",
        expects_reply=False,
        usage=contract.Usage(),
        timing=contract.Timing(),
        context=contract.ContextUse(),
        **more,
    )


def test_data_stands_in_a_final_only_with_format() -> None:
    assert "data" not in json.loads(_final().encode())
    assert json.loads(_final(data=None).encode())["data"] is None
    assert json.loads(_final(data={"a": 1}).encode())["data"] == {"a": 1}


def test_only_an_answer_that_is_given_again_says_so() -> None:
    assert "cached" not in json.loads(_final(data=1).encode())
    assert json.loads(_final(cached=True).encode())["cached"] is True


def test_timestamps_are_rfc3339_in_utc() -> None:
    assert json.loads(_final().encode())["ts"] == "2026-01-02T03:04:05Z"


def test_a_value_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        _final().reply = "b"  # type: ignore[misc]
