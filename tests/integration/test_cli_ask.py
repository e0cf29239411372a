"""`piagent ask` against a real broker and a daemon that is played."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BrokerFactory
from tests.fakes.broker import free_port
from tests.fakes.certificates import make_certificates
from tests.fakes.cli import Cli
from tests.fakes.observer import Observer
from tests.fakes.old_broker import OldBroker
from tests.fakes.responder import Responder


async def test_one_answer_streamed(responder: Responder, place: dict[str, Any], observer: Observer) -> None:
    async with Cli("ask", "What", "is up?", "--agent", "voice", **place) as cli:
        request = await responder.asked()
        await responder.send(request, "accepted", position=0, agent="voice", model="m")
        await responder.send(request, "chunk", text="Hello")
        await cli.shows("Hello")
        assert cli.process.returncode is None
        await responder.send(request, "chunk", text=" there.")
        await responder.send(request, "final", reply="Hello there.", finish_reason="stop")
        assert await cli.end() == 0
    assert (cli.out, cli.err) == ("Hello there.\n", "")
    asked = request.json
    assert asked == {"id": asked["id"], "message": "What is up?", "agent": "voice", "stream": True}
    assert request.properties["ResponseTopic"] == observer.out(request.topic.split("/")[-2])
    assert request.properties["CorrelationData"] == asked["id"].encode()


async def test_with_mqtt_3_1_1_it_listens_on_out(responder: Responder, place: dict[str, Any]) -> None:
    async with Cli("ask", "-", "--conversation", "kitchen", stdin="Hi\n", mqtt_protocol="311", **place) as cli:
        request = await responder.asked()
        assert "ResponseTopic" not in request.properties
        assert request.topic.endswith("/kitchen/in")
        assert request.json["message"] == "Hi"
        await responder.answer(request, "Hello.")
        assert await cli.end() == 0
    assert cli.out == "Hello.\n"


async def test_bytes_that_are_no_text_are_replaced(responder: Responder, place: dict[str, Any]) -> None:
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    async with Cli("ask", "-", stdin=b"Gr\xfc\xdfe\n", env=strict, **place) as cli:
        request = await responder.asked()
        assert request.json["message"] == "Gr\ufffd\ufffde"
        await responder.answer(request, "Hello.")
        assert await cli.end() == 0
    assert cli.err == ""


async def test_a_broker_without_mqtt_5_is_asked_again(new_broker: BrokerFactory) -> None:
    broker = new_broker()
    async with OldBroker(broker.port) as old, Observer(broker.port, protocol="311") as observer:
        await observer.subscribe("piagent/#")
        responder = Responder(observer)
        await responder.show()
        async with Cli("ask", "Hi", mqtt_port=old.port) as cli:
            await responder.answer(await responder.asked(), "Hello.")
            assert await cli.end() == 0
    assert cli.out == "Hello.\n"
    assert old.refused == 1


async def test_json_is_the_last_event_or_with_stream_every_one(
    responder: Responder, place: dict[str, Any], observer: Observer
) -> None:
    async with Cli("ask", "Hi", "--json", **place) as cli:
        request = await responder.asked()
        assert request.json["stream"] is False
        await responder.answer(request, "Hello.")
        assert await cli.end() == 0
    assert json.loads(cli.out)["reply"] == "Hello."
    observer.messages.clear()
    async with Cli("ask", "Hi", "--json", "--stream", **place) as cli:
        await responder.answer(await responder.asked(), "Hel", "lo.")
        assert await cli.end() == 0
    assert [json.loads(line)["type"] for line in cli.out.splitlines()] == ["accepted", "chunk", "chunk", "final"]


async def test_no_stream_prints_the_whole_answer(responder: Responder, place: dict[str, Any]) -> None:
    async with Cli("ask", "Hi", "--no-stream", "--model", "tiny", **place) as cli:
        request = await responder.asked()
        assert request.json["stream"] is False
        assert request.json["model"] == "tiny"
        await responder.answer(request, reply="Hello.")
        assert await cli.end() == 0
    assert cli.out == "Hello.\n"


async def test_an_error_with_its_message_and_remedy(responder: Responder, place: dict[str, Any]) -> None:
    async with Cli("ask", "Hi", **place) as cli:
        request = await responder.asked()
        await responder.send(request, "accepted", position=0, agent="general", model="m")
        await responder.send(request, "chunk", text="Well")
        await responder.send(request, "error", code="model_not_found", message="There is no model m.", partial="Well")
        assert await cli.end() == 1
    assert cli.out == "Well\n"
    first, second = cli.err.splitlines()
    assert first == "model_not_found: There is no model m."
    assert "piagent models pull" in second


async def test_a_restart_of_the_daemon_begins_the_answer_again(responder: Responder, place: dict[str, Any]) -> None:
    async with Cli("ask", "Hi", **place) as cli:
        request = await responder.asked()
        await responder.send(request, "chunk", text="Hel")
        await responder.show("offline")
        await responder.show("ok")
        await responder.send(request, "chunk", attempt=2, seq=0, text="Hello")
        await responder.send(request, "final", attempt=2, seq=1, reply="Hello.", finish_reason="stop")
        await responder.send(request, "final", attempt=2, seq=1, reply="Hello.", finish_reason="stop")
        assert await cli.end() == 0
    assert cli.out == "Hel\nHello.\n"
    assert "went away" in cli.err
    assert "begins again" in cli.err


async def test_lost_pieces_are_made_good_by_the_final_answer(responder: Responder, place: dict[str, Any]) -> None:
    async with Cli("ask", "Hi", **place) as cli:
        request = await responder.asked()
        await responder.send(request, "chunk", text="lo")
        await responder.send(request, "final", reply="Hello.", finish_reason="stop")
        assert await cli.end() == 0
    assert cli.out == "lo\nHello.\n"
    assert "lost" in cli.err


@pytest.mark.parametrize("status", [None, "offline"])
async def test_without_a_daemon_it_says_so_within_two_seconds(
    status: str | None, observer: Observer, place: dict[str, Any]
) -> None:
    if status:
        await Responder(observer).show(status)
    began = time.monotonic()
    async with Cli("ask", "Hi", **place) as cli:
        assert await cli.end() == 1
    assert time.monotonic() - began < 3.5
    assert cli.out == ""
    assert "piagent run" in cli.err
    assert ("stopped" if status else "does not show itself") in cli.err
    assert len(cli.err.splitlines()) == 1


async def test_without_a_broker_it_says_so() -> None:
    async with Cli("ask", "Hi", mqtt_port=free_port()) as cli:
        assert await cli.end() == 1
    assert "nothing listens there" in cli.err
    assert cli.out == ""


@pytest.mark.parametrize("more", [(), ("--stream",)])
async def test_without_a_broker_json_says_so_as_an_error(more: tuple[str, ...]) -> None:
    async with Cli("ask", "Hi", "--json", *more, mqtt_port=free_port()) as cli:
        assert await cli.end() == 1
    error = json.loads(cli.out)
    assert (error.keys(), error["type"], error["code"]) == ({"type", "code", "message"}, "error", "door")
    assert "nothing listens there" in error["message"]
    assert cli.err == ""


async def test_without_a_daemon_or_an_answer_in_time_json_says_so_too(
    responder: Responder, place: dict[str, Any], observer: Observer
) -> None:
    async with Cli("ask", "Hi", "--json", "--timeout", "0.3", **place) as cli:
        await responder.asked()
        assert await cli.end() == 1
    assert json.loads(cli.out)["message"] == "No answer within 0.3 s."
    await observer.wait(lambda message: message.topic.endswith("/cancel"))
    await responder.show("offline")
    async with Cli("ask", "Hi", "--json", **place) as cli:
        assert await cli.end() == 1
    assert "is stopped" in json.loads(cli.out)["message"]


async def test_ctrl_c_cancels_the_answer_first(responder: Responder, place: dict[str, Any], observer: Observer) -> None:
    async with Cli("ask", "Hi", **place) as cli:
        request = await responder.asked()
        await responder.send(request, "chunk", text="Hel")
        await cli.shows("Hel")
        cli.interrupt()
        cancel = await observer.wait(lambda message: message.topic.endswith("/cancel"))
        assert cancel.json == {"id": request.json["id"]}
        assert cancel.topic == request.topic.removesuffix("in") + "cancel"
        await responder.send(request, "final", reply="Hello", finish_reason="cancelled")
        assert await cli.end() == 1
    assert cli.out == "Hello\n"
    assert cli.err == "Cancelled.\n"


async def test_a_second_ctrl_c_leaves_at_once(responder: Responder, place: dict[str, Any], observer: Observer) -> None:
    async with Cli("ask", "Hi", **place) as cli:
        request = await responder.asked()
        await responder.send(request, "chunk", text="Hel")
        await cli.shows("Hel")
        cli.interrupt()
        await observer.wait(lambda message: message.topic.endswith("/cancel"))
        cli.interrupt()
        assert await cli.end(2) == 1
    assert "Traceback" not in cli.err


async def test_a_time_limit_cancels_too(responder: Responder, place: dict[str, Any], observer: Observer) -> None:
    async with Cli("ask", "Hi", "--timeout", "0.3", **place) as cli:
        await responder.asked()
        assert await cli.end() == 1
    assert cli.err == "piagent: No answer within 0.3 s.\n"
    await observer.wait(lambda message: message.topic.endswith("/cancel"))


async def test_an_answer_that_cannot_be_written_is_cancelled(
    responder: Responder, place: dict[str, Any], observer: Observer
) -> None:
    async with Cli("ask", "Hi", full=True, **place) as cli:
        request = await responder.asked()
        await responder.send(request, "chunk", text="Hello")
        await observer.wait(lambda message: message.topic.endswith("/cancel"), 10)
        assert await cli.end() == 1
    assert cli.err == "piagent: stdout cannot be written: No space left on device\n"


async def test_the_broker_s_end_is_told(new_broker: BrokerFactory) -> None:
    broker = new_broker()
    async with Observer(broker.port) as observer:
        await observer.subscribe("piagent/#")
        responder = Responder(observer)
        await responder.show()
        async with Cli("ask", "Hi", mqtt_port=broker.port) as cli:
            await responder.asked()
            broker.kill()
            assert await cli.end() == 1
    assert "lost" in cli.err


async def test_wrong_credentials_are_told_without_them(new_broker: BrokerFactory) -> None:
    broker = new_broker(users={"anna": "right"})
    async with Cli("ask", "Hi", mqtt_port=broker.port, mqtt_username="anna", mqtt_password="canary") as cli:
        assert await cli.end() == 1
    assert "MQTT_PASSWORD" in cli.err
    assert "canary" not in cli.err


async def test_it_speaks_tls(new_broker: BrokerFactory, tmp_path: Path) -> None:
    ca, *shown = make_certificates(tmp_path)
    broker = new_broker(certificate=(ca, *shown))
    async with Observer(broker.port, ca_file=str(ca)) as observer:
        await observer.subscribe("piagent/#")
        responder = Responder(observer)
        await responder.show()
        async with Cli("ask", "Hi", mqtt_port=broker.port, mqtt_tls=True, mqtt_ca_file=str(ca)) as cli:
            await responder.answer(await responder.asked(), "Hello.")
            assert await cli.end() == 0
    assert cli.out == "Hello.\n"


async def test_a_broker_whose_certificate_is_not_trusted_is_told_nothing(
    new_broker: BrokerFactory, tmp_path: Path
) -> None:
    broker = new_broker(certificate=make_certificates(tmp_path / "ours"))
    strange, *_ = make_certificates(tmp_path / "strange")
    async with Cli("ask", "Hi", mqtt_port=broker.port, mqtt_tls=True, mqtt_ca_file=str(strange)) as cli:
        assert await cli.end() == 1
    assert "not trusted" in cli.err


async def test_on_a_terminal_text_streams_colours_show_and_controls_do_nothing(
    responder: Responder, place: dict[str, Any]
) -> None:
    async with Cli("ask", "Hi", tty=True, **place) as cli:
        request = await responder.asked()
        await responder.send(request, "accepted", position=2, agent="general", model="m")
        await cli.shows("\x1b[2mwaiting, 2 before this one\x1b[0m")
        await responder.send(request, "status", stage="loading", detail="loading the model")
        await cli.shows("\x1b[2mloading the model\x1b[0m")
        await responder.send(request, "chunk", text="He\x1b]0;owned\x07")
        await cli.shows("He␛]0;owned␇")
        assert cli.process.returncode is None
        await responder.send(request, "error", code="timeout", message="Too \x1b[2J late.")
        assert await cli.end() == 1
    assert "\x1b[31mtimeout: Too ␛[2J late.\x1b[0m" in cli.out
    assert "\x1b]" not in cli.out
    assert "\x1b[2J" not in cli.out


async def test_no_color_is_obeyed_on_a_terminal(responder: Responder, place: dict[str, Any]) -> None:
    async with Cli("ask", "Hi", tty=True, env={"NO_COLOR": "1"}, **place) as cli:
        request = await responder.asked()
        await responder.send(request, "error", code="timeout", message="Too late.")
        assert await cli.end() == 1
    assert "timeout: Too late." in cli.out
    assert "\x1b" not in cli.out
