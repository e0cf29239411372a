"""Admin requests through the whole daemon (contract section 5, the methods that stand so far)."""

from datetime import datetime
from typing import Any

from tests.conftest import DaemonFactory
from tests.fakes.answers import admin, ask
from tests.fakes.observer import Observer
from tests.fakes.ollama import DEFAULT_MODEL, FakeOllama


async def ok(observer: Observer, method: str, params: dict[str, Any] | None = None) -> Any:
    """Return the data of an admin request that must succeed."""
    response = await admin(observer, method, params)
    assert response.keys() == {"status", "data", "transaction"}, response
    assert response["status"] == "ok"
    return response["data"]


async def failure(observer: Observer, method: str, params: dict[str, Any] | None = None) -> tuple[str, str]:
    """Return code and message of an admin request that must fail."""
    response = await admin(observer, method, params)
    assert response.keys() == {"status", "error", "transaction"}, response
    assert response["status"] == "error"
    assert response["error"].keys() == {"code", "message"}
    return response["error"]["code"], response["error"]["message"]


async def test_memory_can_be_seen_and_cleared(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url)
    assert await ok(observer, "conversations/list") == {"conversations": []}
    for convo in ("kitchen", "hall", "attic"):
        await ask(observer, convo, {"message": f"I am in the {convo}.", "agent": "voice"})
    rows = (await ok(observer, "conversations/list"))["conversations"]
    assert [(row["conversation_id"], row["turns"], row["agent"]) for row in rows] == [
        ("attic", 2, "voice"),
        ("hall", 2, "voice"),
        ("kitchen", 2, "voice"),
    ]
    assert datetime.fromisoformat(rows[0]["last_used"]).tzinfo is not None
    found = await ok(observer, "memory/get", {"conversation_id": "kitchen"})
    assert (found["conversation_id"], found["agent"], found["dropped_turns"]) == ("kitchen", "voice", 0)
    assert [(turn["role"], turn["content"], turn["interrupted"]) for turn in found["turns"]] == [
        ("user", "I am in the kitchen.", False),
        ("assistant", model_server.questions[0].text, False),
    ]
    assert (await ok(observer, "memory/get", {"conversation_id": "nobody"}))["turns"] == []
    assert await ok(observer, "memory/clear", {"conversation_id": "kitchen"}) == {"cleared": 1}
    assert await ok(observer, "memory/clear", {"conversation_id": "kitchen"}) == {"cleared": 0}
    assert await ok(observer, "memory/clear") == {"cleared": 2}
    assert await ok(observer, "conversations/list") == {"conversations": []}


async def test_the_daemon_describes_itself_without_its_secrets(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    address = model_server.url.removeprefix("http://")
    process = await daemon(
        ollama_host=f"http://user:canary-1@{address}", mqtt_username="me", mqtt_password="canary-2", max_waiting=7
    )
    agents = (await ok(observer, "agents/list"))["agents"]
    assert [agent["name"] for agent in agents] == ["general", "voice"]
    assert all(agent.keys() == {"name", "description", "provider", "model"} for agent in agents)
    models = (await ok(observer, "models/list"))["models"]
    assert [model["name"] for model in models] == [DEFAULT_MODEL]
    assert models[0]["size"] > 1e9
    state = await ok(observer, "health")
    retained = await observer.wait(lambda one: one.topic == f"{observer.base}/health")
    assert state.keys() == retained.json.keys()
    config = await ok(observer, "config/get")
    assert (config["max_waiting"], config["mqtt_username"], config["mqtt_base_topic"]) == (7, "me", observer.base)
    assert address in config["ollama_host"]
    await ask(observer, "k", "Hello")
    await process.stop()
    everything = process.output + str([one.payload for one in observer.messages]) + str(process.notifications)
    assert "canary" not in everything


async def test_a_request_can_be_cancelled_by_its_id_alone(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    await daemon(ollama_host=model_server.url)
    model_server.next("hang")
    for name in ("runs", "waits"):
        await observer.publish(f"{observer.base}/k-{name}/in", {"message": "Hello", "id": name})
    await observer.wait(lambda one: one.field("type") == "chunk")
    assert await ok(observer, "cancel", {"id": "waits"}) == {"id": "waits"}
    assert (await observer.terminal("waits"))["code"] == "cancelled"
    assert await ok(observer, "cancel", {"id": "runs"}) == {"id": "runs"}
    assert (await observer.terminal("runs"))["finish_reason"] == "cancelled"
    assert len(observer.on(f"{observer.base}/response/cancel")) == 2, "a broker may bring each of them twice"
    code, message = await failure(observer, "cancel", {"id": "runs"})
    assert (code, '"runs"' in message) == ("invalid_request", True)


async def test_what_cannot_be_done_is_told(daemon: DaemonFactory, model_server: FakeOllama, observer: Observer) -> None:
    await daemon(ollama_host=model_server.url)
    for method, params, words in (
        ("make/coffee", {}, "make/coffee"),
        ("in", {}, '"in"'),
        ("x" * 5000, {}, "Known: "),
        ("memory/get", {}, "conversation_id"),
        ("memory/get", {"conversation_id": 7}, "conversation_id"),
        ("memory/clear", {"conversation": "k"}, "conversation"),
        ("agents/list", {"page": 1}, "page"),
        ("cancel", {"id": ""}, "id"),
    ):
        code, message = await failure(observer, method, params)
        assert code == "invalid_request"
        assert words in message
    for payload in ("{no JSON", "[1]", b"\xff"):
        start = len(observer.messages)
        await observer.publish(f"{observer.base}/request/health", payload)
        answer = await observer.wait(lambda one: one.topic.endswith("/response/health"), start=start)
        assert (answer.field("status"), answer.field("error")["code"]) == ("error", "invalid_request")
        assert "transaction" not in answer.json
    await model_server.stop()
    assert (await failure(observer, "models/list"))[0] == "provider_unavailable"


async def test_responses_go_where_the_asker_wants_them(
    daemon: DaemonFactory, model_server: FakeOllama, observer: Observer
) -> None:
    process = await daemon(ollama_host=model_server.url)
    await observer.subscribe("evil/#")
    topic = f"{observer.base}/flows/admin"
    await observer.publish(f"{observer.base}/request/agents/list", "", ResponseTopic=topic, CorrelationData=b"\x01")
    answer = await observer.wait(lambda one: one.topic == topic)
    assert (answer.field("status"), answer.qos, answer.retain) == ("ok", 1, False)
    assert answer.properties["CorrelationData"] == b"\x01"
    assert answer.properties["ContentType"] == "application/json"
    await observer.publish(
        f"{observer.base}/request/agents/list", {"transaction": [1, {"a": None}]}, ResponseTopic="evil/topic"
    )
    answer = await observer.wait(lambda one: one.topic.endswith("/response/agents/list"))
    assert (answer.field("error")["code"], answer.field("transaction")) == ("invalid_request", [1, {"a": None}])
    assert not observer.on("evil/topic")
    (line,) = [line for line in process.output.splitlines() if "/request/agents/list' is refused" in line]
    assert "WARNING" in line
