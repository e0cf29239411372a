"""What a model server or the way to it does wrong -> the errors of the contract. The only place that translates.

Sources: Ollama's words as measured against 0.33 (llama-server's JSON comes nested as a string inside "error"), the tree
of httpx's exceptions; RFC 9110 section 10.2.3 (Retry-After).
"""

import json
import os
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from piagent_daemon.errors import (
    ContextOverflow,
    ModelNotFound,
    PiagentError,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    Unauthorized,
)

EXCERPT = 200
"""Characters of a foreign text that a message repeats."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What a server said. `status` is None for an error line inside a stream; `started`: text was already given on."""

    status: int | None
    words: str
    model: str = ""
    started: bool = False
    prompt_tokens: int | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Applies when the status is one of `statuses` (empty: any) and `words` is found in what the server said."""

    statuses: tuple[int | None, ...]
    words: re.Pattern[str] | None
    make: Callable[[Fault], PiagentError]

    def fits(self, fault: Fault) -> bool:
        return (not self.statuses or fault.status in self.statuses) and (
            self.words is None or self.words.search(fault.words) is not None
        )


def _overflow(fault: Fault) -> PiagentError:
    return ContextOverflow(f"the prompt does not fit the model's context: {fault.words}", fault.prompt_tokens)


def model_not_found(model: str) -> ModelNotFound:
    """Return the error for a model that the server lacks."""
    return ModelNotFound(f"the model server does not have the model {model!r}: run `ollama pull {model}`")


def _not_found(fault: Fault) -> PiagentError:
    return model_not_found(fault.model)


def _not_published(fault: Fault) -> PiagentError:
    return ModelNotFound(f"there is no model {fault.model!r} to pull: {fault.words}")


def _no_key(fault: Fault) -> PiagentError:
    said = f" ({fault.words})" if fault.words else ""
    return Unauthorized(f"the model server refused the key{said}: check OLLAMA_API_KEY")


def _foreign(_: Fault) -> PiagentError:
    return Unauthorized(
        "the model server refused this host without a word (403): let OLLAMA_HOST here name it by its IP address or by "
        "localhost, or set OLLAMA_HOST=0.0.0.0 and OLLAMA_ORIGINS on the server"
    )


def _busy(fault: Fault) -> PiagentError:
    words = fault.words or f"status {fault.status}"
    return ProviderUnavailable(f"the model server is overloaded: {words}", retry_after_s=fault.retry_after_s)


def _died(fault: Fault) -> PiagentError:
    message = f"the model server's runner failed: {fault.words}"
    return ProviderError(message) if fault.started else ProviderUnavailable(message)


def _redirect(fault: Fault) -> PiagentError:
    return ProviderError(f"the model server answered with a redirect ({fault.status}): let OLLAMA_HOST name its end")


def _other(fault: Fault) -> PiagentError:
    status = "" if fault.status is None else f" with status {fault.status}"
    return ProviderError(f"the model server failed{status}: {fault.words or 'without a word'}")


def _rule(make: Callable[[Fault], PiagentError], words: str = "", *statuses: int | None) -> Rule:
    return Rule(statuses, re.compile(words, re.IGNORECASE) if words else None, make)


RULES: tuple[Rule, ...] = (
    _rule(
        _overflow,
        "exceed_context_size|exceeds the available context size|prompt is longer than the context"
        "|input length exceeds the context",
        *(400, 413, 500, None),
    ),
    _rule(_not_published, "pull model manifest.*(does not exist|not found|status: 404)", 500, None),
    _rule(_not_found, "model.*(not found|does not exist)", 404, 400, None),
    _rule(_foreign, r"^$", 403),
    _rule(_no_key, "", 401, 403),
    _rule(_no_key, "^unauthorized", None),
    _rule(_busy, "", 429, 503),
    _rule(_busy, "server busy|maximum pending requests|too many (concurrent )?requests", None),
    _rule(
        _died,
        "error was encountered while running the model|process has terminated|runner has unexpectedly stopped"
        "|runner process no longer running|timed out waiting for .*(runner|server)",
        *(500, None),
    ),
    _rule(_redirect, "", 301, 302, 303, 307, 308),
    _rule(_other),
)
"""The first that fits decides; the last fits everything."""


def from_status(
    status: int, headers: httpx.Headers, body: bytes, *, model: str = "", secrets: Sequence[str] = ()
) -> PiagentError:
    """Translate a whole answer whose status is not 200."""
    words, tokens = _unwrap(body.decode(errors="replace"))
    return _translate(
        Fault(
            status,
            excerpt(words, secrets),
            model,
            prompt_tokens=tokens,
            retry_after_s=retry_after(headers.get("retry-after", ""), datetime.now(UTC)),
        )
    )


def from_line(error: Any, *, model: str = "", started: bool = False, secrets: Sequence[str] = ()) -> PiagentError:
    """Translate the value of "error" in a line of a stream."""
    words, tokens = _unwrap(error if isinstance(error, str) else json.dumps({"error": error}))
    return _translate(Fault(None, excerpt(words, secrets), model, started, tokens))


def _translate(fault: Fault) -> PiagentError:
    return next(rule.make(fault) for rule in RULES if rule.fits(fault))


def _unwrap(text: str) -> tuple[str, int | None]:
    """Return the innermost words of an error, however deep the JSON inside JSON, and the prompt's tokens in it."""
    tokens = None
    for _ in range(8):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text, tokens
        if not isinstance(value, dict):
            return text, tokens
        inner = value.get("error", value)
        if isinstance(inner, dict):
            count = inner.get("n_prompt_tokens")
            tokens = count if type(count) is int else tokens
            kind = inner.get("type")
            inner = inner.get("message", inner)
            if kind == "exceed_context_size_error" and isinstance(inner, str) and "context" not in inner:
                inner = f"{inner} ({kind})"
        if not isinstance(inner, str):
            return json.dumps(inner), tokens
        text = inner
    return text, tokens


def excerpt(text: str, secrets: Sequence[str] = ()) -> str:
    """Return `text` on one line, printable, at most EXCERPT characters, with `secrets` masked."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = " ".join("".join(char if char.isprintable() else " " for char in text[: 20 * EXCERPT]).split())
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def retry_after(value: str, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks for, as a number or a date; None when it says nothing."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    if not value:
        return None
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - rare

    try:
        when = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds())


# ------------------------------------------------------------------------------------------------- httpx's exceptions

TRANSPORT: dict[type[Exception], tuple[type[ProviderError], str]] = {
    httpx.HTTPError: (ProviderError, "the exchange with the model server failed"),
    httpx.RequestError: (ProviderError, "the request to the model server failed"),
    httpx.TransportError: (ProviderError, "the exchange with the model server failed"),
    httpx.TimeoutException: (ProviderTimeout, "the model server is silent"),
    httpx.ConnectTimeout: (ProviderUnavailable, "no connection to the model server in time"),
    httpx.ReadTimeout: (ProviderTimeout, "the model server is silent"),
    httpx.WriteTimeout: (ProviderTimeout, "the model server does not take the request"),
    httpx.PoolTimeout: (ProviderUnavailable, "all connections to the model server are in use"),
    httpx.NetworkError: (ProviderUnavailable, "the network to the model server failed"),
    httpx.ConnectError: (ProviderUnavailable, "cannot connect to the model server"),
    httpx.ReadError: (ProviderUnavailable, "the connection to the model server broke"),
    httpx.WriteError: (ProviderUnavailable, "the connection to the model server broke"),
    httpx.CloseError: (ProviderUnavailable, "the connection to the model server broke"),
    httpx.ProtocolError: (ProviderError, "the model server does not speak HTTP properly"),
    httpx.LocalProtocolError: (ProviderError, "the request breaks the rules of HTTP"),
    httpx.RemoteProtocolError: (ProviderError, "the model server does not speak HTTP properly"),
    httpx.ProxyError: (ProviderError, "the proxy failed"),
    httpx.UnsupportedProtocol: (ProviderError, "the model server's address has an unknown scheme"),
    httpx.DecodingError: (ProviderError, "the model server's answer cannot be decoded"),
    httpx.TooManyRedirects: (ProviderError, "the model server redirects without end"),
    httpx.HTTPStatusError: (ProviderError, "the model server failed"),
    httpx.InvalidURL: (ProviderError, "the model server's address is not valid"),
    httpx.CookieConflict: (ProviderError, "the model server's cookies conflict"),
    httpx.StreamError: (ProviderError, "the model server's answer was read twice"),
    httpx.StreamConsumed: (ProviderError, "the model server's answer was read twice"),
    httpx.StreamClosed: (ProviderError, "the model server's answer was closed"),
    httpx.ResponseNotRead: (ProviderError, "the model server's answer was not read"),
    httpx.RequestNotRead: (ProviderError, "the request was not read"),
}
"""Each of httpx's exception classes, by exact type: what it becomes before the first text, and in which words."""

FOREIGN = (httpx.HTTPError, httpx.InvalidURL, httpx.CookieConflict, httpx.StreamError)
"""What an exchange over httpx may raise."""

_GONE = re.compile("disconnected|peer closed|incomplete", re.IGNORECASE)


def from_exception(
    error: Exception, *, server: str = "", started: bool = False, secrets: Sequence[str] = ()
) -> ProviderError:
    """Translate what httpx raised. After the first text a try again is no cure: then it is a plain ProviderError."""
    kind, words = TRANSPORT.get(type(error), TRANSPORT[httpx.HTTPError])
    reason = excerpt(_reason(error), secrets)
    if isinstance(error, httpx.RemoteProtocolError) and _GONE.search(str(error)):
        kind, words = ProviderUnavailable, "the model server broke the connection off"
    if started and kind is ProviderUnavailable:
        kind, words = ProviderError, "the model server broke the answer off"
    hint = ". Is it running, and is OLLAMA_HOST right?" if isinstance(error, httpx.ConnectError) else ""
    return kind(f"{words}{f' at {server}' if server else ''}{f': {reason}' if reason else ''}{hint}")


def _reason(error: BaseException) -> str:
    """Return the words of the innermost cause: httpx itself only says "All connection attempts failed"."""
    cause: BaseException = error
    for _ in range(16):
        inner = cause.__cause__ or cause.__context__
        if isinstance(cause, BaseExceptionGroup):
            inner = cause.exceptions[0]
        if inner is None:
            break
        cause = inner
    if isinstance(cause, OSError) and cause.errno is not None:
        named = isinstance(cause, (ssl.SSLError, socket.gaierror))
        return (cause.strerror or str(cause)) if named else os.strerror(cause.errno)
    return str(error)
