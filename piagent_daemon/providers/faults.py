"""What a model server or the way to it does wrong -> the errors of the contract. The only place that translates.

What servers say is judged by the tables in `fault_rules`. Sources: the tree of httpx's exceptions; RFC 9110 section
10.2.3 (Retry-After).
"""

import json
import os
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from piagent_daemon.errors import PiagentError, ProviderError, ProviderTimeout, ProviderUnavailable
from piagent_daemon.providers.fault_rules import OLLAMA, Fault, Site

EXCERPT = 200
"""Characters of a foreign text that a message repeats."""


def from_status(
    status: int,
    headers: httpx.Headers,
    body: bytes,
    *,
    model: str = "",
    secrets: Sequence[str] = (),
    site: Site = OLLAMA,
) -> PiagentError:
    """Translate a whole answer whose status is not 200."""
    said = _unwrap(body.decode(errors="replace"))
    wait_s = retry_after(headers.get("retry-after", ""), datetime.now(UTC))
    return _translate(
        Fault(
            status,
            excerpt(said.words, secrets),
            site,
            model,
            prompt_tokens=said.prompt_tokens,
            retry_after_s=wait_s,
            kind=said.kind,
            said=_flat(said.words),
        )
    )


def from_line(
    error: Any, *, model: str = "", started: bool = False, secrets: Sequence[str] = (), site: Site = OLLAMA
) -> PiagentError:
    """Translate the value of "error" in a line of a stream."""
    said = _unwrap(error if isinstance(error, str) else json.dumps({"error": error}))
    words = excerpt(said.words, secrets)
    return _translate(
        Fault(said.status, words, site, model, started, said.prompt_tokens, kind=said.kind, said=_flat(said.words))
    )


def _translate(fault: Fault) -> PiagentError:
    return next(rule.make(fault) for rule in fault.site.rules if rule.fits(fault))


@dataclass(slots=True)
class _Said:
    words: str
    prompt_tokens: int | None = None
    kind: str = ""
    status: int | None = None


def _unwrap(text: str) -> _Said:
    """Return the innermost words of an error, however deep the JSON inside JSON, and what machines read beside them."""
    said = _Said(text)
    for _ in range(8):
        try:
            value = json.loads(said.words)
        except (ValueError, RecursionError):
            break
        if not isinstance(value, dict):
            break
        inner = value.get("error", value)
        if isinstance(inner, dict):
            inner = _details(inner, said)
        if not isinstance(inner, str):
            said.words = json.dumps(inner)
            break
        said.words = inner
    return said


def _details(error: dict[str, Any], said: _Said) -> Any:
    """Note type, code and token count of an error object; return its message."""
    count, code = error.get("n_prompt_tokens"), error.get("code")
    if type(count) is int:
        said.prompt_tokens = count
    if type(code) is int and 400 <= code < 600:
        said.status = code
    said.kind = " ".join(word[:64] for word in (error.get("type"), code) if isinstance(word, str)) or said.kind
    return error.get("message", error)


def excerpt(text: str, secrets: Sequence[str] = ()) -> str:
    """Return `text` on one line, printable, at most EXCERPT characters, with `secrets` masked."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = _flat(text)
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def _flat(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text[: 20 * EXCERPT]).split())


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
    error: Exception, *, server: str = "", started: bool = False, secrets: Sequence[str] = (), site: Site = OLLAMA
) -> ProviderError:
    """Translate what httpx raised. After the first text a try again is no cure: then it is a plain ProviderError."""
    kind, words = TRANSPORT.get(type(error), TRANSPORT[httpx.HTTPError])
    reason = excerpt(_reason(error), secrets)
    if isinstance(error, httpx.RemoteProtocolError) and _GONE.search(str(error)):
        kind, words = ProviderUnavailable, "the model server broke the connection off"
    if started and kind is ProviderUnavailable:
        kind, words = ProviderError, "the model server broke the answer off"
    hint = f". {site.unreached}" if isinstance(error, httpx.ConnectError) else ""
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
