"""The Hermes door over a real broker: recorded message sequences, and what becomes of them when things go wrong."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BrokerFactory, DaemonFactory
from tests.fakes.answers import health
from tests.fakes.broker import Mosquitto
from tests.fakes.observer import Message, Observer
from tests.fakes.ollama import FakeOllama

FILES = sorted((Path(__file__).parents[1] / "recordings/hermes").glob("*.json"))
RECORDINGS = [pytest.param(json.loads(path.read_text()), id=path.stem) for path in FILES]
CAPTURED = "hermes/asr/textCaptured"
END = "hermes/dialogueManager/endSession"
SAY = "hermes/tts/say"


@dataclass
class Stage:
    """A broker of the test's own, and somebody who plays all of Hermes but piagent."""

    broker: Mosquitto
    observer: Observer
    start: Callable[..., Any]
    qos: int = 0

    async def send(self, topic: str, payload: Any) -> None:
        data = payload if isinstance(payload, str) else json.dumps(payload)
        await self.observer.publish(topic, data, self.qos)

    def heard(self) -> list[Message]:
        """Return what was said over Hermes so far."""
        return [message for message in self.observer.messages if message.topic.startswith("hermes/")]

    async def expect(self, topic: str, seen: int, timeout_s: float = 5.0) -> tuple[Message, int]:
        """Return the next message from number `seen` on that is on `topic`, and the number behind it."""
        message = await self.observer.wait(lambda one: one.topic == topic, timeout_s, start=seen)
        return message, self.observer.messages.index(message, seen) + 1


@pytest.fixture
async def stage(
    new_broker: BrokerFactory, daemon: DaemonFactory, model_server: FakeOllama, base_topic: str
) -> AsyncIterator[Stage]:
    broker = new_broker()

    async def start(**settings: Any) -> Any:
        defaults: dict[str, Any] = {"hermes": True, "max_retries": 0, "ollama_host": model_server.url}
        return await daemon(mqtt_port=broker.port, **{**defaults, **settings})

    async with Observer(broker.port, base=base_topic) as observer:
        await observer.subscribe("hermes/#", no_local=True, as_published=True)
        await observer.subscribe(f"{base_topic}/#", no_local=True)
        yield Stage(broker, observer, start)


def _filled(payload: Any, ids: list[str]) -> Any:
    """Put the id of the n-th expected message in the place of `$n`."""
    text = json.dumps(payload)
    for number, name in enumerate(ids, 1):
        text = text.replace(f'"${number}"', json.dumps(name))
    return json.loads(text)


def matches(got: Any, wanted: dict[str, Any]) -> None:
    """Compare the fields that a recording names: `*` is any text, null that the field is not there."""
    for name, value in wanted.items():
        if value == "*":
            assert isinstance(got.get(name), str)
            assert got[name]
        else:
            assert got.get(name) == value, (name, got)


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("recording", RECORDINGS)
async def test_a_recorded_sequence(stage: Stage, model_server: FakeOllama, recording: dict[str, Any], qos: int) -> None:
    await stage.start(**recording.get("settings", {}))
    stage.qos = qos
    model_server.next(**recording["model"])
    seen = 0
    ids: list[str] = []
    for step in recording["steps"]:
        if "send" in step:
            await stage.send(step["send"], _filled(step["payload"], ids))
        elif "expect" in step:
            message, seen = await stage.expect(step["expect"], seen)
            assert (message.qos, message.retain) == (1, False)
            matches(message.json, step["payload"])
            ids.append(message.json.get("id", ""))
        elif "model" in step:
            model_server.next(**step["model"])
        elif "model_asked" in step:
            await model_server.until(lambda server: server.questions)
        elif "model_speaks" in step:
            await model_server.until(lambda server: server.questions and server.questions[-1].tokens > 5)
        else:
            assert step == {"model_stops": True}
            await model_server.until(lambda server: server.questions[-1].disconnected_at)
    async with asyncio.timeout(10):  # the answer is settled a moment after its last word went out
        while (state := await health(stage.observer))["queue"]["active"]:
            pass
    assert state["queue"]["waiting"] == 0
    assert state["totals"]["refused"] == recording.get("refused", 0)
    asked = [record.body["messages"][-1]["content"] for record in model_server.questions]
    assert len(asked) == len(recording["asked"])
    assert all(text.split("\n")[0].endswith(said) for text, said in zip(asked, recording["asked"], strict=True))
    for text in recording.get("told", ()):
        assert text in asked[-1]
    last = model_server.questions[-1].body["messages"] if asked else []
    remembered = [message["content"] for message in last[1:]]
    for text in recording.get("remembered", ()):
        assert any(one.startswith(text) for one in remembered), text
    for text in recording.get("forgotten", ()):
        assert text not in str(remembered)
    topics = {message.topic for message in stage.heard()}
    assert not topics & set(recording.get("never", ()))
    expected = [step for step in recording["steps"] if "expect" in step]
    if "hermes/tts/say" not in topics:
        assert len(stage.heard()) == len(expected)


async def test_the_conversation_of_a_site_is_the_one_of_mqtt(stage: Stage, model_server: FakeOllama) -> None:
    await stage.start()
    await stage.send(CAPTURED, {"text": "my name is Ada", "siteId": "kitchen"})
    await stage.expect(SAY, 0)
    await stage.observer.ask("kitchen", "Who am I?")
    contents = [message["content"] for message in model_server.questions[-1].body["messages"]]
    assert any(text.startswith("my name is Ada") for text in contents)
    for _ in range(2):
        await stage.send(CAPTURED, {"text": "hello", "siteId": "first floor/hall #1"})
        await stage.observer.wait(lambda one: "hall #1" in str(one.json) and one.topic == SAY)
        stage.observer.messages.clear()
    assert (await health(stage.observer))["memory"]["conversations"] == 2


async def test_a_slow_model_s_filler_is_said_in_a_session(
    stage: Stage, model_server: FakeOllama, tmp_path: Path
) -> None:
    (tmp_path / "voice.md").write_text("---\nfiller: {text: One moment., seconds: 0.2}\n---\nSpeak.\n")
    await stage.start(prompts_dir=tmp_path)
    model_server.next(reply="It is warm. It stays so.", first_token_delay_s=1.0)
    await stage.send(CAPTURED, {"text": "how warm is it", "siteId": "kitchen", "sessionId": "s1"})
    filler, seen = await stage.expect(SAY, 0)
    assert (filler.json["text"], filler.json["siteId"]) == ("One moment.", "kitchen")
    await stage.send("hermes/tts/sayFinished", {"id": filler.json["id"], "siteId": "kitchen"})
    end, _ = await stage.expect(END, seen)
    assert end.json["text"] == "It is warm. It stays so."
    await stage.send(CAPTURED, {"text": "and now", "siteId": "kitchen", "sessionId": "s2"})
    await stage.expect(END, seen + 1)
    assert len([one for one in stage.heard() if one.topic == SAY]) == 1
    assert "One moment" not in str(model_server.questions[-1].body)


async def test_a_question_at_qos_1_survives_a_kill(stage: Stage, model_server: FakeOllama, tmp_path: Path) -> None:
    process = await stage.start(memory_url=f"sqlite://{tmp_path}/memory.db")
    stage.qos = 1
    model_server.next("endless", tokens_per_s=20)
    await stage.send(CAPTURED, {"text": "how warm is it", "siteId": "kitchen", "sessionId": "s1"})
    await model_server.until(lambda server: server.questions and server.questions[-1].tokens > 2)
    process.kill()
    model_server.next(reply="It is warm.")
    process.start()
    await process.ready()
    end, seen = await stage.expect(END, 0, 15)
    assert end.json["text"] == "It is warm."
    await health(stage.observer)  # by then the question is acknowledged, and nothing of it comes again
    await process.restart(kill=True)
    await stage.send(CAPTURED, {"text": "and now", "siteId": "kitchen", "sessionId": "s2"})
    end, _ = await stage.expect(END, seen, 15)
    assert end.json["sessionId"] == "s2"
    assert len([one for one in stage.heard() if one.topic == END]) == 2


async def test_a_question_that_comes_again_while_it_is_answered_is_answered_once(
    stage: Stage, model_server: FakeOllama
) -> None:
    await stage.start()
    stage.qos = 1
    model_server.next(reply="It is warm.", first_token_delay_s=1.5)
    await stage.send(CAPTURED, {"text": "how warm is it", "sessionId": "s1"})
    await model_server.until(lambda server: server.questions)
    stage.broker.restart()
    end, seen = await stage.expect(END, 0, 15)
    assert end.json["text"] == "It is warm."
    await stage.send(CAPTURED, {"text": "and now", "sessionId": "s2"})
    await stage.expect(END, seen, 15)
    assert len(model_server.questions) == 2
    assert len([one for one in stage.heard() if one.json.get("sessionId") == "s1"]) == 1


async def test_a_stop_tells_who_waits(stage: Stage, model_server: FakeOllama) -> None:
    process = await stage.start(shutdown_grace_s=0.2)
    model_server.next("endless", tokens_per_s=20)
    await stage.send(CAPTURED, {"text": "tell me everything", "siteId": "kitchen", "sessionId": "s1"})
    await model_server.until(lambda server: server.questions and server.questions[-1].tokens > 2)
    assert await process.stop() == 0
    end, _ = await stage.expect(END, 0)
    assert end.json["text"] == "I am busy right now. Please ask again in a moment."


async def test_a_retained_question_is_not_answered(stage: Stage, model_server: FakeOllama) -> None:
    await stage.observer.publish(CAPTURED, {"text": "old", "sessionId": "s1"}, retain=True)
    process = await stage.start(mqtt_protocol="311")
    await stage.send(CAPTURED, {"text": "new", "sessionId": "s2"})
    end, _ = await stage.expect(END, 0)
    assert end.json["sessionId"] == "s2"
    assert len(model_server.questions) == 1
    assert "retained" in process.output


async def test_switched_off_it_leaves_no_subscription_behind(stage: Stage, model_server: FakeOllama) -> None:
    process = await stage.start()
    process.settings["hermes"] = False
    await process.restart()
    await stage.observer.ask("kitchen", "Hello")
    for topic in (CAPTURED, "hermes/hotword/porcupine/detected", "hermes/dialogueManager/sessionEnded"):
        await stage.send(topic, {"text": "hello", "sessionId": "s1"})
    await stage.observer.ask("kitchen", "Hello again")
    assert (await health(stage.observer))["totals"]["refused"] == 0
    assert len(model_server.questions) == 2
    assert stage.heard() == []


async def test_a_broker_that_does_not_let_us_speak_is_told_in_health(
    new_broker: BrokerFactory, daemon: DaemonFactory, model_server: FakeOllama, base_topic: str
) -> None:
    rules = f"user all\ntopic readwrite #\nuser piagent\ntopic readwrite {base_topic}/#\ntopic read hermes/#\n"
    password = uuid.uuid4().hex
    broker = new_broker(users={"all": password, "piagent": password}, acl=rules)
    async with Observer(broker.port, base=base_topic, username="all", password=password) as observer:
        await observer.subscribe(f"{base_topic}/#", no_local=True)
        process = await daemon(
            mqtt_port=broker.port,
            mqtt_username="piagent",
            mqtt_password=password,
            hermes=True,
            ollama_host=model_server.url,
        )
        await observer.publish(CAPTURED, {"text": "hello", "sessionId": "s1"})
        degraded = await observer.wait(lambda message: "acl_hermes" in (message.field("reasons") or ()))
        assert degraded.field("status") == "degraded"
        assert 'allow this user to write "hermes/#"' in process.output
        assert (await observer.ask("kitchen", "Hello"))[-1]["type"] == "final"
