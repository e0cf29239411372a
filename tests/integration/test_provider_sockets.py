"""Kept connections and the sockets under httpx, against real servers."""

import asyncio
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from piagent_daemon.providers import connections as connections_module
from piagent_daemon.providers import sockets
from piagent_daemon.providers.address import parse_address
from piagent_daemon.providers.client import Http
from piagent_daemon.providers.config import ProviderConfig
from piagent_daemon.providers.connections import Connection, Connections
from piagent_daemon.providers.faults import excerpt
from piagent_daemon.providers.sockets import MAX_HELD_BYTES, Socket, connect
from tests.fakes.certificates import client_context, make_certificates, server_context

INTERFACES = Path("/proc/net/if_inet6")
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(handler: Handler, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[int]:
    tasks = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, host, 0, ssl=tls)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        async with asyncio.timeout(5):
            await asyncio.gather(*filter(None, tasks))


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=Connection(None), trust_env=False, timeout=5)


async def test_head_and_body_leave_together() -> None:
    first: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first.append(await reader.read(65536))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async with server(handler) as port, client() as http:
        response = await http.post(f"http://127.0.0.1:{port}/", content=b"the body")
    assert response.text == "ok"
    assert first[0].endswith(b"the body")


async def test_a_body_larger_than_any_buffer_arrives_whole_and_comes_back() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = await reader.readexactly(size)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + body)
        await writer.drain()

    body = bytes(range(256)) * (MAX_HELD_BYTES // 64)
    async with server(handler) as port, client() as http:
        response = await http.post(f"http://127.0.0.1:{port}/", content=body)
    assert response.content == body


async def test_a_connection_serves_several_requests_until_the_server_closes_it() -> None:
    connections = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()

    async with server(handler) as port, client() as http:
        for _ in range(4):
            assert (await http.get(f"http://127.0.0.1:{port}/")).status_code == 200
    assert connections == 2


async def test_what_goes_wrong_is_told_in_httpx_words() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.transport.abort()

    async with client() as http:
        with pytest.raises(httpx.ConnectError):
            await http.get("http://127.0.0.1:1/")
        async with server(reset) as port:
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
                await http.get(f"http://127.0.0.1:{port}/")


async def test_an_option_that_the_machine_refuses_fails_the_connection_and_leaves_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            ended.set()

    async with server(handler) as port, asyncio.timeout(5):
        monkeypatch.setattr(sockets, "KEEP_ALIVE", [(socket.SOL_SOCKET, 9999, 1)])
        with pytest.raises(httpx.ConnectError):
            await connect("127.0.0.1", port, None, 5)
        await ended.wait()


@pytest.mark.skipif(not INTERFACES.exists() or " lo\n" not in INTERFACES.read_text(), reason="no IPv6 here")
async def test_an_address_with_a_zone_is_reached_and_keeps_the_zone_to_itself() -> None:
    heads: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with server(handler, host="::1") as port:
        http = Http(parse_address(f"[::1%1]:{port}"), ProviderConfig("ollama", "ollama"))
        assert await http.call("GET", "/") == {}
        await http.aclose()
    assert b"Host: [::1]:%d\r\n" % port in heads[0]


async def test_a_password_is_masked_and_the_name_before_it_is_not() -> None:
    http = Http(parse_address("http://pi:s3cret@host"), ProviderConfig("ollama", "ollama"))
    assert excerpt("api pi:s3cret s3cret cGk6czNjcmV0", http.secrets) == "api *** *** ***"
    await http.aclose()


async def test_waiting_for_a_handshake_is_bounded() -> None:
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()

    async with server(silent) as port, asyncio.timeout(5):
        with pytest.raises(httpx.ConnectTimeout):
            await connect("127.0.0.1", port, ssl.create_default_context(), 0.01)
        await ended.wait()


async def test_a_connection_is_quiet_until_the_server_says_something_or_leaves() -> None:
    go = asyncio.Event()

    async def handler(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        writer.write(b"unasked")

    async with server(handler) as port, asyncio.timeout(5):
        open_one = await connect("127.0.0.1", port, None, 5)
        assert open_one.is_quiet
        reading = asyncio.ensure_future(open_one.read())
        go.set()
        assert await reading == b"unasked"
        assert await open_one.read() == b""
        assert not open_one.is_quiet


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Forgetful:
    """A server whose connections end at the second request; `last` is what it says then, `log` the requests."""

    def __init__(self, *, reset: bool = False, last: bytes = b"", first: bytes = OK) -> None:
        self.reset = reset
        self.last = last
        self.first = first
        self.log: list[tuple[int, int]] = []
        self._connections = 0
        self.both = asyncio.Barrier(2)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        connection = self._connections
        for number in (1, 2):
            head = await reader.readuntil(b"\r\n\r\n")
            self.log.append((connection, number))
            await reader.readexactly(4)
            if b"/both" in head:
                await self.both.wait()
            answer = self.first if number == 1 else self.last
            if not answer:
                break
            writer.write(answer)
            await writer.drain()
        if self.reset:
            writer.transport.abort()


@pytest.mark.parametrize("reset", [False, True])
async def test_a_request_over_a_kept_connection_that_ends_is_sent_once_more(*, reset: bool) -> None:
    handler = Forgetful(reset=reset)
    async with server(handler) as port, client() as http:
        for _ in range(3):
            assert (await http.post(f"http://127.0.0.1:{port}/", content=b"body")).text == "ok"
    assert handler.log == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]


async def test_it_is_sent_over_a_new_connection_also_where_others_are_kept() -> None:
    handler = Forgetful()
    async with server(handler) as port:
        connections = Connections(None, keep=2)
        await asyncio.gather(*(ask(connections, port, "/both") for _ in range(2)))
        assert await ask(connections, port) == b"ok"
        await connections.aclose()
    assert handler.log[2:] in ([(1, 2), (3, 1)], [(2, 2), (3, 1)])


async def ask(connections: Connections, port: int, path: str = "/", scheme: str = "http") -> bytes:
    connection = connections.take()
    response: httpx.Response | None = None
    try:
        request = httpx.Request("POST", f"{scheme}://127.0.0.1:{port}{path}", content=b"body")
        response = await connection.handle_async_request(request)
        return await response.aread()
    finally:
        await connections.leave(connection, response.aclose if response else None)


async def test_who_waits_for_an_answer_while_all_is_closed_asks_no_second_time() -> None:
    questions, opened, closed = 0, 0, 0
    second = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal questions, opened, closed
        opened += 1
        try:
            while await reader.readuntil(b"body"):
                questions += 1
                if questions == 1:
                    writer.write(OK)
                else:
                    second.set()
        finally:
            closed += 1

    async with server(handler) as port:
        connections = Connections(None, keep=2)
        assert await ask(connections, port) == b"ok"
        asking = asyncio.ensure_future(ask(connections, port))
        async with asyncio.timeout(5):
            await second.wait()
            await connections.aclose()
            with pytest.raises(httpx.HTTPError):
                await asking
    assert (questions, opened, closed) == (2, 1, 1)


async def test_who_leaves_while_all_is_closed_is_not_cancelled() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"body")
        writer.write(OK.replace(b": 2", b": 9"))  # the rest never comes
        await reader.read()

    async with server(handler) as port, asyncio.timeout(5):
        connections = Connections(None, keep=2)
        connection = connections.take()
        request = httpx.Request("POST", f"http://127.0.0.1:{port}/", content=b"body")
        response = await connection.handle_async_request(request)

        async def last() -> None:
            await response.aread()

        leaving = [connections.leave(connection, last), connections.leave(connections.take())]
        await asyncio.sleep(0)
        await connections.aclose()
        await asyncio.gather(*leaving)


async def test_a_connection_that_opens_while_all_is_closed_is_closed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, ended = asyncio.Event(), asyncio.Event()

    async def slowly(*args: Any) -> Socket:
        opened = await connect(*args)
        await gate.wait()
        return opened

    async def handler(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        if await reader.read() == b"":  # not even the question
            ended.set()

    monkeypatch.setattr(connections_module, "connect", slowly)
    async with server(handler) as port:
        connections = Connections(None, keep=2)
        asking = asyncio.ensure_future(ask(connections, port))
        await asyncio.sleep(0)
        await connections.aclose()
        gate.set()
        async with asyncio.timeout(5):
            with pytest.raises(httpx.HTTPError):
                await asking
            await ended.wait()


async def test_a_handshake_that_is_cancelled_leaves_no_socket_to_the_collector() -> None:
    greeted, ended = asyncio.Event(), asyncio.Event()

    async def handler(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)
        greeted.set()
        await reader.read()
        ended.set()

    async with server(handler) as port:
        connections = Connections(ssl.create_default_context(), keep=2)
        gc.disable()
        try:
            asking = asyncio.ensure_future(ask(connections, port, scheme="https"))
            async with asyncio.timeout(5):
                await greeted.wait()
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
                await ended.wait()
        finally:
            gc.enable()
        await connections.aclose()


async def answered(answer: bytes, **asked: Any) -> httpx.Response:
    """Return what becomes of a request that is answered with `answer` before its body is looked at."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        await reader.read()

    async with server(handler) as port, client() as http, asyncio.timeout(5):
        return await http.post(f"http://127.0.0.1:{port}/", **asked)


async def test_what_comes_before_the_answer_is_passed_over() -> None:
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    assert (await answered(early + OK)).text == "ok"


async def test_an_answer_is_read_though_the_server_does_not_take_the_question() -> None:
    refused = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno"
    response = await answered(refused, content=bytes(32 * 1_048_576))
    assert (response.status_code, response.text) == (413, "no")


async def test_others_have_their_turn_between_thousands_of_tiny_chunks() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"body")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 30_000)
        await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with (
        asyncio.timeout(10),
        server(handler) as port,
        client() as http,
        http.stream("POST", f"http://127.0.0.1:{port}/", content=b"body") as response,
    ):
        await asyncio.sleep(0.1)  # until much is there
        counting = asyncio.ensure_future(count())
        assert len(await response.aread()) == 30_000
        counting.cancel()
    assert turns >= 5


async def test_a_head_without_end_is_refused() -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="too long"):
        await answered(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 30_000)


async def test_a_header_that_is_none_leaves_the_machine_never() -> None:
    with pytest.raises(httpx.LocalProtocolError):
        await answered(OK, headers={"Authorization": "Bearer a\nb"})


@pytest.mark.parametrize(("scheme", "tls"), [("https", None), ("http", ssl.create_default_context())])
async def test_nothing_is_said_in_the_clear_that_should_be_hidden(scheme: str, tls: ssl.SSLContext | None) -> None:
    with pytest.raises(httpx.UnsupportedProtocol):
        await Connection(tls).handle_async_request(httpx.Request("GET", f"{scheme}://127.0.0.1:1/"))


@pytest.mark.parametrize("behind", [OK, b"\r\n", b"x"])
async def test_what_comes_behind_an_answer_is_not_the_next_one(behind: bytes) -> None:
    handler = Forgetful(first=OK + behind, last=b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext")
    async with server(handler) as port, client() as http:
        for _ in range(2):
            assert (await http.post(f"http://127.0.0.1:{port}/", content=b"body")).text == "ok"
    assert handler.log == [(1, 1), (2, 1)]


async def test_it_is_not_sent_a_third_time_nor_over_a_connection_that_was_new() -> None:
    handler = Forgetful()
    async with server(handler) as port, client() as http:
        await http.post(f"http://127.0.0.1:{port}/", content=b"body")
        handler.first = b""
        for _ in range(2):
            with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
                await http.post(f"http://127.0.0.1:{port}/", content=b"body")
        assert handler.log == [(1, 1), (1, 2), (2, 1), (3, 1)]


async def test_what_was_answered_wrongly_is_not_sent_again() -> None:
    handler = Forgetful(last=b"SSH-2.0 x\r\n\r\n")
    async with server(handler) as port, client() as http:
        await http.post(f"http://127.0.0.1:{port}/", content=b"body")
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post(f"http://127.0.0.1:{port}/", content=b"body")
        handler.last = OK.replace(b": 2", b": 9")
        await http.post(f"http://127.0.0.1:{port}/", content=b"body")
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post(f"http://127.0.0.1:{port}/", content=b"body")
    assert handler.log == [(1, 1), (1, 2), (2, 1), (2, 2)]


async def test_the_same_over_tls(tmp_path: Path) -> None:
    ca, certificate, key = make_certificates(tmp_path)
    tls, trust = server_context(certificate, key), client_context(ca)
    handler = Forgetful()
    async with server(handler, tls) as port, httpx.AsyncClient(transport=Connection(trust), trust_env=False) as http:
        for _ in range(2):
            assert (await http.post(f"https://127.0.0.1:{port}/", content=b"body")).text == "ok"
    assert handler.log == [(1, 1), (1, 2), (2, 1)]


async def test_a_connection_is_not_kept_whose_server_has_not_taken_the_question() -> None:
    answered = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await answered.wait()

    async with server(handler) as port, asyncio.timeout(5):
        for body, is_kept in ((b"body", True), (bytes(16 * 1_048_576), False)):
            connection = Connection(None)
            request = httpx.Request("POST", f"http://127.0.0.1:{port}/", content=body)
            response = await connection.handle_async_request(request)
            assert await response.aread() == b"ok"
            assert connection.is_good == is_kept
            connection.close()
        answered.set()


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    _, certificate, key = make_certificates(tmp_path)

    async def handler(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""

    async with server(handler, server_context(certificate, key)) as port:
        for host in ("127.0.0.1", "localhost"):
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await connect(host, port, ssl.create_default_context(), 5)
