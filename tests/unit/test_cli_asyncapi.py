"""The AsyncAPI document: whole, resolvable, and true to the contract's models."""

import json
import re
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from piagent_daemon import contract
from piagent_daemon.cli import main
from piagent_daemon.cli.asyncapi_document import document, events
from piagent_daemon.topics import Topics

DOCUMENT = document()
HEAD = {
    "conversation_id": "kitchen",
    "request_id": "r1",
    "attempt": 1,
    "seq": 0,
    "ts": datetime(2026, 1, 1, tzinfo=UTC),
}


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def test_every_reference_leads_somewhere() -> None:
    references = set(_references(DOCUMENT))
    assert len(references) > 20
    for reference in references:
        place: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_no_message_and_no_schema_is_left_unused() -> None:
    used = set(_references(DOCUMENT))
    for kind in ("messages", "schemas"):
        unused = [name for name in DOCUMENT["components"][kind] if f"#/components/{kind}/{name}" not in used]
        assert not unused


def test_the_specification_s_form() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= DOCUMENT["info"].keys()
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in {"send", "receive"}
        assert operation["channel"]["$ref"].removeprefix("#/channels/") in DOCUMENT["channels"]
        assert operation["bindings"]["mqtt"]["qos"] in {0, 1}
    for channel in DOCUMENT["channels"].values():
        assert set(re.findall(r"{(\w+)}", channel["address"])) == channel.get("parameters", {}).keys()
    assert {o["channel"]["$ref"] for o in DOCUMENT["operations"].values()} == {
        f"#/channels/{c}" for c in DOCUMENT["channels"]
    }


def test_an_independent_model_of_the_specification_takes_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about its own field names
        models = pytest.importorskip("asyncapi3.models.asyncapi")
        models.AsyncAPI3.model_validate(DOCUMENT)
        with pytest.raises(ValueError, match="action"):
            models.AsyncAPI3.model_validate({**DOCUMENT, "operations": {"ask": {"action": "subscribe"}}})


def test_topics_are_those_of_the_daemon() -> None:
    topics = Topics("home/piagent")
    channels = document("home/piagent")["channels"]
    filters = {re.sub(r"{\w+}", "+", channels[name]["address"]) for name in ("in", "inAnywhere", "cancel", "reset")}
    assert filters == {name for name, _ in topics.filters if "request" not in name}
    assert channels["health"]["address"] == topics.health
    assert channels["info"]["address"] == topics.info
    assert channels["adminRequest"]["address"] == topics.request("{method}")


def test_every_event_is_a_message() -> None:
    said = DOCUMENT["channels"]["out"]["messages"].keys()
    assert said == {str(model.model_fields["type"].default) for model in events()}
    assert {"accepted", "status", "chunk", "sentence", "final", "error"} <= said


def test_events_as_written_fit_their_schemas() -> None:
    final = contract.Final(
        **HEAD,
        reply="Hello.",
        speech="Hello.",
        model="m",
        provider="ollama",
        agent="general",
        finish_reason="stop",
        expects_reply=False,
        usage=contract.Usage(),
        timing=contract.Timing(),
        context=contract.ContextUse(),
    )
    for event in (
        final,
        contract.Chunk(**HEAD, text="Hel"),
        contract.Sentence(**HEAD, text="Hello.", index=0),
        contract.Accepted(**HEAD, position=0, agent="a", model="m"),
    ):
        schema = DOCUMENT["components"]["schemas"][type(event).__name__]
        written = json.loads(event.encode())
        assert set(schema["required"]) <= written.keys() <= schema["properties"].keys()
        assert schema["properties"]["type"]["const"] == event.type
        assert "additionalProperties" not in schema


def test_a_request_names_every_field_and_no_other() -> None:
    schema = DOCUMENT["components"]["schemas"]["Request"]
    assert schema["properties"].keys() == {*contract.Request.model_fields, "text"}
    assert schema["additionalProperties"] is False


def test_a_cancel_may_say_how_much_was_spoken() -> None:
    schema = DOCUMENT["components"]["schemas"]["CancelRequest"]
    assert schema["properties"].keys() == {"id", "spoken_index"}
    assert "required" not in schema


def test_yaml_and_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["asyncapi"]) == 0
    as_json = json.loads(capsys.readouterr().out)
    assert main(["asyncapi", "--yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == as_json == DOCUMENT
