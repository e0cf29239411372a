"""`llm/chat`, `llm/vision`, `llm/embed`: outside the conversations, and inside every bound."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from piagent_daemon import files
from piagent_daemon.admin_llm import MAX_INPUTS
from piagent_daemon.admission import LARGE_WAITING_BYTES
from piagent_daemon.errors import ModelNotFound, ProviderError, ProviderUnavailable
from piagent_daemon.scheduler import MAX_CRASHES
from piagent_daemon.values import Delivery, Delta, Message, Ticket
from tests.fakes.desk import Shop, World
from tests.fakes.doubles import RecordingChannel, answer, incoming
from tests.fakes.pictures import encoded, gif, png

HELLO = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
LOOK = {"model": "eye", "messages": [{"role": "user", "content": "What is it?"}]}


@pytest.fixture
async def world(tmp_path: Path) -> World:
    (tmp_path / "door.png").write_bytes(png(4, 4))
    (tmp_path / "note.txt").write_text("Buy milk.")
    shop = Shop("qwen2.5:3b-instruct", "m", "eye", "vec")
    shop.shelf |= {"eye": frozenset({"completion", "vision"}), "vec": frozenset({"embedding"})}
    return World(shop, files_dir=str(tmp_path), backoff_factor_s=0.001, max_retries=2)


def sent(world: World) -> tuple[Message, ...]:
    return world.provider.asked[-1].messages


async def test_messages_are_answered_in_the_words_of_the_protocol(world: World) -> None:
    world.provider.scripts = [lambda _: answer("Good ", "evening.", prompt_tokens=7)]
    data = await world.ok("llm/chat", HELLO)
    assert data.pop("total_duration") >= 0
    assert data == {
        "response": "Good evening.",
        "model": "m",
        "provider": "scripted",
        "finish_reason": "stop",
        "tokens_used": 9,
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }
    assert sent(world) == (Message("user", "Hello"),)


async def test_it_streams_when_asked(world: World) -> None:
    *progress, last = await world.responses("llm/chat", {**HELLO, "stream": True, "transaction": "t-1"})
    assert {step.data["id"] for step in progress} == {"t-1"}
    assert "".join(step.data["text"] for step in progress) == last.data["response"] == "You said: Hello"
    assert [response.status for response in await world.responses("llm/chat", HELLO)] == ["ok"]


async def test_nothing_is_remembered_and_no_agent_has_a_say(world: World) -> None:
    await world.talk()
    messages = [{"role": "system", "content": "Be rude."}, *HELLO["messages"], {"role": "assistant", "content": "Hm."}]
    await world.ok("llm/chat", {"model": "m", "messages": [*messages, {"role": "user", "content": "Again"}]})
    assert [message.content for message in sent(world)] == ["Be rude.", "Hello", "Hm.", "Again"]
    assert [row["conversation_id"] for row in (await world.ok("conversations/list"))["conversations"]] == ["kitchen"]


DURABLE = Delivery("packet:7:x", by_id=False, redelivered=False, durable=True)


async def test_one_that_ended_leaves_nothing_in_the_journal(world: World) -> None:
    await world.responses("llm/chat", HELLO, DURABLE)
    world.provider.scripts = [lambda _: [ProviderError("broken")]]
    await world.responses("llm/chat", HELLO, DURABLE)
    assert (await world.store.open(DURABLE._replace(redelivered=True), Ticket("", "new"))).request_id == "new"
    assert len(world.store._ledger.journal) == 1, "the entry of this very look"


async def test_one_that_is_cut_off_is_no_crash(world: World) -> None:
    world.provider.script = lambda _: [asyncio.Event()]
    for _ in range(MAX_CRASHES + 1):
        asking = asyncio.ensure_future(world.responses("llm/chat", HELLO, DURABLE))
        await asyncio.wait([asking], timeout=0.01)
        asking.cancel()
        await asyncio.wait([asking])
    known = await world.store.open(DURABLE._replace(redelivered=True), Ticket("", "new"))
    assert known.request_id != "new"
    assert known.crashes == 0


async def test_options_reach_the_model_wherever_they_stand(world: World) -> None:
    asked = {
        "temperature": 0,
        "max_tokens": 5,
        "top_p": 0.5,
        "top_k": 3,
        "repeat_penalty": 1.2,
        "seed": 4,
        "stop": ["x"],
    }
    await world.ok("llm/chat", {**HELLO, **asked, "options": {"min_p": 0.1, "temperature": 1.0}, "format": "json"})
    request = world.provider.asked[-1]
    assert request.options == {
        "temperature": 0.0,
        "num_predict": 5,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "repeat_penalty": 1.2,
        "seed": 4,
        "stop": ["x"],
    }
    assert request.format == "json"
    await world.ok("llm/chat", {**HELLO, "max_tokens": 1_000_000})
    assert world.provider.asked[-1].options["num_predict"] == world.config.settings.max_tokens


async def test_a_structured_answer_is_parsed_and_a_settled_one_given_again(world: World) -> None:
    world.config.settings = world.config.settings.model_copy(update={"cache_ttl_s": 60})
    world.provider.script = lambda _: answer('{"on": true}')
    first, again = [await world.ok("llm/chat", {**HELLO, "format": "json", "seed": 1}) for _ in range(2)]
    assert first["data"] == again["data"] == {"on": True}
    assert ("cached" in first, again["cached"], again["tokens_used"]) == (False, True, 0)


async def test_files_go_before_the_last_words_of_the_user(world: World) -> None:
    messages = [
        *HELLO["messages"],
        {"role": "assistant", "content": "Hm."},
        {"role": "user", "content": "What is in it?"},
    ]
    params = {"model": "m", "messages": messages, "file_path": "note.txt", "files": [{"name": "a", "text": "b"}]}
    await world.ok("llm/chat", params)
    assert [message.content for message in sent(world)[:2]] == ["Hello", "Hm."]
    assert sent(world)[2].content == ("File a:\n```\nb\n```\n\nFile note.txt:\n```\nBuy milk.\n```\n\nWhat is in it?")


async def test_images_are_looked_at(world: World) -> None:
    data = await world.ok("llm/vision", {**LOOK, "image_path": "door.png"})
    assert (data["image_analyzed"], data["model"]) == ("door.png", "eye")
    assert sent(world)[-1].images == (encoded(png(4, 4)),)
    data = await world.ok("llm/vision", {**LOOK, "images": [f"data:image/gif;base64,{encoded(gif())}"]})
    assert data["image_analyzed"] == "images.0"
    assert sent(world)[-1].images == (encoded(gif()),)


async def test_an_image_on_a_share_that_is_away_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = threading.Event()
    monkeypatch.setattr(files, "picture", lambda *_: back.wait(10))
    world.config.settings = world.config.settings.model_copy(update={"total_timeout_s": 0.05})
    code, says = await world.error("llm/vision", {**LOOK, "image_path": "door.png"})
    back.set()
    assert (code, "FILES_DIR" in says) == ("timeout", True)


async def test_a_model_that_cannot_see_is_replaced_by_one_that_can(world: World) -> None:
    assert (await world.ok("llm/vision", {**LOOK, "model": "m", "image_path": "door.png"}))["model"] == "eye"
    del world.provider.shelf["eye"]  # type: ignore[attr-defined]
    assert (await world.error("llm/vision", {**LOOK, "model": "m", "image_path": "door.png"}))[0] == "model_not_found"


async def test_texts_become_vectors(world: World) -> None:
    data = await world.ok("llm/embed", {"input": ["a", "bcd"], "model": "vec"})
    assert data.pop("total_duration") >= 0
    assert data == {"embeddings": [[1.0], [3.0]], "model": "vec", "provider": "scripted"}
    assert (await world.ok("llm/embed", {"input": "ab"}))["model"] == "vec"
    world.config.settings = world.config.settings.model_copy(update={"models_allowed": ("m",)})
    assert (await world.error("llm/embed", {"input": "ab", "model": "vec"}))[0] == "invalid_request"


@pytest.mark.parametrize(
    ("method", "params", "says"),
    [
        ("llm/chat", {}, 'required parameter "model" is missing; the required parameter "messages" is missing'),
        ("llm/chat", {"model": "m"}, 'required parameter "messages" is missing'),
        ("llm/chat", {"model": "m", "messages": []}, "messages"),
        ("llm/chat", {"model": "m", "messages": "Hello"}, "messages"),
        ("llm/chat", {"model": "m", "messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ("llm/chat", {"model": "m", "messages": [{"role": "user"}]}, 'parameter "messages.0.content" is missing'),
        ("llm/chat", {**HELLO, "num_ctx": 8192}, 'no parameter "num_ctx"'),
        ("llm/chat", {**HELLO, "options": {"num_thread": 1}}, 'no parameter "options.num_thread"'),
        ("llm/chat", {**HELLO, "temperature": 9}, "temperature"),
        ("llm/chat", {**HELLO, "max_tokens": 0}, "max_tokens"),
        ("llm/chat", {**HELLO, "stream": "yes"}, "stream"),
        ("llm/chat", {**HELLO, "file_path": "../secret"}, "FILES_DIR"),
        ("llm/chat", {**HELLO, "images": ["aGVsbG8="]}, '"images.0" is not a PNG'),
        ("llm/chat", {"model": "m", "messages": [{"role": "system", "content": "x"}], "file_path": "note.txt"}, "user"),
        ("llm/chat", {"model": "m", "messages": [{"role": "user", "content": "\ud800"}]}, "Unicode"),
        ("llm/vision", LOOK, 'required parameter "image_path" is missing'),
        ("llm/vision", {}, '"messages" is missing; the required parameter "image_path" is missing'),
        ("llm/vision", {**LOOK, "images": []}, 'required parameter "image_path" is missing'),
        ("llm/vision", {**LOOK, "image_path": None}, "null is no image"),
        ("llm/vision", {**LOOK, "image_path": "note.txt"}, "not a PNG"),
        ("llm/vision", {**LOOK, "image_path": "nothing.png"}, "no file"),
        ("llm/embed", {}, 'required parameter "input" is missing'),
        ("llm/embed", {"input": []}, "1 to 256"),
        ("llm/embed", {"input": [""]}, "none of them empty"),
        ("llm/embed", {"input": ["x"] * (MAX_INPUTS + 1)}, "1 to 256"),
        ("llm/embed", {"input": {"text": "x"}}, "input"),
        ("llm/complete", HELLO, 'no method "llm/complete"'),
    ],
)
async def test_what_is_wrong_is_named(world: World, method: str, params: dict[str, Any], says: str) -> None:
    code, message = await world.error(method, params)
    assert code == "invalid_request"
    assert says in message
    assert not world.provider.asked


async def test_only_allowed_models_are_asked(world: World) -> None:
    world.config.settings = world.config.settings.model_copy(update={"models_allowed": ("eye",)})
    assert "MODELS_ALLOWED" in (await world.error("llm/chat", HELLO))[1]
    assert "MODELS_ALLOWED" in (await world.error("llm/embed", {"input": "a", "model": "vec"}))[1]
    await world.ok("llm/chat", {**HELLO, "model": "eye"})


@pytest.mark.parametrize("method", ["llm/chat", "llm/embed"])
async def test_failures_are_those_of_the_model_server(world: World, method: str) -> None:
    params = HELLO if method == "llm/chat" else {"input": "a", "model": "vec"}
    failures: list[ProviderError] = [ProviderUnavailable("busy"), ProviderUnavailable("busy")]

    def fail(_: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return answer("Hm.") if method == "llm/chat" else [[0.0]]

    world.provider.script, world.provider.embeddings = fail, fail  # type: ignore[attr-defined]
    assert (await world.ask(method, params))["status"] == "ok"
    failures += [ProviderUnavailable("busy")] * 3
    assert await world.error(method, params) == ("provider_unavailable", "busy")
    failures[:] = [ProviderError("broken")]
    assert await world.error(method, params) == ("provider_error", "broken")
    failures[:] = [ModelNotFound("gone")]
    assert await world.error(method, params) == ("model_not_found", "gone")


# ------------------------------------------------------------------------------------------------------------- bounds


async def hold(world: World) -> tuple[asyncio.Event, RecordingChannel]:
    """Have a question take the only place until the event is set."""
    gate, channel = asyncio.Event(), RecordingChannel()
    world.provider.scripts.append(lambda _: [gate, *answer("Held.")])
    await world.scheduler.submit(incoming("hold"), channel)
    await world.until(lambda: world.provider.asked)
    return gate, channel


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("llm/chat", HELLO),
        ("llm/vision", {**LOOK, "image_path": "door.png"}),
        ("llm/embed", {"input": "a", "model": "vec"}),
    ],
)
async def test_they_wait_for_a_place_like_questions_do(world: World, method: str, params: dict[str, Any]) -> None:
    calls: list[Any] = []
    world.provider.embeddings = lambda texts: calls.append(texts) or [[0.0]]  # type: ignore[attr-defined,func-returns-value]
    gate, _ = await hold(world)
    waits = asyncio.create_task(world.ok(method, params))
    await world.until(lambda: world.scheduler.queue.waiting == 1)
    assert (len(world.provider.asked), calls) == (1, [])
    assert world.scheduler.queue.active == 1
    gate.set()
    await waits
    assert len(world.provider.asked) + len(calls) == 2
    await world.until(world.scheduler.idle.is_set)


@pytest.mark.parametrize("method", ["llm/chat", "llm/embed"])
async def test_a_full_queue_is_busy(method: str) -> None:
    world = World(Shop("m"), max_waiting=0)
    await hold(world)
    params = HELLO if method == "llm/chat" else {"input": "a", "model": "m"}
    assert (await world.error(method, params))[0] == "busy"


LARGE = "x" * (LARGE_WAITING_BYTES // 2 + 1)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("llm/chat", {**HELLO, "files": [{"name": "a.txt", "text": LARGE}]}),
        ("llm/embed", {"input": LARGE, "model": "vec"}),
    ],
)
async def test_what_is_large_counts_while_it_waits(method: str, params: dict[str, Any]) -> None:
    world = World(Shop("m", "vec"), ctx_tokens=1_000_000)
    gate, _ = await hold(world)
    waits = asyncio.create_task(world.ask(method, params))
    await world.until(lambda: world.scheduler.queue.waiting == 1)
    assert (await world.error(method, params))[0] == "busy"
    gate.set()
    await waits


async def test_one_that_waits_can_be_cancelled(world: World) -> None:
    gate, channel = await hold(world)
    for method, params in (("llm/chat", HELLO), ("llm/embed", {"input": "a", "model": "vec"})):
        waits = asyncio.create_task(world.error(method, {**params, "id": "w-1"}))
        await world.until(lambda: world.scheduler.queue.waiting == 1)
        await world.ok("cancel", {"id": "w-1"})
        assert (await waits)[0] == "cancelled"
    gate.set()
    assert (await channel.terminal()).type == "final"


async def test_one_that_runs_can_be_cancelled(world: World) -> None:
    world.provider.scripts = [lambda _: [Delta("Half"), asyncio.Event()]]
    runs = asyncio.create_task(world.ok("llm/chat", {**HELLO, "transaction": 5}))
    await world.until(lambda: world.provider.asked)
    await asyncio.sleep(0.01)
    await world.ok("cancel", {"id": "5"})
    data = await runs
    assert (data["finish_reason"], data["response"]) == ("cancelled", "Half")
    world.provider.embeddings = lambda _: asyncio.Event().wait()  # type: ignore[attr-defined]
    embeds = asyncio.create_task(world.error("llm/embed", {"input": "a", "model": "vec", "id": "e-1"}))
    await world.until(lambda: world.scheduler.queue.active)
    await world.ok("cancel", {"id": "e-1"})
    assert (await embeds)[0] == "cancelled"
    assert world.provider.closed_early == 1


async def test_who_leaves_early_gives_the_place_back(world: World) -> None:
    world.provider.scripts = [lambda _: [Delta("Half"), asyncio.Event()]]
    runs = asyncio.create_task(world.ok("llm/chat", HELLO))
    await world.until(lambda: world.provider.asked)
    runs.cancel()
    await world.until(world.scheduler.idle.is_set)
    await world.ok("llm/chat", HELLO)


async def test_a_stop_ends_them(world: World) -> None:
    world.provider.scripts = [lambda _: [Delta("Half"), asyncio.Event()]]
    world.provider.embeddings = lambda _: asyncio.Event().wait()  # type: ignore[attr-defined]
    chat = asyncio.create_task(world.error("llm/chat", HELLO))
    embed = asyncio.create_task(world.error("llm/embed", {"input": "a", "model": "vec"}))
    await world.until(lambda: world.provider.asked)
    await world.scheduler.drain(0.01, asyncio.Event())
    assert [(await one)[0] for one in (chat, embed)] == ["shutting_down"] * 2
    assert (await world.error("llm/chat", HELLO))[0] == "shutting_down"
