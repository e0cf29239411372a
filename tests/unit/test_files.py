"""Files by path are read from below FILES_DIR and nowhere else."""

import os
from pathlib import Path

import pytest

from piagent_daemon.contract import File, Request
from piagent_daemon.errors import InvalidRequest
from piagent_daemon.files import MAX_FILE_BYTES, inline


def read(path: str, root: Path | None) -> str | None:
    request = Request(message="m", files=[File(path=path)])
    return inline(request, str(root) if root else None).files[0].text


def test_a_file_below_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("grüße")
    (tmp_path / "link.txt").symlink_to(tmp_path / "notes" / "a.txt")
    assert read("notes/a.txt", tmp_path) == "grüße"
    assert read("link.txt", tmp_path) == "grüße"


def test_inline_files_stay_as_they_are() -> None:
    request = Request(message="m", files=[File(name="a", text="b")])
    assert inline(request, None) == request


@pytest.mark.parametrize(
    "path",
    ["../secret.txt", "/etc/passwd", "way-out.txt", "pipe", "missing", "binary", "large", ".", "a\x00b", "x" * 300],
)
def test_everything_else_is_refused(tmp_path: Path, path: str) -> None:
    root = tmp_path / "files"
    root.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (root / "way-out.txt").symlink_to(tmp_path / "secret.txt")
    os.mkfifo(root / "pipe")
    (root / "binary").write_bytes(b"\xff\xfe")
    (root / "large").write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    with pytest.raises(InvalidRequest) as caught:
        read(path, root)
    assert "secret\n" not in str(caught.value)


def test_without_the_folder_paths_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="FILES_DIR is not set"):
        read("a.txt", None)
