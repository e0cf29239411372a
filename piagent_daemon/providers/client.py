"""HTTP as the providers want it: whole lines under deadlines, bounded bodies, only our errors. httpx stays in here."""

import asyncio
import base64
import json
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from typing import Any

import httpx

from piagent_daemon import tls
from piagent_daemon.errors import ProviderError, ProviderTimeout
from piagent_daemon.providers import faults
from piagent_daemon.providers.address import Address
from piagent_daemon.providers.config import ProviderConfig
from piagent_daemon.providers.connections import Connection, Connections
from piagent_daemon.providers.deadlines import Deadlines
from piagent_daemon.providers.fault_rules import OLLAMA, Site
from piagent_daemon.providers.ndjson import NdjsonReader, without_surrogates

log = logging.getLogger("piagent.providers")

CALL_TIMEOUT_S = 10.0
HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "Content-Type": "application/json", "User-Agent": "piagent"}
ERROR_BODY_BYTES = 8192
BODY_BYTES = 8 * 1_048_576
ERROR_BODY_TIMEOUT_S = 5.0
DRAIN_S = 1.0
DRAIN_BYTES = 65_536
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class LineStream:
    """A streamed answer being read. `started` tells that text was given on, `complete` that the server said its end."""

    def __init__(self, http: "Http", response: httpx.Response, deadlines: Deadlines, model: str) -> None:
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - our transports give no other
        # The stream itself, not aiter_raw: that only counts bytes, at a tenth of the cost of a token.
        self._parts = response.stream.__aiter__()
        self._response = response
        self._http = http
        self._deadlines = deadlines
        self._model = model
        self._reader = NdjsonReader()
        self.ended = False
        self.started = False
        self.complete = False

    async def read(self) -> list[dict[str, Any]]:
        """Return the objects that one read from the network completed; at the end of the stream sets `ended`."""
        if data := await self.receive():
            return self._reader.feed(data)
        self.ended = True
        return self._reader.close()

    async def receive(self) -> bytes:
        """Return what one read from the network brought, nothing at the end. Raises ProviderError."""
        try:
            return await self._deadlines.read(anext(self._parts))
        except StopAsyncIteration:
            return b""
        except faults.FOREIGN as error:
            raise self._http.broken(error, started=self.started) from error

    def check(self) -> None:
        """Raise what is wrong with the rest of what was read, if anything."""
        if self._reader.late:
            raise self._reader.late

    def failed(self, error: Any) -> Exception:
        """Return what the error line of this stream means."""
        http = self._http
        return faults.from_line(error, model=self._model, started=self.started, secrets=http.secrets, site=http.site)

    async def aclose(self) -> None:
        """Stop reading."""

    async def end(self) -> None:
        """Be done with the answer; a complete one is read to the end of its stream, so that another can follow."""
        try:
            if self.complete:
                await self._drain()
        finally:
            await self._response.aclose()

    async def _drain(self) -> None:
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                async for data in self._parts:
                    size += len(data)
                    if size > DRAIN_BYTES:
                        break


class Http:
    """One server and the connections to it. Every method raises only ProviderError and its kin, or ContextOverflow.

    httpx at the level of its transports: what a client adds there (redirects, cookies, proxies of the environment) is
    not wanted here, and costs each question a quarter of a millisecond.
    """

    def __init__(
        self, address: Address, config: ProviderConfig, *, site: Site = OLLAMA, headers: Mapping[str, str] | None = None
    ) -> None:
        """`headers` say who we are: by default the bearer key; without either, user and password of the address do."""
        self.server = address.url
        self.site = site
        given = {**_basic(address), **(_bearer(config) if headers is None else headers)}
        password = address.userinfo.partition(":")[2]
        secrets = (config.key, address.userinfo, password, *(value.partition(" ")[2] for value in given.values()))
        self.secrets: Sequence[str] = [secret for secret in secrets if secret]
        self._headers = httpx.Headers({**HEADERS, **_host(address), **given}).raw
        # Reads and writes are bounded by Deadlines, or by a timeout around a call.
        self._extensions = {"timeout": httpx.Timeout(None, connect=config.connect_timeout_s).as_dict()}
        self._connections = Connections(_certificates() if address.scheme == "https" else None, config.connections)

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        body: Mapping[str, Any],
        deadlines: Deadlines,
        *,
        model: str,
        kind: type[LineStream] = LineStream,
    ) -> AsyncGenerator[LineStream, None]:
        """Post `body` and hand out the answer as a `kind`; leaving closes the connection unless it was complete."""
        connection = self._connections.take()
        lines: LineStream | None = None
        try:
            response = await deadlines.read(self._send(connection, "POST", path, body))
            lines = kind(self, response, deadlines, model)
            try:
                await self._check(response, model)
                yield lines
            finally:
                await lines.aclose()
        except faults.FOREIGN as error:
            raise self.broken(error) from error
        finally:
            deadlines.close()
            left = self._connections.leave(connection, lines.end if lines else None)
            if not (lines and lines.complete):
                await left

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        model: str = "",
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> dict[str, Any]:
        """Return the JSON object that a short call answers with; an empty answer is an empty object."""
        connection, last = self._connections.take(), None
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._send(connection, method, path, body)
                last = response.aclose
                await self._check(response, model)
                raw = await _read(response, BODY_BYTES)
        except TimeoutError:
            raise ProviderTimeout(f"no answer from the model server at {self.server} within {timeout_s:g} s") from None
        except faults.FOREIGN as error:
            raise self.broken(error) from error
        finally:
            await self._connections.leave(connection, last)
        try:
            value = json.loads(raw) if raw.strip() else {}
            if b"\\u" in raw:
                value = without_surrogates(value)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            said = faults.excerpt(raw.decode(errors="replace"), self.secrets)
            raise ProviderError(f"the model server's answer to {path} is not a JSON object: {said}")
        return value

    def broken(self, error: Exception, *, started: bool = False) -> ProviderError:
        """Return what an exception of httpx means."""
        return faults.from_exception(error, server=self.server, started=started, secrets=self.secrets, site=self.site)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._connections.aclose()

    async def _send(
        self, connection: Connection, method: str, path: str, body: Mapping[str, Any] | None
    ) -> httpx.Response:
        """Send a request and return the answer when its head is there; its body is still to be read.

        `path` is below the server's address, or an address itself.
        """
        address = self.server + path if path.startswith("/") else path
        content = None if body is None else _encode(body).encode(errors="replace")
        request = httpx.Request(
            method, _url(address), headers=self._headers, content=content, extensions=self._extensions
        )
        return await connection.handle_async_request(request)

    async def _check(self, response: httpx.Response, model: str) -> None:
        """Raise for everything but a plain, uncompressed answer with status 200."""
        if response.status_code != 200:
            body = b""
            try:
                async with asyncio.timeout(ERROR_BODY_TIMEOUT_S):
                    body = await _read(response, ERROR_BODY_BYTES, strict=False)
            except (TimeoutError, *faults.FOREIGN) as error:
                log.debug("the body of an error could not be read: %r", error)
            raise faults.from_status(
                response.status_code, response.headers, body, model=model, secrets=self.secrets, site=self.site
            )
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            # A megabyte on the wire can be a gigabyte unpacked.
            raise ProviderError(
                f"the model server compressed its answer ({faults.excerpt(encoding)}) though not asked to"
            )


@lru_cache(maxsize=32)
def _url(address: str) -> httpx.URL:
    """Read an address once: that takes longer than the rest of making a request."""
    return httpx.URL(address)


def _bearer(config: ProviderConfig) -> dict[str, str]:
    return {"Authorization": f"Bearer {config.key}"} if config.key else {}


def _basic(address: Address) -> dict[str, str]:
    given = base64.b64encode(address.userinfo.encode()).decode()
    return {"Authorization": f"Basic {given}"} if given else {}


def _host(address: Address) -> dict[str, str]:
    """Leave out the zone of an IPv6 address: it is the name of our own network interface (RFC 6874, section 4)."""
    bare, zone, _ = address.host.partition("%")
    return {"Host": f"[{bare}]:{address.port}"} if zone else {}


async def _read(response: httpx.Response, limit: int, *, strict: bool = True) -> bytes:
    body = bytearray()
    parts: AsyncIterator[bytes] = response.aiter_raw()
    async for data in parts:
        body += data
        if len(body) > limit:
            if strict:
                raise ProviderError(f"the model server's answer is longer than {limit} bytes")
            break
    return bytes(body[:limit])


def _certificates() -> ssl.SSLContext:
    """Trust the well-known authorities and those of this machine, where a home's own authority would be."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    context.set_alpn_protocols(["http/1.1"])
    tls.take_home_made(context)
    return context
