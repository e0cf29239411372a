"""Files that a request names, read from below FILES_DIR and nowhere else: texts, and images."""

import base64
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from piagent_daemon import images
from piagent_daemon.contract import File, Request
from piagent_daemon.errors import InvalidRequest, ProviderTimeout

MAX_FILE_BYTES: Final = 256 * 1024
MAX_FILES: Final = 16
"""Files by path in one request."""


def inline(request: Request, files_dir: str | None, max_image_bytes: int, max_bytes: int) -> Request:
    """Return the request with every `path` replaced by what the file holds; blocks on the disk.

    A text becomes the file's text; an image, known by its first bytes, becomes one of the request's images. Raises
    InvalidRequest for a path when FILES_DIR is unset, for more than 16 or one that comes twice, for one that leads out
    of it (by `..` or a symbolic link), is no regular file, is larger than 256 KiB (an image: MAX_IMAGE_BYTES), or
    neither, and when all together are larger than `max_bytes`, images as base64.
    """
    paths = [file.path for file in request.files if file.path is not None]
    if len(paths) > MAX_FILES:
        raise InvalidRequest(f"The request names more than {MAX_FILES} files by path.")
    if len(set(paths)) < len(paths):
        raise InvalidRequest("The request names a file by path twice.")
    files, pictures, left = [], list(request.images), max_bytes
    for file in request.files:
        if file.path is None:
            files.append(file)
            continue
        data = read(file.path, files_dir, max(MAX_FILE_BYTES, max_image_bytes))
        is_image = images.kind_of(data) is not None
        left -= 4 * -(-len(data) // 3) if is_image else len(data)
        if left < 0:
            raise InvalidRequest(f"The files that the request names are larger than {max_bytes} bytes together.")
        if is_image:
            pictures.append(_image(data, file.path, max_image_bytes))
        else:
            files.append(File(name=file.path, text=_text(data, file.path)))
    return request.model_copy(update={"files": files, "images": pictures})


def picture(path: str, files_dir: str | None, max_image_bytes: int) -> str:
    """Return an image below FILES_DIR as base64; blocks on the disk. Raises InvalidRequest, also for what is none."""
    return _image(read(path, files_dir, max_image_bytes), path, max_image_bytes)


def late(seconds: float) -> ProviderTimeout:
    """Return why a request has no answer whose files did not come in time, as on a network share that is away."""
    return ProviderTimeout(f"The files below FILES_DIR could not be read within {seconds:g} seconds.")


def _image(data: bytes, path: str, max_image_bytes: int) -> str:
    if len(data) > max_image_bytes:
        raise InvalidRequest(f'The image "{path[:128]}" is larger than {max_image_bytes} bytes.')
    images.inspect(data, path[:128])
    return base64.b64encode(data).decode()


def _text(data: bytes, path: str) -> str:
    if len(data) > MAX_FILE_BYTES:
        raise InvalidRequest(f'The text file "{path[:128]}" is larger than {MAX_FILE_BYTES} bytes.')
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InvalidRequest(f'The file "{path[:128]}" is neither UTF-8 text nor a PNG, JPEG, WebP or GIF image.')
    return text


def read(path: str, files_dir: str | None, limit: int) -> bytes:
    """Return a regular file below FILES_DIR; blocks on the disk. Raises InvalidRequest.

    Of a larger one come `limit` bytes and one more: whether it is text or image, its first bytes say, and so which
    limit it breaks.
    """
    if files_dir is None:
        raise InvalidRequest("Files by path are refused: FILES_DIR is not set.")
    root = Path(files_dir).resolve()
    try:
        target = (root / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        target = root
    if root not in target.parents:  # in the same words, so that nobody learns what there is elsewhere
        raise InvalidRequest(f'There is no file "{path[:128]}" below FILES_DIR.')
    try:
        data = _content(_open(root, target.relative_to(root).parts), limit + 1)
    except OSError:
        raise InvalidRequest(f'The file "{path[:128]}" cannot be read.') from None
    if data is None:
        raise InvalidRequest(f'"{path[:128]}" is not a regular file.')
    return data


def _open(root: Path, parts: Sequence[str]) -> int:
    """Open a file step by step and follow no link: since the path was resolved, somebody may have put one there."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        # Without O_NONBLOCK, opening a named pipe would wait for its writer for ever.
        return os.open(parts[-1], os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)


def _content(fd: int, limit: int) -> bytes | None:
    """Read at most `limit` bytes of a regular file and close it; None for anything else, such as a folder."""
    try:
        # Asked before os.fdopen, which raises for a folder and does not close it.
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(limit)
    finally:
        os.close(fd)
