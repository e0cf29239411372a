"""The way of a message through the whole daemon: requests and events (contract sections 1 to 3)."""

import asyncio
import base64
import itertools
import re
import struct
import uuid
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DaemonFactory
from tests.fakes.answers import FIELDS, ask, check_answer, health, texts
from tests.fakes.broker import Mosquitto
from tests.fakes.observer import Message, Observer
from tests.fakes.old_broker import REFUSAL, OldBroker
from tests.fakes.ollama import DEFAULT_MODEL, FakeOllama, Model
from tests.fakes.ollama_script import LINE_BREAKS, ODD_TEXT
from tests.fakes.tokens import tokenise


def png_part(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG file."""
    return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))


PIXEL = b"".join(
    (
        b"\x89PNG\r\n\x1a\n",
        png_part(b"IHDR", struct.pack("!IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        png_part(b"IDAT", zlib.compress(b"\0\0")),
        png_part(b"IEND", b""),
    )
)
PICTURE = base64.b64encode(PIXEL).decode()
LARGE_PICTURE = base64.b64encode(PIXEL + bytes(500)).decode()
LONG = " ".join(f"word{number}" for number in range(300))


def asked(server: FakeOllama) -> dict[str, Any]:
    """Return the body of the last question that the model got."""
    body: dict[str, Any] = server.questions[-1].body
    return body


async def first_on(observer: Observer, topic: str) -> Message:
    """Return the first message on a topic."""
    return await observer.wait(lambda message: message.topic == topic)


async def test_plain_text_is_answered_by_numbered_events(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url)
    model_server.reply = "It is **warm** today. Shall I open a window?"
    events = await observer.ask("kitchen", "  Is it warm?\n")
    final = check_answer(events)
    kinds = [event["type"] for event in events]
    assert kinds == ["accepted", *["chunk"] * (len(kinds) - 2), "final"]
    assert len(kinds) > 2
    assert (events[0]["position"], events[0]["agent"], events[0]["model"]) == (0, "general", DEFAULT_MODEL)
    uuid.UUID(final["request_id"])
    assert final["conversation_id"] == "kitchen"
    assert final["reply"] == model_server.reply
    assert final["speech"] == "It is warm today. Shall I open a window?"
    assert (final["model"], final["provider"], final["agent"]) == (DEFAULT_MODEL, "ollama", "general")
    assert (final["finish_reason"], final["expects_reply"], final["metadata"]) == ("stop", True, {})
    record = model_server.questions[0]
    assert final["usage"] == {
        "prompt_tokens": len(record.prompt),
        "completion_tokens": record.tokens,
        "total_tokens": len(record.prompt) + record.tokens,
    }
    timing = final["timing"]
    assert timing.keys() == {"queued_s", "load_s", "prompt_s", "first_token_s", "generate_s", "total_s", "tokens_per_s"}
    assert 0 <= timing["queued_s"] <= timing["total_s"] < 5
    assert 0 < timing["first_token_s"] <= timing["total_s"]
    assert final["context"] == {"tokens": len(record.prompt), "limit": 4096, "dropped_turns": 0}
    messages = observer.on(observer.out("kitchen"))
    assert {message.field("type"): message.qos for message in messages} == {"accepted": 1, "chunk": 0, "final": 1}
    assert not any(message.retain for message in messages)
    assert {message.properties["ContentType"] for message in messages} == {"application/json"}
    for payload, text in (
        ('"Good morning"', "Good morning"),
        ("42", "42"),
        ("[1, 2]", "[1, 2]"),
        ("true", "true"),
        ("Grüße 🏠", "Grüße 🏠"),
    ):
        assert (await ask(observer, "hall", payload))["conversation_id"] == "hall"
        assert asked(model_server)["messages"][-1] == {"role": "user", "content": text}
    # in all this time nothing followed a terminal event
    assert len(observer.on(observer.out("kitchen"))) == len(events)


async def test_every_field_of_a_request_does_its_work(
    daemon: DaemonFactory, observer: Observer, tmp_path: Path
) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/shop.txt").write_text("milk\nbread\n")
    models = {DEFAULT_MODEL: Model(), "llava:7b": Model(capabilities=frozenset({"completion", "vision"}))}
    async with FakeOllama(models) as server:
        await daemon(ollama_host=server.url, files_dir=tmp_path)
        schema = {"type": "object", "properties": {"room": {"type": "string"}}}
        options = {
            "temperature": 0.1,
            "top_p": 0.5,
            "top_k": 7,
            "min_p": 0.02,
            "repeat_penalty": 1.1,
            "seed": 4,
            "stop": ["END"],
            "num_predict": 300,
        }
        request = {
            "message": "What is in the picture?",
            "id": "r-1",
            "conversation_id": "kitchen",
            "agent": "voice",
            "stream": False,
            "interrupt": True,
            "model": "llava:7b",
            "options": options,
            "format": schema,
            "images": [PICTURE, f"data:image/png;base64,{PICTURE}"],
            "files": [{"name": "note", "text": "Be kind."}, {"path": "lists/shop.txt"}],
            "context": {"room": "kitchen"},
            "metadata": {"flow": "n1", "secret": "never-for-a-model"},
            "expires_s": 30,
        }
        events = await observer.ask("kitchen", request)
        final = check_answer(events)
        assert [event["type"] for event in events] == ["accepted", "final"]
        assert (final["request_id"], final["agent"], final["model"]) == ("r-1", "voice", "llava:7b")
        assert final["metadata"] == request["metadata"]
        body = asked(server)
        assert body["model"] == "llava:7b"
        assert body["options"] == {**options, "num_ctx": 4096}
        assert body["format"] == schema
        assert final["data"].keys() == {"room"}
        newest = body["messages"][-1]
        assert newest["images"] == [PICTURE, PICTURE]
        places = [newest["content"].index(text) for text in ("Be kind.", "milk\nbread", request["message"], "room: k")]
        assert places == sorted(places)
        assert body["messages"][0]["role"] == "system"
        assert "voice assistant" in body["messages"][0]["content"]
        assert "never-for-a-model" not in str([record.body for record in server.requests])
        # `text` is an alias, and the conversation keeps its last agent
        final = await ask(observer, "kitchen", {"text": "And now?"})
        assert (final["agent"], asked(server)["messages"][-1]["content"][:8]) == ("voice", "And now?")
        assert "data" not in final
        assert (await ask(observer, "hall", {"text": "And now?"}))["agent"] == "general"
        for path in ("../secret", "/etc/hostname", "lists/none.txt", "lists"):
            error = await ask(observer, "kitchen", {"message": "Read it.", "files": [{"path": path}]})
            assert (error["type"], error["code"]) == ("error", "invalid_request")


async def test_a_structured_answer_that_is_none_gives_null_and_the_raw_text(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url)
    for reply, data in (('{"on": true}', {"on": True}), ("I would say: on.", None), ('{"on": tr', None)):
        model_server.reply = reply
        final = await ask(observer, "k", {"message": "Is it on?", "format": "json"})
        assert (final["reply"], final["data"]) == (reply, data)
        assert "data" in final
        assert asked(model_server)["format"] == "json"


REFUSED: list[tuple[Any, str, str]] = [
    ('{"message": "hi", ', "invalid_request", "not valid JSON"),
    ({"message": "hi", "colour": "red"}, "invalid_request", '"colour"'),
    ({"agent": "voice"}, "invalid_request", "message"),
    ({"message": "  \n "}, "invalid_request", "empty"),
    ({"message": "x" * 101}, "invalid_request", "101"),
    ("y" * 102, "invalid_request", "102"),
    (b"\xff\xfe\x00", "invalid_request", "UTF-8"),
    ({"message": 7}, "invalid_request", "message"),
    ({"message": "hi", "conversation_id": "hall"}, "invalid_request", "conversation_id"),
    ({"message": "hi", "agent": "butler"}, "unknown_agent", '"butler"'),
    ({"message": "hi", "model": "huge:70b"}, "invalid_request", "MODELS_ALLOWED"),
    ({"message": "hi", "options": {"num_ctx": 8192}}, "invalid_request", "num_ctx"),
    ({"message": "hi", "options": {"num_thread": 2}}, "invalid_request", "num_thread"),
    ({"message": "hi", "options": {"temperature": "hot"}}, "invalid_request", "temperature"),
    ({"message": "hi", "format": "xml"}, "invalid_request", "format"),
    ({"message": "hi", "stream": "loud"}, "invalid_request", "stream"),
    ({"message": "hi", "images": ["no base64!"]}, "invalid_request", "images.0"),
    ({"message": "hi", "images": [PICTURE, LARGE_PICTURE]}, "invalid_request", "images.1"),
    ({"message": "hi", "files": [{"path": "notes.txt"}]}, "invalid_request", "FILES_DIR"),
    ({"message": "hi", "expires_s": -1}, "invalid_request", "expires_s"),
]


async def test_a_refused_message_gets_one_error_that_names_the_reason(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url, max_message_chars=100, models_allowed=DEFAULT_MODEL, max_image_bytes=500)
    for number, (payload, code, words) in enumerate(REFUSED):
        convo = f"k{number}"
        named = isinstance(payload, dict)
        sent = {**payload, "id": f"r{number}", "metadata": {"n": number}} if named else payload
        await observer.publish(f"{observer.base}/{convo}/in", sent)
        message = await first_on(observer, observer.out(convo))
        event = check_answer([message.json])
        assert event["code"] == code
        assert words in event["message"]
        assert (event["status_code"], event["retryable"]) == (404 if code == "unknown_agent" else 422, False)
        assert event["partial"] == ""
        if named:
            assert (event["request_id"], event["metadata"]) == (f"r{number}", {"n": number})
    assert (await ask(observer, "k0", "x" * 100))["type"] == "final"
    assert len(model_server.questions) == 1
    assert [len(observer.on(observer.out(f"k{number}"))) for number in range(1, len(REFUSED))] == [1] * (
        len(REFUSED) - 1
    )


async def test_a_client_without_a_conversation(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url)
    made = [(await ask(observer, None, {"message": "Hello"}))["conversation_id"] for _ in range(2)]
    assert made[0] != made[1]
    assert {uuid.UUID(name).version for name in made} == {4}
    assert observer.on(observer.out(made[0]))
    final = await ask(observer, None, {"message": "Hello", "conversation_id": "büro 2"})
    assert final["conversation_id"] == "büro 2"
    assert observer.on(observer.out("büro 2"))[-1].field("type") == "final"
    await observer.publish(f"{observer.base}/in", "just text")
    await observer.wait(lambda one: one.field("reply") == "You said: just text")


async def test_what_has_no_safe_topic_is_dropped_and_counted(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    process = await daemon(ollama_host=model_server.url)
    names = ["", "x" * 129, "tool", "health", "info", "response", "in"]
    for name in names:
        await observer.publish(f"{observer.base}/{name}/in", "Hello?")
    for name in ("a/b", "", "x" * 129, "request", "new\nline"):
        await observer.publish(f"{observer.base}/in", {"message": "Hello?", "conversation_id": name})
    assert (await ask(observer, "x" * 128, "Hello"))["type"] == "final"
    assert (await health(observer))["totals"]["refused"] == len(names) + 5
    answers = {message.topic for message in observer.messages if message.field("type") in FIELDS}
    assert {topic for topic in answers if "selftest" not in topic} == {observer.out("x" * 128)}
    assert len(re.findall("no safe topic", process.output)) == 1
    assert len(model_server.questions) == 1


async def test_a_response_topic_gets_the_events_with_the_correlation_data(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url, response_topic_prefixes=f"{observer.base}/,answers/{observer.base}/")
    await observer.subscribe(f"answers/{observer.base}/#")
    await observer.subscribe("evil/#")
    for topic in (f"{observer.base}/flows/7", f"answers/{observer.base}/me"):
        end = await ask(observer, "kitchen", {"message": "Hello"}, ResponseTopic=topic, CorrelationData=b"\x00\xff1")
        assert end["reply"] == "You said: Hello"
        messages = observer.on(topic)
        assert messages[-1].json == end
        assert {message.properties["CorrelationData"] for message in messages} == {b"\x00\xff1"}
    assert not observer.on(observer.out("kitchen"))
    for topic in ("evil/topic", observer.base, f"{observer.base}/health", f"{observer.base}/hall/in"):
        request_id = uuid.uuid4().hex
        events = await observer.ask(
            "kitchen", {"message": "Hello", "id": request_id}, ResponseTopic=topic, CorrelationData=b"7"
        )
        assert (check_answer(events)["code"], len(events)) == ("invalid_request", 1)
        message = observer.on(observer.out("kitchen"))[-1]
        assert (message.field("request_id"), message.properties["CorrelationData"]) == (request_id, b"7")
    assert len(model_server.questions) == 2
    assert not observer.on("evil/topic")


async def test_chunks_are_the_text_as_the_model_made_it(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url, chunk_interval_ms=25, max_message_chars=8000)
    tokens = tokenise(LONG)
    model_server.next(tokens=tokens)
    events = await observer.ask("fast", "Speak")
    assert check_answer(events)["reply"] == LONG
    assert len(texts(events)) < len(tokens) / 4
    model_server.next(tokens=tokens[:60], tokens_per_s=200)
    events = await observer.ask("slow", "Speak")
    check_answer(events)
    assert 5 < len(texts(events)) < 30
    times = [message.time for message in observer.on(observer.out("slow")) if message.field("type") == "chunk"]
    assert len([one for one, after in itertools.pairwise(times) if after - one < 0.015]) <= 3
    for mode, text in (("split", ODD_TEXT), ("nel", LINE_BREAKS), ("leading_space", None), ("extra_fields", None)):
        model_server.next(mode)
        final = await ask(observer, mode, "Hello")
        assert final["reply"] == (text or f"{' ' * (mode == 'leading_space')}You said: Hello")


async def test_the_first_chunk_goes_at_once(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    """Whatever the interval is, and while the model has not yet made more."""
    await daemon(ollama_host=model_server.url, chunk_interval_ms=10_000)
    tokens = tokenise(LONG)
    model_server.next("hang", tokens=tokens, after=1)
    await observer.publish(f"{observer.base}/kitchen/in", "Speak")
    chunk = await observer.wait(lambda message: message.field("type") == "chunk")
    assert chunk.field("text") == tokens[0]


async def test_without_an_interval_there_is_one_chunk_a_token(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url, chunk_interval_ms=0)
    tokens = tokenise(LONG)
    model_server.tokens = tokens
    events = await observer.ask("fast", "Speak")
    assert check_answer(events)["reply"] == LONG
    assert texts(events) == tokens


async def test_a_stage_that_lasts_is_told(daemon: DaemonFactory, observer: Observer) -> None:
    models = {DEFAULT_MODEL: Model(), "thinker": Model(capabilities=frozenset({"completion", "thinking"}))}
    async with FakeOllama(models, parallel=2) as server:
        await daemon(ollama_host=server.url, max_concurrent=4, max_retries=2, backoff_factor_s=0)

        def about(word: str) -> Any:
            return lambda body: word in str(body) and body["options"]["num_predict"] > 1

        server.next(match=about("loading"), first_token_delay_s=1.3)
        server.next("429", match=about("retrying"))  # it asks for a second's patience
        server.next("429", match=about("retrying"))
        server.next("thinking", match=about("thinking"), thinking="Let me think. " * 8, tokens_per_s=15)
        events = await asyncio.gather(
            observer.ask("a", {"message": "loading"}),
            observer.ask("b", {"message": "retrying"}),
            observer.ask("c", {"message": "thinking", "model": "thinker"}),
            observer.ask("d", {"message": "at once"}),
        )
        stages = [[event["stage"] for event in one if event["type"] == "status"] for one in events]
        assert stages == [["loading"], ["retrying"], ["thinking"], []]
        for one in events:
            assert check_answer(one)["reply"].startswith("You said: ")
            assert all(event["detail"] for event in one if event["type"] == "status")


FAILURES: list[tuple[str, str, int, bool, bool]] = [
    # mode, code, status_code, retryable, with some text before it
    ("rst", "provider_error", 502, False, True),
    ("eof", "provider_error", 502, False, True),
    ("nodone", "provider_error", 502, False, True),
    ("err", "provider_error", 502, False, True),
    ("bad", "provider_error", 502, False, True),
    ("hang", "timeout", 504, True, True),
    ("noheader", "timeout", 504, True, False),
    ("404", "model_not_found", 404, False, False),
    ("503", "provider_unavailable", 502, True, False),
    ("unauthorized", "unauthorized", 502, False, False),
    ("html502", "provider_error", 502, False, False),
    ("empty", "provider_error", 502, False, False),
]


async def test_what_fails_at_the_model_server_is_told_with_the_text_so_far(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url, max_retries=0, idle_timeout_s=0.3, first_token_timeout_s=0.3)
    for mode, code, status_code, retryable, partly in FAILURES:
        model_server.next(mode)
        events = await observer.ask(mode, {"message": "Hello out there", "metadata": {"mode": mode}})
        error = check_answer(events)
        assert (mode, error["type"], error.get("code")) == (mode, "error", code)
        assert (error["status_code"], error["retryable"]) == (status_code, retryable)
        assert error["metadata"] == {"mode": mode}
        assert bool(error["partial"]) == bool(texts(events)) == partly
        assert 10 < len(error["message"]) < 500
        assert "Traceback" not in error["message"]
    model_server.next()
    assert (await ask(observer, "rst", "Better now?"))["reply"] == "You said: Better now?"
    assert [message["role"] for message in asked(model_server)["messages"]] == ["system", "user"], (
        "what failed is not remembered"
    )
    await model_server.stop()
    error = await ask(observer, "gone", "Anybody there?")
    assert (error["code"], error["retryable"]) == ("provider_unavailable", True)
    await model_server.start()
    assert (await ask(observer, "gone", "And now?"))["type"] == "final"


async def test_an_answer_may_be_cut_and_a_message_too_long_for_the_context(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url, ctx_tokens=512, max_tokens=64)
    model_server.tokens = [" word"] * 500
    final = await ask(observer, "k", {"message": "Speak", "options": {"num_predict": 10}})
    assert (final["finish_reason"], final["reply"]) == ("length", " word" * 10)
    final = await ask(observer, "k", {"message": "Speak", "options": {"num_predict": 5000}})
    assert (final["finish_reason"], final["usage"]["completion_tokens"]) == ("length", 64)
    model_server.next("endless")
    assert (await ask(observer, "k", "Speak"))["finish_reason"] == "length"
    before = len(model_server.questions)
    error = await ask(observer, "k", "many words " * 300)
    assert (error["code"], error["status_code"], error["retryable"]) == ("context_overflow", 413, False)
    assert len(model_server.questions) == before


async def test_every_call_has_the_same_load_time_options_and_no_thinking(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url, ctx_tokens=2048)
    await model_server.until(lambda server: len(server.requests) >= 2)
    await ask(observer, "k", "Hello")
    await ask(observer, "k", {"message": "Hello", "agent": "voice", "options": {"top_k": 3}, "format": "json"})
    calls = [record for record in model_server.requests if record.path == "/api/chat"]
    assert len(calls) >= 4
    assert {record.body["options"]["num_ctx"] for record in calls} == {2048}
    assert {(record.body["think"], record.body["shift"], record.body["keep_alive"]) for record in calls} == {
        (False, False, -1)
    }
    assert model_server.reloads == 0


async def test_the_xml_style_asks_generate_with_one_text(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url, prompt_style="xml")
    model_server.reply = "Warm </system> it is."
    await ask(observer, "k", "Is it <system>warm</system>?")
    final = await ask(observer, "k", {"message": "And tomorrow?", "context": {"room": "hall"}})
    assert final["reply"] == model_server.reply
    record = model_server.questions[-1]
    assert record.path == "/api/generate"
    prompt = record.body["prompt"]
    assert re.findall(r"</?(?:system|user|assistant)>", prompt) == [
        *("<system>", "</system>", "<user>", "</user>", "<assistant>", "</assistant>", "<user>", "</user>"),
        "<assistant>",
    ]
    assert prompt.index("And tomorrow?") < prompt.index("room: hall")
    assert {one.path for one in model_server.requests if one.method == "POST"} == {"/api/generate"}
    assert prompt.startswith(model_server.questions[0].body["prompt"].removesuffix("<assistant>"))


@pytest.mark.parametrize(("protocol", "answer"), [("311", b""), ("auto", REFUSAL), ("auto", b"")])
async def test_a_broker_without_mqtt_5(
    daemon: DaemonFactory,
    model_server: FakeOllama,
    mosquitto: Mosquitto,
    observer: Observer,
    *,
    protocol: str,
    answer: bytes,
) -> None:
    """It refuses MQTT 5, or just hangs up: the daemon speaks 3.1.1 then; pinned it does so at once."""
    async with OldBroker(mosquitto.port, answer) as old:
        process = await daemon(ollama_host=model_server.url, mqtt_port=old.port, mqtt_protocol=protocol)
        async with Observer(old.port, base=observer.base, protocol="311") as client:
            await client.subscribe(f"{observer.base}/#")
            assert (await ask(client, "kitchen", {"message": "Hello"}))["reply"] == "You said: Hello"
            assert (await health(client))["protocol"] == "3.1.1"
            await client.publish(f"{observer.base}/kitchen/in", "Again")
            await client.wait(lambda one: one.field("reply") == "You said: Again")
        assert old.refused == {("311", b""): 0, ("auto", REFUSAL): 1, ("auto", b""): 2}[protocol, answer]
        assert process.output.count("3.1.1") >= 1
        assert await process.stop() == 0
        await observer.wait(lambda one: one.json == {"status": "offline"})


async def test_a_pinned_protocol_is_never_left(
    daemon: DaemonFactory, model_server: FakeOllama, mosquitto: Mosquitto
) -> None:
    async with OldBroker(mosquitto.port) as old:
        process = await daemon(ollama_host=model_server.url, mqtt_port=old.port, mqtt_protocol="5", wait=False)
        await process.notified("STATUS=waiting for the broker")
        await model_server.until(lambda _: old.refused >= 2)
        assert "3.1.1" not in process.output
