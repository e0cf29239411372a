"""Looks at a memory file from outside, while a daemon may have it open."""

import os
import sqlite3
from contextlib import closing, suppress
from errno import ENOENT
from pathlib import Path
from tempfile import TemporaryFile

from piagent_daemon.stores.database import BUSY_S, PRAGMAS, has_tables, read, touch, translated


def look(path: Path) -> None:
    """Judge a memory file as the daemon does that opens it. Reads only, never repairs.

    Raises StoreError, or OSError where the file cannot be written.
    """
    touch(path)
    with translated():
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None)) as connection:
            connection.executescript(PRAGMAS)
            if has_tables(connection):
                read(connection)


def try_folder(path: Path) -> Path:
    """Return the folder that has, or will get, what belongs to a memory file, wherever links lead.

    Raises OSError where no file can be made.
    """
    path = path.absolute()
    with suppress(FileNotFoundError):
        path.stat()  # raises where links lead in a circle
    there = next(place for place in (path, *path.parents) if place.is_symlink() or place.exists())
    real = Path(os.path.realpath(there))
    folder = real.parent if there == path else real
    try:
        TemporaryFile(dir=folder).close()
    except FileNotFoundError:
        raise FileNotFoundError(ENOENT, f"a link leads to {real}, and {folder} is not there") from None
    return folder
