"""The Wyoming door as Home Assistant uses it: the package's own client before the real daemon."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from wyoming.asr import Transcript
from wyoming.client import AsyncTcpClient
from wyoming.event import Event
from wyoming.handle import Handled, HandledChunk, NotHandled
from wyoming.info import Describe, Info, SelectProgram
from wyoming.ping import Ping

from piagent_daemon.agents import load_agents
from piagent_daemon.doors import wyoming_line
from piagent_daemon.doors.wyoming import MAX_LINES, WYOMING_PORT, WyomingDoor
from piagent_daemon.settings import Settings
from tests.conftest import DaemonFactory
from tests.fakes.answers import health
from tests.fakes.broker import free_port
from tests.fakes.echo_engine import EchoEngine, RealClock, until
from tests.fakes.observer import Observer
from tests.fakes.ollama import FakeOllama

LAST = {"handled", "not-handled", "error"}
JOKE = "Why? Because it was warm. That is all."


class Home:
    """Home Assistant: a new connection for each turn."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self) -> AsyncTcpClient:
        return AsyncTcpClient("127.0.0.1", self.port, connect_timeout=5, read_timeout=10)

    async def describe(self) -> Info:
        async with self.connect() as client:
            await client.write_event(Describe().event())
            event = await client.read_event()
            assert event
            return Info.from_event(event)

    async def ask(self, text: str, language: str | None = None, program: str | None = None, **context: str) -> Event:
        """Return the event that ends the turn for Home Assistant."""
        return (await self.turn(text, language, program, **context))[-1]

    async def turn(
        self, text: str, language: str | None = None, program: str | None = None, **context: str
    ) -> list[Event]:
        async with self.connect() as client:
            if program:
                await client.write_event(SelectProgram(program).event())
            await client.write_event(Transcript(text, context or None, language).event())
            return await turn_of(client)


def speaks(server: FakeOllama) -> bool:
    """Tell whether the model is in the middle of its answer."""
    return bool(server.questions) and server.questions[-1].tokens > 5


async def turn_of(client: AsyncTcpClient) -> list[Event]:
    """Read to the end of a turn."""
    events: list[Event] = []
    while not events or events[-1].type not in LAST:
        event = await client.read_event()
        assert event, f"hung up after {events}"
        events.append(event)
    return events


@pytest.fixture
def home() -> Home:
    return Home(free_port())


@pytest.fixture
def settings(home: Home) -> dict[str, Any]:
    return {"wyoming_uri": f"tcp://127.0.0.1:{home.port}"}


async def test_a_conversation_agent_that_home_assistant_takes(
    daemon: DaemonFactory, model_server: FakeOllama, home: Home, settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "koch.md").write_text("---\ndescription: Kocht\nlanguages: [de]\n---\nKoche.\n")
    await daemon(ollama_host=model_server.url, prompts_dir=tmp_path, **settings)
    info = await home.describe()
    assert [program.name for program in info.handle] == ["piagent voice", "piagent general", "piagent koch"]
    assert all(program.installed and program.models[0].installed for program in info.handle)
    assert info.handle[2].models[0].languages == ["de"]
    assert "en" in info.handle[0].models[0].languages
    async with home.connect() as client:
        await client.write_event(Ping("1").event())
        pong = await client.read_event()
        assert pong
        assert (pong.type, pong.data) == ("pong", {"text": "1"})


async def test_a_turn_from_text_to_speech(
    daemon: DaemonFactory, model_server: FakeOllama, home: Home, settings: dict[str, Any]
) -> None:
    await daemon(ollama_host=model_server.url, **settings)
    model_server.reply = "It is **warm** today. Shall I open a window?"
    events = await home.turn(
        "Is it warm?", "en", conversation_id="01JFC7Z", device_id="d1", satellite_id="assist_satellite.kitchen"
    )
    assert events[0].type == "handled-start"
    assert {event.type for event in events[1:-1]} == {"handled-chunk"}
    assert "".join(HandledChunk.from_event(event).text for event in events[1:-1]) == events[-1].data["text"]
    handled = Handled.from_event(events[-1])
    assert handled.text == "It is warm today. Shall I open a window?"
    assert handled.context == {"conversation_id": "01JFC7Z"}
    body = model_server.questions[-1].body
    assert "voice assistant" in body["messages"][0]["content"]
    newest = body["messages"][-1]["content"]
    assert newest.startswith("Is it warm?")
    assert "assist_satellite.kitchen" in newest
    assert "d1" in newest


async def test_memory_is_one_with_mqtt(
    daemon: DaemonFactory, model_server: FakeOllama, home: Home, settings: dict[str, Any], observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url, **settings)
    await home.ask("My name is Ada.", conversation_id="01JFC7Z")
    await observer.ask("01JFC7Z", "What is my name?")
    assert [message["content"] for message in model_server.questions[-1].body["messages"]].count("My name is Ada.") == 1
    await home.ask("And yours?", conversation_id="01JFC7Z")
    said = [message["content"] for message in model_server.questions[-1].body["messages"]]
    assert "What is my name?" in said
    await home.ask("Who am I?", conversation_id="another")
    assert len(model_server.questions[-1].body["messages"]) == 2
    for _ in range(2):
        await home.ask("Who am I?", conversation_id="a/b#+")
    assert len(model_server.questions[-1].body["messages"]) == 4
    assert (await health(observer))["memory"]["conversations"] == 3
    # without a conversation each turn is one of its own, and its name comes back
    first, second = [(await home.ask("Hello")).data["context"]["conversation_id"] for _ in range(2)]
    assert first != second


async def test_another_agent_by_the_name_of_its_program(
    daemon: DaemonFactory, model_server: FakeOllama, home: Home, settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "koch.md").write_text("Koche.\n")
    await daemon(ollama_host=model_server.url, prompts_dir=tmp_path, **settings)
    for program in ("koch", "piagent koch"):
        await home.ask("Was gibt es?", program=program)
        assert model_server.questions[-1].body["messages"][0]["content"] == "Koche."
    await home.ask("Was gibt es?", program="nobody")
    assert "voice assistant" in model_server.questions[-1].body["messages"][0]["content"]


async def test_a_failure_is_a_sentence(
    daemon: DaemonFactory, model_server: FakeOllama, home: Home, settings: dict[str, Any]
) -> None:
    await daemon(ollama_host=model_server.url, max_message_chars=100, max_retries=0, **settings)
    for mode in ("500", "404"):
        model_server.next(mode)
        event = await home.ask("Hello", "de-DE")
        assert event.type == "not-handled"
        assert NotHandled.from_event(event).text == "Entschuldigung, mein Sprachmodell antwortet nicht."
    for text in ("x" * 101, "  "):
        assert (await home.ask(text)).type == "not-handled"
    model_server.next("eof", reply=JOKE, after=9)
    events = await home.turn("Tell me a joke.")
    assert events[-1].type == "not-handled"
    await model_server.stop()
    event = await home.ask("Hello")
    assert NotHandled.from_event(event).text == "Sorry, my language model does not answer."


async def test_sentences_come_while_the_model_speaks(
    daemon: DaemonFactory, model_server: FakeOllama, home: Home, settings: dict[str, Any]
) -> None:
    await daemon(ollama_host=model_server.url, **settings)
    model_server.next(reply=f"{JOKE} {JOKE} {JOKE}", tokens_per_s=20)
    async with home.connect() as client:
        await client.write_event(Transcript("Tell me a joke.").event())
        start, first = await client.read_event(), await client.read_event()
        assert start
        assert first
        assert (start.type, first.type) == ("handled-start", "handled-chunk")
        assert HandledChunk.from_event(first).text in {"Why?", "Why? Because it was warm."}
        assert (await turn_of(client))[-1].data["text"] == f"{JOKE} {JOKE} {JOKE}"
        stop = await client.read_event()
        assert stop
        assert stop.type == "handled-stop"


async def test_a_dropped_connection_stops_the_model(
    daemon: DaemonFactory, model_server: FakeOllama, home: Home, settings: dict[str, Any], observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url, **settings)
    model_server.next("endless", tokens_per_s=20)
    async with home.connect() as client:
        await client.write_event(Transcript("Talk.", {"conversation_id": "c1"}).event())
        await model_server.until(speaks)
        left = time.monotonic()
    await model_server.until(lambda server: server.questions[0].disconnected_at, 2)
    assert time.monotonic() - left < 0.5
    assert (await home.ask("Still there?", conversation_id="c1")).type == "handled"
    said = [one["content"] for one in model_server.questions[1].body["messages"] if one["role"] != "system"]
    assert said[:2] == ["Talk.", "…"], "nobody heard a word of it"
    assert said[2].startswith("[interrupts you] Still there?")
    assert (await health(observer))["totals"]["cancelled"] == 1
    # also one that still waits for its turn
    model_server.next("endless", tokens_per_s=20)
    async with home.connect() as talker:
        await talker.write_event(Transcript("Talk.", {"conversation_id": "c2"}).event())
        await model_server.until(lambda server: len(server.questions) == 3)
        async with home.connect() as client:
            await client.write_event(Transcript("Wait.", {"conversation_id": "c3"}).event())
            await waiting(observer, 1)
        await waiting(observer, 0)
    assert len(model_server.questions) == 3


async def waiting(observer: Observer, count: int) -> None:
    """Wait until so many requests wait."""
    async with asyncio.timeout(5):
        while (await health(observer))["queue"]["waiting"] != count:
            pass


async def test_the_same_bounds_as_mqtt(
    daemon: DaemonFactory, model_server: FakeOllama, home: Home, settings: dict[str, Any], observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url, max_waiting=1, **settings)
    model_server.next("endless", tokens_per_s=20)
    async with home.connect() as talker:
        await talker.write_event(Transcript("Talk.", {"conversation_id": "c1"}).event())
        await model_server.until(speaks)
        await observer.publish(f"{observer.base}/c2/in", "wait")
        await waiting(observer, 1)
        event = await home.ask("One more", "en", conversation_id="c3")
        assert (event.type, event.data["text"]) == (
            "not-handled",
            "I am busy right now. Please ask again in a moment.",
        )
    await observer.wait(lambda message: message.field("type") == "final")


async def test_who_speaks_again_breaks_in(
    daemon: DaemonFactory, model_server: FakeOllama, home: Home, settings: dict[str, Any]
) -> None:
    """The agent `voice` has `interrupt`: the newer turn of a conversation ends the older one."""
    await daemon(ollama_host=model_server.url, **settings)
    model_server.next("endless", tokens_per_s=20)
    first = asyncio.create_task(home.ask("Talk.", conversation_id="c1"))
    await model_server.until(speaks)
    assert (await home.ask("Stop!", conversation_id="c1")).type == "handled"
    assert (await first).type == "handled"


async def test_a_stop_tells_who_waits(
    daemon: DaemonFactory, model_server: FakeOllama, home: Home, settings: dict[str, Any]
) -> None:
    process = await daemon(ollama_host=model_server.url, shutdown_grace_s=0.2, **settings)
    model_server.next("endless", tokens_per_s=20)
    turns = [asyncio.create_task(home.ask("Talk.", "en", conversation_id=name)) for name in ("c1", "c2")]
    await model_server.until(speaks)
    process.terminate()
    for event in await asyncio.gather(*turns):
        assert event.type == "not-handled"
        assert event.data["text"] == "I am busy right now. Please ask again in a moment."
    assert await process.wait_exit(10) == 0


async def test_bad_input_ends_its_connection_and_nothing_else(
    daemon: DaemonFactory, model_server: FakeOllama, home: Home, settings: dict[str, Any], observer: Observer
) -> None:
    process = await daemon(ollama_host=model_server.url, **settings)
    before = process.rss_mb()
    bad = [
        b"GET / HTTP/1.1\r\nHost: piagent\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\xff" * 100,
        b'{"type": "transcript", "data_length": 99999999999}\n',
        b'{"type": "transcript", "payload_length": 99999999999}\n',
        b'{"type": "transcript", "data_length": 2}\n[]',
        b"[" * 60_000 + b"\n",
        b"x" * 8_000_000,
    ]
    for data in bad:
        reader, writer = await asyncio.open_connection("127.0.0.1", home.port)
        writer.write(data if data.endswith(b"\n") or len(data) > 1000 else data + b"\n")
        try:
            async with asyncio.timeout(5):
                assert await reader.read() == b""
        except ConnectionError:
            pass
        writer.close()
    assert (await health(observer))["totals"]["refused"] == len(bad)
    assert process.output.count("a connection is closed: ") == 1, "not one for each"
    # what is understood but not meant for us is passed over
    async with home.connect() as client:
        for kind in ("audio-start", "synthesize", "no-such-event"):
            await client.write_event(Event(kind, {"rate": 16000}))
        await client.write_event(Event("audio-chunk", {"rate": 16000}, b"\0" * 2048))
        await client.write_event(Event("transcript", {"text": 7}))
        assert (await turn_of(client))[-1].type == "not-handled"
        await client.write_event(Transcript("Hello").event())
        assert (await turn_of(client))[-1].type == "handled"
    assert process.rss_mb() < before + 15
    assert process.running


async def test_a_flood_of_connections_is_bounded(
    daemon: DaemonFactory, model_server: FakeOllama, home: Home, settings: dict[str, Any], observer: Observer
) -> None:
    process = await daemon(ollama_host=model_server.url, **settings)
    with ExitStack() as stack:
        for _ in range(MAX_LINES):
            stack.enter_context(socket.create_connection(("127.0.0.1", home.port)))
        await asyncio.to_thread(turned_away, home.port)
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", home.port)))
        assert (await observer.ask("kitchen", "Hello"))[-1]["type"] == "final"
        assert process.open_files() < MAX_LINES + 60
    async with asyncio.timeout(5):
        while True:
            try:
                assert (await home.describe()).handle
                break
            except (AssertionError, ConnectionError):
                await asyncio.sleep(0.02)
    assert (await health(observer))["totals"]["refused"] > 200
    assert process.output.count("connections") == 1


def turned_away(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
        try:
            assert one.recv(1) == b""
        except ConnectionError:
            return


async def test_questions_of_one_connection_are_answered_in_order(
    daemon: DaemonFactory, model_server: FakeOllama, home: Home, settings: dict[str, Any]
) -> None:
    await daemon(ollama_host=model_server.url, **settings)
    async with home.connect() as client:
        for word in ("one", "two", "three"):
            await client.write_event(Transcript(word).event())
        for word in ("one", "two", "three"):
            assert f"You said: {word}" in (await turn_of(client))[-1].data["text"]
    model_server.next("endless", tokens_per_s=20)
    async with home.connect() as client:
        for _ in range(10):
            await client.write_event(Transcript("again").event())
        await model_server.until(lambda server: server.questions[-1].disconnected_at)
        with pytest.raises((AssertionError, ConnectionError)):
            await turn_of(client)


async def test_both_stay_when_the_port_is_taken(
    daemon: DaemonFactory, model_server: FakeOllama, home: Home, settings: dict[str, Any], observer: Observer
) -> None:
    with socket.create_server(("127.0.0.1", home.port)):
        process = await daemon(wait=False, ollama_host=model_server.url, **settings)
        degraded = await observer.wait(lambda message: WYOMING_PORT in (message.field("reasons") or ()), 10)
        assert degraded.field("status") == "degraded"
        assert "cannot listen" in process.output
        assert (await observer.ask("kitchen", "Hello"))[-1]["type"] == "final"
        await process.ready()  # whoever waits for the broker need not wait for that
    await observer.wait(lambda message: message.field("status") == "ok", 10, start=len(observer.messages))
    assert (await home.describe()).handle


async def test_without_the_setting_nothing_of_it_is_loaded(daemon: DaemonFactory, model_server: FakeOllama) -> None:
    process = await daemon(ollama_host=model_server.url, env={"PYTHONPROFILEIMPORTTIME": "1"})
    loaded = {line.rpartition("|")[2].strip() for line in process.output.splitlines()}
    assert "piagent_daemon.doors.mqtt_inbox" in loaded
    assert not {name for name in loaded if name.split(".")[-1].startswith(("hermes", "wyoming"))}


async def test_a_missing_package_is_named(daemon: DaemonFactory, settings: dict[str, Any], tmp_path: Path) -> None:
    """A package of that name that is none stands in for one that is not there."""
    (tmp_path / "wyoming.py").write_text("raise ModuleNotFoundError(\"No module named 'wyoming'\", name='wyoming')\n")
    process = await daemon(wait=False, env={"PYTHONPATH": str(tmp_path)}, **settings)
    assert await process.wait_exit() == 78
    assert 'pip install "piagent-daemon[wyoming]"' in process.output


async def test_an_agent_that_is_not_there_is_named(daemon: DaemonFactory, settings: dict[str, Any]) -> None:
    process = await daemon(wait=False, voice_agent="butler", **settings)
    assert await process.wait_exit() == 78
    assert "VOICE_AGENT: there is no agent 'butler'" in process.output


# ------------------------------------------------------------------------------------------- the door without a daemon


async def test_a_host_that_can_be_none_is_a_trouble_that_is_told() -> None:
    door = WyomingDoor(Settings(wyoming_uri="tcp://a..b:10500"), EchoEngine(), RealClock(), dict)
    await door.start()
    await asyncio.wait_for(door.ready(), 5)
    assert door.alive
    assert door.state.reasons == (WYOMING_PORT,)
    assert "a..b" in door.state.detail
    await door.stop_intake()


@asynccontextmanager
async def open_door(engine: EchoEngine, home: Home) -> AsyncIterator[WyomingDoor]:
    agents = load_agents(None)
    door = WyomingDoor(Settings(wyoming_uri=f"tcp://127.0.0.1:{home.port}"), engine, RealClock(), lambda: agents)
    await door.start()
    await asyncio.wait_for(door.ready(), 5)
    try:
        yield door
    finally:
        await door.stop_intake()
        await door.stop(1)


async def test_who_falls_silent_is_hung_up_on(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wyoming_line, "IDLE_S", 0.1)
    engine = EchoEngine(hold=True)
    async with open_door(engine, home) as door:
        reader, writer = await asyncio.open_connection("127.0.0.1", home.port)
        writer.write(b'{"type": "trans')
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        async with home.connect() as client:
            await client.write_event(Transcript("Take your time.").event())
            await until(lambda: engine.held)
            await asyncio.sleep(0.3)  # longer than the silence that is allowed
            engine.release()
            assert (await turn_of(client))[-1].type == "handled"
        await until(lambda: not door._lines)


async def test_a_defect_while_a_question_is_taken_in_is_a_sentence_and_the_connection_stays(home: Home) -> None:
    engine = EchoEngine(defect=ZeroDivisionError())
    async with open_door(engine, home), home.connect() as client:
        await client.write_event(Transcript("How warm?", language="en").event())
        event = (await turn_of(client))[-1]
        assert (event.type, event.data["text"]) == ("not-handled", "Sorry, something went wrong.")
        engine.defect = None
        await client.write_event(Transcript("And now?").event())
        assert (await turn_of(client))[-1].type == "handled"
    assert engine.refusals == {"internal": 1}


async def test_who_does_not_read_is_hung_up_on(home: Home) -> None:
    engine = EchoEngine(suffix="x" * 3_000_000)
    async with open_door(engine, home) as door:
        with socket.create_connection(("127.0.0.1", home.port)) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            data = json.dumps({"type": "transcript", "data": {"text": "How warm?"}}).encode() + b"\n"
            await asyncio.to_thread(one.sendall, data)
            await until(lambda: engine.incoming)
            await until(lambda: not door._lines)


def slow_reader(port: int) -> socket.socket:
    """Ask something, and read nothing of the answer yet."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect(("127.0.0.1", port))
    one.sendall(json.dumps({"type": "transcript", "data": {"text": "How warm?"}}).encode() + b"\n")
    return one


def read_all(one: socket.socket) -> bytes:
    return b"".join(iter(lambda: one.recv(65_536), b""))


def unsent(door: WyomingDoor) -> int:
    return sum(line._writer.transport.get_write_buffer_size() for line in door._lines.values())


async def test_a_hang_up_waits_for_the_last_words(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wyoming_line, "UNREAD_BYTES", 50_000_000)
    monkeypatch.setattr(wyoming_line, "FLUSH_S", 60.0)
    async with open_door(EchoEngine(suffix="x" * 10_000_000), home) as door:
        with slow_reader(home.port) as one:
            await until(lambda: unsent(door))
            stop = asyncio.create_task(door.stop(60))
            await until(lambda: all(line._writer.is_closing() for line in door._lines.values()))
            assert (await asyncio.to_thread(read_all, one)).endswith(b"\n")
            await stop
            assert not door._lines


async def test_a_hang_up_waits_for_nobody_for_long(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wyoming_line, "UNREAD_BYTES", 50_000_000)
    monkeypatch.setattr(wyoming_line, "FLUSH_S", 0.1)
    async with open_door(EchoEngine(suffix="x" * 10_000_000), home) as door:
        with slow_reader(home.port):
            await until(lambda: unsent(door))
            await asyncio.wait_for(door.stop(60), 5)
            assert not door._lines


async def test_it_comes_and_goes_in_good_order(home: Home) -> None:
    engine = EchoEngine()
    async with open_door(engine, home) as door:
        assert door.state.connected
        assert door.alive
        assert (door.state.protocol, door.state.reasons) == (None, ())
        async with home.connect() as client:
            await client.write_event(Describe().event())
            assert await client.read_event()
            await door.stop_intake()
            await door.stop(1)
            assert await client.read_event() is None
        assert not door._lines
        with pytest.raises(ConnectionError):
            await home.describe()
