"""deploy/home-assistant by Home Assistant's rules: the files are read, checked, and acted through step by step."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from piagent_daemon import contract, discovery, wire
from piagent_daemon.agents import Agent
from piagent_daemon.reporting import describe
from piagent_daemon.settings import Settings
from piagent_daemon.topics import Topics
from piagent_daemon.turn import Config
from tests.fakes.home_assistant_scripts import ENVIRONMENT, STEPS, Input, Stage, load, render

Json = dict[str, Any]

FOLDER: Final = Path(__file__).parents[2] / "deploy/home-assistant"
FILES: Final = sorted(FOLDER.rglob("*.yaml"))
SCRIPT: Final[Json] = load(FOLDER / "packages/piagent.yaml")["script"]["ask_piagent"]
BLUEPRINT: Final[Json] = load(FOLDER / "blueprints/automation/piagent/ask_and_tell.yaml")
CARD: Final[Json] = load(FOLDER / "dashboard/piagent-card.yaml")
TRIGGERS: Final = {
    "mqtt": ({"topic"}, {"payload", "value_template", "qos"}),
    "state": ({"entity_id"}, {"to", "from", "not_to", "not_from", "for", "attribute"}),
}
"""What each trigger that we use needs, and what else it takes."""
SELECTORS: Final = {"text", "object", "number", "entity", "template", "action"}
TOPICS: Final = Topics("piagent")


def every(value: Any) -> Iterator[Any]:
    """Everything in a document, from the outside to the inside."""
    yield value
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from every(one)


def steps(sequence: list[Json]) -> Iterator[Json]:
    """Every step of a script, those inside others included."""
    for step in sequence:
        yield step
        for inner in (step.get("parallel"), step.get("then"), step.get("else"), step.get("sequence")):
            if isinstance(inner, list):
                yield from steps(inner)


def final(request_id: str, **more: Any) -> bytes:
    given: Json = {"reply": "It is **warm**.", "speech": "It is warm.", "finish_reason": "stop", "expects_reply": False}
    return contract.Final(
        **head(request_id),
        **(given | more),
        model="m",
        provider="ollama",
        agent="general",
        usage=contract.Usage(),
        timing=contract.Timing(),
        context=contract.ContextUse(),
    ).encode()


def head(request_id: str) -> Json:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    return {"conversation_id": "automations", "request_id": request_id, "attempt": 1, "seq": 0, "ts": now}


def error(request_id: str) -> bytes:
    return contract.ErrorEvent(
        **head(request_id), code="busy", message="Too many wait.", status_code=429, retryable=True
    ).encode()


# ------------------------------------------------------------------------------------------------ the files as they are


def test_the_files_are_where_home_assistant_wants_them() -> None:
    assert [path.relative_to(FOLDER).as_posix() for path in FILES] == [
        "blueprints/automation/piagent/ask_and_tell.yaml",
        "dashboard/piagent-card.yaml",
        "packages/piagent.yaml",
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_template_can_be_read(path: Path) -> None:
    templates = [one for one in every(load(path)) if isinstance(one, str) and re.search(r"{[{%]", one)]
    assert templates
    for one in templates:
        ENVIRONMENT.parse(one)


def test_the_package_holds_one_script_with_fields_that_the_editor_shows() -> None:
    assert load(FOLDER / "packages/piagent.yaml").keys() == {"script"}
    assert SCRIPT.keys() == {"alias", "description", "icon", "mode", "max", "fields", "sequence"}
    assert SCRIPT["mode"] == "parallel", "a second question does not wait for the first"
    for name, one in SCRIPT["fields"].items():
        assert re.fullmatch(r"[a-z_]+", name)
        assert name not in {"context", "this", "trigger", "wait", "repeat"}, "Home Assistant's own variables"
        assert one.keys() - {"required", "example", "default"} == {"name", "description", "selector"}
        assert one["selector"].keys() < SELECTORS


@pytest.mark.parametrize("sequence", [SCRIPT["sequence"], BLUEPRINT["actions"]], ids=["script", "blueprint"])
def test_every_step_is_one(sequence: list[Json]) -> None:
    for step in steps(sequence):
        (kind,) = [name for name in STEPS if name in step]
        assert step.keys() <= {kind} | STEPS[kind], step
        if kind == "action":
            assert re.fullmatch(r"[a-z_]+\.[a-z_]+", step["action"])
        for trigger in step.get("wait_for_trigger", []):
            check_trigger(trigger)


def check_trigger(trigger: Json) -> None:
    needed, more = TRIGGERS[trigger["trigger"]]
    assert needed <= trigger.keys() - {"trigger"} <= needed | more


def test_everything_over_mqtt_goes_at_qos_1() -> None:
    messages = [step["data"] for step in steps(SCRIPT["sequence"]) if step.get("action") == "mqtt.publish"]
    triggers = [one for step in steps(SCRIPT["sequence"]) for one in step.get("wait_for_trigger", [])]
    assert len(messages) == 2
    assert len(triggers) == 1
    for one in [*messages, *triggers]:
        assert one["qos"] == 1
        assert "retain" not in one


# ---------------------------------------------------------------------------------------------------- the script, asked


class House(Stage):
    """A stage with a daemon that says `event` (its maker, called with the request id) to every question."""

    def __init__(self, *events: Any) -> None:
        super().__init__(reply=self.hear)
        self.events = events
        self.requests: list[contract.Request] = []

    def hear(self, topic: str, payload: bytes) -> list[tuple[str, bytes]]:
        inbound = TOPICS.parse(topic)
        assert inbound
        if inbound.kind != "in":
            return []
        request = wire.parse_request(payload, Settings()) if b'"message": ""' not in payload else contract.Request()
        self.requests.append(request)
        out = TOPICS.out(str(inbound.name))
        accepted = contract.Accepted(**head(str(request.id)), position=0, agent="general", model="m").encode()
        return [(out, accepted), *((out, event(request.id)) for event in self.events)]

    def ask(self, **fields: Any) -> Json:
        response: Json = self.run(SCRIPT["sequence"], dict(fields))
        assert response.keys() == ANSWER
        return response


ANSWER: Final = {
    *("ok", "reply", "speech", "expects_reply", "data", "finish_reason", "code", "message", "request_id"),
}


def test_the_script_returns_the_answer() -> None:
    house = House(final)
    answer = house.ask(message="Is it warm?")
    assert (answer["ok"], answer["reply"], answer["speech"]) == (True, "It is **warm**.", "It is warm.")
    (request,) = house.requests
    assert (request.message, request.id, request.stream) == ("Is it warm?", answer["request_id"], False)
    assert (request.agent, request.context, request.format, request.expires_s) == (None, None, None, 120)
    assert [(topic, qos) for topic, _, qos in house.published] == [("piagent/automations/in", 1)]


def test_every_field_arrives() -> None:
    house = House(lambda request_id: final(request_id, data={"coat": True, "reasons": ["rain", None]}))
    facts = {"outside": "4 °C, „rain“", "wind": 3.5}
    schema = {"type": "object", "properties": {"coat": {"type": "boolean"}}, "required": ["coat"]}
    answer = house.ask(message="A coat?", agent="voice", conversation="hall", facts=facts, format=schema, timeout=20)
    (request,) = house.requests
    assert (request.agent, request.context, request.format, request.expires_s) == ("voice", facts, schema, 20)
    assert house.published[0][0] == "piagent/hall/in"
    assert answer["data"] == {"coat": True, "reasons": ["rain", None]}


@pytest.mark.parametrize("message", [42, "42", "true", '{"a": 1}', "She said: \"it's 'hot'\"\n{{ no }} ünï"])
def test_any_text_is_a_question(message: Any) -> None:
    house = House(final)
    assert house.ask(message=message)["ok"]
    assert house.requests[0].message == str(message)


@pytest.mark.parametrize(
    "reply", ["", "42", "None", "[1, 2]", "'quoted' and \"quoted\"", "{{ 1 }}\nline\\n", "日本語 🙂"]
)
def test_any_text_is_an_answer(reply: str) -> None:
    answer = House(lambda request_id: final(request_id, reply=reply, speech=reply)).ask(message="?")
    assert (answer["reply"], answer["speech"]) == (reply, reply)


def test_an_error_is_returned_with_its_reason() -> None:
    answer = House(error).ask(message="?")
    assert (answer["ok"], answer["code"], answer["message"]) == (False, "busy", "Too many wait.")
    assert (answer["reply"], answer["speech"]) == ("", "")


def test_without_an_answer_it_gives_up_and_tells_piagent_to_stop() -> None:
    house = House()
    answer = house.ask(message="?", conversation="hall")
    assert (answer["ok"], answer["code"]) == (False, "no_answer")
    topic, payload, _ = house.published[-1]
    assert topic == "piagent/hall/cancel"
    assert contract.CancelRequest.model_validate_json(payload).id == answer["request_id"]


def test_the_answer_to_another_question_is_not_taken() -> None:
    assert House(lambda _: final("another")).ask(message="?")["code"] == "no_answer"
    assert House(lambda _: final("another"), error).ask(message="?")["code"] == "busy"


def test_no_two_questions_have_one_id() -> None:
    house = House(final)
    assert len({house.ask(message="?")["request_id"] for _ in range(50)}) == 50


# -------------------------------------------------------------------------------------------------------- the blueprint


def test_the_blueprint_uses_each_of_its_inputs() -> None:
    about = BLUEPRINT["blueprint"]
    assert about.keys() == {"name", "description", "domain", "homeassistant", "input"}
    assert about["domain"] == "automation"
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["homeassistant"]["min_version"])
    used = {one.name for one in every(BLUEPRINT) if isinstance(one, Input)}
    assert used == about["input"].keys()
    for one in about["input"].values():
        assert one.keys() - {"default"} == {"name", "description", "selector"}
        assert one["selector"].keys() < SELECTORS
    assert BLUEPRINT.keys() == {"blueprint", "mode", "max", "triggers", "variables", "actions"}
    for trigger in BLUEPRINT["triggers"]:
        check_trigger(trigger)


def test_a_source_that_only_comes_back_does_not_ask_but_a_button_s_first_press_does() -> None:
    (trigger,) = BLUEPRINT["triggers"]
    assert "unavailable" in trigger["not_from"]
    assert "unknown" not in trigger["not_from"], "an input_button that was never pressed"
    assert trigger["not_to"] == ["unknown", "unavailable"]


def test_the_blueprint_asks_by_the_script_and_with_its_fields() -> None:
    (call,) = [step for step in steps(BLUEPRINT["actions"]) if step.get("action") == "script.ask_piagent"]
    assert call["data"].keys() <= SCRIPT["fields"].keys()
    assert call["response_variable"] == "answer"


def substituted(value: Any, inputs: Json) -> Any:
    if isinstance(value, Input):
        return inputs[value.name]
    if isinstance(value, dict):
        return {key: substituted(one, inputs) for key, one in value.items()}
    return [substituted(one, inputs) for one in value] if isinstance(value, list) else value


def automate(state: str, answer: Json, **inputs: Any) -> Stage:
    """Return the stage after the automation ran because the state of its source changed."""
    defaults = {name: one["default"] for name, one in BLUEPRINT["blueprint"]["input"].items() if "default" in one}
    automation = substituted(BLUEPRINT, defaults | {"source": ["input_text.question"]} | inputs)
    variables: Json = {"trigger": {"to_state": {"state": state}}}
    for name, value in automation["variables"].items():
        variables[name] = render(value, variables)
    stage = Stage(answer=answer)
    stage.run(automation["actions"], variables)
    return stage


GOOD: Final = {"ok": True, "reply": "It is **warm**.", "speech": "It is warm."}
BAD: Final = {"ok": False, "reply": "", "speech": "", "message": "Too many wait."}
SPEAK: Final[Json] = {"voice": ["tts.piper"], "speakers": ["media_player.kitchen"]}


def test_the_automation_notifies_and_speaks() -> None:
    stage = automate("Is it warm?", GOOD, notify_targets=["notify.phone"], **SPEAK)
    asked, notified, spoken = stage.calls
    assert asked[2] == {"message": "Is it warm?", "agent": "voice", "conversation": "automations", "facts": ""}
    assert notified == ("notify.send_message", {"entity_id": ["notify.phone"]}, {"message": "It is **warm**."})
    assert spoken[:2] == ("tts.speak", {"entity_id": ["tts.piper"]})
    assert spoken[2] == {"media_player_entity_id": ["media_player.kitchen"], "message": "It is warm."}


def test_the_automation_says_when_there_is_no_answer() -> None:
    stage = automate("Is it warm?", BAD, notify_targets=["notify.phone"], sorry="Leider nein.", **SPEAK)
    assert [call[2].get("message") for call in stage.calls[1:]] == ["Too many wait.", "Leider nein."]


def test_the_automation_does_what_is_wanted_further_and_nothing_else() -> None:
    further = [{"action": "script.more", "data": {"text": "{{ answer.reply }}"}}]
    stage = automate(
        "on", GOOD, question="Who is there?", facts="{{ {'door': trigger.to_state.state} }}", further=further
    )
    assert [call[0] for call in stage.calls] == ["script.ask_piagent", "script.more"]
    assert stage.calls[0][2]["message"] == "Who is there?"
    assert stage.calls[0][2]["facts"] == {"door": "on"}
    assert stage.calls[1][2] == {"text": "It is **warm**."}


@pytest.mark.parametrize("state", ["", "  "])
def test_an_empty_text_asks_nothing(state: str) -> None:
    assert automate(state, GOOD, notify_targets=["notify.phone"]).calls == []


# -------------------------------------------------------------------------------------------------------- the dashboard


def test_the_card_shows_entities_that_piagent_makes() -> None:
    made = Config(Settings(), {"general": Agent(name="general", system="Be brief.")})
    message = json.loads(discovery.message(describe(made), made.settings))
    entities = {part["default_entity_id"] for part in message["cmps"].values()}
    shown = set(re.findall(r"\b[a-z_]+\.piagent_[a-z_]+", json.dumps(CARD)))
    assert len(shown) >= 5
    assert shown <= entities
    for card in every(CARD):
        if isinstance(card, dict) and "cards" in card:
            assert all("type" in one for one in card["cards"])


def test_the_card_shows_the_last_answer_or_an_invitation() -> None:
    (content,) = [one["content"] for one in CARD["cards"] if one["type"] == "markdown"]
    for known, shown in ((None, "Ask me something."), ("It is **warm**.", "It is **warm**.")):
        assert ENVIRONMENT.from_string(content).render(state_attr=lambda *_, known=known: known) == shown
