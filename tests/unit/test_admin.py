"""Admin requests (contract section 5): the desk, the daemon's own methods and what is remembered."""

import asyncio
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon import admin
from piagent_daemon.admin import MAX_LONG, METHODS, AdminDesk
from piagent_daemon.admin_method import Method
from piagent_daemon.cli import asyncapi_document
from piagent_daemon.errors import ProviderUnavailable
from tests.fakes.desk import Shop, World
from tests.fakes.doubles import answer


@pytest.fixture
async def world() -> World:
    return World(mqtt_username="me", mqtt_password="hidden")


async def test_a_transaction_in_any_script_comes_back(world: World) -> None:
    assert (await world.ask("health", b'{"transaction": "\\ud83d\\ude00"}'))["transaction"] == "😀"


async def test_a_transaction_comes_back(world: World) -> None:
    row = {"description": "", "provider": "ollama", "model": "qwen2.5:3b-instruct"}
    assert await world.ask("agents/list", {"transaction": [1]}) == {
        "status": "ok",
        "data": {"agents": [{"name": "general", **row}, {"name": "voice", **row}]},
        "transaction": [1],
    }


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_where_the_table_says(name: str) -> None:
    method = admin.load(name)
    assert isinstance(method, Method)
    assert method.action.__doc__


def test_the_document_of_the_interface_has_the_parameters_of_every_method() -> None:
    document = asyncapi_document.document()
    schemas = document["components"]["schemas"]
    assert [choice["title"] for choice in schemas["AdminRequest"]["anyOf"]] == sorted(METHODS)
    assert document["channels"]["adminRequest"]["parameters"]["method"]["enum"] == sorted(METHODS)
    assert schemas["Chat"]["required"] == ["model", "messages"]
    assert "additionalProperties" not in schemas["Chat"], "it would keep the transaction out"


async def test_memory_is_listed_shown_and_cleared(world: World) -> None:
    await world.talk()
    await world.talk("hall")
    rows = (await world.ok("conversations/list"))["conversations"]
    assert {row["conversation_id"]: row["turns"] for row in rows} == {"kitchen": 2, "hall": 2}
    shown = await world.ok("memory/get", {"conversation_id": "kitchen"})
    assert [(turn["role"], turn["content"]) for turn in shown["turns"]] == [
        ("user", "hi"),
        ("assistant", "You said: hi"),
    ]
    assert shown["dropped_turns"] == 0
    assert await world.ok("memory/clear", {"conversation_id": "kitchen"}) == {"cleared": 1}
    code, message = await world.error("memory/clear", {"conversation_id": None})
    assert (code, "null is no conversation" in message) == ("invalid_request", True)
    assert await world.ok("memory/clear") == {"cleared": 1}
    assert await world.ok("conversations/list") == {"conversations": []}


async def test_defaults_are_set_and_told(world: World) -> None:
    plain = {"agent": "general", "model": "qwen2.5:3b-instruct", "temperature": 0.7}
    assert await world.ok("defaults/set") == plain
    changed = await world.ok("defaults/set", {"model": "small", "temperature": 1})
    assert changed == plain | {"model": "small", "temperature": 1.0}
    assert await world.ok("defaults/set", {"model": None, "temperature": None}) == plain
    await world.ok("defaults/set", {"model": "small"})
    await world.talk()
    assert world.provider.asked[-1].model == "small"


async def test_health_is_given(world: World) -> None:
    health = await world.ok("health")
    assert (health["status"], health["protocol"], health["memory"]["store"]) == ("ok", "5", "memory")


async def test_the_configuration_is_given_without_secrets(world: World) -> None:
    data = await world.ok("config/get")
    assert data["mqtt_username"] == "me"
    assert "hidden" not in json.dumps(data)


async def test_cancel_finds_its_request(world: World) -> None:
    assert await world.error("cancel", {"id": "nobody"}) == ("invalid_request", 'No request "nobody" runs or waits.')


@pytest.mark.parametrize(
    ("method", "payload", "says"),
    [
        ("lights/on", b"", 'no method "lights/on"'),
        ("memory/get", b"{}", 'required parameter "conversation_id" is missing'),
        ("memory/get", b'{"conversation_id": 5}', "conversation_id"),
        ("defaults/set", b'{"temperature": 6}', "temperature"),
        ("defaults/set", b'{"temperature": "hot"}', "temperature"),
        ("defaults/set", b'{"model": "two words"}', "model: should be the name of a model"),
        ("models/pull", b'{"model": ""}', "model: should be the name of a model"),
        ("llm/embed", b'{"input": 5}', "input: should be a valid string or a valid list"),
        ("llm/chat", b'{"model": "m", "messages": []}', "messages: should have at least 1 item, not 0"),
        ("defaults/set", b'{"modle": "small"}', 'no parameter "modle"'),
        ("health", b'{"extra": 1}', 'no parameter "extra"'),
        ("health", b"{nonsense", "not valid JSON"),
        ("health", b"[1]", "not a JSON object"),
        ("health", b"\xff", "not valid JSON"),
        ("llm/embed", b'{"input": [%s1]}' % (b"1," * 60_000), "more values than the 50000"),
        ("health", b'{"transaction": "\\uD800"}', "not valid JSON"),
        ("health", b'{"transaction": {"\\udfff": 1}}', "not valid JSON"),
    ],
)
async def test_what_cannot_be_understood_is_an_error(world: World, method: str, payload: bytes, says: str) -> None:
    code, message = await world.error(method, payload)
    assert code == "invalid_request"
    assert says in message
    assert not re.search(r"Input|\[|\^", message), "what pydantic says to programmers"


async def test_what_is_too_much_to_be_read_is_refused_with_its_transaction(world: World) -> None:
    refused = await world.ask("llm/embed", b'{"transaction": "T1", "input": [%s1]}' % (b"1," * 60_000))
    assert (refused["status"], refused["transaction"]) == ("error", "T1")


async def test_a_failure_of_the_model_server_is_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> Any:
        raise ProviderUnavailable("The model server is away.")

    monkeypatch.setattr(world.provider, "models", fail)
    assert await world.ask("models/list", {"transaction": 7}) == {
        "status": "error",
        "error": {"code": "provider_unavailable", "message": "The model server is away."},
        "transaction": 7,
    }


async def test_a_defect_is_an_internal_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.provider, "models", lambda: 1 / 0)
    assert (await world.error("models/list"))[0] == "internal"


async def test_before_the_daemon_is_put_together_nothing_is_known() -> None:
    (response,) = [response async for response in AdminDesk().handle("health", b"")]
    assert response.error
    assert response.error.code == "internal"


async def test_long_requests_leave_room_for_short_ones(world: World) -> None:
    gate = asyncio.Event()
    world.provider.script = lambda _: [gate, *answer("Done.")]
    chat = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    running = [asyncio.create_task(world.ok("llm/chat", chat)) for _ in range(MAX_LONG)]
    await world.until(lambda: world.scheduler.queue.waiting == MAX_LONG - 1)
    assert (await world.error("llm/chat", chat))[0] == "busy"
    assert (await world.ok("health"))["queue"]["waiting"] == MAX_LONG - 1
    gate.set()
    assert {one["response"] for one in await asyncio.gather(*running)} == {"Done."}
    await world.ok("llm/chat", chat)


async def test_models_that_load_slowly_leave_room_for_short_requests(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    monkeypatch.setattr(world.provider, "prime", lambda _: gate.wait())
    running = [asyncio.create_task(world.ok("models/reload")) for _ in range(MAX_LONG)]
    await world.until(lambda: world.desk._long == MAX_LONG)
    assert (await world.error("models/reload"))[0] == "busy"
    await world.ok("health")
    gate.set()
    await asyncio.gather(*running)


@pytest.mark.parametrize("name", [name for name in METHODS if admin.load(name).long])
def test_a_long_request_can_be_named_for_cancel(name: str) -> None:
    assert name in {"llm/chat", "llm/vision", "llm/embed", "models/pull", "models/reload", "diagnose"}


NAMES = ("id", "model", "messages", "input", "images", "image_path", "options", "stream", "stop", "format", "ask")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["m", "user", "json"]),
    lambda part: (
        st.lists(part, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "temperature"]) | st.text(), part, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.sampled_from(sorted(METHODS)),
    st.dictionaries(st.sampled_from([*NAMES, "transaction"]), VALUES, max_size=4) | VALUES,
)
def test_any_parameters_are_understood_or_refused(method: str, params: Any) -> None:
    async def ask() -> None:
        answer = await World(Shop("m"), models_admin=True, max_retries=0).ask(method, json.dumps(params).encode())
        assert answer["status"] == "ok" or answer["error"]["code"] != "internal", answer

    asyncio.run(ask())


@given(st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(payload: bytes) -> None:
    async def ask() -> None:
        answer = await World().ask("health", payload)
        assert answer["status"] == "ok" or answer["error"]["code"] == "invalid_request"

    asyncio.run(ask())
