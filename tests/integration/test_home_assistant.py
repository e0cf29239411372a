"""The daemon as Home Assistant sees it: real daemon, real broker, and what a Home Assistant would read and send."""

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.conftest import BrokerFactory, DaemonFactory
from tests.fakes.answers import admin, health
from tests.fakes.broker import Mosquitto
from tests.fakes.cli import Cli
from tests.fakes.home_assistant import Entity, HomeAssistant, check_message
from tests.fakes.observer import Message, Observer
from tests.fakes.ollama import DEFAULT_MODEL, FakeOllama, Model

both = pytest.mark.parametrize("protocol", ["5", "311"])
Protocol = Literal["5", "311"]


class House:
    """A Home Assistant on a broker: `prefix` keeps it apart from those of other tests."""

    def __init__(self, observer: Observer, prefix: str) -> None:
        self.observer = observer
        self.prefix = prefix
        self.home = HomeAssistant(prefix)
        self._read = 0

    @property
    def settings(self) -> dict[str, Any]:
        return {"ha_discovery_prefix": self.prefix, "health_interval_s": 0.5}

    def read(self) -> None:
        """Take in what came since."""
        news, self._read = self.observer.messages[self._read :], len(self.observer.messages)
        for message in news:
            self.home.hear(message.topic, message.payload, retain=message.retain)

    def entity(self, kind: str, key: str) -> Entity:
        """Return an entity by platform and key, however the device is called."""
        (found,) = [one for one in self.home.entities.values() if (one.config["p"], one.key) == (kind, key)]
        return found

    async def until(self, condition: Any, what: str) -> None:
        def holds(_: Message) -> bool:
            self.read()
            return bool(condition())

        try:
            await self.observer.wait(holds)
        except TimeoutError:
            states = {name: entity.state for name, entity in self.home.entities.items()}
            raise AssertionError(f"{what} did not come: {states}, {self.home.complaints}") from None

    async def online(self) -> None:
        """Wait until all entities are there and available."""
        await self.until(
            lambda: self.home.entities and all(one.available for one in self.home.entities.values()), "the device"
        )

    async def use(self, kind: str, key: str, value: Any = None) -> None:
        """Publish what Home Assistant would when somebody uses an entity."""
        (name,) = [name for name, one in self.home.entities.items() if (one.config["p"], one.key) == (kind, key)]
        topic, payload, qos = self.home.command(name, value)
        await self.observer.publish(topic, payload, qos)

    async def says(self, status: str) -> None:
        await self.observer.publish(f"{self.prefix}/status", status)

    def announcements(self) -> list[Message]:
        return [one for one in self.observer.messages if one.topic.startswith(f"{self.prefix}/device/")]


async def _house(port: int, base: str, protocol: Protocol) -> AsyncIterator[House]:
    prefix = f"ha-{uuid.uuid4().hex[:12]}"
    async with Observer(port, base=base, protocol=protocol) as observer:
        await observer.subscribe(f"{prefix}/device/#")
        for topic in ("health", "info", "home-assistant/out", "response/#"):
            await observer.subscribe(f"{base}/{topic}")
        yield House(observer, prefix)


@pytest.fixture
async def house(mosquitto: Mosquitto, base_topic: str) -> AsyncIterator[House]:
    async for one in _house(mosquitto.port, base_topic, "5"):
        yield one


@pytest.fixture
async def houses(mosquitto: Mosquitto, base_topic: str, protocol: Protocol) -> AsyncIterator[House]:
    """A house of both protocols: the daemon and Home Assistant speak the same."""
    async for one in _house(mosquitto.port, base_topic, protocol):
        yield one


@both
async def test_it_is_asked_and_answers(
    daemon: DaemonFactory, model_server: FakeOllama, houses: House, protocol: Protocol
) -> None:
    house = houses
    await daemon(ollama_host=model_server.url, mqtt_protocol=protocol, **house.settings)
    await house.online()
    assert house.entity("binary_sensor", "connection").state == "on"
    await house.until(lambda: house.entity("binary_sensor", "model_server").state == "off", "the model server's state")
    model_server.reply = "It is **warm** today. " * 40
    await house.use("notify", "ask", 'Is it "warm"? Größe, 日本. ' + "Really? " * 100)
    reply = house.entity("event", "reply")
    await house.until(lambda: reply.events, "the reply")
    assert model_server.questions[-1].body["messages"][-1]["content"].startswith('Is it "warm"? Größe, 日本.')
    assert (reply.events[0]["event_type"], reply.events[0]["text"]) == ("reply", model_server.reply)
    answer = house.entity("sensor", "last_answer")
    assert (len(answer.state or ""), answer.attributes["text"]) == (250, model_server.reply.strip())
    await house.use("text", "question", "And tomorrow?")
    await house.until(lambda: len(reply.events) == 2, "the second reply")
    assert model_server.questions[-1].body["messages"][-1]["content"] == "And tomorrow?"
    assert len(model_server.questions[-1].body["messages"]) > 3, "one conversation"
    await house.until(lambda: float(house.entity("sensor", "first_word").state or 0) > 0, "the speed")
    assert float(house.entity("sensor", "context_used").state or 0) > 0
    kinds = {one.field("type") for one in house.observer.on(f"{house.observer.base}/home-assistant/out")}
    assert kinds == {"accepted", "final"}, "pieces are not even sent"
    assert not house.home.complaints


@both
async def test_choices_are_obeyed_everywhere_and_kept(
    daemon: DaemonFactory, houses: House, protocol: Protocol, tmp_path: Path
) -> None:
    house, models = houses, {DEFAULT_MODEL: Model(), "llama3.2:3b": Model()}
    async with FakeOllama(models) as server:
        process = await daemon(
            ollama_host=server.url,
            mqtt_protocol=protocol,
            memory_url=f"sqlite://{tmp_path}/memory.db",
            **house.settings,
        )
        await house.online()
        agent, model, number = (
            house.entity(*one) for one in (("select", "agent"), ("select", "model"), ("number", "temperature"))
        )
        await house.until(lambda: "llama3.2:3b" in model.config["options"], "the models of the server")
        assert (agent.state, model.state, number.state) == ("general", DEFAULT_MODEL, "0.7")
        await house.use("notify", "ask", "Who are you?")
        await house.until(lambda: house.entity("event", "reply").events, "the first reply")
        await house.use("select", "agent", "voice")
        await house.use("select", "model", "llama3.2:3b")
        await house.use("number", "temperature", 0.25)
        await house.until(
            lambda: (agent.state, model.state, number.state) == ("voice", "llama3.2:3b", "0.25"), "the choices"
        )
        for convo in ("home-assistant", "kitchen"):
            await house.observer.subscribe(house.observer.out(convo))
            final = (await house.observer.ask(convo, "And now?"))[-1]
            assert (final["agent"], final["model"]) == ("voice", "llama3.2:3b")
            assert server.questions[-1].body["options"]["temperature"] == 0.25
        assert (await health(house.observer))["provider"]["model"] == "llama3.2:3b"
        refused = await admin(house.observer, "defaults/set", {"agent": "nobody"})
        assert refused["error"]["code"] == "unknown_agent"
        await process.restart()
        info = (await admin(house.observer, "defaults/set"))["data"]
        assert info == {"agent": "voice", "model": "llama3.2:3b", "temperature": 0.25}
        assert not house.home.complaints


async def test_buttons_do_what_they_say(daemon: DaemonFactory, model_server: FakeOllama, house: House) -> None:
    await daemon(ollama_host=model_server.url, **house.settings)
    await house.online()
    reply = house.entity("event", "reply")
    model_server.tokens_per_s = 20
    model_server.reply = "word " * 200
    await house.use("notify", "ask", "Tell me a story.")
    await model_server.until(lambda server: any(not one.disconnected for one in server.questions))
    await house.use("button", "stop")
    await house.until(lambda: reply.events, "the end")
    assert reply.events[-1]["event_type"] == "cancelled"
    model_server.tokens_per_s = 0
    await house.use("notify", "ask", "Once more.")
    await house.until(lambda: len(reply.events) == 2, "the second reply")
    await house.use("button", "forget")
    await house.use("notify", "ask", "Do you remember?")
    await house.until(lambda: len(reply.events) == 3, "the third reply")
    assert [one["role"] for one in model_server.questions[-1].body["messages"]] == ["system", "user"]
    before = len(model_server.requests)
    await house.use("button", "reload_model")
    topic = f"{house.observer.base}/response/models/reload"
    answer = await house.observer.wait(lambda message: message.topic == topic)
    assert answer.json == {"status": "ok", "data": {"model": DEFAULT_MODEL}}
    bodies = [one.body for one in model_server.requests[before:] if one.path == "/api/generate"]
    assert {"model": DEFAULT_MODEL, "keep_alive": 0} in bodies
    assert model_server.runners.loaded()


@both
async def test_it_is_told_again_when_home_assistant_starts(
    daemon: DaemonFactory, model_server: FakeOllama, houses: House, protocol: Protocol
) -> None:
    house = houses
    await daemon(ollama_host=model_server.url, mqtt_protocol=protocol, **house.settings)
    await house.online()
    first = house.announcements()
    assert (first[-1].qos, {one.qos for one in first}) == (1, {1})
    await house.says("offline")
    await house.says("online")
    await house.until(lambda: len(house.announcements()) > len(first), "the message again")
    assert house.announcements()[-1].payload == first[-1].payload
    assert (await health(house.observer))["reasons"] == []


async def test_a_new_agent_becomes_an_option(
    daemon: DaemonFactory, model_server: FakeOllama, house: House, tmp_path: Path
) -> None:
    process = await daemon(ollama_host=model_server.url, prompts_dir=tmp_path, **house.settings)
    await house.online()
    (tmp_path / "cook.md").write_text("---\nmodel: chef:1b\n---\nYou cook.\n")
    process.hup()
    await house.until(lambda: "cook" in house.entity("select", "agent").config["options"], "the cook")
    assert "chef:1b" in house.entity("select", "model").config["options"]


async def test_a_new_model_becomes_an_option(daemon: DaemonFactory, house: House) -> None:
    async with FakeOllama(pullable={"tiny:1b"}) as server:
        await daemon(ollama_host=server.url, models_admin=True, **house.settings)
        await house.online()
        await house.observer.publish(f"{house.observer.base}/request/models/pull", {"model": "tiny:1b"})
        await house.until(lambda: "tiny:1b" in house.entity("select", "model").config["options"], "the new model")


async def test_a_stop_shows_as_one_and_a_return_too(
    daemon: DaemonFactory, model_server: FakeOllama, house: House
) -> None:
    process = await daemon(ollama_host=model_server.url, **house.settings)
    await house.online()
    await process.stop()
    await house.until(lambda: house.entity("binary_sensor", "connection").state == "off", "the goodbye")
    assert [one.key for one in house.home.entities.values() if one.available] == ["connection"]
    process.start()
    await process.ready()
    await house.online()
    assert not house.home.complaints


@both
async def test_switched_off_it_is_taken_back(
    daemon: DaemonFactory, model_server: FakeOllama, houses: House, protocol: Protocol
) -> None:
    house = houses
    process = await daemon(ollama_host=model_server.url, mqtt_protocol=protocol, **house.settings)
    await house.online()
    process.settings["ha_discovery"] = False
    await process.restart()
    await house.until(lambda: not house.home.entities, "the end of the device")
    assert house.announcements()[-1].payload == b""
    async with Observer(house.observer.port, base=house.observer.base) as late:
        await late.subscribe(f"{house.prefix}/#")
        await late.subscribe(f"{house.observer.base}/health")
        await late.wait(lambda message: message.topic.endswith("/health"))
        assert not [one for one in late.messages if one.topic.startswith(house.prefix)], "nothing stays retained"


async def test_the_command_line_shows_and_removes(
    daemon: DaemonFactory, model_server: FakeOllama, house: House
) -> None:
    process = await daemon(ollama_host=model_server.url, **house.settings)
    await house.online()
    await process.stop()
    told = house.announcements()[-1]
    settings = {name: process.settings[name] for name in ("mqtt_port", "mqtt_base_topic", "ollama_host")}
    settings |= {"ha_discovery_prefix": house.prefix, "health_interval_s": 0.5}
    async with Cli("discovery", "show", "--json", **settings) as cli:
        assert await cli.end() == 0
    shown = json.loads(cli.out)
    assert (shown["topic"], shown["payload"]) == (told.topic, told.json)
    check_message(shown["topic"], json.dumps(shown["payload"]).encode())
    async with Cli("discovery", "show", **settings, ha_discovery="false") as cli:
        assert await cli.end() == 0
    assert "Last answer" in cli.out
    assert "HA_DISCOVERY is false" in cli.err
    async with Cli("discovery", "remove", **settings) as cli:
        assert await cli.end() == 0
    assert told.topic in cli.out
    assert "HA_DISCOVERY=false" in cli.err
    await house.until(lambda: not house.home.entities, "the end of the device")


async def test_a_broker_that_forbids_it_is_named_and_harms_nothing(
    daemon: DaemonFactory, model_server: FakeOllama, new_broker: BrokerFactory, base_topic: str
) -> None:
    broker = new_broker(
        users={"piagent": "secret", "me": "secret"},
        acl=f"user piagent\ntopic readwrite {base_topic}/#\nuser me\ntopic readwrite #\n",
    )
    process = await daemon(
        ollama_host=model_server.url, mqtt_port=broker.port, mqtt_username="piagent", mqtt_password="secret"
    )
    async with Observer(broker.port, base=base_topic, username="me", password="secret") as observer:
        await observer.subscribe(f"{base_topic}/#", no_local=True)
        final = (await observer.ask("kitchen", "hello"))[-1]
        assert final["type"] == "final"
        assert (await health(observer))["reasons"] == []
    assert process.output.count("does not let us publish") == 1
    assert "homeassistant/device/" in process.output
