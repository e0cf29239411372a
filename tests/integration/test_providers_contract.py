"""What the engine relies on, the same for every provider: each against a server of its protocol over real HTTP.

Scenarios that need no fault run against real servers too (see tests/fakes/labs.py).
"""

import asyncio
import base64
import contextlib
import json
import math
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from piagent_daemon.errors import (
    ContextOverflow,
    ModelNotFound,
    PiagentError,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    RateLimited,
    Unauthorized,
)
from piagent_daemon.ports import Provider
from piagent_daemon.values import ChatRequest, Delta
from tests.fakes.labs import FAKES, REAL, Lab, collect, fake_lab, real_lab
from tests.fakes.ollama_script import LINE_BREAKS, ODD_TEXT, THOUGHT

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(16)).decode()
JPEG = base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(16)).decode()
EMBEDDING = sorted(set(FAKES) - {"anthropic"})


@pytest.fixture(params=sorted(FAKES))
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    async with fake_lab(request.param) as made:
        yield made


@pytest.fixture(params=[*sorted(FAKES), *REAL])
async def any_lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    """Fakes, and the real servers that the environment names."""
    name = request.param
    if name in REAL and not os.environ.get(name):
        pytest.skip(f"{name} is not set: no real server to ask")
    async with real_lab(name) if name in REAL else fake_lab(name) as made:
        yield made


async def failing(provider: Provider, request: ChatRequest) -> tuple[str, PiagentError]:
    """Return the text before the failure, and the failure."""
    seen: list[Delta] = []

    async def run() -> None:
        async with contextlib.aclosing(provider.chat(request)) as deltas:
            async for delta in deltas:
                seen.append(delta)  # noqa: PERF401 - it fails half way

    with pytest.raises(PiagentError) as caught:
        await run()
    assert all(delta.finish is None for delta in seen)
    return "".join(delta.text for delta in seen), caught.value


# ------------------------------------------------------------------------------------------------------- good answers


async def test_an_answer_streams_and_is_counted(any_lab: Lab) -> None:
    async with any_lab.provider() as provider:
        request = any_lab.asking("Say good evening to Ann.", options={"num_predict": 32})
        text, thinking, finish = await collect(provider, request)
    assert text.strip() or thinking.strip()
    usage = finish.usage
    assert 0 < usage.completion_tokens <= 33
    assert usage.prompt_tokens > 4
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    if any_lab.server:
        assert text == "You said: Say good evening to Ann."
        assert finish.reason == "stop"
        assert (finish.prompt_s, finish.generate_s) == pytest.approx((0.0125, 0.05), abs=0.06)
    if any_lab.kind == "llamacpp":
        assert finish.generate_s > 0


async def test_the_length_ends_an_answer(any_lab: Lab) -> None:
    async with any_lab.provider() as provider:
        request = any_lab.asking("Count from one to a hundred in words.", options={"num_predict": 3})
        _, _, finish = await collect(provider, request)
    assert finish.reason == "length"
    assert 0 < finish.usage.completion_tokens <= 4


async def test_stop_words_end_an_answer(any_lab: Lab) -> None:
    async with any_lab.provider() as provider:
        request = any_lab.asking("alpha beta gamma", options={"stop": ["beta"], "seed": 7, "top_k": 20})
        text, _, finish = await collect(provider, request)
    assert "beta" not in text
    assert finish.reason in ({"stop"} if any_lab.server else {"stop", "length"})


async def test_tokens_come_singly_when_wanted(any_lab: Lab) -> None:
    async with any_lab.provider() as provider:
        request = any_lab.asking("one two three four", singly=True, options={"num_predict": 24})
        async with contextlib.aclosing(provider.chat(request)) as deltas:
            seen = [delta async for delta in deltas]
    assert len([delta for delta in seen if delta.text or delta.thinking]) >= (6 if any_lab.server else 2)
    assert [delta.finish is not None for delta in seen] == [False] * (len(seen) - 1) + [True]


async def test_a_finished_prompt_is_asked_as_one_text(any_lab: Lab) -> None:
    async with any_lab.provider() as provider:
        request = any_lab.asking("ignored", prompt="<user>hi</user>", options={"num_predict": 16})
        text, _, finish = await collect(provider, request)
    assert finish.usage.prompt_tokens > 0
    assert not any_lab.server or text == "You said: <user>hi</user>"


async def test_structured_answers(any_lab: Lab) -> None:
    async with any_lab.provider() as provider:
        schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
        for wanted in (schema, "json"):
            request = any_lab.asking("Is the light on?", format=wanted, options={"num_predict": 64})
            text, _, finish = await collect(provider, request)
            assert finish.usage.completion_tokens > 0
            instructed = any_lab.anthropic or any_lab.kind == "ollama-cloud"
            if any_lab.server and not instructed:
                assert isinstance(json.loads(text), dict)
    if any_lab.anthropic:
        assert "JSON Schema" in any_lab.server.questions[1].body["system"]


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        ("split", ODD_TEXT),
        ("nel", LINE_BREAKS),
        ("empty", ""),
        ("leading_space", " You said: hello"),
        ("extra_fields", ""),
    ],
)
async def test_odd_but_good_answers(lab: Lab, mode: str, text: str) -> None:
    lab.server.next(mode)
    async with lab.provider() as provider:
        said, thinking, finish = await collect(provider, lab.asking("hello"))
    assert said == (text or ("" if mode == "empty" else "You said: hello"))
    assert thinking == ""
    assert finish.reason == "stop"


async def test_bytes_that_are_no_utf8_are_shown_as_such(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.server.next("utf8")
    async with lab.provider() as provider:
        text, _, _ = await collect(provider, lab.asking())
    assert "caf\ufffd" in text
    assert "U+FFFD" in caplog.text


async def test_thinking_is_kept_apart(lab: Lab) -> None:
    async with lab.provider() as provider:
        model = "chatty" if lab.kind == "llamacpp" else "thinker"
        if lab.kind == "llamacpp":  # it has the one model that it was started with
            lab.server.next("thinking")
        request = lab.asking("hello", model=model, think=True, options={"num_predict": 1500})
        text, thinking, _ = await collect(provider, request)
        assert (text, thinking) == ("You said: hello", THOUGHT)
        lab.server.next("thinking_only")
        text, thinking, finish = await collect(provider, request)
        assert (text, thinking) == ("", THOUGHT)
        assert finish.reason == "length"
        assert finish.usage.completion_tokens > 0


async def test_images_arrive_as_the_protocol_wants_them(lab: Lab) -> None:
    model = "chatty" if lab.anthropic or lab.kind == "llamacpp" else "seer-vl"
    if lab.kind == "llamacpp":
        lab.server.models = {"chatty": lab.server.models["seer-vl"]}
    async with lab.provider() as provider:
        text, _, _ = await collect(provider, lab.asking("What is this?", model=model, images=(PNG, JPEG)))
    assert text == "You said: What is this?"
    [record] = lab.server.questions
    sent = record.body["messages"][-1]
    if lab.ollama:
        assert sent["images"] == [PNG, JPEG]
    elif lab.anthropic:
        assert [part["source"]["media_type"] for part in sent["content"][:2]] == ["image/png", "image/jpeg"]
    else:
        assert [part["image_url"]["url"] for part in sent["content"][1:]] == [
            f"data:image/png;base64,{PNG}",
            f"data:image/jpeg;base64,{JPEG}",
        ]


async def test_an_answer_read_to_its_end_keeps_the_connection(lab: Lab) -> None:
    async with lab.provider() as provider:
        for _ in range(4):
            await collect(provider, lab.asking())
            await lab.server.until(lambda fake: all(record.ended for record in fake.requests))
            await asyncio.sleep(0)
    assert lab.server.connections <= 2


async def test_a_server_that_knows_no_end_is_cut(lab: Lab) -> None:
    lab.server.next("endless")
    async with lab.provider() as provider:
        text, _, finish = await collect(provider, lab.asking("go on", options={"num_predict": 30}))
        assert text.startswith(" word0 word1")
        assert finish.reason == "length"
        await lab.server.until(lambda fake: fake.questions[0].disconnected)


# ---------------------------------------------------------------------------------------------------------- failures


async def test_an_unknown_model_is_named(any_lab: Lab) -> None:
    if any_lab.kind == "llamacpp":
        pytest.skip("llama-server ignores the name of the model")
    async with any_lab.provider() as provider:
        _, error = await failing(provider, any_lab.asking(model="nope-7b"))
        assert type(error) is ModelNotFound
        assert "nope-7b" in str(error)
        state = await provider.probe("nope-7b")
        assert (state.reachable, state.model_found) == (True, False)
        assert "nope-7b" in (state.error or "")


async def test_a_bad_key_is_refused_and_never_repeated(lab: Lab) -> None:
    async with lab.provider(key="wrong-canary", key_setting="THE_KEY") as provider:
        _, error = await failing(provider, lab.asking())
        assert type(error) is Unauthorized
        assert "check THE_KEY" in str(error)
        assert "wrong-canary" not in str(error)
        state = await provider.probe(lab.model)
        assert state.reachable
        assert "THE_KEY" in (state.error or "")


@pytest.mark.parametrize(
    ("mode", "kind", "words"),
    [
        ("429", RateLimited, "overloaded"),
        ("503", ProviderUnavailable, "overloaded"),
        ("404", ModelNotFound, "does not have the model 'chatty'"),
        ("unauthorized", Unauthorized, "refused the key"),
        ("redirect", ProviderError, "redirect"),
        ("not_http", ProviderUnavailable, "without sending a response"),
        ("wrong_service", ProviderError, "not a JSON object"),
        ("gzipbomb", ProviderError, "compressed"),
        ("error_200_first_line", ProviderUnavailable, "failed"),
    ],
)
async def test_refusals(lab: Lab, mode: str, kind: type[PiagentError], words: str) -> None:
    lab.server.next(mode, size=1 << 20)
    async with lab.provider() as provider:
        text, error = await failing(provider, lab.asking())
    assert text == ""
    assert type(error) is kind
    assert words in str(error)
    assert len(str(error)) < 400
    if mode == "429":
        assert isinstance(error, ProviderUnavailable)
        assert error.retry_after_s == 1.0


@pytest.mark.parametrize("mode", ["500", "html502"])
async def test_a_failure_of_the_server_itself(lab: Lab, mode: str) -> None:
    lab.server.next(mode, error="something broke")
    async with lab.provider() as provider:
        _, error = await failing(provider, lab.asking())
    # With 500 Ollama says that an option has the wrong type; elsewhere it passes.
    assert type(error) is (ProviderError if lab.ollama else ProviderUnavailable)
    assert f"status {mode[-3:]}" in str(error)


@pytest.mark.parametrize("mode", ["rst", "eof", "eof_clean", "nodone", "repeat_guard", "bad", "err"])
async def test_broken_off_answers_are_errors_after_their_text(lab: Lab, mode: str) -> None:
    lab.server.next(mode)
    async with lab.provider() as provider:
        text, error = await failing(provider, lab.asking())
        assert text
        assert type(error) is ProviderError, "once text is out a new try is no cure"
        assert (await collect(provider, lab.asking("again")))[0] == "You said: again"


@pytest.mark.parametrize("mode", ["rst", "eof", "err"])
async def test_what_breaks_before_the_first_text_may_be_tried_again(lab: Lab, mode: str) -> None:
    lab.server.next(mode, after=0)
    async with lab.provider() as provider:
        text, error = await failing(provider, lab.asking())
    assert text == ""
    assert type(error) is ProviderUnavailable


async def test_a_prompt_that_does_not_fit_is_refused_with_its_size(lab: Lab) -> None:
    async with lab.provider() as provider:
        _, error = await failing(provider, lab.asking("word " * 5000))
    assert type(error) is ContextOverflow
    assert error.prompt_tokens is not None
    assert error.prompt_tokens > 5000


async def test_nobody_there(unused_tcp_port: int) -> None:
    for kind in FAKES:
        nobody = Lab(kind, f"http://127.0.0.1:{unused_tcp_port}")
        async with nobody.provider(url_setting="THE_URL") as provider:
            _, error = await failing(provider, nobody.asking())
            assert type(error) is ProviderUnavailable
            assert f"http://127.0.0.1:{unused_tcp_port}" in str(error)
            state = await provider.probe("any")
            assert not state.reachable
            assert state.error == str(error)
        async with Lab(kind, "http://nobody.invalid").provider() as provider:
            assert type((await failing(provider, nobody.asking()))[1]) is ProviderUnavailable


async def test_a_line_without_an_end_costs_no_memory(lab: Lab) -> None:
    lab.server.next("hugeline", size=4 << 20)
    async with lab.provider() as provider:
        _, error = await failing(provider, lab.asking())
    assert type(error) is ProviderError
    assert "longer than" in str(error)


# --------------------------------------------------------------------------------------------------------- deadlines


async def test_a_slow_first_token_is_waited_for(lab: Lab) -> None:
    lab.server.next("noheader", delay_s=0.3)
    async with lab.provider(idle_timeout_s=0.1) as provider:
        assert (await collect(provider, lab.asking("hello")))[0] == "You said: hello"


@pytest.mark.parametrize(
    ("mode", "changes", "words"),
    [
        ("noheader", {"first_token_timeout_s": 0.15}, "no first token came from the model server within 0.15 s"),
        ("hang", {"idle_timeout_s": 0.15}, "no next token came from the model server within 0.15 s"),
        ("trickle", {"idle_timeout_s": 0.15}, "no next token came from the model server within 0.15 s"),
        ("endless", {"total_timeout_s": 0.3}, "not complete within 0.3 s"),
    ],
)
async def test_deadlines_close_the_stream(lab: Lab, mode: str, changes: dict[str, float], words: str) -> None:
    lab.server.next(mode, tokens_per_s=100 if mode == "endless" else 0, trickle_s=0.02)
    async with lab.provider(**changes) as provider:
        started = time.monotonic()
        text, error = await failing(provider, lab.asking("go on", options={"num_predict": 3000}))
        assert type(error) is ProviderTimeout
        assert words in str(error)
        assert bool(text) == (mode != "noheader")
        assert time.monotonic() - started < 1.5
        await lab.server.until(lambda fake: fake.questions and fake.questions[0].disconnected)


@pytest.mark.parametrize("mode", ["noheader", "hang", "endless"])
async def test_cancelling_closes_the_stream_at_once(lab: Lab, mode: str) -> None:
    lab.server.next(mode, tokens_per_s=0 if mode == "hang" else 50)
    async with lab.provider() as provider:
        task = asyncio.create_task(collect(provider, lab.asking()), name="asks")
        await lab.server.until(lambda fake: fake.questions and (mode == "noheader" or fake.questions[0].tokens >= 3))
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await lab.server.until(lambda fake: fake.questions[0].disconnected)
        assert (lab.server.questions[0].disconnected_at or math.inf) - started < 0.1
        assert (await collect(provider, lab.asking("again")))[0] == "You said: again"


async def test_closing_the_generator_closes_the_stream_at_once(any_lab: Lab) -> None:
    if any_lab.server:
        any_lab.server.next("endless", tokens_per_s=100)
    async with any_lab.provider() as provider:
        deltas = provider.chat(any_lab.asking("Count from one to a thousand.", options={"num_predict": 2000}))
        await anext(deltas)
        started = time.monotonic()
        await deltas.aclose()
        assert time.monotonic() - started < 0.1
        if any_lab.server:
            await any_lab.server.until(lambda fake: fake.questions[0].disconnected)
            assert (any_lab.server.questions[0].disconnected_at or math.inf) - started < 0.1
        assert (await collect(provider, any_lab.asking("Hello.", options={"num_predict": 8})))[2].usage.total_tokens


async def test_an_answer_that_nobody_asks_for_is_no_trouble(lab: Lab) -> None:
    async with lab.provider() as provider:
        await provider.chat(lab.asking()).aclose()
    assert lab.server.requests == []


# ------------------------------------------------------------------------------------------------ the rest of the port


async def test_models_probe_and_capabilities(any_lab: Lab) -> None:
    async with any_lab.provider() as provider:
        names = {model.name for model in await provider.models()}
        assert any(name.startswith(any_lab.model) for name in names)
        state = await provider.probe(any_lab.model)
        assert (state.reachable, state.model_found, state.error) == (True, True, None)
        found = await provider.capabilities(any_lab.model)
        assert not found or "completion" in found, "nothing, where neither the list nor the name says anything"


async def test_capabilities_tell_who_sees_and_who_embeds(lab: Lab) -> None:
    async with lab.provider() as provider:
        sees = "chatty" if lab.anthropic else "seer-vl"
        assert "vision" in await provider.capabilities(sees)
        if lab.kind in EMBEDDING:
            assert "vision" not in await provider.capabilities("chatty")
            assert await provider.capabilities("words-embed") == {"embedding"}
        if lab.kind == "lmstudio":
            assert (await provider.probe("chatty")).model_loaded is True
            assert (await provider.probe("thinker")).model_loaded is False


@pytest.mark.parametrize("kind", EMBEDDING)
async def test_embeddings_come_in_order(kind: str) -> None:
    async with fake_lab(kind) as lab, lab.provider() as provider:
        texts = ["kitchen", "cellar", "kitchen"]
        vectors = await provider.embed(texts, "words-embed")
        assert len(vectors) == 3
        assert vectors[0] == vectors[2] != vectors[1]
        assert all(math.isclose(sum(number**2 for number in vector), 1, abs_tol=1e-3) for vector in vectors)
        assert await provider.embed([], "words-embed") == []
        with pytest.raises(ContextOverflow):
            await provider.embed(["word " * 9000], "words-embed")
        if kind != "llamacpp":
            with pytest.raises(ModelNotFound):
                await provider.embed(["x"], "nope")
        if lab.ollama:
            assert lab.server.requests[0].body["options"] == {"num_ctx": 4096}
            assert lab.server.requests[0].body["truncate"] is False


async def test_priming_never_costs_money(lab: Lab) -> None:
    async with lab.provider() as provider:
        await provider.prime(lab.asking())
    asked = [record for record in lab.server.requests if record.method == "POST"]
    at_home = lab.kind not in {"ollama-cloud", "anthropic"}  # the fakes are plain http, as servers at home are
    assert len(asked) == at_home
    if at_home:
        options = asked[0].body.get("options", {})
        limits: set[Any] = {options.get("num_predict"), asked[0].body.get("max_tokens")}
        assert 1 in limits | {asked[0].body.get("max_completion_tokens")}


async def test_servers_that_keep_no_models_say_so(lab: Lab) -> None:
    if lab.ollama:
        pytest.skip("Ollama keeps models")
    async with lab.provider() as provider:
        with pytest.raises(ProviderError, match=lab.kind):
            await anext(provider.pull("any"))
        with pytest.raises(ProviderError, match=lab.kind):
            await provider.delete("any")
