"""The plain TCP backend under httpx, against real sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpcore
import httpx
import pytest

from piagent_daemon.providers.sockets import SEND_BYTES, PlainTransport, TcpBackend

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=PlainTransport(httpx.Limits(max_connections=2), ()), trust_env=False, timeout=5)


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

    body = bytes(range(256)) * (SEND_BYTES // 64)
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


async def test_waiting_is_bounded() -> None:
    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with server(silent) as port:
        stream = await TcpBackend().connect_tcp("127.0.0.1", port, timeout=5)
        with pytest.raises(httpcore.ReadTimeout):
            await stream.read(10, timeout=0.01)
        assert not stream.get_extra_info("is_readable")
        await stream.aclose()
