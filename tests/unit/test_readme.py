"""The README says what is true: its tables, examples, links and commands are compared with the program."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from jinja2 import Environment

from piagent_daemon import __version__, agents, app, contract, discovery, errors, wire
from piagent_daemon.admin import METHODS
from piagent_daemon.cli import VERBS
from piagent_daemon.doors import DOORS, hermes_words
from piagent_daemon.doors.hermes import ACL_HERMES
from piagent_daemon.doors.mqtt import BACKPRESSURE, DUPLICATE_CLIENT_ID
from piagent_daemon.doors.mqtt_selftest import ACL_PUBLISH, ACL_SUBSCRIBE
from piagent_daemon.doors.wyoming import WYOMING_PORT
from piagent_daemon.providers.config import place
from piagent_daemon.reporting import describe
from piagent_daemon.settings import Settings, load_settings
from piagent_daemon.topics import Topics
from piagent_daemon.watch import KINDS
from tests import generated

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
REASONS = {
    *(*KINDS, ACL_HERMES, ACL_PUBLISH, ACL_SUBSCRIBE, BACKPRESSURE, DUPLICATE_CLIENT_ID, WYOMING_PORT),
    *("config_rejected", "loop:<conversation>", "memory_not_persisted", "overload"),
}
"""Of health, from `piagent_daemon.watch`, the doors, `health` and `reporting`."""


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, those inside lists included."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", README, re.DOTALL | re.MULTILINE)
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines()) for indent, text in found]


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_made_parts_are_up_to_date() -> None:
    assert generated.readme(README) == README, "python -m tests.generated"
    assert generated.TOML.read_text() == generated.settings_toml(), "python -m tests.generated"
    assert agents.FRONT_MATTERS.read_text() == generated.front_matters(), "python -m tests.generated"


def test_the_example_file_holds_the_defaults() -> None:
    lines = re.findall(r"^#(\w+ = .*)$", generated.TOML.read_text(), re.MULTILINE)
    values = {name: value for name, value in tomllib.loads("\n".join(lines)).items() if value != ""}
    machine = {"mqtt_client_id": "piagent-here"}
    assert set(tomllib.loads("\n".join(lines))) == set(Settings.model_fields)
    assert Settings.model_validate(values | machine) == Settings.model_validate(machine)


def test_it_begins_with_two_commands_of_which_ci_runs_the_second() -> None:
    demo, check = blocks("sh")[:2]
    assert "\n" not in demo + check
    assert demo.endswith('piagent demo "hello"')
    assert check.endswith("pytest")
    ci = (ROOT / ".ci/run").read_text().splitlines()
    assert ci[-1] == check


@pytest.mark.parametrize(
    "code",
    sorted(
        {
            each.code
            for each in vars(errors).values()
            if isinstance(each, type) and issubclass(each, errors.PiagentError)
        }
    ),
)
def test_every_error_on_the_wire_is_explained(code: str) -> None:
    rows = [line for line in section("Troubleshooting").splitlines() if line.startswith(f"| `{code}` |")]
    never_on_the_wire = {errors.ConfigError.code, errors.StoreError.code, errors.DoorError.code}
    assert len(rows) == (0 if code in never_on_the_wire else 1)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_explained(verb: str) -> None:
    assert f"| `piagent {verb}" in section("Command line")


def test_every_field_of_a_request_is_explained() -> None:
    for name in contract.Request.model_fields:
        assert re.search(rf"^\|[^|]*`{name}`", section("Topics"), re.MULTILINE), name


def test_every_key_of_a_prompt_file_is_named() -> None:
    for name in agents.FrontMatter.model_fields:
        assert f"`{name}`" in section("Agents"), name


def test_what_the_broker_keeps_is_what_ours_is_told_to_keep() -> None:
    (kept,) = re.findall(r"(\d+)\s+\(`max_queued_messages`\)", section("What is promised"))
    for name in ("mosquitto/piagent.conf", "docker/mosquitto.conf"):
        assert f"\nmax_queued_messages {kept}\n" in (ROOT / "deploy" / name).read_text()


def test_the_example_of_an_agent_is_one(tmp_path: Path) -> None:
    (example,) = blocks("markdown")
    path = tmp_path / "cook.md"
    path.write_text(example)
    agent = agents.read_agent(path)
    assert agent.description
    assert agent.context


def test_links_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("http"):
            assert (ROOT / target).exists(), target


EVENTS: dict[str, type[contract.Event]] = {
    each.model_fields["type"].default: each
    for each in vars(contract).values()
    if isinstance(each, type) and issubclass(each, contract.Event) and each is not contract.Event
}


def test_the_example_of_an_answer_is_made_of_events() -> None:
    (example,) = blocks("json")
    events = [EVENTS[json.loads(line)["type"]].model_validate_json(line) for line in example.splitlines()]
    assert [event.seq for event in events] == list(range(len(events)))
    assert isinstance(events[0], contract.Accepted)
    final = events[-1]
    assert isinstance(final, contract.Final)
    assert "".join(event.text for event in events if isinstance(event, contract.Chunk)) == final.reply


def commands(program: str) -> Iterator[list[str]]:
    for block in blocks("sh"):
        for line in block.splitlines():
            if line.startswith(f"{program} "):
                yield shlex.split(line.split(" | ")[0])


def option(command: list[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command else None


def test_what_the_examples_send_is_understood() -> None:
    topics, sent = Topics("piagent"), []
    for command in [*commands("mosquitto_pub"), *commands("mosquitto_rr")]:
        name, payload = option(command, "-t") or "", (option(command, "-m") or "").encode()
        if name in hermes_words.QUESTIONS:
            assert hermes_words.question(name, payload).text, command
            continue
        topic = topics.parse(name)
        assert topic, command
        sent.append(topic.kind)
        if topic.kind == "in":
            assert wire.parse_request(payload, Settings()).message, command
            assert option(command, "-q") == "1", "a question wants QoS 1"
    assert set(sent) == {"in", "cancel", "reset", "request"}
    assert sent.count("in") >= 3


def test_what_the_examples_read_is_published() -> None:
    topics = Topics("piagent")
    known = {topics.out("kitchen"), topics.health, topics.response("agents/list"), "piagent/reply/wall-display"}
    known.add(hermes_words.SAY)
    read = {option(command, "-t") for command in commands("mosquitto_sub")}
    assert read
    assert read <= known


def test_the_device_in_home_assistant_is_explained_as_it_is() -> None:
    payload = discovery.message(describe(app.configure(Settings())), Settings())
    entities = {part["default_entity_id"] for part in json.loads(payload)["cmps"].values()}
    table = [line for line in section("Home Assistant: first steps").splitlines() if line.lstrip().startswith("|")]
    named = set(re.findall(r"`([a-z_]+\.piagent_[a-z_]+)`", "\n".join(table)))
    assert named == entities


def test_the_examples_for_home_assistant_are_yaml_that_asks_and_reads() -> None:
    ask, read, _ = (yaml.safe_load(block) for block in blocks("yaml"))
    assert ask["actions"][0]["action"] == "notify.send_message"
    assert ask["actions"][0]["target"]["entity_id"] == "notify.piagent_ask"
    assert read["triggers"][0]["entity_id"] == "event.piagent_reply"
    assert "'text': value_json.reply" in discovery.EVENT
    assert "attributes.text" in read["actions"][0]["data"]["message"]


def test_the_example_for_the_script_in_home_assistant_gives_it_what_it_takes() -> None:
    package = yaml.safe_load((ROOT / "deploy/home-assistant/packages/piagent.yaml").read_text())
    ask, use = yaml.safe_load(blocks("yaml")[2])["actions"]
    domain, name = ask["action"].split(".")
    fields = package[domain][name]["fields"]
    assert ask["data"].keys() <= fields.keys()
    assert {key for key, one in fields.items() if one.get("required")} <= ask["data"].keys()
    assert ask["response_variable"] == "answer"
    facts = Environment(autoescape=False).from_string(ask["data"]["facts"])  # noqa: S701 - no HTML
    assert facts.render(states=lambda _entity: "rainy") == "{'weather': 'rainy'}"
    said = Environment(autoescape=False).from_string(use["data"]["message"])  # noqa: S701 - no HTML
    assert said.render(answer={"ok": False, "message": "Too many wait."}) == "Too many wait."


def test_the_flows_for_node_red_have_the_addresses_and_names_that_are_told() -> None:
    nodes = json.loads((ROOT / "deploy/node-red/flows.json").read_text())
    told, labels = section("Node-RED"), {node.get("label") or node.get("name") for node in nodes}
    assert {f"piagent {tab}" for tab in re.findall(r"^\| (\d: [a-z ]+) \|", told, re.MULTILINE)} == {
        node["label"] for node in nodes if node["type"] == "tab"
    }
    assert set(re.findall(r"`[A-Z]+ (/piagent/[a-z/]+)`", told)) == {
        node["url"] for node in nodes if node["type"] == "http in"
    }
    for name in ("Ask", "Be quiet", "piagent's broker", "piagent's broker, MQTT 5", "piagent 1: ask"):
        assert f"*{name}*" in told
        assert name in labels


@pytest.mark.parametrize("door", sorted(DOORS.keys() - {"mqtt"}))
def test_every_reason_of_a_door_is_explained(door: str) -> None:
    reasons = {"hermes": ACL_HERMES, "wyoming": WYOMING_PORT}
    assert f"| `{reasons[door]}` |" in section("Troubleshooting")


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_every_reason_of_health_is_explained(reason: str) -> None:
    rows = re.findall(
        r"^\| (`.+?`) \| .*\w.* \|$", section("Troubleshooting").split("| `health.reasons` |")[1], re.MULTILINE
    )
    assert any(f"`{reason}`" in names.split(", ") for names in rows)


@pytest.mark.parametrize("method", METHODS)
def test_every_request_to_the_daemon_itself_is_explained(method: str) -> None:
    table = section("Topics").split("\n### Requests to the daemon itself\n")[1].split("\n### ")[0]
    rows = re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE)
    assert any(f"`{method}`" in names.split(", ") for names in rows)


def test_what_the_readme_has_installed_can_be_installed() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(wanted.startswith("amqtt") for wanted in extras["demo"]), "the embedded broker of `piagent demo`"
    assert set(re.findall(r"\bpip install .*?'\.\[(\w+)\]'", README)) <= extras.keys()


def test_the_changelog_knows_this_version() -> None:
    assert f"\n## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_example_of_a_ladder_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tail = "\n".join(
        line.removeprefix("# ") for line in generated.TOML_TAIL.splitlines() if " = " in line or "[" in line
    )
    for text in (*(block for block in blocks("toml") if "[providers" in block), tail):
        (tmp_path / "piagent.toml").write_text(text)
        settings = load_settings(environ={}).settings
        assert settings.provider == "office,ollama-cloud"
        assert [place(name, settings).config.model for name in settings.providers] == [
            "qwen2.5:14b-instruct",
            "gpt-oss:120b",
        ]
