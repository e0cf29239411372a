"""Pictures of any size in any of the four formats that models read: whole headers, no pixels."""

import base64
import struct
import zlib


def png(width: int = 1, height: int = 1) -> bytes:
    """A PNG; it has pixels, too, when it is small."""
    rows = b"".join(b"\0" + b"\x80" * width for _ in range(height)) if width * height < 10_000 else b""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg(width: int = 1, height: int = 1) -> bytes:
    """A JPEG with an application segment and fill bytes before its frame."""
    frame = struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\0"
    return (
        b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
        b"\xff\xff\xff\xc0" + struct.pack(">H", 2 + len(frame)) + frame + b"\xff\xda\0\2\xff\xd9"
    )


def gif(width: int = 1, height: int = 1) -> bytes:
    """A GIF, 14 bytes long."""
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\0\0\0;"


def webp(width: int = 1, height: int = 1, *, kind: str = "VP8 ") -> bytes:
    """A WebP: `VP8 `, `VP8L` or `VP8X`."""
    if kind == "VP8 ":
        body = b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height)
    elif kind == "VP8L":
        body = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + b"\0" * 5
    else:
        body = b"\0\0\0\0" + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    content = b"WEBP" + kind.encode() + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(content)) + content


def encoded(picture: bytes) -> str:
    """Base64, as a request has it."""
    return base64.b64encode(picture).decode()
