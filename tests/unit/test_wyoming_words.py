"""Wyoming in, Wyoming out: pure translation, and frames that cannot outgrow their bounds."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wyoming.asr import Transcript
from wyoming.event import Event, async_read_event
from wyoming.handle import Handled, HandledChunk, HandledStart, HandledStop, NotHandled
from wyoming.info import Describe, Info
from wyoming.ping import Pong

from piagent_daemon.agents import Agent
from piagent_daemon.contract import ErrorEvent, Sentence
from piagent_daemon.doors import wyoming_words as words
from piagent_daemon.doors.wyoming_reply import Reply
from tests.fakes.echo_engine import final

LIMIT = 1000
AGENTS = {
    "general": Agent("general", "Answer."),
    "koch": Agent("koch", "Koche.", description="Kocht", languages=("de", "de-CH")),
    "stern": Agent("stern", "Answer.", languages=("*",)),
    "voice": Agent("voice", "Answer.", description="Speaks"),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
NAMES = st.sampled_from(["type", "data", "data_length", "payload_length", "text", "context", "name"])
OBJECTS = st.dictionaries(NAMES | st.text(), JSON | st.dictionaries(NAMES, JSON), max_size=6)


async def read(data: bytes, limit: int = LIMIT) -> Event | None:
    reader = asyncio.StreamReader(limit=limit)
    reader.feed_data(data)
    reader.feed_eof()
    return await words.read_event(reader, limit)


async def back(event: Event) -> Event:
    """Return what the package's own reader makes of an event of ours."""
    reader = asyncio.StreamReader()
    reader.feed_data(words.encode(event))
    reader.feed_eof()
    found = await async_read_event(reader)
    assert found
    return found


# --------------------------------------------------------------------------------------------------------------- frames


async def test_what_the_package_writes_is_read() -> None:
    for event in (Describe().event(), Transcript("Grüße 🏠", {"conversation_id": "c1"}, "de").event()):
        found = await read(words.encode(event))
        assert found
        assert (found.type, found.data) == (event.type, event.data)


async def test_data_in_the_line_and_behind_it_are_joined() -> None:
    behind = b'{"text": "hi"}'
    head = {"type": "transcript", "data": {"language": "de"}, "data_length": len(behind), "payload_length": 3}
    found = await read(json.dumps(head).encode() + b"\n" + behind + b"abc")
    assert found
    assert found.data == {"language": "de", "text": "hi"}


@pytest.mark.parametrize("cut", [1, 7, 20])
async def test_a_stream_that_breaks_off_is_its_end(cut: int) -> None:
    data = words.encode(Transcript("How warm is it?").event())
    assert await read(data[:-cut]) is None
    assert await read(b"") is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\n",
        b"[]\n",
        b'"describe"\n',
        b"\n",
        b'{"data": {}}\n',
        b'{"type": 7}\n',
        b'{"type": "describe", "data": []}\n',
        b'{"type": "describe", "data_length": -1}\n',
        b'{"type": "describe", "data_length": 1001}\n',
        b'{"type": "describe", "data_length": 1e3}\n',
        b'{"type": "describe", "data_length": true}\n',
        b'{"type": "describe", "data_length": "3"}\n',
        b'{"type": "describe", "payload_length": 99999999999}\n',
        b'{"type": "transcript", "data_length": 3}\nabc',
        b'{"type": "transcript", "data_length": 2}\n[]',
        b"x" * 3000,
        b"[" * 999 + b"\n",
    ],
)
async def test_what_is_no_frame_ends_the_connection(data: bytes) -> None:
    with pytest.raises(words.FrameError):
        await read(data)


@given(st.binary(max_size=300))
async def test_bytes_of_any_kind_are_read_or_refused(data: bytes) -> None:
    try:
        await read(data)
    except words.FrameError:
        return


@given(OBJECTS)
async def test_objects_of_any_kind_are_read_or_refused_and_understood(head: dict[str, Any]) -> None:
    try:
        event = await read(json.dumps(head).encode() + b"\n" + b"{}", 100_000)
    except words.FrameError:
        return
    if event:
        question = words.question(event.data)
        assert question.text == question.text.strip()
        words.encode(words.pong(event.data))
        words.chosen_agent(event.data, AGENTS)


# ------------------------------------------------------------------------------------------------------------- hearing


@pytest.mark.parametrize(
    ("data", "question"),
    [
        # Home Assistant 2026.2, then 2026.11
        ({"text": "How warm?", "context": {"conversation_id": "01JF"}}, words.Question("How warm?", "01JF")),
        (
            {
                "text": "Wie warm?",
                "language": "de",
                "context": {
                    "conversation_id": "01JF",
                    "device_id": "d1",
                    "satellite_id": "assist_satellite.kitchen",
                },
            },
            words.Question("Wie warm?", "01JF", "d1", "assist_satellite.kitchen", "de"),
        ),
        ({"text": " hi "}, words.Question("hi")),
        ({"text": "hi", "context": None}, words.Question("hi")),
        ({"text": "hi", "context": {"conversation_id": 7, "device_id": ""}}, words.Question("hi")),
        ({"text": "hi", "context": {"conversation_id": "x" * 1001}}, words.Question("hi")),
        ({"text": None}, words.Question("")),
        ({}, words.Question("")),
    ],
)
def test_what_is_asked(data: dict[str, Any], question: words.Question) -> None:
    assert words.question(data) == question


@pytest.mark.parametrize(
    ("name", "agent"), [("koch", "koch"), ("piagent koch", "koch"), ("cook", None), (None, None), (["koch"], None)]
)
def test_a_program_is_chosen_by_its_name(name: Any, agent: str | None) -> None:
    assert words.chosen_agent({"name": name}, AGENTS) == agent


# ------------------------------------------------------------------------------------------------------------ speaking


async def test_each_agent_is_a_program_and_the_voice_leads() -> None:
    info = Info.from_event(await back(words.info(AGENTS, "voice")))
    assert [program.name for program in info.handle] == [
        "piagent voice",
        "piagent general",
        "piagent koch",
        "piagent stern",
    ]
    assert [*info.asr, *info.tts, *info.intent, *info.wake, info.satellite] == [None]
    for program in info.handle:
        assert program.installed
        assert program.supports_handled_streaming
        (model,) = program.models
        assert model.installed
        assert "*" not in model.languages
        assert program.description
    languages = {program.models[0].name: program.models[0].languages for program in info.handle}
    assert languages["koch"] == ["de", "de-CH"]
    assert {"en", "de", "fr", "es", "zh", "ja", "pt-BR"} <= set(languages["voice"])
    assert languages["stern"] == languages["voice"]
    assert len(words.LANGUAGES) == len(set(words.LANGUAGES)) > 70


async def test_a_ping_gets_its_own_text_back() -> None:
    assert Pong.from_event(await back(words.pong({"text": "1"}))).text == "1"
    assert Pong.from_event(await back(words.pong({"text": "\ud800"}))).text is None


class World:
    """A reply, and what it wrote."""

    def __init__(self, *languages: str) -> None:
        self.events: list[Event] = []
        self.reply = Reply(self.events.append, languages)

    def sentence(self, text: str) -> None:
        event = final("c1", "r1", "")
        self.reply.send(
            Sentence(conversation_id="c1", request_id="r1", attempt=1, seq=1, ts=event.ts, text=text, index=0)
        )

    def final(self, reply: str, **fields: Any) -> None:
        self.reply.send(final("c1", "r1", reply).model_copy(update=fields))

    def error(self, code: str) -> None:
        self.reply.send(
            ErrorEvent(
                conversation_id="c1",
                request_id="r1",
                attempt=1,
                seq=1,
                ts=final("", "", "").ts,
                code=code,
                message="Technical words.",
                status_code=500,
                retryable=False,
            )
        )

    @property
    def kinds(self) -> list[str]:
        return [event.type for event in self.events]


async def test_an_answer_comes_in_sentences_and_whole() -> None:
    world = World()
    world.sentence("It is warm.")
    assert world.kinds == ["handled-start", "handled-chunk"]
    world.sentence("Very warm.")
    assert not world.reply.ended.is_set()
    world.final("It is **warm**. Very warm.", speech="It is warm. Very warm.")
    assert world.kinds == ["handled-start", "handled-chunk", "handled-chunk", "handled", "handled-stop"]
    assert world.reply.ended.is_set()
    assert world.reply.ids == ("c1", "r1")
    start, *chunks, handled, stop = [await back(event) for event in world.events]
    assert HandledStart.from_event(start).context == {"conversation_id": "c1"}
    spoken = "".join(HandledChunk.from_event(chunk).text for chunk in chunks)
    assert Handled.from_event(handled) == Handled(spoken, {"conversation_id": "c1"})
    assert HandledStop.is_type(stop.type)


@pytest.mark.parametrize(
    ("sentences", "speech"),
    [
        (["你好。", "今天很热！", "要开窗吗？"], "你好。今天很热！要开窗吗？"),
        (["他说：“好。”", "她走了。"], "他说：“好。”她走了。"),
        (["最初の段落です。", "次の段落です。"], "最初の段落です。 次の段落です。"),
        (["こんにちは。", "Hello."], "こんにちは。Hello."),
        (["It is warm.", "Very warm."], "It is warm. Very warm."),
        (["따뜻해요.", "아주요."], "따뜻해요. 아주요."),
    ],
)
async def test_the_pieces_together_are_the_answer(sentences: list[str], speech: str) -> None:
    world = World()
    for sentence in sentences:
        world.sentence(sentence)
    world.final(speech)
    *chunks, handled, _ = world.events[1:]
    pieces = "".join(chunk.data["text"] for chunk in chunks)
    assert handled.data["text"] == pieces
    assert pieces.split(" ") == speech.replace("。 ", "。").split(" ")


async def test_a_filler_is_no_part_of_the_answer() -> None:
    world = World()
    world.sentence("One moment.")
    world.sentence("It is warm.")
    world.final("It is warm.")
    assert world.events[-2].data["text"] == "It is warm."


async def test_an_answer_without_sentences_comes_the_same_way() -> None:
    world = World()
    world.final("It is warm.")
    assert world.kinds == ["handled-start", "handled-chunk", "handled", "handled-stop"]


@pytest.mark.parametrize("code", ["busy", "provider_unavailable", "timeout", "internal", "invalid_request"])
async def test_errors_become_a_sentence_and_never_an_error_event(code: str) -> None:
    world = World("de")
    world.error(code)
    assert world.kinds == ["not-handled"]
    text = NotHandled.from_event(await back(world.events[0])).text
    assert text
    assert "Technical" not in text
    world = World()
    world.sentence("It is")
    world.error(code)
    assert world.kinds == ["handled-start", "handled-chunk", "not-handled", "handled-stop"]


async def test_what_is_cancelled_ends_with_what_was_said() -> None:
    world = World()
    world.final("", finish_reason="cancelled")
    assert [(event.type, event.data["text"]) for event in world.events] == [("handled", "")]
    world = World()
    world.sentence("It is.")
    world.final("It is.", finish_reason="cancelled")
    assert world.kinds == ["handled-start", "handled-chunk", "handled", "handled-stop"]
    world = World()
    world.error("cancelled")
    assert [(event.type, event.data["text"]) for event in world.events] == [("not-handled", "")]


async def test_whatever_the_engine_does_the_turn_ends() -> None:
    for end in ("drop", "abandon"):
        world = World()
        getattr(world.reply, end)()
        assert world.kinds == ["not-handled"]
        assert world.reply.ended.is_set()
    world = World()
    world.reply.send_again(final("c1", "r1", "It was warm.").encode())
    assert world.kinds[-2:] == ["handled", "handled-stop"]
    world = World()
    world.final("```\nprint()\n```", speech="")
    assert "read aloud" in world.events[-2].data["text"]
