"""The fake model server against what was measured on a real Ollama: a double that lies proves nothing."""

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.ollama import DEFAULT_MODEL, FakeOllama, Model
from tests.fakes.ollama_script import BREAKING, LINE_BREAKS, ODD_TEXT, SERVER_WIDE

WORDS_OF_400 = " ".join(["word"] * 400)


@pytest.fixture
async def http(model_server: FakeOllama) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=model_server.url, trust_env=False, timeout=5) as client:
        yield client


def body(text: str = "Hello there", **more: Any) -> dict[str, Any]:
    return {"model": DEFAULT_MODEL, "messages": [{"role": "user", "content": text}], **more}


async def post(http: httpx.AsyncClient, value: Any, path: str = "/api/chat") -> httpx.Response:
    """Post a body and read the answer as bytes; a string goes as it is."""
    content = value if isinstance(value, str) else json.dumps(value)
    return await http.post(path, content=content)


async def lines(http: httpx.AsyncClient, value: Any, path: str = "/api/chat") -> list[dict[str, Any]]:
    response = await post(http, value, path)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.content.splitlines()]


def said(answer: list[dict[str, Any]]) -> str:
    return "".join(line["message"]["content"] for line in answer)


# ------------------------------------------------------------------------------------------------ a normal answer


async def test_streams_lines_and_ends_with_counts(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    *chunks, last = await lines(http, body())
    assert said(chunks) == "You said: Hello there"
    assert all(chunk["done"] is False and chunk["message"]["role"] == "assistant" for chunk in chunks)
    assert last["message"]["content"] == ""
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "stop", len(chunks))
    assert last["prompt_eval_count"] == len(model_server.requests[0].prompt)
    assert last["total_duration"] > last["load_duration"] > 0
    again = (await lines(http, body()))[-1]
    assert "load_duration" not in again  # zero values are omitted
    assert again["prompt_eval_count"] == last["prompt_eval_count"]  # cached tokens count as well


async def test_a_whole_answer(http: httpx.AsyncClient) -> None:
    response = await post(http, body(stream=False))
    assert response.headers["content-type"].startswith("application/json")
    answer = response.json()
    assert (answer["message"]["content"], answer["done"]) == ("You said: Hello there", True)


async def test_generate_has_its_own_shape(http: httpx.AsyncClient) -> None:
    *chunks, last = await lines(http, {"model": DEFAULT_MODEL, "prompt": "<user>Hi</user>"}, "/api/generate")
    assert "".join(chunk["response"] for chunk in chunks) == "You said: <user>Hi</user>"
    assert last["context"]
    assert "message" not in last


async def test_num_predict_and_stop_end_the_answer(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    model_server.reply = "one two three four"
    cut = await lines(http, body(options={"num_predict": 2}))
    assert (said(cut), cut[-1]["done_reason"], cut[-1]["eval_count"]) == ("one two", "length", 2)
    stopped = await lines(http, body(options={"stop": ["three"]}))
    assert (said(stopped), stopped[-1]["done_reason"]) == ("one two ", "stop")


async def test_format_gives_json(http: httpx.AsyncClient) -> None:
    assert json.loads(said(await lines(http, body(format="json")))) == {"answer": "Hello there"}
    schema = {"type": "object", "properties": {"lamp": {"type": "string"}, "level": {"type": "integer"}}}
    assert json.loads(said(await lines(http, body(format=schema)))) == {"lamp": "Hello there", "level": 1}


async def test_preload_and_unload(http: httpx.AsyncClient) -> None:
    loaded = (await post(http, {"model": DEFAULT_MODEL, "keep_alive": -1})).json()
    assert (loaded["done_reason"], loaded["message"]["content"]) == ("load", "")
    (running,) = (await http.get("/api/ps")).json()["models"]
    assert running["expires_at"].startswith("23")  # for ever
    assert running["context_length"] == 4096
    unloaded = (await post(http, {"model": DEFAULT_MODEL, "keep_alive": 0})).json()
    assert unloaded["done_reason"] == "unload"
    assert (await http.get("/api/ps")).json() == {"models": []}


async def test_keep_alive_zero_unloads_after_the_answer(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    await lines(http, body(keep_alive=0))
    assert model_server.runners.loaded() == []


# ------------------------------------------------------------------------------------------------------- refusals

REFUSED = [
    ({**body(), "model": "nope"}, 404, "model 'nope' not found"),
    ({"messages": []}, 400, "model is required"),
    ({**body(), "model": "a b"}, 400, "invalid model name"),
    ("", 400, "missing request body"),
    ('{"model": "x', 400, "unexpected EOF"),
    ("hello", 400, "invalid character 'h' looking for beginning of value"),
    (
        body([{"type": "text", "text": "Hi"}]),  # type: ignore[arg-type]
        400,
        "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string",
    ),
    (body(options={"temperature": "hot"}), 500, 'option "temperature" must be of type float32'),
    (body(options={"num_ctx": "4096"}), 500, 'option "num_ctx" must be of type integer'),
    (body(options={"stop": "x"}), 500, 'option "stop" must be of type array'),
    (body(keep_alive="forever"), 400, 'time: invalid duration "forever"'),
    (body(keep_alive="-1"), 400, 'time: missing unit in duration "-1"'),
    (
        body(think="very"),
        400,
        'invalid think value: "very" (must be "high", "medium", "low", "max", true, or false)',
    ),
    (body(think=True), 400, f'"{DEFAULT_MODEL}" does not support thinking'),
    (
        {**body(tools=[{}]), "model": "tiny"},
        400,
        "registry.ollama.ai/library/tiny:latest does not support tools",
    ),
    ({**body(), "model": "embed"}, 400, '"embed" does not support chat'),
    ({"model": DEFAULT_MODEL, "messages": [{"images": ["data:x"]}]}, 400, "illegal base64 data at input byte 4"),
]


@pytest.mark.parametrize(("value", "status", "text"), REFUSED)
async def test_refusals(http: httpx.AsyncClient, model_server: FakeOllama, value: Any, status: int, text: str) -> None:
    model_server.models["tiny"] = Model(capabilities=frozenset({"completion"}))
    model_server.models["embed"] = Model(capabilities=frozenset({"embedding"}))
    response = await post(http, value)
    assert (response.status_code, response.json()) == (status, {"error": text})


@pytest.mark.parametrize(
    "options", [{"temperature": None}, {"no_such_option": "x"}, {"num_ctx": 4096.7}, {"temperature": 1}]
)
async def test_accepted_options(http: httpx.AsyncClient, options: dict[str, Any]) -> None:
    assert (await post(http, body(options=options))).status_code == 200


async def test_null_content_and_think_false_are_accepted(http: httpx.AsyncClient) -> None:
    value = {"model": DEFAULT_MODEL, "think": False, "messages": [{"role": "user", "content": None}]}
    assert (await post(http, value)).status_code == 200


async def test_unknown_names_elsewhere(http: httpx.AsyncClient) -> None:
    answers = [
        await post(http, {"prompt": "x"}, "/api/generate"),
        await post(http, {"model": "nope"}, "/api/show"),
        await post(http, {"model": "nope", "input": "x"}, "/api/embed"),
        await http.request("DELETE", "/api/delete", json={"model": "nope"}),
    ]
    assert [(one.status_code, one.json()["error"]) for one in answers] == [
        (404, "model '' not found"),
        (404, "model 'nope:latest' not found"),
        (404, 'model "nope" not found, try pulling it first'),
        (404, "model 'nope' not found"),
    ]
    assert (await http.get("/api/nope")).status_code == 404
    wrong_method = await http.get("/api/chat")
    assert (wrong_method.status_code, wrong_method.headers["content-type"]) == (405, "text/plain")
    foreign = await http.get("/api/tags", headers={"Host": "evil.example"})
    assert (foreign.status_code, foreign.content) == (403, b"")


async def test_images_need_a_model_that_sees(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    value = {"model": DEFAULT_MODEL, "messages": [{"role": "user", "content": "See", "images": ["aGVsbG8="]}]}
    refused = await post(http, value)
    inner = json.loads(refused.json()["error"])["error"]  # llama-server's own JSON, as a string
    assert (refused.status_code, inner["code"]) == (400, 400)
    assert "does not support multimodal" in inner["message"]
    model_server.models["eye"] = Model(capabilities=frozenset({"completion", "vision"}))
    assert (await post(http, {**value, "model": "eye"})).status_code == 200


async def test_bearer_key() -> None:
    async with FakeOllama(api_key="s3cret") as server, httpx.AsyncClient(base_url=server.url) as http:
        refused = await http.get("/api/tags")
        assert (refused.status_code, refused.json()) == (401, {"error": "unauthorized"})
        assert (await http.get("/api/tags", headers={"Authorization": "Bearer s3cret"})).status_code == 200


# ------------------------------------------------------------------------------------------- context, cache, slots


def long_history(turns: int = 8) -> dict[str, Any]:
    middle = [{"role": "user" if at % 2 == 0 else "assistant", "content": "word " * 100} for at in range(turns)]
    newest = {"role": "user", "content": "newest"}
    messages = [{"role": "system", "content": "SYSTEM"}, *middle, newest]
    return {"model": DEFAULT_MODEL, "messages": messages, "options": {"num_ctx": 512}}


async def test_long_history_loses_its_oldest_messages_silently(
    http: httpx.AsyncClient, model_server: FakeOllama
) -> None:
    await lines(http, long_history())
    record = model_server.requests[0]
    assert record.prompt.count("<|im_start|>") < 11
    assert 300 < len(record.prompt) <= 512
    assert "SYSTEM" in record.prompt
    assert "newest" in record.prompt


async def test_truncate_false_names_the_size(http: httpx.AsyncClient) -> None:
    refused = await post(http, {**long_history(), "truncate": False})
    inner = json.loads(refused.json()["error"])["error"]
    assert (refused.status_code, inner["code"], inner["type"]) == (400, 400, "exceed_context_size_error")
    assert inner["n_ctx"] == 512
    assert inner["n_prompt_tokens"] > 800
    assert f"request ({inner['n_prompt_tokens']} tokens) exceeds the available context size (512" in inner["message"]


@pytest.mark.parametrize(("num_ctx", "left"), [(512, 258), (2048, 1026)])
async def test_one_long_message_is_cut_to_half(
    http: httpx.AsyncClient, model_server: FakeOllama, num_ctx: int, left: int
) -> None:
    value = body("word " * 3000, options={"num_ctx": num_ctx})
    value["messages"].insert(0, {"role": "system", "content": "Be brief and kind."})
    assert (await lines(http, value))[-1]["prompt_eval_count"] == left
    assert " kind" not in model_server.requests[0].prompt  # the system prompt is lost, and nobody says so
    assert model_server.requests[0].truncated
    refused = await post(http, {**value, "shift": False})
    assert (refused.status_code, refused.json()["error"][:27]) == (400, "the prompt is longer than t")


async def test_native_path_refuses_one_long_message(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    model_server.models["native"] = Model(path="native")
    refused = await post(http, {**body(WORDS_OF_400, options={"num_ctx": 256}), "model": "native"})
    assert (refused.status_code, "exceed_context_size_error" in refused.text) == (400, True)


async def test_answer_that_runs_out_of_context(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    model_server.tokens = [" x"] * 5000
    small = {"num_ctx": 256}
    shifted = (await lines(http, body(options=small)))[-1]
    assert (shifted["eval_count"], shifted["done_reason"]) == (2560, "length")  # ten times num_ctx
    assert model_server.requests[0].shifts > 10
    stopped = (await lines(http, body(options=small, shift=False)))[-1]
    assert stopped["eval_count"] == 256 - stopped["prompt_eval_count"]
    assert (await lines(http, body(options={"num_ctx": 256, "num_predict": 0})))[-1]["eval_count"] == 5000


async def test_prefix_cache_counts_what_is_read_again(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    messages = [{"role": "system", "content": "word " * 200}]
    evaluated = []
    for turn in range(6):
        messages.append({"role": "user", "content": f"question {turn} " * 10})
        answer = await lines(http, {"model": DEFAULT_MODEL, "messages": messages})
        messages.append({"role": "assistant", "content": said(answer)})
        evaluated.append(model_server.requests[-1].evaluated)
    assert evaluated[0] > 200
    assert max(evaluated[1:]) < 60  # only the newest question
    assert model_server.tokens_evaluated == sum(evaluated)
    assert model_server.tokens_sent == sum(len(record.prompt) for record in model_server.requests)
    await lines(http, {"model": DEFAULT_MODEL, "messages": [messages[0], *messages[5:]]})
    assert model_server.requests[-1].evaluated > 60  # a window that slid is read again behind the system prompt


async def test_load_time_options_reload_and_empty_the_cache(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    await lines(http, body(WORDS_OF_400, options={"num_ctx": 2048, "temperature": 0.1}))
    await lines(http, body(WORDS_OF_400, options={"num_ctx": 2048, "temperature": 0.9, "num_predict": 5}))
    assert (model_server.reloads, model_server.requests[-1].evaluated) == (0, 1)
    await lines(http, body(WORDS_OF_400, options={"num_ctx": 4096}))
    assert (model_server.reloads, model_server.requests[-1].evaluated > 400) == (1, True)
    await lines(http, body(WORDS_OF_400, options={"num_ctx": 4096}, shift=False))
    assert model_server.reloads == 2


async def test_two_conversations_in_one_slot_and_in_two() -> None:
    async def evaluated(parallel: int) -> int:
        async with FakeOllama(parallel=parallel) as server, httpx.AsyncClient(base_url=server.url) as http:
            for _ in range(3):
                for name in ("first", "second"):
                    await lines(http, body(f"{name} " * 300))
            return server.tokens_evaluated

    assert await evaluated(1) > 1800
    assert await evaluated(2) < 700


async def test_requests_wait_for_the_only_slot(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    model_server.reply = "one two three"
    model_server.tokens_per_s = 50
    await asyncio.gather(*(lines(http, body(f"Question {number}")) for number in range(3)))
    first, second, third = sorted(model_server.requests, key=lambda record: record.first_token or 0)
    assert (first.last_token or 0) <= (second.first_token or 0)
    assert (second.last_token or 0) <= (third.first_token or 0)


async def test_busy_while_a_load_is_pending() -> None:
    async with (
        FakeOllama(load_s=0.2, max_queue=1) as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        waiting = asyncio.create_task(post(http, body()))
        await server.until(lambda one: one.requests)
        refused = await post(http, body())
        assert (refused.status_code, "maximum pending requests exceeded" in refused.text) == (503, True)
        assert "retry-after" not in refused.headers
        last = (await waiting).content.splitlines()[-1]
        assert json.loads(last)["load_duration"] >= 0.2e9


# ----------------------------------------------------------------------------------------------------- the library


async def test_list_show_pull_delete(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    model_server.library.pullable.add("new:latest")
    steps = await lines(http, {"model": "new"}, "/api/pull")
    assert steps[0] == {"status": "pulling manifest"}
    assert "completed" not in steps[1]  # zero is omitted
    assert steps[-2:] == [{"status": "writing manifest"}, {"status": "success"}]
    assert re.fullmatch(r"pulling [0-9a-f]{12}", steps[1]["status"])
    names = [model["name"] for model in (await http.get("/api/tags")).json()["models"]]
    assert names == [DEFAULT_MODEL, "new:latest"]
    shown = (await post(http, {"model": "new"}, "/api/show")).json()
    assert shown["capabilities"] == ["completion", "tools"]
    assert (await http.request("DELETE", "/api/delete", json={"model": "new"})).status_code == 200
    assert "new:latest" not in model_server.models


async def test_a_pull_fails_with_status_200(http: httpx.AsyncClient) -> None:
    assert (await lines(http, {"model": "nope"}, "/api/pull"))[-1]["error"].startswith("pull model manifest:")
    assert (await post(http, {"model": "nope", "stream": False}, "/api/pull")).status_code == 500


async def test_embed(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    model_server.models["embed"] = Model(capabilities=frozenset({"embedding"}))
    vectors = (await post(http, {"model": "embed", "input": ["a", "b", "a"]}, "/api/embed")).json()["embeddings"]
    assert vectors[0] == vectors[2] != vectors[1]
    assert (await post(http, {"model": "embed"}, "/api/embed")).json()["embeddings"] == []
    assert (await post(http, {"model": "embed", "input": [1]}, "/api/embed")).json() == {"error": "invalid input type"}
    long = {"model": "embed", "input": "word " * 5000, "truncate": False}
    assert (await post(http, long, "/api/embed")).status_code == 400
    assert (await post(http, {"model": DEFAULT_MODEL, "input": "a"}, "/api/embed")).status_code == 501


# ---------------------------------------------------------------------------------------------------------- modes


async def test_thinking_is_on_by_default_where_the_model_can(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    model_server.models["deep"] = Model(capabilities=frozenset({"completion", "thinking"}))
    by_default = await lines(http, {**body(), "model": "deep"})
    thought = [line for line in by_default if line["message"].get("thinking")]
    assert thought
    assert all(line["message"]["content"] == "" for line in thought)
    quiet = await lines(http, {**body(think=False), "model": "deep"})
    assert not any(line["message"].get("thinking") for line in quiet)
    model_server.next("thinking_only")
    only = await lines(http, body())
    assert (said(only), only[-1]["done_reason"]) == ("", "length")


@pytest.mark.parametrize("mode", ["nodone", "eof_clean", "repeat_guard"])
async def test_streams_that_end_without_done(http: httpx.AsyncClient, model_server: FakeOllama, mode: str) -> None:
    model_server.next(mode, times=2)
    answer = await lines(http, body())
    assert answer
    assert not any(line["done"] for line in answer)
    whole = (await post(http, body(stream=False))).json()
    assert whole["done"] is False
    assert "done_reason" not in whole
    assert "eval_count" not in whole


@pytest.mark.parametrize(("mode", "error"), [("rst", httpx.ReadError), ("eof", httpx.RemoteProtocolError)])
async def test_broken_connections(
    http: httpx.AsyncClient, model_server: FakeOllama, mode: str, error: type[Exception]
) -> None:
    model_server.next(mode, after=2)
    got = bytearray()

    async def read() -> None:
        async with http.stream("POST", "/api/chat", json=body()) as response:
            async for data in response.aiter_raw():
                got.extend(data)

    with pytest.raises(error):
        await read()
    assert said([json.loads(line) for line in got.splitlines()]) == "You said"
    assert (await lines(http, body()))[-1]["done"] is True  # one-shot: the next one is well


@pytest.mark.parametrize("mode", ["err", "runner_dies"])
async def test_errors_before_and_in_mid_stream(http: httpx.AsyncClient, model_server: FakeOllama, mode: str) -> None:
    model_server.next(mode)
    answer = await lines(http, body())
    assert answer[-1] == {"error": "an error was encountered while running the model: unexpected EOF"}
    assert not any(line.get("done") for line in answer)
    model_server.next(mode, after=0)
    assert (await post(http, body())).status_code == 500
    model_server.next(mode)
    assert (await post(http, body(stream=False))).status_code == 500


async def test_odd_lines(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    model_server.next("bad")
    answer = (await post(http, body())).content.splitlines()
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer[3])
    model_server.next("utf8")
    with pytest.raises(UnicodeDecodeError):
        (await post(http, body())).content.decode()
    model_server.next("nel")
    raw = (await post(http, body())).content
    assert "\u2028".encode() in raw
    assert said([json.loads(line) for line in raw.split(b"\n") if line]) == LINE_BREAKS
    model_server.next("extra_fields")
    assert "x_new_field" in (await lines(http, body()))[0]["message"]
    model_server.next("leading_space")
    assert said(await lines(http, body())).startswith(" You")


async def test_split_tears_code_points(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    model_server.next("split")
    reads = []
    async with http.stream("POST", "/api/chat", json=body(), timeout=30) as response:
        reads = [data async for data in response.aiter_raw()]
    assert len(reads) > 500
    assert said([json.loads(line) for line in b"".join(reads).splitlines()]) == ODD_TEXT


async def test_huge_line_and_gzip_bomb(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    model_server.next("hugeline", size=1 << 20)
    answer = (await post(http, body())).content.split(b"\n")
    assert max(map(len, answer)) > 1 << 20
    model_server.next("gzipbomb", size=4 << 20)
    async with http.stream("POST", "/api/chat", json=body(), headers={"Accept-Encoding": "identity"}) as response:
        packed = b"".join([data async for data in response.aiter_raw()])
    assert response.headers["content-encoding"] == "gzip"
    assert len(packed) < 20_000
    model_server.next("gzipbomb", size=4 << 20)
    assert len(json.loads((await post(http, body())).content)["message"]["content"]) == 4 << 20


@pytest.mark.parametrize(
    ("mode", "status"),
    [("404", 404), ("503", 503), ("429", 429), ("unauthorized", 401), ("html502", 502), ("redirect", 307)],
)
async def test_refusing_modes_once_and_standing(
    http: httpx.AsyncClient, model_server: FakeOllama, mode: str, status: int
) -> None:
    model_server.next(mode, times=2)
    assert [(await post(http, body())).status_code for _ in range(3)] == [status, status, 200]
    model_server.mode = mode
    assert [(await post(http, body())).status_code for _ in range(2)] == [status, status]
    assert (await http.get("/api/version")).status_code == (status if mode in SERVER_WIDE else 200)


async def test_one_shot_modes_leave_preload_and_priming_alone(
    http: httpx.AsyncClient, model_server: FakeOllama
) -> None:
    model_server.next("err")
    await post(http, {"model": DEFAULT_MODEL})
    await lines(http, body(options={"num_predict": 1}))
    assert "error" in (await lines(http, body()))[-1]


@pytest.mark.parametrize("mode", ["hang", "trickle", "endless", "noheader"])
async def test_a_client_that_leaves_is_seen_at_once(
    http: httpx.AsyncClient, model_server: FakeOllama, mode: str
) -> None:
    model_server.next(mode)
    with pytest.raises(httpx.ReadTimeout if mode in {"hang", "noheader"} else TimeoutError):
        async with asyncio.timeout(0.3):
            await http.post("/api/chat", json=body(), timeout=0.1)
    left = time.monotonic()
    await model_server.until(lambda server: server.requests[0].disconnected)
    assert (model_server.requests[0].disconnected_at or 0) - left < 0.1
    assert (await lines(http, body()))[-1]["done"] is True  # the slot is free again


async def test_leaving_during_a_load_aborts_it() -> None:
    async with FakeOllama(load_s=30) as server, httpx.AsyncClient(base_url=server.url) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.post("/api/chat", json=body(), timeout=0.1)
        await server.until(lambda one: one.requests[0].disconnected)
        assert server.runners.loaded() == []


async def test_leaving_the_queue_for_a_slot(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    model_server.next("hang")
    hanging = asyncio.create_task(post(http, body()))
    await model_server.until(lambda server: server.questions and server.questions[0].tokens == 3)
    with pytest.raises(httpx.ReadTimeout):
        await http.post("/api/chat", json=body(), timeout=0.1)
    hanging.cancel()
    assert (await lines(http, body()))[-1]["done"] is True
    assert [record.disconnected for record in model_server.questions] == [True, True, False]


async def test_late_header(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    model_server.next("noheader", delay_s=0.15)
    start = time.monotonic()
    async with http.stream("POST", "/api/chat", json=body()) as response:
        assert time.monotonic() - start >= 0.15
        await response.aread()


async def test_pace_is_exact(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    model_server.tokens = [" x"] * 11
    model_server.tokens_per_s = 50
    await lines(http, body())
    record = model_server.requests[0]
    assert (record.last_token or 0) - (record.first_token or 0) == pytest.approx(10 / 50, abs=0.05)


async def test_stop_and_start_on_the_same_port(http: httpx.AsyncClient, model_server: FakeOllama) -> None:
    model_server.next("endless", tokens_per_s=100)
    asking = asyncio.create_task(post(http, body()))
    await model_server.until(lambda server: server.requests and server.requests[0].tokens > 2)
    await model_server.stop()
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        await asking
    with pytest.raises(httpx.ConnectError):
        await http.get("/api/version")
    await model_server.start()
    assert (await http.get("/api/version")).json() == {"version": "0.33.0-rc2"}


def test_unknown_modes_are_refused() -> None:
    server = FakeOllama()
    with pytest.raises(ValueError, match="no mode 'nope'"):
        server.mode = "nope"
    assert "rst" in BREAKING


async def test_as_a_process_steered_from_outside() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.fakes.ollama", "--tokens", "200", "--parallel", "4"),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), 10))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            assert (await lines(http, body()))[-1]["eval_count"] == 200
            await http.post("/_fake", json={"tokens": None, "reply": "ok", "next": [{"mode": "err", "after": 1}]})
            assert "error" in (await lines(http, body()))[-1]
            assert said(await lines(http, body())) == "ok"
            await http.get("/api/tags")
            seen = (await http.get("/_fake?bodies")).json()
            assert (seen["counters"]["questions"], seen["requests"][2]["text"]) == (3, "ok")
            assert seen["requests"][0]["arrived"] < seen["requests"][0]["first_token"]
            assert (await http.post("/_fake", json={"mode": "nope"})).status_code == 400
    finally:
        process.terminate()
        await process.wait()
