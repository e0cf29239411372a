"""How the fake model server goes wrong: before the first token, and in mid-answer."""

import asyncio
import functools
import gzip
import zlib
from typing import Any, Final

from tests.fakes.httpd import Exchange, encode
from tests.fakes.ollama_answer import NDJSON, Answer, Fault
from tests.fakes.ollama_script import Behaviour

BUSY: Final = "server busy, please try again.  maximum pending requests exceeded"
_PAGE: Final = b"<!DOCTYPE html>\n<html><head><title>%b</title></head><body>\n<h1>%b</h1>\n" + b"<p>nginx</p>\n" * 400
_PART: Final = 1 << 20


async def refuse(exchange: Exchange, behaviour: Behaviour, body: Any) -> None:
    """Play a mode that answers without the model."""
    model = body.get("model", "") if isinstance(body, dict) else ""
    match behaviour.mode:
        case "404":
            await exchange.send_json(404, {"error": f"model '{model}' not found"})
        case "429":
            await exchange.send(
                429, encode({"error": "you have reached your limit"}), "application/json", {"Retry-After": "1"}
            )
        case "500":
            await exchange.send_json(500, {"error": behaviour.error})
        case "503":
            await exchange.send_json(503, {"error": BUSY})
        case "unauthorized":
            await exchange.send_json(401, {"error": "unauthorized"})
        case "html502":
            await exchange.send(502, _PAGE % (b"502 Bad Gateway", b"502 Bad Gateway"), "text/html")
        case "redirect":
            target = f"http://{exchange.headers.get('host', '127.0.0.1')}/elsewhere{exchange.path}"
            await exchange.send(307, b"", "text/html", {"Location": target})
        case "wrong_service":
            await exchange.send(200, _PAGE % (b"Router", b"Please log in"), "text/html")
        case "not_http":
            await exchange.raw(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
            exchange.close()
        case "error_200_first_line":
            exchange.head(200, NDJSON)
            await exchange.chunk(encode({"error": behaviour.error}) + b"\n")
            await exchange.end()
        case "gzipbomb":
            await _gzip_bomb(exchange, behaviour.size)


async def _gzip_bomb(exchange: Exchange, size: int) -> None:
    exchange.head(200, NDJSON, {"Content-Encoding": "gzip"})
    for part in bomb(size):
        await exchange.chunk(part)
    await exchange.end()


@functools.cache
def bomb(size: int) -> tuple[bytes, ...]:
    """Return the parts of a gzip file that unpacks to one line of `size` bytes, made without packing it all."""
    start = b'{"model":"m","message":{"role":"assistant","content":"'
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(b"a" * _PART) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = b'"},"done":false}\n'
    tail = packer.compress(rest) + packer.flush(zlib.Z_FINISH)
    check, count = zlib.crc32(start), max(1, size // _PART)
    for _ in range(count):
        check = zlib.crc32(b"a" * _PART, check)
    total = len(start) + count * _PART + len(rest)
    trailer = zlib.crc32(rest, check).to_bytes(4, "little") + (total & 0xFFFFFFFF).to_bytes(4, "little")
    return gzip.compress(b"")[:10] + head, *(block,) * count, tail + trailer


# ------------------------------------------------------------------------------------------------------ in mid-answer


async def rst(answer: Answer) -> bool:
    """Tear the connection down."""
    await asyncio.sleep(0.02)  # a reset overtakes what the client has not read yet
    answer.exchange.reset()
    return True


async def eof(answer: Answer) -> bool:
    """Close in the middle of the body."""
    if not answer.stream:
        answer.exchange.head(200, "application/json", {"Content-Length": "1000"})
        await answer.exchange.raw(b'{"model":"m","message":{"role":"assis')
    elif not answer.written:
        await answer.send([])
    answer.exchange.close()
    return True


async def eof_clean(answer: Answer) -> bool:
    """End the body in good order, half way."""
    await answer.unfinished()
    return True


async def err(answer: Answer) -> bool:
    """Report an error: a status before the first token, a line with status 200 after it."""
    error = answer.behaviour.error
    if answer.stream and answer.written:
        await answer.send([answer.error_line(error)])
        await answer.exchange.end()
    else:
        await answer.exchange.send_json(500, {"error": error})
    return True


async def hang(answer: Answer) -> bool:  # noqa: ARG001
    """Say nothing more until the client leaves."""
    await asyncio.Event().wait()
    return True


async def bad(answer: Answer) -> bool:
    """Send a line that is no JSON, then go on."""
    return await _odd_line(answer, answer.around()[0] + b"tr\n\n")


async def utf8(answer: Answer) -> bool:
    """Send bytes that are not UTF-8 inside a string, then go on."""
    return await _odd_line(answer, answer.line("caf!").replace(b"!", b"\xff\xfe\xc3"))


async def hugeline(answer: Answer) -> bool:
    """Send one line of many megabytes."""
    start, end = answer.around()
    await _odd_line(answer, start)
    for _ in range(answer.behaviour.size // 65_536):
        await answer.exchange.chunk(b"a" * 65_536)
        await asyncio.sleep(0)
    return await _odd_line(answer, end)


async def trickle(answer: Answer) -> bool:
    """Send a line byte by byte, slower than anybody should wait, and never come to its end."""
    await _odd_line(answer, answer.around()[0])
    while True:
        await answer.exchange.chunk(b"a")
        await asyncio.sleep(answer.behaviour.trickle_s)


async def _odd_line(answer: Answer, line: bytes) -> bool:
    answer.stream = True  # a whole answer is broken in the same way: the bytes decide
    await answer.send([line])
    return False


FAULTS: Final[dict[str, Fault]] = {
    "rst": rst,
    "eof": eof,
    "eof_clean": eof_clean,
    "bad": bad,
    "err": err,
    "hang": hang,
    "trickle": trickle,
    "hugeline": hugeline,
    "utf8": utf8,
    "runner_dies": err,
}
