"""What is promised of every message: order, bounds, once and only once, cancel (contract section 6)."""

import asyncio
import itertools
import json
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BrokerFactory, DaemonFactory
from tests.fakes.answers import Event, admin, ask, check_answer, health
from tests.fakes.observer import TERMINAL, Message, Observer
from tests.fakes.ollama import FakeOllama, Record

LONG = [f" word{number}" for number in range(400)]
CLOSED_WITHIN_S = 0.1


def newest(record: Record) -> str:
    """Return the message that a question to the model was about."""
    text: str = record.body["messages"][-1]["content"]
    return text


async def post(observer: Observer, convo: str, message: str, request_id: str, **more: Any) -> None:
    """Send a request without waiting for the broker."""
    payload = {"message": message, "id": request_id, **more}
    await observer.publish(f"{observer.base}/{convo}/in", payload, wait=False)


async def chunk_of(observer: Observer, request_id: str, seq: int = 3) -> None:
    """Wait until an answer is in full flow."""
    await observer.wait(
        lambda one: one.field("request_id") == request_id and one.field("type") == "chunk" and one.field("seq") >= seq
    )


async def asked(server: FakeOllama, count: int) -> None:
    """Wait until so many questions came to the model."""
    await server.until(lambda _: len(server.questions) >= count)


def peak(records: list[Record]) -> int:
    """Return how many of the questions were being answered at once at most."""
    steps = [(record.arrived, 1) for record in records] + [(record.ended or 0.0, -1) for record in records]
    return max(itertools.accumulate(step for _, step in sorted(steps)))


# ------------------------------------------------------------------------------------------------ order and bounds


async def test_one_conversation_is_answered_in_order_and_others_side_by_side(
    daemon: DaemonFactory, observer: Observer
) -> None:
    async with FakeOllama(parallel=8) as server:
        await daemon(ollama_host=server.url, max_concurrent=3)
        ids = [f"r{number}" for number in range(20)]
        for request_id in ids:
            await post(observer, "k", f"question {request_id}", request_id)
        await observer.terminal(ids[-1])
        told = [one.json for one in observer.on(observer.out("k")) if one.field("type") != "accepted"]
        told.sort(key=lambda one: one["ts"])  # QoS 0 may overtake QoS 1 on its way
        assert [key for key, _ in itertools.groupby(one["request_id"] for one in told)] == ids
        finals = [check_answer(observer.events(request_id)) for request_id in ids]
        assert [one["reply"] for one in finals] == [f"You said: question {request_id}" for request_id in ids]
        assert peak(server.questions) == 1

        server.forget()
        server.first_token_delay_s = 0.03
        await asyncio.gather(*(ask(observer, f"c{number}", {"message": "hello"}) for number in range(12)))
        assert peak(server.questions) == 3

        # a flood in three conversations does not starve a fourth
        server.forget()
        server.first_token_delay_s = 0.05
        for number in range(60):
            await post(observer, f"flood{number % 3}", "again", f"f{number}")
        await observer.until(lambda: observer.events("f59"))
        begun = len(server.questions)
        await ask(observer, "quiet", {"message": "me too"})
        before = [newest(record) for record in server.questions].index("me too")
        assert before - begun < 12, "three run, three conversations are ahead; the rest is the time to get in"


async def test_one_more_than_may_wait_is_told_busy_at_once(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url, max_waiting=2)
    model_server.next("hang")
    await post(observer, "slow", "Take your time", "slow")
    await chunk_of(observer, "slow", 1)
    for number in range(20):  # more than the receive maximum
        await post(observer, f"c{number}", "hello", f"r{number}", metadata={"n": number})
    ends = [await observer.terminal(f"r{number}") for number in range(2, 20)]
    for number, end in enumerate(ends, 2):
        assert observer.events(f"r{number}") == [end]
        assert (end["code"], end["status_code"], end["retryable"]) == ("busy", 429, True)
        assert (end["seq"], end["metadata"]) == (0, {"n": number})
    assert [observer.events(name)[0]["position"] for name in ("slow", "r0", "r1")] == [0, 1, 2]
    await observer.wait(lambda one: one.field("reasons") == ["overload"])
    state = await health(observer)
    assert state["queue"] == {"active": 1, "waiting": 2, "limit": 2}
    assert (state["status"], state["reasons"]) == ("degraded", ["overload"])
    await observer.publish(f"{observer.base}/slow/cancel")
    assert [(await observer.terminal(f"r{number}"))["type"] for number in range(2)] == ["final", "final"]


async def test_a_long_answer_does_not_stop_the_window(daemon: DaemonFactory, observer: Observer) -> None:
    """The broker hands over no more than the receive maximum: acknowledgements must not wait for the oldest."""
    async with FakeOllama(parallel=2) as server:
        await daemon(ollama_host=server.url, max_concurrent=2, max_waiting=1)
        server.next("hang")
        await post(observer, "slow", "Take your time", "slow")
        await chunk_of(observer, "slow", 1)
        for number in range(30):
            assert (await ask(observer, "quick", {"message": f"hello {number}"}))["type"] == "final"
        await observer.publish(f"{observer.base}/slow/cancel")
        assert (await observer.terminal("slow"))["finish_reason"] == "cancelled"


async def test_what_waited_too_long_is_not_answered(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    process = await daemon(ollama_host=model_server.url)
    model_server.next("hang")
    await post(observer, "k", "Take your time", "slow")
    await chunk_of(observer, "slow", 1)
    end = await ask(observer, "other", {"message": "quick", "expires_s": 0.05, "metadata": {"a": 1}})
    assert (end["code"], end["status_code"], end["retryable"]) == ("expired", 408, False)
    assert (end["seq"], end["metadata"]) == (1, {"a": 1})
    await observer.publish(f"{observer.base}/k/cancel")
    await observer.terminal("slow")
    # what runs in time is not expired by a long answer
    model_server.next(tokens=LONG[:30], tokens_per_s=200)
    assert (await ask(observer, "k", {"message": "long", "expires_s": 0.1}))["type"] == "final"
    # MQTT 5's own expiry: the broker drops what nobody fetched in time
    assert await process.stop() == 0
    await observer.publish(f"{observer.base}/k/in", {"message": "stale", "id": "stale"}, MessageExpiryInterval=1)
    await observer.publish(f"{observer.base}/k/in", {"message": "fresh", "id": "fresh"}, MessageExpiryInterval=60)
    # the broker counts whole seconds, and a retained message ends up to one sooner than one that is queued
    await observer.publish(f"{observer.base}/sand", "trickles", retain=True, MessageExpiryInterval=3)
    async with asyncio.timeout(15):
        while await is_retained(observer, "sand"):
            pass
    process.start()
    assert (await observer.terminal("fresh"))["type"] == "final"
    assert not observer.events("stale")


async def is_retained(observer: Observer, name: str) -> bool:
    """Tell whether the broker still has a retained message."""
    topic = f"{observer.base}/{name}"
    async with Observer(observer.port, base=observer.base) as late:
        await late.subscribe(topic)
        await late.publish(f"{topic}/after")  # its PUBACK comes after what is retained
        return bool(late.on(topic))


# ------------------------------------------------------------------------------------------------- once and only once


async def test_the_same_id_again_is_not_run_twice(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url, dedupe_window_s=0.5)
    model_server.next(tokens=LONG[:40], tokens_per_s=200)
    for _ in range(3):
        await post(observer, "k", "hello", "twice")
    first = check_answer([await observer.terminal("twice")] and observer.events("twice"))
    await ask(observer, "k", {"message": "afterwards"})
    assert len([one for one in observer.events("twice") if one["type"] in TERMINAL]) == 1
    again = await observer.ask("k", {"message": "hello", "id": "twice"})
    assert again == [first], "the stored end is told again, and nothing else"
    assert len(model_server.questions) == 2
    assert (await ask(observer, "hall", {"message": "hello", "id": "twice"}))["conversation_id"] == "hall"
    assert len(model_server.questions) == 3
    assert (await health(observer))["totals"]["duplicates"] == 3
    async with asyncio.timeout(5):  # until the window is over
        while len(model_server.questions) == 3:
            await observer.ask("k", {"message": "hello", "id": "twice"})


@pytest.mark.parametrize("qos", [0, 2])
async def test_other_qualities_of_service_are_accepted(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer, qos: int
) -> None:
    await daemon(ollama_host=model_server.url)
    for number in range(5):
        payload = {"message": f"hello {number}", "id": f"q{number}"}
        await observer.publish(f"{observer.base}/k/in", payload, qos)
    finals = [await observer.terminal(f"q{number}") for number in range(5)]
    assert [one["reply"] for one in finals] == [f"You said: hello {number}" for number in range(5)]
    assert len(model_server.questions) == 5


@pytest.mark.parametrize("protocol", ["5", "311"])
async def test_retained_messages_are_ignored(
    daemon: DaemonFactory, model_server: FakeOllama, new_broker: BrokerFactory, base_topic: str, protocol: str
) -> None:
    broker = new_broker()
    async with Observer(broker.port, base=base_topic) as observer:
        await observer.subscribe(f"{base_topic}/#", no_local=True)
        retained = ("k/in", "in", "k/cancel", "k/reset", "request/memory/clear")
        for topic in retained:
            payload = "{}" if "cancel" in topic or "request" in topic else "Old news"
            await observer.publish(f"{base_topic}/{topic}", payload, retain=True)
        process = await daemon(ollama_host=model_server.url, mqtt_port=broker.port, mqtt_protocol=protocol)
        await ask(observer, "k", {"message": "First", "id": "r1"})
        broker.restart()
        await observer.wait(lambda one: one.field("status") == "ok", 15, start=len(observer.messages))
        await ask(observer, "k", {"message": "Second", "id": "r2"}, timeout_s=20)
        assert [newest(record) for record in model_server.questions] == ["First", "Second"]
        assert len(model_server.questions[1].body["messages"]) == 4, "the retained reset was obeyed"
        assert not [one for one in observer.messages if "/response/" in one.topic]
        warnings = re.findall(r"a retained message on '(\S+)'", process.output)
        assert sorted(warnings) == (sorted(f"{base_topic}/{topic}" for topic in retained) if protocol == "311" else [])


async def test_copies_of_our_own_events_are_dropped(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    process = await daemon(ollama_host=model_server.url)
    await observer.ask("k", "Hello")
    await observer.ask("k", {"message": "Hello", "agent": "nobody"})
    copies = [one.payload for one in observer.on(observer.out("k"))]
    assert {json.loads(payload)["type"] for payload in copies} == {"accepted", "chunk", "final", "error"}
    for payload in copies:
        await observer.publish(f"{observer.base}/k/in", payload)
        await observer.publish(f"{observer.base}/in", payload)
    await ask(observer, "k", {"message": "Still there?"})
    assert len(model_server.questions) == 2
    assert (await health(observer))["totals"]["refused"] == 2 * len(copies)
    assert process.output.count("own event") == 1
    # an object that is no event of ours is told what is wrong
    assert (await ask(observer, "k", {"type": "final", "reply": "x"}))["code"] == "invalid_request"


async def test_our_own_reply_sent_back_stops_being_answered(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url)
    model_server.reply = "I do not know."
    await ask(observer, "k", "What time is it?")
    for _ in range(5):
        assert (await ask(observer, "k", "I do not know."))["type"] == "final"
    for _ in range(3):
        await observer.publish(f"{observer.base}/k/in", "I do not know.")
    await observer.wait(lambda one: "loop:k" in (one.field("reasons") or []))
    assert len(model_server.questions) == 6
    assert (await ask(observer, "hall", "I do not know."))["type"] == "final"
    assert (await ask(observer, "k", "Something else"))["type"] == "final"


# ------------------------------------------------------------------------------------------------- ending an answer


async def cancel(observer: Observer, server: FakeOllama, payload: str | Event | None = None, qos: int = 0) -> None:
    """Cancel in conversation k, and see the stream to the model end in time."""
    running, sent_at = server.questions[-1], time.monotonic()
    await observer.publish(f"{observer.base}/k/cancel", payload, qos)
    await server.until(lambda _: running.disconnected)
    assert (running.disconnected_at or 0.0) - sent_at < CLOSED_WITHIN_S


async def stream(observer: Observer, server: FakeOllama, request_id: str) -> None:
    """Have a long answer in full flow in conversation k."""
    server.next(tokens=LONG, tokens_per_s=100)
    await post(observer, "k", "Tell me a story", request_id, metadata={"m": 1})
    await chunk_of(observer, request_id)


async def test_cancel_stops_the_running_answer_and_drops_what_waits(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url)
    await stream(observer, model_server, "a1")
    await post(observer, "k", "and another", "a2")
    await post(observer, "hall", "not this one", "a3")
    await observer.until(lambda: observer.events("a2") and observer.events("a3"))
    await cancel(observer, model_server)
    final = await observer.terminal("a1")
    check_answer(observer.events("a1"))
    assert (final["finish_reason"], final["metadata"]) == ("cancelled", {"m": 1})
    assert "".join(LONG).startswith(final["reply"])
    assert final["reply"]
    dropped = await observer.terminal("a2")
    assert (dropped["code"], dropped["status_code"], dropped["retryable"]) == ("cancelled", 499, False)
    assert (await observer.terminal("a3"))["type"] == "final"
    # memory keeps what was said, marked
    turns = (await admin(observer, "memory/get", {"conversation_id": "k"}))["data"]["turns"]
    assert [(one["content"], one["interrupted"]) for one in turns] == [
        ("Tell me a story", False),
        (final["reply"], True),
    ]
    await ask(observer, "k", {"message": "Go on"})
    assert model_server.questions[-1].body["messages"][2] == {"role": "assistant", "content": final["reply"]}
    # before the first token
    model_server.next("noheader")
    await post(observer, "k", "Well?", "c1")
    await model_server.until(lambda server: newest(server.questions[-1]) == "Well?")
    await cancel(observer, model_server, "{}", qos=1)
    final = await observer.terminal("c1")
    assert (final["finish_reason"], final["reply"], final["expects_reply"]) == ("cancelled", "", False)
    totals = (await health(observer))["totals"]
    assert (totals["requests"], totals["cancelled"], totals["replies"], totals["errors"]) == (5, 3, 2, 0)


async def test_cancel_by_id_ends_that_one_alone(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url)
    await stream(observer, model_server, "b1")
    await post(observer, "k", "and another", "b2")
    await post(observer, "k", "and a third", "b3")
    await observer.until(lambda: observer.events("b3"))
    await observer.publish(f"{observer.base}/k/cancel", {"id": "nobody"})
    await observer.publish(f"{observer.base}/k/cancel", "no JSON object")
    await observer.publish(f"{observer.base}/hall/cancel")
    await observer.publish(f"{observer.base}/k/cancel", {"id": "b2"})
    assert (await observer.terminal("b2"))["code"] == "cancelled"
    assert not model_server.questions[-1].disconnected
    await cancel(observer, model_server, {"id": "b1"}, qos=2)
    assert (await observer.terminal("b1"))["finish_reason"] == "cancelled"
    assert (await observer.terminal("b3"))["finish_reason"] == "stop"


async def test_interrupt_cancels_what_runs_and_is_answered_next(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url)
    model_server.next(tokens=LONG, tokens_per_s=100)
    await post(observer, "k", "Tell me a story", "story")
    await chunk_of(observer, "story")
    sent_at = time.monotonic()
    final = await ask(observer, "k", {"message": "Stop. What time is it?", "interrupt": True})
    assert final["reply"].endswith("Stop. What time is it?")
    story = model_server.questions[0]
    assert (story.disconnected_at or 0.0) - sent_at < CLOSED_WITHIN_S
    cut = await observer.terminal("story")
    assert cut["finish_reason"] == "cancelled"
    sent = [message["content"] for message in model_server.questions[1].body["messages"][1:]]
    assert sent[:-1] == ["Tell me a story", cut["reply"]]
    assert sent[-1].endswith("Stop. What time is it?")
    # by the agent's own setting, and not in other conversations
    model_server.next(tokens=LONG[:100], tokens_per_s=100)
    await post(observer, "hall", "Another story", "other")
    await chunk_of(observer, "other")
    voice = await ask(observer, "k", {"message": "Lights?", "agent": "voice"})
    assert voice["type"] == "final"
    assert (await observer.terminal("other"))["finish_reason"] == "stop"
    model_server.next(tokens=LONG, tokens_per_s=100)
    await post(observer, "hall", "Another story", "third", agent="voice")
    await chunk_of(observer, "third")
    await ask(observer, "hall", {"message": "Lights?"})
    assert (await observer.terminal("third"))["finish_reason"] == "cancelled"


async def test_reset_forgets_and_the_running_answer_goes_on(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url)
    await ask(observer, "k", {"message": "My name is Ada.", "agent": "voice"})
    await ask(observer, "hall", {"message": "My name is Bob."})
    await observer.publish(f"{observer.base}/k/reset", "whatever")
    assert (await ask(observer, "k", {"message": "Who am I?"}))["agent"] == "general"
    assert "Ada" not in str(model_server.questions[-1].body)
    model_server.next(tokens=LONG[:60], tokens_per_s=200)
    await post(observer, "k", "A story", "story")
    await chunk_of(observer, "story")
    await observer.publish(f"{observer.base}/k/reset")
    assert (await observer.terminal("story"))["finish_reason"] == "stop"
    await ask(observer, "k", {"message": "And now?"})
    assert len(model_server.questions[-1].body["messages"]) == 2
    await ask(observer, "hall", {"message": "Who am I?"})
    assert "Bob" in str(model_server.questions[-1].body)


# ------------------------------------------------------------------------------------------------- at least once


def ends(observer: Observer, request_id: str) -> list[Message]:
    """Return the terminal events of a request as they came."""
    return [
        one
        for one in observer.messages
        if one.field("request_id") == request_id and one.field("type") in TERMINAL and one.topic.endswith("/out")
    ]


async def accepted_in(observer: Observer, convo: str, attempt: int) -> Event:
    """Wait for the acceptance of an attempt."""
    message = await observer.wait(
        lambda one: (
            one.topic == observer.out(convo) and one.field("type") == "accepted" and one.field("attempt") == attempt
        )
    )
    event: Event = message.json
    return event


async def test_a_killed_daemon_answers_under_the_same_request_id(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer, tmp_path: Path
) -> None:
    process = await daemon(ollama_host=model_server.url, memory_url=f"sqlite://{tmp_path}/memory.db", max_concurrent=4)
    await ask(observer, "done", {"message": "Before", "id": "before"})
    model_server.tokens_per_s = 50
    model_server.tokens = LONG
    await observer.publish(f"{observer.base}/plain/in", "Plain text without an id")
    request_id = (await accepted_in(observer, "plain", 1))["request_id"]
    await post(observer, "json", "With an id", "mine")
    await observer.publish(f"{observer.base}/in", "Plain text without anything")
    await observer.until(lambda: running(observer) == 3)
    loose = next(one for one in observer.messages[::-1] if one.field("type") == "accepted").json
    flow = f"{observer.base}/flows/7"
    await observer.publish(f"{observer.base}/flow/in", "From a flow", ResponseTopic=flow, CorrelationData=b"\x00")
    await observer.until(lambda: observer.on(flow))
    for number in range(3):
        await post(observer, "json", f"waiting {number}", f"w{number}")
    await observer.until(lambda: observer.events("w2"))
    await chunk_of(observer, request_id)
    process.kill()
    model_server.forget()
    process.start()
    told = {request_id: "plain", "mine": "json", loose["request_id"]: loose["conversation_id"]}
    for name, convo in told.items():
        end = await observer.terminal(name)
        assert (end["conversation_id"], end["attempt"]) == (convo, 2)
        check_answer([one for one in observer.events(name) if one["attempt"] == 2], attempt=2)
        assert {one["attempt"] for one in observer.events(name)} == {1, 2}
    end_of_flow = await observer.wait(lambda one: one.topic == flow and one.field("type") in TERMINAL)
    assert (end_of_flow.field("attempt"), end_of_flow.properties["CorrelationData"]) == (2, b"\x00")
    assert len({one.field("request_id") for one in observer.on(flow)}) == 1
    for number in range(3):  # these had not begun: it is still their first attempt
        assert (await observer.terminal(f"w{number}"))["attempt"] == 1
    assert (await observer.ask("done", {"message": "Before", "id": "before"}))[0]["type"] == "final"
    await process.stop()
    assert sorted(newest(record) for record in model_server.questions) == sorted(
        [
            *("Plain text without an id", "With an id", "Plain text without anything", "From a flow"),
            *(f"waiting {number}" for number in range(3)),
        ]
    )
    for name in (*told, "w0", "w1", "w2"):
        assert len(ends(observer, name)) == 1


async def test_without_a_file_a_killed_daemon_begins_a_new_attempt(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    process = await daemon(ollama_host=model_server.url)
    model_server.next(tokens=LONG, tokens_per_s=100)
    await post(observer, "k", "Tell me", "story")
    await chunk_of(observer, "story")
    await process.restart(kill=True)
    assert (await observer.terminal("story"))["attempt"] == 2
    check_answer([one for one in observer.events("story") if one["attempt"] == 2], attempt=2)
    assert len(ends(observer, "story")) == 1


def running(observer: Observer) -> int:
    """Return how many requests were accepted and have no end yet."""
    seen = {one.field("request_id"): one.field("type") for one in observer.messages if one.topic.endswith("/out")}
    return len([kind for kind in seen.values() if kind not in TERMINAL and kind != "status"])


def stored(file: Path) -> int:
    """Return how many ends of requests the daemon's file holds."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        (count,) = database.execute("SELECT count(*) FROM requests WHERE terminal IS NOT NULL").fetchone()
        return int(count)


async def test_a_stored_answer_is_not_asked_from_the_model_again(
    daemon: DaemonFactory, model_server: FakeOllama, new_broker: BrokerFactory, base_topic: str, tmp_path: Path
) -> None:
    """The daemon dies after the answer was stored and before the broker has acknowledged it."""
    broker = new_broker()
    async with Observer(broker.port, base=base_topic) as observer:
        await observer.subscribe(f"{base_topic}/+/out")
        process = await daemon(
            ollama_host=model_server.url, mqtt_port=broker.port, memory_url=f"sqlite://{tmp_path}/memory.db"
        )
        model_server.next(tokens=LONG[:60], tokens_per_s=200)
        await observer.publish(f"{base_topic}/k/in", "Tell me")
        await observer.wait(lambda one: one.field("type") == "chunk")
        broker.pause()
        await model_server.until(lambda server: server.questions[0].ended)
        await model_server.until(lambda _: stored(tmp_path / "memory.db"))
        process.kill()
        broker.resume()
        model_server.reply = "Something else"
        process.start()
        final = await observer.wait(lambda one: one.field("type") == "final")
        await ask(observer, "k", {"message": "And now?"})
        await process.stop()
        found = ends(observer, final.field("request_id"))
        assert {one.payload for one in found} == {final.payload}
        assert final.field("reply") == "".join(LONG[:60])
        assert [newest(record) for record in model_server.questions] == ["Tell me", "And now?"]


async def test_a_request_that_killed_the_daemon_twice_is_given_up(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer, tmp_path: Path
) -> None:
    process = await daemon(ollama_host=model_server.url, memory_url=f"sqlite://{tmp_path}/memory.db")
    model_server.mode = "hang"
    await observer.publish(f"{observer.base}/k/in", "Poison")
    await post(observer, "k", "Innocent", "later")
    for attempt in (1, 2):
        request_id = (await accepted_in(observer, "k", attempt))["request_id"]
        await asked(model_server, attempt)
        process.kill()
        model_server.mode = "hang" if attempt == 1 else "ok"
        process.start()
    error = await observer.terminal(request_id)
    assert (error["code"], error["status_code"], error["retryable"]) == ("internal", 500, False)
    assert error["attempt"] == 3
    assert (await observer.terminal("later"))["type"] == "final"
    assert [newest(record) for record in model_server.questions] == ["Poison", "Poison", "Innocent"]
    await process.stop()
    process.start()
    await ask(observer, "k", {"message": "All well?"})
    assert len(ends(observer, request_id)) == 1, "it was acknowledged, and does not come again"


@pytest.mark.parametrize("protocol", ["5", "311"])
async def test_a_broker_restart_in_mid_answer_loses_nothing(
    daemon: DaemonFactory, model_server: FakeOllama, new_broker: BrokerFactory, base_topic: str, protocol: str
) -> None:
    broker = new_broker()
    async with Observer(broker.port, base=base_topic) as observer:
        await observer.subscribe(f"{base_topic}/+/out")
        await daemon(ollama_host=model_server.url, mqtt_port=broker.port, mqtt_protocol=protocol)
        model_server.next(tokens=LONG[:60], tokens_per_s=100)
        await post(observer, "k", "Tell me", "story")
        await post(observer, "k", "And then?", "more")
        await chunk_of(observer, "story")
        broker.restart()
        assert (await observer.terminal("story", 20))["reply"] == "".join(LONG[:60])
        assert (await observer.terminal("more", 20))["type"] == "final"
        assert [newest(record) for record in model_server.questions] == ["Tell me", "And then?"]
        for name in ("story", "more"):
            assert len({one.payload for one in ends(observer, name)}) == 1
