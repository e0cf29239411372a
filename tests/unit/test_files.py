"""Files by path are read from below FILES_DIR and nowhere else."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import ValidationError

from piagent_daemon.contract import File, Request
from piagent_daemon.errors import InvalidRequest
from piagent_daemon.files import MAX_FILE_BYTES, MAX_FILES, inline, picture
from tests.fakes.pictures import encoded, gif, jpeg, png

IMAGE_BYTES = 2 * MAX_FILE_BYTES


def ask(root: Path | None, *paths: str, images: tuple[str, ...] = (), max_bytes: int = 10 * IMAGE_BYTES) -> Request:
    request = Request(message="m", files=[File(path=path) for path in paths], images=list(images))
    return inline(request, str(root) if root else None, IMAGE_BYTES, max_bytes)


def read(path: str, root: Path | None) -> str | None:
    return ask(root, path).files[0].text


def test_a_file_below_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("grüße")
    (tmp_path / "notes" / "bom.txt").write_text("grüße", encoding="utf-8-sig")
    (tmp_path / "link.txt").symlink_to(tmp_path / "notes" / "a.txt")
    (tmp_path / "folder").symlink_to(tmp_path / "notes")
    for path in ("notes/a.txt", "notes/bom.txt", "link.txt", "folder/a.txt", "notes/../notes/a.txt"):
        assert read(path, tmp_path) == "grüße"
    assert read(str(tmp_path / "link.txt"), tmp_path) == "grüße"


def test_an_image_becomes_one_of_the_images_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "door.txt").write_bytes(png(3, 2))
    (tmp_path / "large.jpg").write_bytes(jpeg(3, 2) + bytes(MAX_FILE_BYTES))
    found = ask(tmp_path, "door.txt", "a.txt", "large.jpg", images=(encoded(gif()),))
    assert found.files == [File(name="a.txt", text="text")]
    assert found.images[:2] == [encoded(gif()), encoded(png(3, 2))]
    assert len(found.images) == 3


def test_inline_files_stay_as_they_are() -> None:
    request = Request(message="m", files=[File(name="a", text="b")])
    assert inline(request, None, IMAGE_BYTES, 0) == request


@pytest.mark.parametrize(
    "path",
    [
        *(
            "../secret.txt",
            "../nothing.txt",
            "/etc/passwd",
            "way-out.txt",
            "out/secret.txt",
            "pipe",
            "socket",
            "missing",
            "binary",
            "nul",
        ),
        *("large", "large.png", "huge.png", "broken.png", ".", "a\x00b", "x" * 300, "../" * 100 + "etc/passwd"),
    ],
)
def test_everything_else_is_refused(tmp_path: Path, path: str) -> None:
    root = tmp_path / "files"
    root.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (root / "way-out.txt").symlink_to(tmp_path / "secret.txt")
    (root / "out").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    os.mknod(root / "socket", 0o140600)
    (root / "binary").write_bytes(b"\xff\xfe")
    (root / "nul").write_bytes(b"text\0text")
    (root / "large").write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    (root / "large.png").write_bytes(png() + bytes(IMAGE_BYTES))
    (root / "huge.png").write_bytes(png(100_000, 100_000))
    (root / "broken.png").write_bytes(png()[:40])
    with pytest.raises(InvalidRequest) as caught:
        read(path, root)
    assert "secret\n" not in str(caught.value)


@pytest.mark.parametrize("size", [MAX_FILE_BYTES + 1, 3 * IMAGE_BYTES])
def test_what_is_too_large_is_told_its_own_limit(tmp_path: Path, size: int) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * size)
    (tmp_path / "a.png").write_bytes(png() + bytes(3 * IMAGE_BYTES))
    with pytest.raises(InvalidRequest, match=f'text file "a.txt" is larger than {MAX_FILE_BYTES} bytes'):
        ask(tmp_path, "a.txt")
    with pytest.raises(InvalidRequest, match=f'image "a.png" is larger than {IMAGE_BYTES} bytes'):
        ask(tmp_path, "a.png")
    with pytest.raises(InvalidRequest, match=f'image "a.png" is larger than {IMAGE_BYTES} bytes'):
        picture("a.png", str(tmp_path), IMAGE_BYTES)


def test_an_empty_path_is_no_path() -> None:
    with pytest.raises(ValidationError):
        File(path="")


def test_a_link_that_somebody_puts_there_in_between_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, resolve = tmp_path / "files", Path.resolve
    (root / "notes").mkdir(parents=True)
    (root / "notes" / "a.txt").write_text("harmless")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "a.txt").write_text("secret")

    def resolve_then_swap(path: Path, strict: bool = False) -> Path:
        found = resolve(path, strict)
        if strict:
            (root / "notes").rename(root / "away")
            (root / "notes").symlink_to(tmp_path / "secrets")
        return found

    monkeypatch.setattr(Path, "resolve", resolve_then_swap)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read("notes/a.txt", root)


def test_so_many_files_are_not_read(tmp_path: Path) -> None:
    names = [f"{number}.txt" for number in range(MAX_FILES + 1)]
    for name in names:
        (tmp_path / name).write_text("a")
    assert len(ask(tmp_path, *names[:MAX_FILES]).files) == MAX_FILES
    with pytest.raises(InvalidRequest, match="more than 16"):
        ask(tmp_path, *names)


def test_all_files_together_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a" * 100)
    (tmp_path / "b.png").write_bytes(png())
    size = 100 + len(encoded(png()))
    assert ask(tmp_path, "a.txt", "b.png", max_bytes=size).images
    with pytest.raises(InvalidRequest, match=f"larger than {size - 1} bytes together"):
        ask(tmp_path, "a.txt", "b.png", max_bytes=size - 1)
    with pytest.raises(InvalidRequest, match="twice"):
        ask(tmp_path, "a.txt", "a.txt")


@pytest.mark.parametrize("path", ["folder", "pipe", "a.txt"])
def test_no_file_stays_open(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").write_text("a")
    os.mkfifo(tmp_path / "pipe")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with suppress(InvalidRequest):
            ask(tmp_path, path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_without_the_folder_paths_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="FILES_DIR is not set"):
        read("a.txt", None)
