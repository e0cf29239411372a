"""`piagent chat` on a terminal and in a pipe, with a daemon that is played."""

import asyncio
from typing import Any

import pytest

from piagent_daemon.cli.asking import Line
from piagent_daemon.doors.mqtt_client import MqttClient
from piagent_daemon.settings import Settings
from tests.conftest import BrokerFactory
from tests.fakes.cli import Cli
from tests.fakes.observer import Observer
from tests.fakes.processes import wait_for
from tests.fakes.responder import Responder


async def test_a_conversation_on_a_terminal(responder: Responder, place: dict[str, Any], observer: Observer) -> None:
    async with Cli("chat", tty=True, **place) as cli:
        await cli.shows("> ")
        cli.type("Hi\n")
        first = await responder.asked()
        await responder.answer(first, "Hel", "lo\x1b[2J.")
        await cli.shows("Hello␛[2J.")
        cli.type("/agent voice\n")
        await cli.shows("voice answers now")
        cli.type("And again\n")
        second = await responder.asked(2)
        assert second.topic == first.topic
        assert (first.field("agent"), second.field("agent")) == (None, "voice")
        await responder.answer(second, "Yes.")
        await cli.shows("Yes.")
        cli.type("/reset\n")
        reset = await observer.wait(lambda message: message.topic.endswith("/reset"))
        assert reset.topic == first.topic.removesuffix("in") + "reset"
        await cli.shows("Forgotten.")
        cli.type("/quit\n")
        assert await cli.end() == 0


async def test_agents_are_listed_and_unknown_ones_refused(responder: Responder, place: dict[str, Any]) -> None:
    assert responder
    async with Cli("chat", "--agent", "general", tty=True, **place) as cli:
        await cli.shows("> ")
        cli.type("/agent\n")
        await cli.shows("* general")
        await cli.shows("  voice            speaks")
        cli.type("/agent nobody\n")
        await cli.shows("There is no agent nobody; known are general, voice.")
        cli.type("/sing\n")
        await cli.shows("There is no /sing")
        cli.type("/help\n")
        await cli.shows("/agent NAME")
        cli.type("/quit\n")
        assert await cli.end() == 0


@pytest.mark.parametrize("protocol", ["5", "311"])
async def test_when_the_daemon_is_seen_its_agents_are_known(
    responder: Responder, place: dict[str, Any], protocol: str
) -> None:
    assert responder

    def look() -> dict[str, str]:
        settings = Settings(mqtt_protocol=protocol, **place)
        with MqttClient(settings, "test") as client:
            line = Line(client, settings, "kitchen")
            line.require_daemon()
            return line.agents

    assert await asyncio.to_thread(look) == {"general": "answers", "voice": "speaks"}


async def test_ctrl_c_cancels_an_answer_and_leaves_at_the_prompt(
    responder: Responder, place: dict[str, Any], observer: Observer
) -> None:
    async with Cli("chat", tty=True, **place) as cli:
        await cli.shows("> ")
        cli.type("Hi\n")
        request = await responder.asked()
        await responder.send(request, "chunk", text="Hel")
        await cli.shows("Hel")
        cli.interrupt()
        cancel = await observer.wait(lambda message: message.topic.endswith("/cancel"))
        assert cancel.json == {"id": request.json["id"]}
        await responder.send(request, "final", reply="Hel", finish_reason="cancelled")
        await cli.until(lambda: "> " in cli.out.partition("Cancelled.")[2])
        await cli.interrupt_prompt()
        assert await cli.end() == 0
    assert "Traceback" not in cli.out


async def test_questions_from_a_pipe(responder: Responder, place: dict[str, Any]) -> None:
    async with Cli("chat", stdin="one\n\ntwo\n", **place) as cli:
        await responder.answer(await responder.asked(), "1")
        await responder.send(await responder.asked(2), "error", code="busy", message="The queue is full.")
        assert await cli.end() == 1
    assert cli.out == "1\n"
    assert cli.err.startswith("busy: The queue is full.\n")


async def test_bytes_that_are_no_text_are_replaced(responder: Responder, place: dict[str, Any]) -> None:
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    async with Cli("chat", stdin=b"Gr\xfc\xdfe\n", env=strict, **place) as cli:
        request = await responder.asked()
        assert request.json["message"] == "Gr\ufffd\ufffde"
        await responder.answer(request, "Hello.")
        assert await cli.end() == 0
    assert cli.err == ""


async def test_it_outlives_a_restart_of_the_broker(new_broker: BrokerFactory) -> None:
    broker = new_broker()
    async with Observer(broker.port) as observer:
        await observer.subscribe("piagent/#", no_local=True)
        responder = Responder(observer)
        await responder.show()
        async with Cli("chat", tty=True, mqtt_port=broker.port) as cli:
            await cli.shows("> ")
            broker.stop()
            cli.type("Hi\n")
            await cli.shows("MQTT broker")
            broker.start()
            await asyncio.to_thread(wait_for, lambda: observer.connects == 2, 10, "the observer is not back")
            await responder.show()
            cli.type("Hi again\n")
            await responder.answer(await responder.asked(), "Hello.")
            await cli.shows("Hello.")
            cli.type("/quit\n")
            assert await cli.end() == 0


async def test_without_a_daemon_there_is_no_chat(place: dict[str, Any], observer: Observer) -> None:
    assert observer
    async with Cli("chat", **place) as cli:
        assert await cli.end() == 1
    assert "piagent run" in cli.err
