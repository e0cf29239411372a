"""What only the providers for OpenAI's and Anthropic's protocols do: learn what a model refuses, speak dialects."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from piagent_daemon.errors import ProviderError, ProviderTimeout, ProviderUnavailable, Unauthorized
from piagent_daemon.providers import create_provider, make, remote
from piagent_daemon.providers.config import ProviderConfig
from piagent_daemon.providers.refusals import Refusals
from piagent_daemon.providers.remote import Remote
from piagent_daemon.values import ProviderState
from tests.fakes.api_server import SSE, event
from tests.fakes.httpd import Exchange, HttpServer
from tests.fakes.labs import KEY, PATIENCE, Lab, collect, fake_lab


@pytest.fixture
async def openai() -> AsyncIterator[Lab]:
    async with fake_lab("openai") as lab:
        yield lab


@pytest.fixture
async def anthropic() -> AsyncIterator[Lab]:
    async with fake_lab("anthropic") as lab:
        yield lab


async def test_a_model_is_asked_without_what_it_refused(openai: Lab, caplog: pytest.LogCaptureFixture) -> None:
    async with openai.provider() as provider:
        for text in ("one", "two"):
            assert (await collect(provider, openai.asking(text, model="o4-fussy")))[0] == f"You said: {text}"
        assert (await collect(provider, openai.asking("three")))[0] == "You said: three"
    bodies = [record.body for record in openai.server.questions]
    assert [body.get("temperature") for body in bodies] == [0.5, None, None, 0.5]
    assert [record.status for record in openai.server.questions] == [400, 200, 200, 200]
    assert caplog.text.count("'o4-fussy' does not take temperature") == 1


async def test_the_other_name_of_the_token_limit_is_learnt() -> None:
    async with fake_lab("custom") as lab, lab.provider() as provider:
        for text in ("one", "two"):
            request = lab.asking(text, model="o4-fussy", options={"num_predict": 20})
            assert (await collect(provider, request))[0] == f"You said: {text}"
    sent = [(body.get("max_tokens"), body.get("max_completion_tokens")) for body in _bodies(lab)]
    assert sent[-2:] == [(None, 20), (None, 20)]


async def test_options_that_a_server_does_not_know_are_told_once(openai: Lab, caplog: pytest.LogCaptureFixture) -> None:
    async with openai.provider() as provider:
        for _ in range(2):
            await collect(provider, openai.asking(options={"top_k": 5, "min_p": 0.1}))
    assert "top_k" not in openai.server.questions[0].body
    assert caplog.text.count("does not know the option top_k") == 1


async def test_a_schema_that_is_refused_is_told_in_words(anthropic: Lab) -> None:
    schema = {"type": "object", "properties": {"on": {"type": "string"}}}
    async with anthropic.provider() as provider:
        for _ in range(2):
            await collect(provider, anthropic.asking(format=schema))
        text, _, _ = await collect(provider, anthropic.asking("warm", model="fussy", format=schema))
    assert text == '{"on": "warm"}'
    statuses = [record.status for record in anthropic.server.questions]
    assert statuses[:3] == [400, 200, 200]
    assert "JSON Schema" in anthropic.server.questions[1].body["system"]


async def test_thinking_is_asked_for_in_the_way_that_a_model_knows(anthropic: Lab) -> None:
    wanted: dict[str, Any] = {"think": True, "options": {"num_predict": 1600}}
    async with anthropic.provider() as provider:
        for model in ("thinker", "thinker", "fussy", "chatty"):
            _, thinking, _ = await collect(provider, anthropic.asking(model=model, **wanted))
            assert bool(thinking) == (model != "chatty")
        await collect(provider, anthropic.asking(model="fussy"))  # it cannot do without
    ways = [(body["model"], body.get("thinking", {}).get("type")) for body in _bodies(anthropic)]
    assert ways[:4] == [("thinker", "adaptive"), ("thinker", "enabled"), ("thinker", "enabled"), ("fussy", "adaptive")]
    assert ways[-1] == ("fussy", None)


async def test_an_overload_in_the_middle_of_a_stream(anthropic: Lab) -> None:
    async with anthropic.provider() as provider:
        anthropic.server.next("error_200_first_line", error="Overloaded")
        with pytest.raises(ProviderUnavailable, match="overloaded: Overloaded"):
            await collect(provider, anthropic.asking())
        anthropic.server.next("err", error="Overloaded")
        with pytest.raises(ProviderError, match="Overloaded") as caught:
            await collect(provider, anthropic.asking())
        assert type(caught.value) is ProviderError


async def test_the_headers_of_anthropic(anthropic: Lab) -> None:
    async with anthropic.provider() as provider:
        await collect(provider, anthropic.asking())
    headers = anthropic.server.questions[0].headers
    assert (headers["x-api-key"], headers["anthropic-version"]) == (KEY, "2023-06-01")
    assert "authorization" not in headers


@pytest.mark.parametrize(
    ("kind", "url", "path"),
    [
        ("custom", "", "/v1/chat/completions"),
        ("custom", "/v1/", "/v1/chat/completions"),
        ("custom", "/proxy/llm", "/proxy/llm/chat/completions"),
        ("lmstudio", "/", "/v1/chat/completions"),
        ("anthropic", "", "/v1/messages"),
        ("anthropic", "/v1", "/v1/messages"),
        ("anthropic", "/proxy", "/proxy/v1/messages"),
    ],
)
async def test_base_urls(kind: str, url: str, path: str) -> None:
    seen: list[str] = []

    async def handle(exchange: Exchange) -> None:
        seen.append(exchange.path)
        await exchange.send_json(401, {})

    async with HttpServer(handle) as http:
        provider = make(ProviderConfig(kind, kind, url=f"http://127.0.0.1:{http.port}{url}", key=KEY, **PATIENCE))
        with pytest.raises(Unauthorized):
            await collect(provider, Lab(kind, "").asking())
        await provider.aclose()
    assert seen == [path]


async def answering(*parts: bytes, hold: bool = False) -> Any:
    """Return the answer of a server that says `parts` as events, and what is left of time when it came."""

    async def handle(exchange: Exchange) -> None:
        exchange.head(200, SSE)
        for part in parts:
            await exchange.chunk(part)
        if hold:
            await asyncio.Event().wait()
        await exchange.end()

    async with HttpServer(handle) as http:
        provider = make(ProviderConfig("custom", "custom", url=f"http://127.0.0.1:{http.port}", **PATIENCE))
        try:
            return await collect(provider, Lab("custom", "").asking())
        finally:
            await provider.aclose()


def chunk(text: str, reason: str | None = None, **more: Any) -> bytes:
    return event({"choices": [{"delta": {"content": text}, "finish_reason": reason}], **more})


async def test_the_end_of_the_answer_does_not_wait_for_the_end_of_the_stream() -> None:
    started = time.monotonic()
    text, _, finish = await answering(chunk("hi", "stop"), event(b"[DONE]"), hold=True)
    assert (text, finish.reason) == ("hi", "stop")
    assert time.monotonic() - started < 0.5


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([chunk("hi"), event(b"[DONE]")], "without a reason to stop"),
        ([chunk("hi", "content_filter")], "content filter"),
        ([chunk("hi", "stop"), b'{"error":"late"}\n'], "late"),
        ([chunk("hi", "stop"), event("nonsense")], "not a JSON object"),
        ([chunk("hi")], "without saying that it is complete"),
        ([chunk("hi"), b'error: {"code":500,"message":"decode failed"}\n\n'], "decode failed"),
        ([chunk("hi"), b'error: {"code":500,"message":"decode failed"}\n\n', event(b"[DONE]")], "decode failed"),
        ([chunk("hi"), b'event: error\ndata: {"message":"boom"}\n\n'], "failed: boom"),
        ([chunk("hi"), event({"error": "quota exceeded"}), event(b"[DONE]")], "quota exceeded"),
    ],
)
async def test_streams_that_only_seem_to_end(parts: list[bytes], words: str) -> None:
    with pytest.raises(ProviderError, match=words) as caught:
        await answering(*parts)
    assert type(caught.value) is ProviderError


async def test_a_reason_and_the_end_of_the_stream_are_an_end() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    text, _, finish = await answering(chunk("hi"), chunk("", "length"), event({"choices": [], "usage": usage}))
    assert (text, finish.reason, finish.usage.total_tokens) == ("hi", "length", 10)


async def test_a_reason_and_a_connection_that_breaks_are_none() -> None:
    async def handle(exchange: Exchange) -> None:
        exchange.head(200, SSE)
        await exchange.chunk(chunk("hi", "stop"))
        exchange.close()

    async with HttpServer(handle) as http:
        provider = make(ProviderConfig("custom", "custom", url=f"http://127.0.0.1:{http.port}", **PATIENCE))
        with pytest.raises(ProviderError, match="broke"):
            await collect(provider, Lab("custom", "").asking())
        await provider.aclose()


async def test_comments_keep_nobody_waiting_and_say_nothing() -> None:
    text, _, _ = await answering(b": PROCESSING\n\n", b": PROCESSING\n\n", chunk("hi", "stop"), event(b"[DONE]"))
    assert text == "hi"


async def test_a_list_of_models_that_is_missing_is_no_missing_model(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(exchange: Exchange) -> None:
        await exchange.send_json(200, {"object": "list", "data": []})

    async with HttpServer(handle) as http:
        provider = make(ProviderConfig("lmstudio", "lmstudio", url=f"http://127.0.0.1:{http.port}", **PATIENCE))
        with caplog.at_level(logging.DEBUG):
            state = await provider.probe("any")
        assert (state.reachable, state.model_found, state.error) == (True, None, None)
        await provider.aclose()


def _bodies(lab: Lab) -> list[dict[str, Any]]:
    return [record.body for record in lab.server.questions]


@pytest.mark.parametrize("kind", ["custom", "anthropic"])
async def test_a_server_without_a_list_of_models_is_none_the_worse(kind: str) -> None:
    async def handle(exchange: Exchange) -> None:
        await exchange.send(404, b"404 page not found", "text/plain")

    async with HttpServer(handle) as http:
        provider = make(ProviderConfig(kind, kind, url=f"http://127.0.0.1:{http.port}", key=KEY, **PATIENCE))
        assert await provider.probe("m") == ProviderState(reachable=True)
        assert await provider.capabilities("m") == frozenset()
        await provider.aclose()


@pytest.mark.parametrize("kind", ["custom", "anthropic"])
async def test_names_that_clients_make_up_are_not_kept_for_ever(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_MODELS", 3)

    async def handle(exchange: Exchange) -> None:
        await exchange.send(404, b"404 page not found", "text/plain")

    async with HttpServer(handle) as http:
        provider = make(ProviderConfig(kind, kind, url=f"http://127.0.0.1:{http.port}", key=KEY, **PATIENCE))
        assert isinstance(provider, Remote)
        for name in "abacdb":
            assert await provider.capabilities(name) == frozenset()
        assert list(provider._capabilities) == ["b", "c", "d"]
        await provider.aclose()


def test_what_models_refused_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_MODELS", 3)
    refusals = Refusals({"temperature": "temperature", "top_p": "top_p"})
    for name, field in (("a", "top_p"), ("b", "top_p"), ("c", "top_p"), ("a", "temperature"), ("d", "top_p")):
        assert refusals.learn(name, {field: 1}, ProviderError(f"{field} is not supported"))
    assert list(refusals._left_out) == ["c", "a", "d"]
    assert refusals._left_out["a"] == {"top_p", "temperature"}


async def test_user_and_password_of_the_address_go_to_a_server_that_speaks_as_anthropic() -> None:
    seen: list[dict[str, str]] = []

    async def handle(exchange: Exchange) -> None:
        seen.append({name.lower(): value for name, value in exchange.headers.items()})
        await exchange.send_json(401, {"error": {"message": "bad credentials YW5uOnB3 given"}})

    async with HttpServer(handle) as http:
        config = ProviderConfig("anthropic", "anthropic", url=f"http://ann:pw@127.0.0.1:{http.port}", **PATIENCE)
        provider = make(config)
        with pytest.raises(Unauthorized) as caught:
            await collect(provider, Lab("anthropic", "").asking())
        await provider.aclose()
    assert seen[0]["authorization"] == "Basic YW5uOnB3"
    assert "x-api-key" not in seen[0]
    assert "YW5uOnB3" not in str(caught.value)


async def test_one_client_serves_several_event_loops() -> None:
    async with fake_lab("ollama", None) as lab:
        client = create_provider("ollama", url=lab.url, model="chatty", total_timeout_s=5, max_retries=0)

        async def ask() -> str:
            try:
                return await client.generate("Hello")
            finally:
                await client.aclose()  # what is left open at the end of a loop warns when it is collected

        for _ in range(6):  # more often than there are connections
            assert await asyncio.to_thread(asyncio.run, ask()) == "You said: Hello"


async def test_a_call_of_the_library_ends_in_time_with_all_its_tries() -> None:
    async def handle(exchange: Exchange) -> None:
        await exchange.send(429, b"slowly", "text/plain", {"Retry-After": "20"})

    async with HttpServer(handle) as http:
        client = create_provider("custom", url=f"http://127.0.0.1:{http.port}", model="m", timeout=0.3)
        for call in (client.generate("Hello"), client.embed("Hello")):
            with pytest.raises(ProviderTimeout, match=r"within 0\.3 s"):
                await asyncio.wait_for(call, 5)
        await client.aclose()


async def test_the_cloud_is_asked_for_a_format_in_words() -> None:
    async with fake_lab("ollama-cloud") as lab, lab.provider() as provider:
        await collect(provider, lab.asking(format={"type": "object"}))
    (record,) = lab.server.questions
    assert "format" not in record.body
    assert "one JSON value" in record.body["messages"][0]["content"]
