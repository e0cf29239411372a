"""Text files that a request names, read from below FILES_DIR and nowhere else."""

import os
import stat
from pathlib import Path
from typing import Final

from piagent_daemon.contract import File, Request
from piagent_daemon.errors import InvalidRequest

MAX_FILE_BYTES: Final = 256 * 1024


def inline(request: Request, files_dir: str | None) -> Request:
    """Return the request with every `path` replaced by the file's text; blocks on the disk.

    Raises InvalidRequest for a path when FILES_DIR is unset, and for one that leads out of it (by `..` or a symbolic
    link), is no regular file, is larger than 256 KiB or is not UTF-8 text.
    """
    files = [File(name=file.path, text=_read(file.path, files_dir)) if file.path else file for file in request.files]
    return request.model_copy(update={"files": files})


def _read(path: str, files_dir: str | None) -> str:
    if files_dir is None:
        raise InvalidRequest("Files by path are refused: FILES_DIR is not set.")
    root = Path(files_dir).resolve()
    try:
        target = (root / path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        raise InvalidRequest(f'There is no file "{path[:128]}" below FILES_DIR.') from None
    if root not in target.parents:
        raise InvalidRequest(f'The file "{path[:128]}" is not below FILES_DIR.')
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for its writer for ever.
        with os.fdopen(os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
                raise InvalidRequest(f'"{path[:128]}" is not a regular file of at most {MAX_FILE_BYTES} bytes.')
            return file.read(MAX_FILE_BYTES).decode()
    except OSError:
        raise InvalidRequest(f'The file "{path[:128]}" cannot be read.') from None
    except UnicodeDecodeError:
        raise InvalidRequest(f'The file "{path[:128]}" is not UTF-8 text.') from None
