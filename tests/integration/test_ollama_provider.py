"""The Ollama provider against a model server over real HTTP that goes wrong in every way Ollama does."""

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from piagent_daemon.errors import (
    ContextOverflow,
    ModelNotFound,
    PiagentError,
    ProviderError,
    ProviderUnavailable,
    RateLimited,
    Unauthorized,
)
from piagent_daemon.pace import Pace
from piagent_daemon.providers import remote
from piagent_daemon.providers.config import place
from piagent_daemon.providers.deadlines import Deadlines
from piagent_daemon.providers.ollama import OllamaProvider
from piagent_daemon.settings import Settings
from piagent_daemon.values import ChatRequest, Delta, Finish, Message
from tests.fakes.broker import BlackHole
from tests.fakes.certificates import as_strict_as_3_13, make_certificates, server_context
from tests.fakes.httpd import Exchange, HttpServer
from tests.fakes.ollama import DEFAULT_MODEL, FakeOllama
from tests.fakes.ollama_runner import Model
from tests.fakes.ollama_script import THOUGHT

REQUEST = ChatRequest(
    DEFAULT_MODEL, (Message("system", "Be brief."), Message("user", "Is the light on?")), {"num_predict": 200}, 2048
)
SETTINGS: dict[str, Any] = {
    "connect_timeout_s": 2,
    "first_token_timeout_s": 5,
    "idle_timeout_s": 2,
    "total_timeout_s": 10,
}


def settings(url: str, **changes: Any) -> Settings:
    return Settings.model_validate({**SETTINGS, "ollama_host": url, **changes})


def asking(text: str, **changes: Any) -> ChatRequest:
    options = {"num_predict": 200, **changes.pop("options", {})}
    return ChatRequest(DEFAULT_MODEL, (Message("user", text),), options, changes.pop("context", 2048), **changes)


@contextlib.asynccontextmanager
async def connected(url: str, **changes: Any) -> AsyncIterator[OllamaProvider]:
    provider = OllamaProvider(place("ollama", settings(url, **changes)).config)
    try:
        yield provider
    finally:
        await provider.aclose()


@pytest.fixture
async def server() -> AsyncIterator[FakeOllama]:
    thinker = Model(capabilities=frozenset({"completion", "thinking"}))
    async with FakeOllama({DEFAULT_MODEL: Model(), "thinker": thinker}, pullable=["small"], pull_step_s=0.01) as fake:
        yield fake


@pytest.fixture
async def provider(server: FakeOllama) -> AsyncIterator[OllamaProvider]:
    async with connected(server.url) as made:
        yield made


async def collect(provider: OllamaProvider, request: ChatRequest = REQUEST) -> tuple[str, str, Finish | None]:
    text, thinking, finish = "", "", None
    async with aclosing(provider.chat(request)) as deltas:
        async for delta in deltas:
            assert finish is None, "nothing follows the finish"
            text, thinking, finish = text + delta.text, thinking + delta.thinking, delta.finish
    return text, thinking, finish


async def failing(provider: OllamaProvider, request: ChatRequest = REQUEST) -> tuple[str, PiagentError]:
    """Return the text before the failure, and the failure."""
    seen: list[Delta] = []

    async def run() -> None:
        async with aclosing(provider.chat(request)) as deltas:
            async for delta in deltas:
                seen.append(delta)  # noqa: PERF401 - it fails half way

    with pytest.raises(PiagentError) as caught:
        await run()
    assert all(delta.finish is None for delta in seen)
    return "".join(delta.text for delta in seen), caught.value


# ------------------------------------------------------------------------------------------------------- good answers


async def test_an_answer_with_counts_and_the_body_that_asked_for_it(
    server: FakeOllama, provider: OllamaProvider
) -> None:
    text, thinking, finish = await collect(provider)
    assert (text, thinking) == ("You said: Is the light on?", "")
    assert finish is not None
    assert finish.reason == "stop"
    assert finish.usage.prompt_tokens > 0
    assert finish.usage.total_tokens == finish.usage.prompt_tokens + finish.usage.completion_tokens
    assert finish.generate_s >= 0
    [record] = server.questions
    assert record.path == "/api/chat"
    assert record.headers["accept-encoding"] == "identity"
    assert record.body == {
        "model": DEFAULT_MODEL,
        "stream": True,
        "think": False,
        "truncate": False,
        "shift": False,
        "keep_alive": -1,
        "options": {"num_predict": 200, "num_ctx": 2048},
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Is the light on?"},
        ],
    }


async def test_a_finished_prompt_goes_to_generate(server: FakeOllama, provider: OllamaProvider) -> None:
    text, _, finish = await collect(provider, asking("ignored", prompt="<user>hi</user>"))
    assert text == "You said: <user>hi</user>"
    assert finish is not None
    [record] = server.questions
    assert record.path == "/api/generate"
    assert "messages" not in record.body


async def test_length(provider: OllamaProvider) -> None:
    text, _, finish = await collect(provider, asking("one two three four five", options={"num_predict": 3}))
    assert text == "You said: one"[: len(text)]
    assert finish is not None
    assert finish.reason == "length"
    assert finish.usage.completion_tokens == 3


async def test_thinking_is_kept_apart_and_asked_for_only_where_it_can_be(
    server: FakeOllama, provider: OllamaProvider, caplog: pytest.LogCaptureFixture
) -> None:
    thinker = ChatRequest("thinker", REQUEST.messages, REQUEST.options, 2048, think=True)
    text, thinking, _ = await collect(provider, thinker)
    assert (text, thinking) == ("You said: Is the light on?", THOUGHT)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            text, thinking, _ = await collect(provider, asking("hello", think="high"))
    assert (text, thinking) == ("You said: hello", "")
    assert [record.body["think"] for record in server.questions] == [True, False, False]
    assert len([record for record in caplog.records if "cannot think" in record.message]) == 1
    assert len([record for record in server.requests if record.path == "/api/show"]) == 2
    server.mode = "thinking_only"
    text, thinking, finish = await collect(provider, thinker)
    assert (text, thinking) == ("", THOUGHT)
    assert finish is not None
    assert finish.reason == "length"


@pytest.mark.parametrize("order", ["deadline first", "listener first"])
async def test_two_reasons_to_stop_at_one_moment_leave_no_connection_behind(
    server: FakeOllama, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    loop, fire = asyncio.get_running_loop(), Deadlines._fire
    server.next("endless", tokens_per_s=50)
    async with connected(server.url, total_timeout_s=1) as provider:
        pace = Pace(provider.chat(REQUEST), 0.0, 1_000_000)

        def both(deadlines: Deadlines) -> None:
            reasons: list[Callable[[], None]] = [partial(fire, deadlines), pace.close]
            if order == "listener first":
                reasons.reverse()
            reasons[0]()
            loop.call_soon(reasons[1])

        monkeypatch.setattr(Deadlines, "_fire", both)
        async with pace:
            while not pace.ended:
                await pace.wait(loop.time() + 5)
                while pace.text_due:
                    pace.take()
        await server.until(lambda fake: fake.questions[-1].disconnected)
        assert (await collect(provider))[2]


LEFT: dict[str, Callable[[OllamaProvider], Coroutine[Any, Any, Any]]] = {
    "an answer": collect,
    "a list": lambda provider: provider.models(),
    "a vector": lambda provider: provider.embed(["a"], DEFAULT_MODEL),
}


@pytest.mark.parametrize("mode", ["ok", "503", "eof", "rst"])
@pytest.mark.parametrize("what", LEFT)
async def test_whenever_a_call_is_cancelled_the_next_one_is_answered(server: FakeOllama, what: str, mode: str) -> None:
    async with connected(server.url, connect_timeout_s=2, first_token_timeout_s=2) as provider:
        for turns in range(60):
            server.mode = mode
            call = asyncio.ensure_future(LEFT[what](provider))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call])
            server.mode = "ok"
            if turns % 2:  # else the next call begins on a new connection
                assert (await collect(provider))[2] is not None
        kept = provider._config.connections
        await server.until(lambda fake: not provider._http._connections._used and fake.open_connections <= kept)


async def test_the_end_of_the_answer_does_not_wait_for_the_end_of_the_stream() -> None:
    async def handle(exchange: Exchange) -> None:
        exchange.head(200, "application/x-ndjson")
        await exchange.chunk(b'{"message":{"content":"hi"},"done":true}\n')
        await asyncio.Event().wait()

    async with HttpServer(handle) as http, connected(f"http://127.0.0.1:{http.port}") as provider:
        started = time.monotonic()
        assert (await collect(provider))[0] == "hi"
        assert time.monotonic() - started < 0.5


async def test_a_key_is_sent_and_userinfo_is_sent_as_such() -> None:
    async with FakeOllama(api_key="canary") as server:
        async with connected(server.url, ollama_api_key="canary") as provider:
            assert (await collect(provider))[2] is not None
        async with connected(server.url, ollama_api_key="wrong-canary") as provider:
            _, error = await failing(provider)
            assert isinstance(error, Unauthorized)
            assert "canary" not in str(error)
            state = await provider.probe(DEFAULT_MODEL)
            assert state.reachable
            assert "OLLAMA_API_KEY" in (state.error or "")
        async with connected(server.url.replace("//", "//ann:p%40ss@")) as provider:
            _, error = await failing(provider)
            assert "p@ss" not in str(error)
        assert server.requests[-1].headers["authorization"] == "Basic YW5uOnBAc3M="


# ---------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("mode", "kind", "words"),
    [
        ("404", ModelNotFound, f"ollama pull {DEFAULT_MODEL}"),
        ("429", RateLimited, "overloaded: you have reached your limit"),
        ("503", ProviderUnavailable, "overloaded: server busy"),
        ("unauthorized", Unauthorized, "OLLAMA_API_KEY"),
        ("html502", ProviderError, "status 502"),
        ("redirect", ProviderError, "redirect"),
        ("wrong_service", ProviderError, "not a JSON object"),
        ("not_http", ProviderUnavailable, "without sending a response"),
        ("error_200_first_line", ProviderUnavailable, "runner failed"),
        ("gzipbomb", ProviderError, "compressed"),
    ],
)
async def test_refusals(
    server: FakeOllama, provider: OllamaProvider, mode: str, kind: type[PiagentError], words: str
) -> None:
    server.mode = mode
    text, error = await failing(provider)
    assert text == ""
    assert type(error) is kind
    assert words in str(error)
    assert len(str(error)) < 400
    if mode == "429":
        assert isinstance(error, ProviderUnavailable)
        assert error.retry_after_s == 1.0


async def test_a_runner_that_dies_in_mid_answer(server: FakeOllama, provider: OllamaProvider) -> None:
    server.mode = "runner_dies"
    text, error = await failing(provider)
    assert text
    assert type(error) is ProviderError, "once text is out a new try is no cure"
    server.mode = "ok"
    assert (await collect(provider))[2] is not None


async def test_a_runner_that_dies_before_the_first_text(server: FakeOllama, provider: OllamaProvider) -> None:
    server.next("runner_dies", after=0)
    text, error = await failing(provider)
    assert text == ""
    assert type(error) is ProviderUnavailable


async def test_a_prompt_that_does_not_fit_is_refused_not_cut(server: FakeOllama, provider: OllamaProvider) -> None:
    _, error = await failing(provider, asking("word " * 3000, context=512))
    assert isinstance(error, ContextOverflow)
    assert error.prompt_tokens is not None
    assert error.prompt_tokens > 512
    _, error = await failing(provider, asking("ignored", prompt="word " * 3000, context=512))
    assert isinstance(error, ContextOverflow)
    assert not any(record.truncated for record in server.requests)


@pytest.mark.parametrize("mode", ["hugeline", "gzipbomb"])
async def test_memory_does_not_grow_with_what_a_server_sends(
    server: FakeOllama, provider: OllamaProvider, mode: str
) -> None:
    server.next(mode, size=1 << 20)
    await failing(provider)
    gc.collect()
    server.next(mode, size=64 << 20)
    before = _peak_kb()
    _, error = await failing(provider)
    assert type(error) is ProviderError
    assert _peak_kb() - before < 5 * 1024


def _peak_kb() -> int:
    import resource  # noqa: PLC0415

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --------------------------------------------------------------------------------------------------------- deadlines


async def test_the_first_token_may_take_longer_than_the_next_ones(server: FakeOllama) -> None:
    server.next("noheader", delay_s=0.4)
    async with connected(server.url, idle_timeout_s=0.2) as provider:
        assert (await collect(provider))[2] is not None


async def test_a_server_that_takes_no_connection_is_waited_for_no_longer_than_is_set() -> None:
    with BlackHole() as hole:
        async with connected(f"http://127.0.0.1:{hole.port}", connect_timeout_s=0.1) as provider, asyncio.timeout(3):
            text, error = await failing(provider)
    assert (text, type(error)) == ("", ProviderUnavailable)


async def test_embeddings_do_not_change_the_window_that_is_in_force() -> None:
    both = Model(capabilities=frozenset({"completion", "embedding"}))
    async with FakeOllama({DEFAULT_MODEL: both}) as server, connected(server.url) as provider:
        await collect(provider, asking("Is the light on?", context=1024))
        await provider.embed(["lamp"], DEFAULT_MODEL)
        assert server.requests[-1].path == "/api/embed"
        assert server.requests[-1].body["options"]["num_ctx"] == 1024, "another one would load the model anew"


async def test_a_slow_consumer_is_not_under_the_deadline(server: FakeOllama) -> None:
    server.tokens_per_s = 50
    async with connected(server.url, idle_timeout_s=0.1) as provider, aclosing(provider.chat(REQUEST)) as deltas:
        first = await anext(deltas)
        await asyncio.sleep(0.3)
        rest = [delta async for delta in deltas]
    assert first.text + "".join(delta.text for delta in rest) == "You said: Is the light on?"


# ----------------------------------------------------------------------------------------------------------- closing


async def test_cancelling_many_leaves_the_pool_whole(server: FakeOllama) -> None:
    server.mode = "hang"
    async with connected(server.url, max_concurrent=2) as provider:
        for _ in range(8):
            task = asyncio.create_task(collect(provider), name="asks")
            await server.until(lambda fake: any(not record.disconnected for record in fake.questions))
            task.cancel()
            await asyncio.wait([task])
            await server.until(lambda fake: all(record.disconnected for record in fake.questions))
        server.mode = "ok"
        assert (await collect(provider))[2] is not None


# ------------------------------------------------------------------------------------------------ the rest of the port


async def test_priming_reads_the_prompt_without_a_reload_later(server: FakeOllama, provider: OllamaProvider) -> None:
    system = ChatRequest(DEFAULT_MODEL, REQUEST.messages[:1], {"num_predict": 200}, 2048)
    await provider.prime(system)
    [record] = server.requests
    assert record.body["options"]["num_predict"] == 1
    assert record.body["messages"][-1]["role"] == "user"
    assert (await provider.probe(DEFAULT_MODEL)).model_loaded
    await collect(provider)
    assert server.reloads == 0
    await provider.prime(asking("x", prompt="<system>Be brief.</system>"))
    assert server.reloads == 0


async def test_names_of_models_that_nobody_has_are_not_kept_for_ever(
    provider: OllamaProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_MODELS", 3)
    for name in ("a", DEFAULT_MODEL, "b", "c", DEFAULT_MODEL, "d"):
        with suppress(ModelNotFound):
            await collect(provider, REQUEST._replace(model=name))
    assert list(provider._windows) == ["c:latest", DEFAULT_MODEL, "d:latest"]


async def test_unloading_frees_the_model_until_the_next_call(server: FakeOllama, provider: OllamaProvider) -> None:
    await provider.prime(REQUEST)
    assert (await provider.probe(DEFAULT_MODEL)).model_loaded
    await provider.unload(DEFAULT_MODEL)
    assert (await provider.probe(DEFAULT_MODEL)).model_loaded is False
    await collect(provider)
    assert (await provider.probe(DEFAULT_MODEL)).model_loaded
    with pytest.raises(ModelNotFound):
        await provider.unload("nope")
    assert server.reloads == 0


async def test_probe(server: FakeOllama, provider: OllamaProvider) -> None:
    state = await provider.probe("thinker:latest")
    assert (state.reachable, state.model_found, state.model_loaded, state.error) == (True, True, False, None)
    state = await provider.probe("nope")
    assert (state.reachable, state.model_found) == (True, False)
    assert "ollama pull nope" in (state.error or "")
    server.mode = "html502"
    assert "502" in ((await provider.probe("thinker")).error or "")


async def test_a_silent_server_is_probed_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piagent_daemon.providers.ollama.PROBE_S", 0.1)

    async def handle(_: Exchange) -> None:
        await asyncio.Event().wait()

    async with HttpServer(handle) as http, connected(f"http://127.0.0.1:{http.port}") as provider:
        state = await provider.probe("tiny")
        assert not state.reachable
        assert "within 0.1 s" in (state.error or "")


async def test_models_and_capabilities(server: FakeOllama, provider: OllamaProvider) -> None:
    assert {model.name for model in await provider.models()} == set(server.models)
    assert await provider.capabilities("thinker") == {"completion", "thinking"}
    with pytest.raises(ModelNotFound, match="ollama pull nope"):
        await provider.capabilities("nope")


async def test_pull_and_delete(provider: OllamaProvider) -> None:
    steps = [step async for step in provider.pull("small")]
    assert steps[0].status == "pulling manifest"
    assert steps[-1].status == "success"
    sizes = [step.completed for step in steps if step.digest]
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert sizes[-1] == steps[1].total > 0
    await provider.delete("small")
    with pytest.raises(ModelNotFound):
        await provider.delete("small")
    with pytest.raises(ModelNotFound, match="no model 'nope' to pull"):
        _ = [step async for step in provider.pull("nope")]


async def test_closing_a_pull_stops_it(server: FakeOllama, provider: OllamaProvider) -> None:
    server.library.step_s = 5
    async with aclosing(provider.pull("small")) as steps:
        await anext(steps)
    await server.until(lambda fake: fake.requests[-1].disconnected)


@pytest.mark.parametrize("body", [b"[]", b"nonsense", b'{"models": 3}', b"[" * 100_000, b" " * (9 << 20)])
async def test_calls_take_any_answer(body: bytes) -> None:
    async def handle(exchange: Exchange) -> None:
        await exchange.send(200, body, "application/json")

    async with HttpServer(handle) as http, connected(f"http://127.0.0.1:{http.port}") as provider:
        assert (await provider.probe("tiny")).model_found is not True
        with contextlib.suppress(ProviderError):
            assert await provider.models() == []


# ----------------------------------------------------------------------------------------------------------------- TLS


async def test_a_server_behind_the_authority_of_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ca, *shown = make_certificates(tmp_path)
    as_strict_as_3_13(monkeypatch)
    async with FakeOllama(tls=server_context(*shown)) as server:
        async with connected(server.url, max_retries=0) as stranger:
            with pytest.raises(ProviderUnavailable, match="certificate verify failed"):
                await collect(stranger)
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))  # OpenSSL's own way to name this machine's authorities
        async with connected(server.url) as provider:
            text, _, finish = await collect(provider)
            assert text
            assert finish
        async with connected(server.url.replace("127.0.0.1", "localhost"), max_retries=0) as other:
            with pytest.raises(ProviderUnavailable, match="certificate verify failed"):
                await collect(other)
