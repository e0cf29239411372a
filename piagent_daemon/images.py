"""Images as they come in: what they are by their own bytes, and how large; nothing is unpacked.

A model server unpacks what it is given, and a few kilobytes can be gigabytes of pixels: so the header is read first.
Sources: PNG (W3C, sections 5 and 11.2.1), JPEG (ITU T.81, annex B), GIF89a (section 18), WebP (RFC 9649).
"""

import zlib
from typing import Final, Literal, NamedTuple

from piagent_daemon.errors import InvalidRequest

Kind = Literal["PNG", "JPEG", "WebP", "GIF"]

MAX_SIDE: Final = 16_384
MAX_PIXELS: Final = 50_000_000
"""Pictures of 50 megapixels take 150 MB unpacked; cameras for a Pi make 12 to 16, and models look at one or two."""
_SEGMENTS: Final = 1000
"""A JPEG with more segments before its size was made to keep us busy."""


class Image(NamedTuple):
    """What an image says of itself; `width` and `height` in pixels."""

    kind: Kind
    width: int
    height: int


def kind_of(data: bytes) -> Kind | None:
    """Return the kind of image that `data` begins like, or None."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:6] in {b"GIF87a", b"GIF89a"}:
        return "GIF"
    return None


def inspect(data: bytes, name: str) -> Image:
    """Read the header of an image. Raises InvalidRequest, naming it `name`, for no image, a broken or a huge one."""
    kind = kind_of(data)
    if kind is None:
        raise InvalidRequest(f'"{name}" is not a PNG, JPEG, WebP or GIF image.')
    size = {"PNG": _png, "JPEG": _jpeg, "WebP": _webp, "GIF": _gif}[kind](data)
    if size is None or 0 in size:
        raise InvalidRequest(f'"{name}" begins like a {kind} image but is broken.')
    width, height = size
    if max(size) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InvalidRequest(
            f'"{name}" has {width} x {height} pixels; at most {MAX_SIDE} a side and {MAX_PIXELS} in all are taken.'
        )
    return Image(kind, width, height)


Size = tuple[int, int] | None
"""Width and height in pixels, None when the header is broken."""


def _png(data: bytes) -> Size:
    header = data[12:29]
    if data[8:12] != b"\0\0\0\x0d" or header[:4] != b"IHDR" or data[29:33] != zlib.crc32(header).to_bytes(4, "big"):
        return None
    return (_big(header[4:8]), _big(header[8:12])) if _is_whole_png(data) else None


def _is_whole_png(data: bytes) -> bool:
    """Tell whether every chunk up to the end is as it was written, with pixels among them."""
    place, pixels = 8, False
    while place + 12 <= len(data):
        end = place + 8 + _big(data[place : place + 4])
        kind = data[place + 4 : place + 8]
        if data[end : end + 4] != zlib.crc32(memoryview(data)[place + 4 : end]).to_bytes(4, "big"):
            return False
        if kind == b"IEND":
            return pixels
        pixels = pixels or kind == b"IDAT"
        place = end + 4
    return False


def _jpeg(data: bytes) -> Size:
    place = 2
    for _ in range(_SEGMENTS):
        if len(data) < place + 9 or data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xFF:  # fill
            place += 1
        elif 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            if data.rfind(b"\xff\xd9") < place:  # cut off: the mark of the end is missing
                return None
            return _big(data[place + 7 : place + 9]), _big(data[place + 5 : place + 7])
        elif marker in {0xD9, 0xDA}:  # the end, or pixels without a size
            return None
        else:
            place += 2 + max(2, _big(data[place + 2 : place + 4]))
    return None


def _webp(data: bytes) -> Size:
    if len(data) < 30 or len(data) < 8 + _little(data[4:8]):
        return None
    match data[12:16]:
        case b"VP8 " if data[23:26] == b"\x9d\x01\x2a":
            return _little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF
        case b"VP8L" if data[20] == 0x2F:
            bits = _little(data[21:25])
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            return _little(data[24:27]) + 1, _little(data[27:30]) + 1
    return None


def _gif(data: bytes) -> Size:
    return (_little(data[6:8]), _little(data[8:10])) if data.rfind(b";") >= 13 else None


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
