"""Models and requests outside the conversations, through the whole daemon (contract section 5)."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DaemonFactory
from tests.fakes.answers import admin, ask, check_answer
from tests.fakes.observer import Message, Observer
from tests.fakes.ollama import DEFAULT_MODEL, FakeOllama, Model
from tests.fakes.pictures import encoded, jpeg, png

SEES = frozenset({"completion", "vision"})
EMBEDDERS = {DEFAULT_MODEL: Model(), "nomic-embed-text": Model(capabilities=frozenset({"embedding"}))}
HELLO = [{"role": "user", "content": "Hello"}]


async def ok(observer: Observer, method: str, params: dict[str, Any] | None = None) -> Any:
    """Return the data of an admin request that must succeed."""
    response = await admin(observer, method, params)
    assert response["status"] == "ok", response
    return response["data"]


async def failure(observer: Observer, method: str, params: dict[str, Any] | None = None) -> tuple[str, str]:
    """Return code and message of an admin request that must fail."""
    response = await admin(observer, method, params)
    assert response["status"] == "error", response
    return response["error"]["code"], response["error"]["message"]


def responses(observer: Observer, method: str, transaction: str) -> list[Message]:
    found = observer.on(f"{observer.base}/response/{method}")
    return [message for message in found if message.field("transaction") == transaction]


async def offered(observer: Observer, name: str, *, there: bool = True) -> None:
    """Wait until the retained info names a model, or no longer."""
    topic = f"{observer.base}/info"
    await observer.until(lambda: observer.on(topic) and (name in observer.on(topic)[-1].json["models"]) is there)


async def test_a_model_is_pulled_with_progress_used_and_removed(daemon: DaemonFactory, observer: Observer) -> None:
    async with FakeOllama(pullable=["small:1b"], pull_step_s=0.3) as server:
        await daemon(ollama_host=server.url, models_admin=True)
        await offered(observer, DEFAULT_MODEL)
        request = {"model": "small:1b", "transaction": "t-1"}
        await observer.publish(f"{observer.base}/request/models/pull", request)
        await observer.wait(lambda one: one.field("status") == "progress" and one.json["data"]["completed"], 10)
        code, message = await failure(observer, "models/pull", {"model": "other:1b"})
        assert (code, '"small:1b"' in message) == ("busy", True)
        assert (await ask(observer, "kitchen", "Hello"))["type"] == "final", "a download keeps nobody from answers"
        await observer.wait(lambda one: one.field("transaction") == "t-1" and one.field("status") == "ok", 15)
        *progress, last = responses(observer, "models/pull", "t-1")
        assert {one.field("status") for one in progress} == {"progress"}
        assert last.json["data"] == {"id": "t-1", "model": "small:1b"}
        done = [one.json["data"]["completed"] for one in progress if one.json["data"]["total"]]
        assert done == sorted(done)
        assert done[-1]
        await offered(observer, "small:1b")
        final = await ask(observer, "kitchen", {"message": "Hello", "model": "small:1b"})
        assert (final["type"], final["model"]) == ("final", "small:1b")
        shown = await ok(observer, "models/show", {"model": "small:1b"})
        assert (shown["name"], shown["capabilities"], shown["loaded"]) == ("small:1b", ["completion", "tools"], True)
        assert await ok(observer, "models/delete", {"model": "small:1b"}) == {"model": "small:1b"}
        await offered(observer, "small:1b", there=False)
        assert (await failure(observer, "models/delete", {"model": "small:1b"}))[0] == "model_not_found"
        assert (await failure(observer, "models/pull", {"model": "nowhere:1b"}))[0] == "model_not_found"


async def test_a_pull_is_cancelled_and_taken_up_again(daemon: DaemonFactory, observer: Observer) -> None:
    async with FakeOllama(pullable=["small:1b"], pull_step_s=0.5) as server:
        await daemon(ollama_host=server.url, models_admin=True)
        await observer.publish(f"{observer.base}/request/models/pull", {"model": "small:1b", "transaction": "t-1"})
        await observer.wait(lambda one: one.field("status") == "progress" and one.json["data"]["completed"])
        assert await ok(observer, "cancel", {"id": "t-1"}) == {"id": "t-1"}
        ended = await observer.wait(lambda one: one.field("transaction") == "t-1" and one.field("status") == "error")
        assert ended.json["error"]["code"] == "cancelled"
        await server.until(lambda _: any(one.path == "/api/pull" and one.disconnected for one in server.requests))
        assert "small:1b" not in server.models
        server.library.step_s = 0.0
        assert (await ok(observer, "models/pull", {"model": "small:1b"}))["model"] == "small:1b"
        assert "small:1b" in server.models


async def test_a_pull_survives_a_killed_daemon(daemon: DaemonFactory, observer: Observer) -> None:
    async with FakeOllama(pullable=["small:1b"], pull_step_s=0.5) as server:
        process = await daemon(ollama_host=server.url, models_admin=True)
        await observer.publish(f"{observer.base}/request/models/pull", {"model": "small:1b", "transaction": "t-1"})
        await observer.wait(lambda one: one.field("status") == "progress" and one.json["data"]["completed"])
        server.library.step_s = 0.0
        await process.restart(kill=True)
        await observer.wait(lambda one: one.field("transaction") == "t-1" and one.field("status") == "ok", 15)
        assert len([record for record in server.requests if record.path == "/api/pull"]) == 2
        assert "small:1b" in server.models


async def test_nobody_changes_the_server_unless_that_is_allowed(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url)
    for method in ("models/pull", "models/delete"):
        code, message = await failure(observer, method, {"model": DEFAULT_MODEL})
        assert (code, "MODELS_ADMIN" in message) == ("invalid_request", True)
    assert not [record for record in model_server.requests if record.path in {"/api/pull", "/api/delete"}]


@pytest.mark.parametrize("wanted", [False, True])
async def test_a_model_that_is_missing_at_start(daemon: DaemonFactory, observer: Observer, wanted: bool) -> None:
    async with FakeOllama({}, pullable=[DEFAULT_MODEL]) as server:
        await daemon(ollama_host=server.url, pull_missing=wanted, health_interval_s=0.5)
        if wanted:
            await server.until(lambda _: DEFAULT_MODEL in server.models, 15)
            assert (await ask(observer, "kitchen", "Hello"))["type"] == "final"
        else:
            await observer.wait(lambda one: "model_not_found" in (one.field("reasons") or ()))
            assert (await ask(observer, "kitchen", "Hello"))["code"] == "model_not_found"
            assert not [record for record in server.requests if record.path == "/api/pull"]


async def test_a_chat_outside_the_conversations(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url)
    model_server.tokens = ["Red,", " green,", " blue."]
    params = {"model": DEFAULT_MODEL, "messages": HELLO, "temperature": 0, "max_tokens": 50, "stream": True}
    await observer.publish(f"{observer.base}/request/llm/chat", {**params, "transaction": "t-1"})
    await observer.wait(lambda one: one.field("transaction") == "t-1" and one.field("status") == "ok")
    *progress, last = responses(observer, "llm/chat", "t-1")
    assert "".join(one.json["data"]["text"] for one in progress) == last.json["data"]["response"] == "Red, green, blue."
    data = last.json["data"]
    assert (data["model"], data["tokens_used"]) == (DEFAULT_MODEL, data["usage"]["total_tokens"])
    assert data["tokens_used"] > 3
    assert 0 < data["total_duration"] < 5
    body = model_server.questions[-1].body
    assert body["messages"] == HELLO
    assert body["options"] == {"temperature": 0.0, "num_predict": 50, "num_ctx": 4096}
    assert (await ok(observer, "conversations/list")) == {"conversations": []}
    code, message = await failure(observer, "llm/chat", {"messages": HELLO})
    assert (code, '"model"' in message) == ("invalid_request", True)
    code, message = await failure(observer, "llm/complete", {})
    assert (code, '"llm/complete"' in message) == ("invalid_request", True)
    assert (await failure(observer, "llm/chat", {"model": "nope", "messages": HELLO}))[0] == "model_not_found"


async def test_it_waits_for_its_turn_and_can_be_cancelled(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url)
    model_server.next("hang")
    await observer.publish(f"{observer.base}/kitchen/in", {"message": "Hello", "id": "first"})
    await observer.wait(lambda one: one.field("type") == "chunk")
    for transaction in ("runs", "drops"):
        params = {"model": DEFAULT_MODEL, "messages": HELLO, "transaction": transaction}
        await observer.publish(f"{observer.base}/request/llm/chat", params)
    async with asyncio.timeout(5):
        while (await ok(observer, "health"))["queue"]["waiting"] != 2:
            pass
    assert len(model_server.questions) == 1
    await ok(observer, "cancel", {"id": "drops"})
    dropped = await observer.wait(lambda one: one.field("transaction") == "drops")
    assert dropped.json["error"]["code"] == "cancelled"
    await ok(observer, "cancel", {"id": "first"})
    done = await observer.wait(lambda one: one.field("transaction") == "runs")
    assert done.json["data"]["finish_reason"] == "stop"


async def test_images_and_files_reach_the_model(daemon: DaemonFactory, observer: Observer, tmp_path: Path) -> None:
    (tmp_path / "door.jpg").write_bytes(jpeg(640, 480))
    (tmp_path / "note.txt").write_text("Buy milk.")
    (tmp_path / "huge.png").write_bytes(png(60_000, 60_000))
    async with FakeOllama({DEFAULT_MODEL: Model(), "eye:1b": Model(capabilities=SEES)}) as server:
        await daemon(ollama_host=server.url, files_dir=tmp_path)
        params = {"model": "eye:1b", "messages": HELLO, "image_path": "door.jpg", "file_path": "note.txt"}
        data = await ok(observer, "llm/vision", params)
        assert (data["image_analyzed"], data["model"]) == ("door.jpg", "eye:1b")
        (message,) = server.questions[-1].body["messages"]
        assert message["images"] == [encoded(jpeg(640, 480))]
        assert message["content"].index("Buy milk.") < message["content"].index("Hello")
        assert "pixels" in (await failure(observer, "llm/vision", {**params, "image_path": "huge.png"}))[1]
        assert "FILES_DIR" in (await failure(observer, "llm/vision", {**params, "image_path": "/etc/hostname"}))[1]
        code, message = await failure(observer, "llm/vision", {"model": "eye:1b", "messages": HELLO})
        assert (code, '"image_path"' in message) == ("invalid_request", True)
        # the same files in a question of a conversation
        files = [{"path": "door.jpg"}, {"path": "note.txt"}]
        final = check_answer(await observer.ask("kitchen", {"message": "What is it?", "files": files}))
        assert (final["type"], final["model"]) == ("final", "eye:1b"), (
            "a model that sees takes the place of one that does not"
        )
        newest = server.questions[-1].body["messages"][-1]
        assert newest["images"] == [encoded(jpeg(640, 480))]
        assert "Buy milk." in newest["content"]
        error = check_answer(await observer.ask("kitchen", {"message": "And this?", "files": [{"path": "huge.png"}]}))
        assert error["code"] == "invalid_request"


async def test_texts_become_vectors(daemon: DaemonFactory, observer: Observer) -> None:
    async with FakeOllama(EMBEDDERS) as server:
        await daemon(ollama_host=server.url)
        data = await ok(observer, "llm/embed", {"input": ["a", "b", "a"]})
        assert data["model"].startswith("nomic-embed-text")
        first, second, third = data["embeddings"]
        assert first == third != second
        assert len(first) > 1
        assert len((await ok(observer, "llm/embed", {"input": "a", "model": "nomic-embed-text"}))["embeddings"]) == 1
        assert (await failure(observer, "llm/embed", {"input": "word " * 9000}))[0] == "context_overflow"
        await ok(observer, "models/list")
        server.models.pop("nomic-embed-text:latest")
        assert (await failure(observer, "llm/embed", {"input": "a"}))[0] == "model_not_found"


async def test_a_diagnosis_over_mqtt(daemon: DaemonFactory, model_server: FakeOllama, observer: Observer) -> None:
    await daemon(ollama_host=model_server.url)
    asked = len(model_server.questions)
    data = await ok(observer, "diagnose")
    assert data["ok"], data
    assert {"clock", "prompts", "memory", "server ollama", "model", "daemon"} <= {
        row["check"] for row in data["checks"]
    }
    assert len(model_server.questions) == asked
    data = await ok(observer, "diagnose", {"ask": True})
    assert [row["state"] for row in data["checks"] if row["check"] == "answer"] == ["ok"]
    seen = await ok(observer, "provider/health")
    assert (seen["name"], seen["reachable"], seen["reason"]) == ("ollama", True, None)
    assert seen["models"] == [DEFAULT_MODEL]
    await model_server.stop()
    seen = await ok(observer, "provider/health")
    assert (seen["reachable"], seen["reason"]) == (False, "provider_unavailable")
    data = await ok(observer, "diagnose")
    (row,) = [row for row in data["checks"] if row["check"] == "server ollama"]
    assert not data["ok"]
    assert (row["state"], bool(row["remedy"])) == ("fail", True)


async def test_an_answer_is_given_again(daemon: DaemonFactory, model_server: FakeOllama, observer: Observer) -> None:
    await daemon(ollama_host=model_server.url, cache_ttl_s=60)
    question = {"message": "How far is the moon?", "options": {"seed": 1}}
    first, again = [check_answer(await observer.ask(convo, question)) for convo in ("kitchen", "hall")]
    assert "cached" not in first
    assert (again["cached"], again["reply"], again["usage"]["total_tokens"]) == (True, first["reply"], 0)
    assert len(model_server.questions) == 1
    third = check_answer(await observer.ask("hall", question))
    assert "cached" not in third, "a conversation is not answered from the cache"
    state = await ok(observer, "health")
    assert (state["totals"]["replies"], state["status"]) == (3, "ok")


async def test_embeddings_that_do_not_come_in_time_hold_nobody_up(daemon: DaemonFactory, observer: Observer) -> None:
    async with FakeOllama(EMBEDDERS) as server:
        await daemon(ollama_host=server.url, total_timeout_s=1, max_concurrent=1)
        assert (await ask(observer, "k", "hi"))["type"] == "final"
        server.runners.load_s = 60
        assert (await failure(observer, "llm/embed", {"input": "a"}))[0] == "timeout"
        server.runners.load_s = 0
        assert (await ask(observer, "k", "hi"))["type"] == "final"
