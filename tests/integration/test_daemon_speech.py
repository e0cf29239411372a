"""Speech through the whole daemon: sentences, fillers, stop phrases, and what is remembered when somebody cuts in."""

import asyncio
from pathlib import Path
from typing import Any

from tests.conftest import DaemonFactory
from tests.fakes.answers import admin, ask, check_answer
from tests.fakes.observer import Observer
from tests.fakes.ollama import FakeOllama
from tests.fakes.tokens import tokenise

REPLY = (
    "## Gut\n\nEs sind **21,5 Grad**, z. B. im Bad. Am 3. Oktober wird es wärmer 😀! Siehe https://wetter.example/x?y=1.\n\n"
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n```sh\nrm x. y\n```\n- Soll ich heizen?"
)
SPOKEN = [
    "Gut.",
    "Es sind 21,5 Grad, z. B. im Bad.",
    "Am 3. Oktober wird es wärmer !",
    "Siehe ein Link.",
    "Soll ich heizen?",
]


def spoken(events: list[dict[str, Any]]) -> list[str]:
    return [event["text"] for event in events if event["type"] == "sentence"]


async def turns(observer: Observer, convo: str) -> list[tuple[str, bool]]:
    data = (await admin(observer, "memory/get", {"conversation_id": convo}))["data"]
    return [(turn["content"], turn["interrupted"]) for turn in data["turns"]]


async def remembered(observer: Observer, convo: str, expected: list[tuple[str, bool]]) -> None:
    """Wait until a conversation is remembered so: nothing answers a cancel that comes after the end."""
    async with asyncio.timeout(5):
        while await turns(observer, convo) != expected:  # noqa: ASYNC110 - each look is a question over the broker
            await asyncio.sleep(0)


async def test_an_answer_comes_as_sentences_for_the_ear(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url)
    for tokens in (tokenise(REPLY), list(REPLY), [REPLY]):
        model_server.next(tokens=tokens)
        events = await observer.ask("bath", {"message": "Wie warm ist es?", "stream": "sentences"})
        final = check_answer(events)
        assert spoken(events) == SPOKEN
        assert final["reply"] == REPLY
        assert final["speech"] == " ".join(SPOKEN)
        assert final["expects_reply"]
        assert {event["type"] for event in events} == {"accepted", "sentence", "final"}
    qos = {message.field("type"): message.qos for message in observer.on(observer.out("bath"))}
    assert qos == {"accepted": 1, "sentence": 0, "final": 1}


async def test_a_question_before_what_is_not_spoken_expects_a_reply(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url)
    for stream in ("sentences", False):
        for rest in ("```sh\nls -la\n```", "---", "| a | b |\n|---|---|\n| 1 | 2 |", "<!-- no -->"):
            model_server.next(reply=f"Shall I run it?\n\n{rest}")
            final = await ask(observer, "k", {"message": "Clean up", "stream": stream})
            assert (final["speech"], final["expects_reply"]) == ("Shall I run it?", True)


async def test_the_first_sentence_comes_while_the_model_goes_on(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url, chunk_interval_ms=5000)
    model_server.next(tokens=tokenise("The light is on. " + "And more. " * 20), tokens_per_s=50)
    events = await observer.ask("k", {"message": "Light on", "stream": "sentences"})
    check_answer(events)
    messages = observer.on(observer.out("k"))
    first = next(message for message in messages if message.field("type") == "sentence")
    assert first.field("text") == "The light is on."
    assert messages[-1].time - first.time > 0.5


async def test_an_agent_with_a_filler_and_stop_phrases(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer, tmp_path: Path
) -> None:
    (tmp_path / "butler.md").write_text(
        "---\nstream: sentences\nfiller: {text: One moment., seconds: 0.2}\nstop_phrases: [that will do]\n---\nServe.\n"
    )
    await daemon(ollama_host=model_server.url, prompts_dir=tmp_path)
    model_server.next(reply="At your service. Sir.", first_token_delay_s=0.6)
    events = await observer.ask("hall", {"message": "Come here", "agent": "butler"})
    final = check_answer(events)
    assert spoken(events) == ["One moment.", "At your service.", "Sir."]
    assert (final["reply"], final["speech"]) == ("At your service. Sir.", "At your service. Sir.")
    assert await turns(observer, "hall") == [("Come here", False), ("At your service. Sir.", False)]
    # also where the question waits for its turn
    model_server.next(tokens=tokenise("Wait. " * 40), tokens_per_s=40)
    await observer.publish(f"{observer.base}/k/in", {"message": "Count", "id": "long"})
    await observer.wait(lambda one: one.field("request_id") == "long" and one.field("type") == "chunk")
    model_server.next(reply="Here I am. Sir.")
    waited = await observer.ask("hall", {"message": "Come", "agent": "butler"})
    assert spoken(waited) == ["One moment.", "Here I am.", "Sir."]
    assert [event["index"] for event in waited if event["type"] == "sentence"] == [0, 1, 2]
    assert check_answer(waited)["speech"] == "Here I am. Sir."
    filler = next(one for one in observer.messages if one.field("type") == "sentence" and one.json == waited[1])
    end = next(one for one in observer.messages if one.field("request_id") == "long" and one.field("type") == "final")
    assert filler.time < end.time
    # also while the model thinks in its text
    model_server.next(tokens=["\n", *["<think>", *["hm "] * 20, "</think>"], "Yes. Sir."], tokens_per_s=30)
    assert spoken(await observer.ask("hall", {"message": "Well", "agent": "butler"})) == ["One moment.", "Yes.", "Sir."]
    # without sentences nothing is filled in
    model_server.next(reply="Again.", first_token_delay_s=0.6)
    assert spoken(await observer.ask("hall", {"message": "Again", "stream": True})) == []

    model_server.next(tokens=tokenise("One is here. " + "And one more. " * 50), tokens_per_s=60)
    await observer.publish(f"{observer.base}/hall/in", {"message": "Count", "id": "count"})
    await observer.wait(lambda one: one.field("request_id") == "count" and one.field("type") == "sentence")
    questions = len(model_server.questions)
    final = await ask(observer, "hall", {"message": "That will do!", "id": "enough"})
    assert (final["finish_reason"], final["reply"], final["agent"]) == ("cancelled", "", "butler")
    end = await observer.wait(lambda one: one.field("request_id") == "count" and one.field("type") == "final")
    assert end.field("finish_reason") == "cancelled"
    assert end.field("reply").startswith("One is here.")
    assert end.field("reply").endswith((".", "more"))
    assert len(model_server.questions) == questions
    assert (await turns(observer, "hall"))[-2:] == [("Count", False), (end.field("reply"), True)]
    # the same words, to an agent that does not know them
    assert (await ask(observer, "k", {"message": "That will do!", "agent": "general"}))["finish_reason"] == "stop"


async def test_only_what_was_spoken_is_remembered_and_the_model_is_told(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer, tmp_path: Path
) -> None:
    process = await daemon(ollama_host=model_server.url, memory_url=f"sqlite://{tmp_path}/memory.db")
    # while the model speaks
    model_server.next(tokens=tokenise("One is here. Two is here. Three is here. " + "More. " * 100), tokens_per_s=60)
    await observer.publish(f"{observer.base}/k/in", {"message": "Count", "id": "c", "stream": "sentences"})
    await observer.wait(lambda one: one.field("request_id") == "c" and one.field("index") == 2)
    await observer.publish(f"{observer.base}/k/cancel", {"id": "c", "spoken_index": 1}, qos=0)
    end = await observer.wait(lambda one: one.field("request_id") == "c" and one.field("type") == "final")
    assert (end.field("finish_reason"), end.field("reply")) == ("cancelled", "One is here. Two is here.")
    assert end.field("speech") == "One is here. Two is here."
    await remembered(observer, "k", [("Count", False), ("One is here. Two is here.", True)])
    # after the model has ended, while the loudspeaker still speaks
    model_server.next(reply="**Four** is here. Five is here. Six is here.")
    final = await ask(observer, "k", {"message": "Go on", "stream": "sentences"})
    assert final["finish_reason"] == "stop"
    await observer.publish(f"{observer.base}/k/cancel", {"spoken_index": 0}, qos=0)
    kept = [("Count", False), ("One is here. Two is here.", True), ("Go on", False), ("**Four** is here.", True)]
    await remembered(observer, "k", kept)
    await process.restart()
    await remembered(observer, "k", kept)
    await ask(observer, "k", "Thank you")
    sent = [message["content"] for message in model_server.questions[-1].body["messages"][1:]]
    assert sent == [
        "Count",
        "One is here. Two is here.",
        "[interrupts you] Go on",
        "**Four** is here.",
        "[interrupts you] Thank you",
    ]
    await ask(observer, "k", "Bye")
    assert [message["content"] for message in model_server.questions[-1].body["messages"][1:6]] == sent


async def test_a_cancel_with_nonsense_is_ignored(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url)
    model_server.next(reply="One is here. Two is here.")
    await ask(observer, "k", {"message": "Count", "stream": "sentences"})
    for payload in ({"spoken_index": "two"}, {"spoken_index": -2}, {"spoken_index": 1.5}, {"spoken": 0}):
        await observer.publish(f"{observer.base}/k/cancel", payload, qos=0)
    await ask(observer, "k2", "Hello")
    assert await turns(observer, "k") == [("Count", False), ("One is here. Two is here.", False)]
