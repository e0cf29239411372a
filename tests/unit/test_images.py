"""Images are known by their own bytes, and refused before somebody unpacks them."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon.errors import InvalidRequest
from piagent_daemon.images import MAX_PIXELS, MAX_SIDE, Image, inspect, kind_of
from tests.fakes.pictures import gif, jpeg, png, webp

WHOLE = {
    "PNG": png(640, 480),
    "JPEG": jpeg(640, 480),
    "GIF": gif(640, 480),
    "WebP": webp(640, 480),
    "WebP lossless": webp(640, 480, kind="VP8L"),
    "WebP extended": webp(640, 480, kind="VP8X"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_kind_and_size_are_read_from_the_header(name: str) -> None:
    kind = kind_of(WHOLE[name])
    assert kind == name.split(maxsplit=1)[0]
    assert inspect(WHOLE[name], "images.0") == Image(kind, 640, 480)


@pytest.mark.parametrize("name", WHOLE)
def test_a_header_that_is_cut_off_is_broken(name: str) -> None:
    data = WHOLE[name]
    for length in range(len(data) if name == "PNG" else 13):
        with pytest.raises(InvalidRequest, match=r'"images\.3"'):
            inspect(data[:length], "images.3")


def test_a_png_that_was_damaged_on_the_way_is_broken() -> None:
    data = WHOLE["PNG"]
    for place in range(8, len(data)):
        with pytest.raises(InvalidRequest):
            inspect(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], "images.0")
    inspect(data + b"trailing bytes", "images.0")
    pixels = data.index(b"IDAT") - 4
    with pytest.raises(InvalidRequest):
        inspect(data[:pixels] + data[-12:], "images.0")


@pytest.mark.parametrize("name", ["JPEG", "GIF"])
def test_an_image_without_its_end_is_broken(name: str) -> None:
    end = {"JPEG": b"\xff\xd9", "GIF": b";"}[name]
    inspect(WHOLE[name] + b"trailing bytes", "images.0")
    with pytest.raises(InvalidRequest):
        inspect(WHOLE[name].replace(end, b""), "images.0")


@pytest.mark.parametrize("make", [png, jpeg, gif, webp])
def test_an_image_without_pixels_is_broken(make: object) -> None:
    assert callable(make)
    with pytest.raises(InvalidRequest, match="broken"):
        inspect(make(0, 5), "images.0")


@pytest.mark.parametrize(
    "data",
    [
        png(MAX_SIDE + 1, 1),
        png(10_000, MAX_PIXELS // 10_000 + 1),
        png(2**31, 2**31),
        jpeg(1, 65_535),
        gif(65_535, 65_535),
        webp(2**24, 2**24, kind="VP8X"),
    ],
)
def test_an_image_that_is_huge_when_unpacked_is_refused(data: bytes) -> None:
    assert len(data) < 100
    with pytest.raises(InvalidRequest, match="pixels"):
        inspect(data, "images.0")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"%PDF-1.7",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"BM\0\0\0\0",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"\0\0\0\x18ftypheic",
    ],
)
def test_what_models_do_not_read_is_no_image(data: bytes) -> None:
    assert kind_of(data) is None
    with pytest.raises(InvalidRequest, match="not a PNG, JPEG, WebP or GIF"):
        inspect(data, "images.0")


def test_broken_headers_are_refused() -> None:
    flipped = bytearray(png(5, 5))
    flipped[20] ^= 1
    no_size = b"\xff\xd8\xff\xda\0\x02" + b"\0" * 20
    endless = b"\xff\xd8" + b"\xff" * 1_000_000
    longer = bytearray(webp(5, 5))
    longer[4] += 9
    strange = b"RIFF\x18\0\0\0WEBPVP9 " + b"\0" * 20
    for data in (bytes(flipped), no_size, endless, bytes(longer), strange):
        with pytest.raises(InvalidRequest, match="broken"):
            inspect(data, "images.0")


@given(st.sampled_from([b"", *(data[:12] for data in WHOLE.values())]), st.binary(max_size=100))
def test_any_bytes_are_an_image_or_refused(start: bytes, rest: bytes) -> None:
    with suppress(InvalidRequest):
        found = inspect(start + rest, "images.0")
        assert 0 < found.width * found.height <= MAX_PIXELS
