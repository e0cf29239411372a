"""The discovery message fits Home Assistant's rules, and its entities show and send what they should."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from piagent_daemon import contract, discovery, wire
from piagent_daemon.agents import Agent
from piagent_daemon.reporting import describe
from piagent_daemon.settings import Settings
from piagent_daemon.topics import Topics
from piagent_daemon.turn import Config
from tests.fakes.home_assistant import MAX_RECORDED, HomeAssistant, RefusedError, check_message

NOW = datetime(2026, 1, 2, tzinfo=UTC)
HEAD: dict[str, Any] = {"conversation_id": discovery.CONVERSATION, "request_id": "r1", "attempt": 1, "ts": NOW}
OUT = "piagent/home-assistant/out"
ENTITIES = {
    "event.piagent_reply",
    "notify.piagent_ask",
    "text.piagent_question",
    "sensor.piagent_last_answer",
    "binary_sensor.piagent_connection",
    "binary_sensor.piagent_model_server",
    "select.piagent_agent",
    "select.piagent_model",
    "number.piagent_temperature",
    "button.piagent_stop",
    "button.piagent_forget",
    "button.piagent_reload_model",
    "sensor.piagent_first_word",
    "sensor.piagent_tokens_per_second",
    "sensor.piagent_waiting",
    "sensor.piagent_context_used",
    "sensor.piagent_memory",
}


def config(*agents: str, **settings: Any) -> Config:
    names = agents or ("general", "voice")
    return Config(Settings(**settings), {name: Agent(name=name, system="Be brief.") for name in names})


def discovered(on_server: tuple[str, ...] = (), **settings: Any) -> HomeAssistant:
    """Return a Home Assistant that has read the message, info and health."""
    made, home = config(**settings), HomeAssistant()
    info = describe(made)
    home.hear(discovery.topic(made.settings), discovery.message(info, made.settings, on_server), retain=True)
    home.hear("piagent/info", info.encode(), retain=True)
    home.hear("piagent/health", health().encode(), retain=True)
    return home


def final(seq: int = 1, **fields: Any) -> contract.Final:
    given_fields: dict[str, Any] = {
        "reply": "It is **warm**.",
        "speech": "It is warm.",
        "model": "m",
        "provider": "ollama",
        "agent": "general",
        "finish_reason": "stop",
        "expects_reply": False,
        "usage": contract.Usage(),
        "timing": contract.Timing(total_s=1.5),
        "context": contract.ContextUse(tokens=512, limit=4096),
    }
    return contract.Final(**HEAD, seq=seq, **(given_fields | fields))


def failure(**fields: Any) -> contract.ErrorEvent:
    given_fields: dict[str, Any] = {"code": "timeout", "message": "Too slow.", "status_code": 504, "retryable": True}
    return contract.ErrorEvent(**HEAD, seq=1, **(given_fields | fields))


def health(**fields: Any) -> contract.Health:
    given_fields: dict[str, Any] = {
        "status": "ok",
        "version": "1",
        "protocol": "5",
        "started_at": NOW,
        "ts": NOW,
        "provider": contract.ProviderHealth(name="ollama", reachable=True, model="m", model_loaded=True),
        "queue": contract.QueueHealth(waiting=3, limit=100),
        "memory": contract.MemoryHealth(store="memory"),
        "totals": contract.Totals(),
        "speed": contract.Speed(first_token_s=0.25, tokens_per_s=7.5),
        "process": contract.ProcessHealth(rss_mb=45.2, uptime_s=1.0),
    }
    return contract.Health(**(given_fields | fields))


# ---------------------------------------------------------------------------------------------------------- the message


def test_every_entity_is_there() -> None:
    home = discovered()
    assert home.entities.keys() == ENTITIES
    assert len({entity.config["name"] for entity in home.entities.values()}) == len(ENTITIES)
    assert not home.complaints


@pytest.mark.parametrize("part", ["o", "dev", "cmps"])
def test_the_checker_refuses_what_home_assistant_refuses(part: str) -> None:
    made = config()
    topic, payload = discovery.topic(made.settings), discovery.message(describe(made), made.settings)
    frame = check_message(topic, payload)
    broken = [{name: value for name, value in frame.items() if name != part}, frame | {"unknown": 1}]
    for key, change in (("reply", {"p": "lamp"}), ("reply", {"unique_id": ""}), ("question", {"max": 256})):
        broken.append(frame | {"cmps": frame["cmps"] | {key: frame["cmps"][key] | change}})
    for one in broken:
        with pytest.raises(RefusedError):
            check_message(topic, json.dumps(one).encode())


names = st.from_regex(r"[a-z0-9_-]{1,64}", fullmatch=True)
models = st.text(st.characters(exclude_categories=("Z", "C")), min_size=1, max_size=256)


@hypothesis_settings(deadline=None)
@given(
    base=st.text(st.characters(exclude_characters="+#$"), min_size=1, max_size=60),
    agents=st.lists(names, min_size=1, max_size=8, unique=True),
    on_server=st.lists(models, max_size=60),
    settings=st.fixed_dictionaries(
        {
            "ollama_model_general": models,
            "temperature": st.floats(0, 5),
            "health_interval_s": st.floats(0.05, 86_400),
            "memory_ttl_min": st.floats(0, 5_256_000),
        }
    ),
)
def test_whatever_it_is_called_and_has_the_message_is_taken(
    base: str, agents: list[str], on_server: list[str], settings: dict[str, Any]
) -> None:
    try:
        made = config(*agents, mqtt_base_topic=base, default_agent=agents[0], **settings)
    except ValidationError:
        assume(False)
    home, info = HomeAssistant(), describe(made)
    home.hear(discovery.topic(made.settings), discovery.message(info, made.settings, on_server))
    home.hear(f"{base}/info", info.encode())
    state = {entity.key: entity.state for entity in home.entities.values()}
    assert len(state) == len(ENTITIES)
    assert (state["agent"], state["model"]) == (agents[0], settings["ollama_model_general"])
    assert float(state["temperature"] or -1) == settings["temperature"]
    assert not home.complaints


def test_ids_are_pretty_and_never_shared() -> None:
    bases = [
        "piagent",
        "home/piagent",
        "home_piagent",
        "Home/piagent",
        "küche",
        "日本",
        "a" * 80,
        "a" * 81,
        "_",
        "piagent_",
    ]
    ids = [discovery.device_id(base) for base in bases]
    assert ids[0] == "piagent"
    assert ids[1].startswith("home_piagent_")
    assert len(set(ids)) == len(bases)


def test_a_catalogue_of_models_is_no_choice() -> None:
    few, many = [f"m{number}" for number in range(50)], [f"m{number}" for number in range(51)]
    made = config(ollama_model_general="own")
    info = describe(made)
    assert discovery.models_to_choose(info, made.settings, few) == sorted([*few, "own"])
    assert discovery.models_to_choose(info, made.settings, many) == ["own"]
    all_of_them = info.model_copy(update={"models": ["embeds", *few, *many]})  # also those that cannot talk
    assert discovery.models_to_choose(all_of_them, made.settings, few) == sorted([*few, "own"])
    assert discovery.models_to_choose(all_of_them, made.settings, many) == ["own"]
    only = config(ollama_model_general="own", models_allowed=("own", "other"))
    assert discovery.models_to_choose(describe(only), only.settings, few) == ["other", "own"]


def test_only_the_connection_is_there_when_the_daemon_is_not() -> None:
    home = discovered()
    assert all(entity.available for entity in home.entities.values())
    home.hear("piagent/health", contract.Offline().encode(), retain=True)
    assert [name for name, entity in home.entities.items() if entity.available] == ["binary_sensor.piagent_connection"]
    assert home["binary_sensor.piagent_connection"].state == "off"
    assert not home.complaints


# ---------------------------------------------------------------------------------------------------------- its answers


def test_an_answer_is_an_event_and_the_last_answer() -> None:
    home = discovered()
    home.hear(OUT, contract.Accepted(**HEAD, seq=0, position=0, agent="general", model="m").encode())
    home.hear(OUT, final().encode())
    (event,) = home["event.piagent_reply"].events
    assert event["event_type"] == "reply"
    assert (event["text"], event["speech"], event["seconds"]) == ("It is **warm**.", "It is warm.", 1.5)
    answer = home["sensor.piagent_last_answer"]
    assert (answer.state, answer.attributes["text"]) == ("It is **warm**.", "It is **warm**.")
    assert home["sensor.piagent_context_used"].state == "12.5"
    assert not home.complaints


def test_what_is_no_end_of_an_answer_changes_nothing() -> None:
    home = discovered()
    home.hear(OUT, final().encode())
    before = {name: entity.writes for name, entity in home.entities.items()}
    for event in (
        contract.Accepted(**HEAD, seq=0, position=0, agent="general", model="m"),
        contract.Status(**HEAD, seq=1, stage="loading", detail="…"),
        contract.Chunk(**HEAD, seq=2, text="Hel"),
        contract.Sentence(**HEAD, seq=3, text="Hello.", index=0),
    ):
        home.hear(OUT, event.encode())
    assert {name: entity.writes for name, entity in home.entities.items()} == before
    assert not home.complaints


@pytest.mark.parametrize(
    ("event", "kind", "text"),
    [
        (failure(), "error", "Too slow."),
        (
            failure(code="cancelled", message="Cancelled before it started."),
            "cancelled",
            "Cancelled before it started.",
        ),
        (final(finish_reason="cancelled", reply="It is"), "cancelled", "It is"),
        (final(finish_reason="length"), "reply", "It is **warm**."),
        (final(data={"room": "hall"}), "reply", "It is **warm**."),
    ],
)
def test_each_end_has_its_kind_of_event(event: contract.Event, kind: str, text: str) -> None:
    home = discovered()
    home.hear(OUT, event.encode())
    (seen,) = home["event.piagent_reply"].events
    assert (seen["event_type"], seen["text"]) == (kind, text)
    if isinstance(event, contract.Final):
        assert seen["data"] == event.data
    else:
        assert home["sensor.piagent_last_answer"].state is None
    assert not home.complaints


def test_a_retained_event_is_none() -> None:
    home = discovered()
    home.hear(OUT, final().encode(), retain=True)
    assert not home["event.piagent_reply"].events


@hypothesis_settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1), st.integers(1, 3000))
def test_any_answer_fits(piece: str, times: int) -> None:
    reply = (piece * times)[:30_000]
    home = discovered()
    home.hear(OUT, final(reply=reply).encode())
    (event,) = home["event.piagent_reply"].events
    assert event["text"] == reply
    answer = home["sensor.piagent_last_answer"]
    if reply.strip():
        assert len(answer.state or "") <= 250
        recorded = json.dumps(answer.attributes, ensure_ascii=False).encode()
        assert len(recorded) < MAX_RECORDED
        whole = answer.attributes["complete"]
        assert (answer.attributes["text"] == reply.strip()) == whole
        assert whole or len(reply) > 2_500
    assert not home.complaints


# ------------------------------------------------------------------------------------------------------------- health


def test_numbers_come_from_health() -> None:
    home = discovered()
    numbers = ("first_word", "tokens_per_second", "waiting", "memory")
    assert [home[f"sensor.piagent_{name}"].state for name in numbers] == ["0.25", "7.5", "3", "45.2"]
    home.hear("piagent/health", health(speed=contract.Speed()).encode())
    assert [home[f"sensor.piagent_{name}"].state for name in numbers] == [None, None, "3", "45.2"]
    assert not home.complaints


@pytest.mark.parametrize(
    ("server", "state"),
    [
        ({"reachable": None}, None),
        ({"reachable": True}, "off"),
        ({"reachable": True, "error": "pull it"}, "on"),
        ({"reachable": False, "error": "is it running?"}, "on"),
    ],
)
def test_trouble_with_the_model_server(server: dict[str, Any], state: str | None) -> None:
    home = discovered()
    home.hear("piagent/health", health(provider=contract.ProviderHealth(name="o", model="m", **server)).encode())
    trouble = home["binary_sensor.piagent_model_server"]
    assert (trouble.state, trouble.attributes["error"]) == (state, server.get("error"))
    assert not home.complaints


def test_numbers_expire_after_some_silence_of_health() -> None:
    home = discovered(health_interval_s=60, memory_ttl_min=30)
    assert home["sensor.piagent_waiting"].config["expire_after"] == 180
    assert home["sensor.piagent_context_used"].config["expire_after"] == 1800
    assert discovered(memory_ttl_min=0)["sensor.piagent_context_used"].config["expire_after"] == 86_400


# ------------------------------------------------------------------------------------------------------------ commands


@hypothesis_settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=250))
def test_a_question_arrives_as_it_was_typed(question: str) -> None:
    assume(question.strip())
    home = discovered()
    for entity in ("notify.piagent_ask", "text.piagent_question"):
        topic, payload, qos = home.command(entity, question)
        inbound = Topics("piagent").parse(topic)
        assert inbound
        assert (inbound.kind, inbound.name, qos) == ("in", discovery.CONVERSATION, 1)
        request = wire.parse_request(payload.encode(), Settings())
        assert request.message == question.strip()
        assert request.stream is False


def test_choices_are_admin_requests() -> None:
    home = discovered(on_server=("llama3.2:3b",))
    for entity, value, wanted in (
        ("select.piagent_agent", "voice", {"agent": "voice"}),
        ("select.piagent_model", "llama3.2:3b", {"model": "llama3.2:3b"}),
        ("number.piagent_temperature", 1, {"temperature": 1.0}),
        ("number.piagent_temperature", 0.25, {"temperature": 0.25}),
    ):
        topic, payload, _ = home.command(entity, value)
        assert topic == "piagent/request/defaults/set"
        assert json.loads(payload) == wanted
        contract.SetDefaults.model_validate_json(payload)


def test_buttons_press_what_the_daemon_has() -> None:
    home, topics = discovered(), Topics("piagent")
    pressed = {name: home.command(f"button.piagent_{name}")[:2] for name in ("stop", "forget", "reload_model")}
    assert pressed == {
        "stop": (topics.cancel(discovery.CONVERSATION), "{}"),
        "forget": (topics.reset(discovery.CONVERSATION), "{}"),
        "reload_model": (topics.request("models/reload"), "{}"),
    }
    assert contract.CancelRequest.model_validate_json("{}").id is None
