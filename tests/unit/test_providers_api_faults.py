"""What servers that speak like OpenAI or Anthropic say becomes the errors of the contract."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon.errors import (
    ContextOverflow,
    ModelNotFound,
    PiagentError,
    ProviderError,
    ProviderUnavailable,
    RateLimited,
    RequestRefused,
    Unauthorized,
)
from piagent_daemon.providers import faults
from piagent_daemon.providers.api_rules import API_RULES, NoSuchPath
from piagent_daemon.providers.fault_rules import Site

SITE = Site(API_RULES, "THE_URL", "THE_KEY", "look for {model} elsewhere", "Is it there?")
OPENAI_LONG = {
    "message": "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
    "type": "invalid_request_error",
    "param": "messages",
    "code": "context_length_exceeded",
}
LLAMA_LONG = {
    "code": 400,
    "message": "the request exceeds the available context size, try increasing it",
    "type": "exceed_context_size_error",
    "n_prompt_tokens": 1425,
    "n_ctx": 512,
}
LM_LONG = (
    "Trying to keep the first 4650 tokens when context the overflows. However, the model is loaded with context length "
    "of only 4096 tokens, which is not enough."
)
VLLM_LONG = (
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4488 in the messages, 512 "
    "in the completion). Please reduce the length of the messages or completion."
)
GONE = {"message": "The model `x` does not exist or you do not have access to it.", "code": "model_not_found"}


def status(code: int, error: Any, **headers: str) -> PiagentError:
    body = json.dumps(error if isinstance(error, dict) and "error" in error else {"error": error}).encode()
    return faults.from_status(code, httpx.Headers(headers), body, model="x", secrets=["s3cret"], site=SITE)


def typed(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


@pytest.mark.parametrize(
    ("code", "error", "kind", "words"),
    [
        (401, {"message": "Incorrect API key provided: s3cret."}, Unauthorized, r"provided: \*\*\*\.\): check THE_KEY"),
        (401, {"message": "Invalid API Key", "type": "authentication_error", "code": 401}, Unauthorized, "THE_KEY"),
        (403, typed("permission_error", "not your organisation"), Unauthorized, "not your"),
        (404, GONE, ModelNotFound, "look for x elsewhere"),
        (404, typed("not_found_error", "model: x"), ModelNotFound, "look for x elsewhere"),
        (404, {"message": "model 'x' not found", "type": "not_found_error"}, ModelNotFound, "'x'"),
        (
            400,
            {"message": "The requested model 'x' is not supported by any provider you have enabled."},
            ModelNotFound,
            "x",
        ),
        (400, {"message": "no", "code": "model_not_supported"}, ModelNotFound, "x"),
        (404, "Not Found", NoSuchPath, "is THE_URL right"),
        (405, "Method Not Allowed", NoSuchPath, "is THE_URL right"),
        (402, "You have exceeded your monthly included credits", RateLimited, "to be paid"),
        (429, {"message": "You exceeded your quota", "code": "insufficient_quota"}, RateLimited, "to be paid"),
        (400, typed("invalid_request_error", "Your credit balance is too low"), RateLimited, "to be paid"),
        (429, {"message": "Rate limit reached"}, RateLimited, "overloaded: Rate limit"),
        (529, typed("overloaded_error", "Overloaded"), ProviderUnavailable, "overloaded: Overloaded"),
        (
            503,
            {"message": "Loading model", "type": "unavailable_error", "code": 503},
            ProviderUnavailable,
            "still loads",
        ),
        (500, {"message": "The server had an error"}, ProviderUnavailable, "status 500: The server"),
        (502, "Bad Gateway", ProviderUnavailable, "status 502"),
        (524, "timeout", ProviderUnavailable, "status 524"),
        (501, "no embeddings here", ProviderError, "status 501"),
        (400, {"message": "Unsupported parameter: 'temperature'"}, RequestRefused, "status 400: Unsupported"),
        (422, "bad schema", RequestRefused, "status 422"),
        (307, "", ProviderError, "let THE_URL name its end"),
    ],
)
def test_statuses(code: int, error: Any, kind: type[PiagentError], words: str) -> None:
    found = status(code, error)
    assert type(found) is kind
    with pytest.raises(kind, match=words):
        raise found


@pytest.mark.parametrize(
    ("code", "error", "tokens"),
    [
        (400, OPENAI_LONG, 9000),
        (400, LLAMA_LONG, 1425),
        (400, LM_LONG, 4650),
        (400, typed("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"), 210000),
        (400, typed("invalid_request_error", "input length and `max_tokens` exceed context limit: 1 + 2 > 2"), None),
        (400, VLLM_LONG, 4488),
        (422, "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens and 100", 5000),
        (500, "Context size has been exceeded.", None),
        (500, "input is too large to process. increase the physical batch size", None),
    ],
)
def test_what_does_not_fit(code: int, error: Any, tokens: int | None) -> None:
    found = status(code, error)
    assert type(found) is ContextOverflow
    assert found.prompt_tokens == tokens


def test_a_busy_server_tells_when_to_come_again() -> None:
    found = status(429, {"message": "slow down"}, **{"Retry-After": "20"})
    assert isinstance(found, ProviderUnavailable)
    assert found.retry_after_s == 20.0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"type": "overloaded_error", "message": "Overloaded"}, ProviderUnavailable),
        ({"type": "rate_limit_error", "message": "x"}, ProviderUnavailable),
        ({"type": "api_error", "message": "x"}, ProviderUnavailable),
        ({"message": "Compute error."}, ProviderUnavailable),
        ("The model has crashed", ProviderUnavailable),
        ({"type": "invalid_request_error", "message": "x"}, ProviderError),
        ({"type": "authentication_error", "message": "x"}, Unauthorized),
        ({"code": 401, "message": "x"}, Unauthorized),
        ({"code": 502, "message": "Provider returned error"}, ProviderUnavailable),
        (OPENAI_LONG, ContextOverflow),
        (LLAMA_LONG, ContextOverflow),
        (LM_LONG, ContextOverflow),
        (GONE, ModelNotFound),
    ],
)
def test_errors_inside_a_stream(error: Any, kind: type[PiagentError]) -> None:
    assert type(faults.from_line(error, model="x", site=SITE)) is kind
    started = faults.from_line(error, model="x", site=SITE, started=True)
    assert type(started) is (ProviderError if kind is ProviderUnavailable else kind)


def test_the_address_is_what_cannot_be_reached() -> None:
    found = faults.from_exception(httpx.ConnectError("failed"), server="http://box:1", site=SITE)
    assert str(found) == "cannot connect to the model server at http://box:1: failed. Is it there?"


@given(st.integers(300, 599), st.binary(max_size=300))
def test_any_body_is_some_error_of_ours(code: int, body: bytes) -> None:
    found = faults.from_status(code, httpx.Headers(), body, model="x", site=SITE)
    assert isinstance(found, ProviderError | ContextOverflow)
    assert str(found).isprintable()
    assert len(str(found)) < 400


KEYS = st.sampled_from(["error", "message", "type", "code", "n_prompt_tokens", "x"])


@given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.dictionaries(KEYS, inner), max_leaves=5))
def test_any_error_value_is_some_error_of_ours(value: object) -> None:
    assert isinstance(faults.from_line(value, site=SITE), ProviderError | ContextOverflow)
