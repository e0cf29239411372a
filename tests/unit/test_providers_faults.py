"""What servers and httpx say becomes the errors of the contract."""

import json
import socket
import ssl
from datetime import UTC, datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon.errors import (
    ContextOverflow,
    ModelNotFound,
    PiagentError,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    RateLimited,
    RequestRefused,
    Unauthorized,
)
from piagent_daemon.providers import faults

NO_NAME = "lookup registry.ollama.ai: Temporary failure in name resolution"
DIED = "an error was encountered while running the model: unexpected EOF"
OVERFLOW = json.dumps(
    {
        "error": {
            "code": 400,
            "message": "request (1425 tokens) exceeds the available context size (512 tokens), try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 1425,
            "n_ctx": 512,
        }
    }
)
TOO_LONG = "the prompt is longer than the context length currently available to the model; shorten the prompt, ..."
NO_VISION = json.dumps({"error": {"code": 400, "message": "Multimodal data provided, but model does not support it"}})


def status(code: int, error: object = None, body: bytes = b"", retry_after: str = "") -> PiagentError:
    raw = body if error is None else json.dumps({"error": error}).encode()
    return faults.from_status(code, httpx.Headers({"Retry-After": retry_after}), raw, model="tiny", secrets=["s3cret"])


@pytest.mark.parametrize(
    ("code", "error", "kind", "words"),
    [
        (404, "model 'tiny' not found", ModelNotFound, "ollama pull tiny"),
        (404, 'model "tiny" not found, try pulling it first', ModelNotFound, "ollama pull tiny"),
        (404, "model 'tiny:latest' not found", ModelNotFound, "ollama pull tiny"),
        (401, "unauthorized", Unauthorized, "OLLAMA_API_KEY"),
        (403, "forbidden", Unauthorized, "OLLAMA_API_KEY"),
        (429, "you have reached your limit", RateLimited, "your limit"),
        (503, "server busy, please try again.  maximum pending requests exceeded", ProviderUnavailable, "overloaded"),
        (400, OVERFLOW, ContextOverflow, "1425 tokens"),
        (400, json.loads(OVERFLOW)["error"], ContextOverflow, "1425 tokens"),
        (400, TOO_LONG, ContextOverflow, "longer than the context"),
        (400, "the input length exceeds the context length", ContextOverflow, "input length"),
        (400, NO_VISION, RequestRefused, "failed with status 400: Multimodal data"),
        (400, '"tiny" does not support thinking', RequestRefused, "does not support thinking"),
        (400, "unexpected EOF", RequestRefused, "status 400: unexpected EOF"),
        (500, 'option "temperature" must be of type float32', RequestRefused, "temperature"),
        (500, DIED, ProviderUnavailable, "runner failed"),
        (500, "llama-server process has terminated: signal: killed", ProviderUnavailable, "signal: killed"),
        (500, "model runner has unexpectedly stopped, this may be due to", ProviderUnavailable, "unexpectedly"),
        (500, "model requires more system memory (5.6 GiB) than is available (3.1 GiB)", ProviderError, "5.6 GiB"),
        (
            500,
            f"pull model manifest: dial tcp: {NO_NAME}",
            ProviderUnavailable,
            "cannot reach what it",
        ),
        (500, "max retries exceeded: Get …: net/http: TLS handshake timeout", ProviderUnavailable, "handshake timeout"),
        (500, "pull model manifest: file does not exist", ModelNotFound, "no model 'tiny' to pull"),
        (501, "This server does not support embeddings. Start it with `--embeddings`", ProviderError, "501"),
        (400, {"error": {"message": "Invalid API Key", "code": 401}}, RequestRefused, "Invalid API Key"),
    ],
)
def test_statuses(code: int, error: object, kind: type[PiagentError], words: str) -> None:
    found = status(code, error)
    assert type(found) is kind
    assert words in str(found)


def test_bodies_that_are_not_ollamas() -> None:
    page = status(502, body=b"<html>\n<h1>502 Bad\x00 Gateway</h1>" + b"x" * 1000)
    assert type(page) is ProviderError
    assert "status 502: <html> <h1>502 Bad Gateway</h1>" in str(page)
    assert len(str(page)) < 260
    assert type(status(404, body=b"404 page not found")) is ProviderError
    assert type(status(307)) is ProviderError
    assert "redirect (307)" in str(status(307))
    silent = status(403)
    assert type(silent) is Unauthorized
    assert "OLLAMA_ORIGINS" in str(silent)
    assert "without a word" in str(status(418))


def test_numbers_come_along() -> None:
    for found in (status(400, OVERFLOW), faults.from_line(OVERFLOW)):
        assert isinstance(found, ContextOverflow)
        assert found.prompt_tokens == 1425
    busy = status(503, "server busy", retry_after="7")
    assert isinstance(busy, ProviderUnavailable)
    assert busy.retry_after_s == 7.0
    assert isinstance(status(400, TOO_LONG), ContextOverflow)


def test_error_lines() -> None:
    assert type(faults.from_line(DIED)) is ProviderUnavailable
    assert type(faults.from_line(DIED, started=True)) is ProviderError
    assert type(faults.from_line("unauthorized")) is Unauthorized
    assert type(faults.from_line("server busy, please try again.")) is ProviderUnavailable
    assert type(faults.from_line({"message": "odd"})) is ProviderError
    found = faults.from_line("model 'x' not found", model="x")
    assert type(found) is ModelNotFound
    found = faults.from_line("pull model manifest: file does not exist", model="x")
    assert type(found) is ModelNotFound
    assert "no model 'x' to pull" in str(found)


def test_secrets_are_masked() -> None:
    assert "s3cret" not in str(status(400, "bad header: Bearer s3cret"))


@given(st.integers(300, 599), st.binary(max_size=300))
def test_any_body_is_some_error_of_ours(code: int, body: bytes) -> None:
    found = status(code, body=body)
    assert isinstance(found, ProviderError | ContextOverflow)
    assert str(found).isprintable()
    assert len(str(found)) < 400


@given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.dictionaries(st.text(), inner)))
def test_any_error_value_is_some_error_of_ours(value: object) -> None:
    assert isinstance(faults.from_line(value), ProviderError | ContextOverflow)


NOW = datetime(2026, 11, 21, 8, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", None),
        ("0", 0.0),
        ("30", 30.0),
        ("Sat, 21 Nov 2026 08:00:30 GMT", 30.0),
        ("Sat, 21 Nov 2026 07:00:00 GMT", 0.0),
        ("Sat, 21 Nov 2026 08:00:30", 30.0),
        ("soon", None),
        ("-1", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert faults.retry_after(value, NOW) == seconds


@given(st.text())
def test_retry_after_takes_anything(value: str) -> None:
    found = faults.retry_after(value, NOW)
    assert found is None or found >= 0


def test_the_table_has_every_exception_of_httpx() -> None:
    known = {item for item in vars(httpx).values() if isinstance(item, type) and issubclass(item, Exception)}
    assert known == set(faults.TRANSPORT)
    assert all(issubclass(item, faults.FOREIGN) for item in known)


def caused_by(outer: Exception, inner: BaseException) -> Exception:
    outer.__cause__ = OSError("All connection attempts failed")
    outer.__cause__.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (ExceptionGroup("several", [OSError(113, "x"), OSError(111, "y")]), "No route to host"),
        (ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed"), "self-signed"),
    ],
)
def test_the_true_cause_is_named(cause: BaseException, words: str) -> None:
    found = faults.from_exception(caused_by(httpx.ConnectError("failed"), cause), server="http://box:11434")
    assert type(found) is ProviderUnavailable
    assert words in str(found)
    assert "http://box:11434" in str(found)
    assert "OLLAMA_HOST" in str(found)


def test_what_a_new_try_cures_depends_on_what_was_said() -> None:
    gone = httpx.RemoteProtocolError("peer closed connection without sending complete message body")
    assert type(faults.from_exception(gone)) is ProviderUnavailable
    assert type(faults.from_exception(gone, started=True)) is ProviderError
    assert type(faults.from_exception(httpx.RemoteProtocolError("illegal status line"))) is ProviderError
    assert type(faults.from_exception(httpx.ReadError("reset"), started=True)) is ProviderError
    assert type(faults.from_exception(httpx.ReadTimeout("slow"), started=True)) is ProviderTimeout


def test_a_long_name_or_a_secret_that_is_a_common_word_hides_nothing_from_the_rules() -> None:
    long = f"model '{'x' * 300}' not found, try pulling it first"
    assert type(status(404, long)) is ModelNotFound
    body = json.dumps({"error": "model 'tiny' not found"}).encode()
    found = faults.from_status(404, httpx.Headers(), body, model="tiny", secrets=["model"])
    assert type(found) is ModelNotFound
