"""The SQLite file of a store: opened, checked, set aside when damaged. Everything here runs in the store's one thread.

Each row carries a checksum, since SQLite itself does not notice a bit that flipped inside a text.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zlib import crc32

from piagent_daemon.errors import StoreError
from piagent_daemon.ports import Clock
from piagent_daemon.stores.ledger import Batch, Contents

VERSION = 1
BUSY_S = 2.0
KEPT_ASIDE = 3
DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH}
"""SQLite's primary error codes that blame the file's content. SQLITE_ERROR: a table or a column is not there."""

PRAGMAS = """
PRAGMA trusted_schema = OFF;
PRAGMA cell_size_check = ON;
PRAGMA cache_size = -512;
PRAGMA journal_size_limit = 1048576;
"""
NOTES = "CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value BLOB, checksum INTEGER);"
"""Files of version 0.1 have no such table yet."""
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE histories (id TEXT PRIMARY KEY, turns BLOB, count INTEGER, dropped INTEGER, agent TEXT, used REAL,
                        checksum INTEGER);
CREATE TABLE requests (conversation_id TEXT, request_id TEXT, key TEXT, attempts INTEGER, crashes INTEGER,
                       running INTEGER, terminal BLOB, changed REAL, checksum INTEGER,
                       PRIMARY KEY (conversation_id, request_id));
{NOTES}
CREATE TABLE boot (id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT);
PRAGMA user_version = {VERSION};
COMMIT;
"""
TABLES = {"histories", "requests", "boot"}


class Damage(StoreError):
    """The file's content cannot be trusted."""


class OtherVersion(Damage):
    """Another version of this program wrote the file."""


class Foreign(StoreError):
    """The file belongs to another program."""


class NoFile(StoreError):
    """Something that is no regular file has the file's name."""


class Database:
    """One file. Every method raises StoreError when the disk does not let it work, Damage when the file is at fault."""

    def __init__(self, path: Path, clock: Clock, boot: str) -> None:
        self._path = path
        self._clock = clock
        self._boot = boot
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._boot_written = False

    def open(self) -> Contents:
        """Open the file, made anew with mode 0600 when it is missing, and return all it has."""
        self.close()
        try:
            with translated():
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                touch(self._path, os.O_CREAT)
                self._identity = self._seen()
                self._connection = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
                self._connection.executescript(PRAGMAS)
                if not has_tables(self._connection):
                    self._connection.executescript(SCHEMA)
                self._connection.execute(NOTES)
                self._path.chmod(0o600)
                self._connection.execute("PRAGMA journal_mode = WAL")
                contents = read(self._connection)
        except StoreError:
            self.close()
            raise
        self._boot_written = contents.boot == self._boot
        return contents

    def write(self, batch: Batch) -> None:
        """Take over `batch` in one transaction."""
        with translated():
            connection = self._connection
            if connection is None or self._identity != self._seen():
                raise StoreError("the file was moved or removed")
            connection.execute(f"PRAGMA synchronous = {'FULL' if batch.durable else 'NORMAL'}")
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                self._apply(connection, batch)
            self._boot_written = True

    def set_aside(self) -> Path:
        """Rename the file, and what belongs to it, to `<name>.corrupt-<timestamp>`; the newest three are kept."""
        self.close()
        with translated():
            aside = self._free_name()
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    _beside(self._path, suffix).rename(_beside(aside, suffix))
            self._drop_old()
            return aside

    def identity(self) -> tuple[int, int] | None:
        """Return what tells this very file from another one of the same name."""
        return self._identity

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _seen(self) -> tuple[int, int]:
        status = self._path.stat()
        return (status.st_dev, status.st_ino)

    def _apply(self, connection: sqlite3.Connection, batch: Batch) -> None:
        if batch.wipe:
            connection.execute("DELETE FROM histories")
            connection.execute("DELETE FROM requests")
            connection.execute("DELETE FROM notes")
        if not self._boot_written:
            connection.execute("REPLACE INTO boot VALUES (1, ?)", (self._boot,))
        connection.executemany("DELETE FROM histories WHERE id = ?", _plain((name,) for name in batch.forgotten))
        connection.executemany(
            "DELETE FROM requests WHERE conversation_id = ? AND request_id = ?", _plain(batch.dropped)
        )
        connection.executemany("REPLACE INTO histories VALUES (?, ?, ?, ?, ?, ?, ?)", _summed(batch.histories))
        connection.executemany("REPLACE INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", _summed(batch.requests))
        connection.executemany("REPLACE INTO notes VALUES (?, ?, ?)", _summed(batch.notes))

    def _free_name(self) -> Path:
        stamp = f"{self._clock.now():%Y%m%dT%H%M%SZ}"
        names = [f".corrupt-{stamp}", *(f".corrupt-{stamp}-{number}" for number in range(2, 10))]
        return next(path for name in names if not (path := _beside(self._path, name)).exists())

    def _drop_old(self) -> None:
        # By the time of the renaming: names and modification times come from a clock that may have been wrong.
        found = [
            path
            for path in self._path.parent.glob(f"{_literal(self._path.name)}.corrupt-*")
            if not path.name.endswith(("-wal", "-shm"))
        ]
        for path in sorted(found, key=lambda path: path.stat().st_ctime_ns)[:-KEPT_ASIDE]:
            for suffix in ("", "-wal", "-shm"):
                _beside(path, suffix).unlink(missing_ok=True)


def touch(path: Path, flags: int = 0) -> None:
    """See whether `path` is a regular file that can be written; with os.O_CREAT as `flags` make it when it is missing.

    Raises StoreError or OSError.
    """
    if path.exists() and not path.is_file():
        raise NoFile("it is not a regular file")
    os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600))


def has_tables(connection: sqlite3.Connection) -> bool:
    """Tell whether the file has our tables, sound and of this version; False while it is empty. Changes nothing.

    Raises StoreError or sqlite3.Error.
    """
    tables = _tables(connection)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if not tables and version == 0:
        return False
    if len(tables & TABLES) < 2:  # one such name is not ours alone
        raise Foreign("the file belongs to another program")
    if version != VERSION:
        raise OtherVersion(f"the file has version {version}, this program reads {VERSION}")
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise Damage(str(verdict).partition("\n")[0][:200])
    return True


def read(connection: sqlite3.Connection) -> Contents:
    """Return all that the tables hold, each row held against its checksum. Raises StoreError or sqlite3.Error."""
    boot = connection.execute("SELECT name FROM boot").fetchone()
    notes = connection.execute("SELECT * FROM notes") if "notes" in _tables(connection) else ()
    return Contents(
        histories=[_sound(row) for row in connection.execute("SELECT * FROM histories ORDER BY used")],
        requests=[_sound(row) for row in connection.execute("SELECT * FROM requests ORDER BY changed")],
        notes=[_sound(row) for row in notes],
        boot=str(boot[0]) if boot else "",
    )


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


@contextmanager
def translated() -> Iterator[None]:
    """Turn what sqlite3 and the system raise into StoreError or Damage."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        # Without a code: the text of a row is not UTF-8.
        damaged = isinstance(error, sqlite3.OperationalError) if code is None else code & 0xFF in DAMAGE
        raise (Damage if damaged else StoreError)(str(error)) from error
    except OSError as error:
        raise StoreError(error.strerror or type(error).__name__) from error


def _checksum(row: Iterable[Any]) -> int:
    total = 0
    for value in row:
        data = value if isinstance(value, bytes) else str(value).encode()
        total = crc32(f"{type(value).__name__}{len(data)}:".encode() + data, total)
    return total


def _sound(row: tuple[Any, ...]) -> Any:
    if _checksum(row[:-1]) != row[-1]:
        raise Damage("a row does not match its checksum")
    return row[:-1]


def _plain(rows: Iterable[Iterable[Any]]) -> Iterator[tuple[Any, ...]]:
    """Replace lone surrogates, which SQLite cannot hold."""
    for row in rows:
        yield tuple(value.encode("utf-8", "replace").decode() if isinstance(value, str) else value for value in row)


def _summed(rows: Iterable[Iterable[Any]]) -> Iterator[tuple[Any, ...]]:
    for row in _plain(rows):
        yield (*row, _checksum(row))


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _literal(name: str) -> str:
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)
