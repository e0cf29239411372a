"""What the daemon remembers, and what of it the model reads: history, facts, the ledger of tokens, agents."""

import asyncio
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DaemonFactory
from tests.fakes.answers import admin, ask
from tests.fakes.observer import Observer
from tests.fakes.ollama import DEFAULT_MODEL, FakeOllama, Model, Record

CLOCK = """---
context: "It is {{ now.strftime('%H:%M:%S.%f') }} for {{ agent }} in {{ conversation_id }}, room {{ context.room }}."
---
You are {{ agent }}, the keeper of a lighthouse.
"""


def sent(record: Record) -> list[tuple[str, str]]:
    """Return the messages of a question as (role, content)."""
    return [(message["role"], message["content"]) for message in record.body["messages"]]


async def turns(observer: Observer, convo: str) -> list[str]:
    """Return what is remembered of a conversation."""
    data = (await admin(observer, "memory/get", {"conversation_id": convo}))["data"]
    return [turn["content"] for turn in data["turns"]]


async def test_each_prompt_continues_the_one_before_and_facts_are_not_remembered(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer, tmp_path: Path
) -> None:
    (tmp_path / "keeper.md").write_text(CLOCK)
    await daemon(ollama_host=model_server.url, prompts_dir=tmp_path, default_agent="keeper", memory_max_turns=20)
    model_server.reply = lambda body: f"Answer {len(body['messages'])}."
    for number in range(6):
        request = {"message": f"Question {number}?", "context": {"room": f"tower {number}", "secret": "sensor-value"}}
        final = await ask(observer, "k", request)
        assert final["context"]["tokens"] == len(model_server.questions[-1].prompt)
    for number, record in enumerate(model_server.questions):
        system, *history, newest = sent(record)
        assert system == ("system", "You are keeper, the keeper of a lighthouse.")
        assert history == [
            one
            for turn in range(number)
            for one in (("user", f"Question {turn}?"), ("assistant", f"Answer {2 * turn + 2}."))
        ]
        question, told = newest[1].split("\n\n")
        assert question == f"Question {number}?"
        assert told.startswith("It is ")
        assert told.endswith(f"for keeper in k, room tower {number}.")
        assert "tower" not in str(history)
        assert record.evaluated < 70, "only what is new is read"
    assert "sensor-value" not in str([record.body for record in model_server.questions])
    assert (await turns(observer, "k"))[:2] == ["Question 0?", "Answer 2."]
    # without a template the request's own facts stand there, as text or as an object; files are remembered
    files = [{"name": "list.txt", "text": "milk"}]
    for facts in ("It rains.", {"weather": "rain"}):
        await ask(observer, "g", {"message": "Go out?", "agent": "general", "context": facts, "files": files})
        assert (
            sent(model_server.questions[-1])[-1][1]
            .rpartition("Go out?")[2]
            .strip()
            .endswith("It rains." if isinstance(facts, str) else "weather: rain")
        )
    await ask(observer, "g", "And now?")
    asked = str(sent(model_server.questions[-1]))
    assert "rain" not in asked.lower()
    assert asked.count("milk") == 2


async def test_conversations_outlive_the_process_and_stay_apart(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer, tmp_path: Path
) -> None:
    process = await daemon(ollama_host=model_server.url, memory_url=f"sqlite://{tmp_path}/memory.db")
    for convo, name in (("kitchen", "Ada"), ("hall", "Bob"), ("; DROP TABLE histories--", "Eve")):
        await ask(observer, convo, {"message": f"I am {name}.", "agent": "voice"})
    for kill in (False, True):
        await process.restart(kill=kill)
        for convo, name in (("kitchen", "Ada"), ("hall", "Bob"), ("; DROP TABLE histories--", "Eve")):
            assert (await ask(observer, convo, "Who am I?"))["agent"] == "voice", "the agent is remembered as well"
            said = str(sent(model_server.questions[-1]))
            assert [one for one in ("Ada", "Bob", "Eve") if one in said] == [name]
    rows = (await admin(observer, "conversations/list"))["data"]["conversations"]
    assert [(row["conversation_id"], row["turns"]) for row in rows] == [
        ("; DROP TABLE histories--", 6),
        ("hall", 6),
        ("kitchen", 6),
    ]


async def test_memory_has_bounds(daemon: DaemonFactory, model_server: FakeOllama, observer: Observer) -> None:
    await daemon(ollama_host=model_server.url, memory_max_turns=4, memory_max_conversations=2, memory_ttl_min=0.01)
    dropped = []
    for number in range(8):
        final = await ask(observer, "k", f"Question {number}")
        dropped.append(final["context"]["dropped_turns"])
        history = sent(model_server.questions[-1])[1:-1]
        assert len(history) <= 4
        assert len(await turns(observer, "k")) <= 4
        assert len(history) + dropped[-1] == 2 * number
    assert dropped == sorted(dropped)
    await ask(observer, "second", "Hello")
    await ask(observer, "third", "Hello")
    rows = (await admin(observer, "conversations/list"))["data"]["conversations"]
    assert [row["conversation_id"] for row in rows] == ["third", "second"]
    async with asyncio.timeout(5):
        while (await admin(observer, "conversations/list"))["data"]["conversations"]:
            pass
    await ask(observer, "third", "Hello again")
    assert len(sent(model_server.questions[-1])) == 2


async def test_without_memory_every_question_stands_alone(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url, enable_memory=False)
    for _ in range(2):
        await ask(observer, "k", "I am Ada.")
    assert len(sent(model_server.questions[-1])) == 2
    assert (await admin(observer, "health"))["data"]["memory"] == {"conversations": 0, "store": "memory"}


WORDS = (
    *("the", "lamp", "is", "lit", "and", "the", "sea", "calm", "tonight", "über", "Zürich", "12345", "3.14159"),
    *("日本語の灯台", "🏠🌊", '{"a": [1, 2]}', "unconventionally", "\n\n* ", "https://example.org/a?b=c"),
)


@pytest.mark.parametrize("style", ["chat", "xml"])
async def test_the_server_never_has_to_cut_a_prompt(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer, style: str
) -> None:
    """System, history, newest message and answer always fit, by a count that the server's own counts correct."""
    limit, answer = 700, 100
    await daemon(
        ollama_host=model_server.url,
        ctx_tokens=limit,
        max_tokens=answer,
        memory_max_turns=1000,
        prompt_style=style,
        chunk_interval_ms=1000,
    )
    draw = random.Random(7)  # noqa: S311  the same texts in every run

    def text(longest: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, longest)))

    model_server.reply = lambda _: text(60)
    dropped = [0]
    for number in range(40):
        final = await ask(observer, "k", {"message": text(60), "context": text(5)})
        assert final["type"] == "final", final
        assert final["context"]["limit"] == limit
        assert final["context"]["tokens"] + answer <= limit
        dropped.append(final["context"]["dropped_turns"])
        if style == "chat":
            assert len(sent(model_server.questions[-1])[1:-1]) + dropped[-1] == 2 * number
    calls = [record for record in model_server.requests if record.path in {"/api/chat", "/api/generate"}]
    assert len(model_server.questions) == 40, "no prompt was refused and cut again"
    assert {record.status for record in calls} == {200}
    assert not any(record.truncated or record.shifts for record in calls)
    assert all(len(record.prompt) + answer <= limit for record in calls)
    steps = [after - before for before, after in itertools.pairwise(dropped) if after > before]
    assert dropped[-1] > 40
    assert len(steps) < 20, "history goes in blocks, not a turn at a time"
    used = [len(record.prompt) for record in model_server.questions[10:]]
    assert max(used) > 0.6 * (limit - answer), "the room is used"


def set_aside(folder: Path) -> list[Path]:
    """Return the damaged files that were kept."""
    return list(folder.glob("memory.db.corrupt-*"))


async def test_a_memory_that_cannot_be_kept_is_told_and_answers_go_on(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer, tmp_path: Path
) -> None:
    broken = tmp_path / "memory.db"
    broken.write_bytes(b"SQLite format 3\x00" + b"\xff" * 5000)
    for url in ("sqlite:///proc/none/memory.db", f"sqlite://{broken}"):
        process = await daemon(ollama_host=model_server.url, memory_url=url)
        start = len(observer.messages)
        await ask(observer, "k", {"message": "I am Ada."})
        await ask(observer, "k", {"message": "Who am I?"})
        assert "Ada" in str(sent(model_server.questions[-1]))
        state = (await admin(observer, "health"))["data"]
        assert (state["status"], state["reasons"]) == ("degraded", ["memory_not_persisted"])
        assert state["memory"] == {"conversations": 1, "store": "sqlite"}
        assert url.removeprefix("sqlite://") in process.output
        assert await process.stop() == 0
        assert len(observer.messages) > start
    kept = set_aside(tmp_path)
    assert [path.read_bytes()[:20] for path in kept] == [b"SQLite format 3\x00\xff\xff\xff\xff"]
    await daemon(ollama_host=model_server.url, memory_url=f"sqlite://{broken}")
    await ask(observer, "k", {"message": "Who am I?"})
    assert "Ada" in str(sent(model_server.questions[-1])), "the new file was written"


AGENTS = {
    "general": "You are the house, called {{ agent }}.",
    "json": '---\ndescription: "Speaks JSON"\nmodel: other:1b\nformat: json\nstream: false\noptions:\n  seed: 7\n'
    "  num_predict: 30\n---\nAnswer in JSON.",
    "deep-1": "---\nmodel: thinker\nthink: true\noptions: {temperature: 0}\n---\nThink first.",
}


async def test_an_agent_is_a_prompt_file(daemon: DaemonFactory, observer: Observer, tmp_path: Path) -> None:
    for name, text in AGENTS.items():
        (tmp_path / f"{name}.md").write_text(text)
    thinker = Model(capabilities=frozenset({"completion", "thinking"}))
    async with FakeOllama({DEFAULT_MODEL: Model(), "other:1b": Model(), "thinker": thinker}) as server:
        await daemon(ollama_host=server.url, prompts_dir=tmp_path, temperature=0.5)

        async def asked(payload: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
            events = await observer.ask("k", payload)
            body: dict[str, Any] = server.questions[-1].body
            return events, body

        events, body = await asked({"message": "Hello"})
        assert body["messages"][0]["content"] == "You are the house, called general."
        assert (body["options"]["temperature"], body["think"]) == (0.5, False)
        events, body = await asked({"message": "Hello", "agent": "json"})
        assert [event["type"] for event in events] == ["accepted", "final"]
        assert (events[0]["model"], body["model"], body["format"]) == ("other:1b", "other:1b", "json")
        assert (body["options"]["seed"], body["options"]["num_predict"]) == (7, 30)
        assert events[-1]["data"] == {"answer": "Hello"}
        events, body = await asked({"message": "Hello", "stream": True, "options": {"seed": 8}})
        assert (events[-1]["agent"], events[1]["type"], body["options"]["seed"]) == ("json", "chunk", 8)
        events, body = await asked({"message": "Hello", "agent": "deep-1"})
        assert (body["think"], body["options"]["temperature"]) == (True, 0)
        assert events[-1]["reply"] == "You said: Hello", "thought is kept apart"
        listed = (await admin(observer, "agents/list"))["data"]["agents"]
        assert [(agent["name"], agent["model"]) for agent in listed] == [
            ("deep-1", "thinker"),
            ("general", DEFAULT_MODEL),
            ("json", "other:1b"),
            ("voice", DEFAULT_MODEL),
        ]
        assert listed[2]["description"] == "Speaks JSON"
