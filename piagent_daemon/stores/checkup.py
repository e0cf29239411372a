"""Looks at a memory file from outside, while a daemon may have it open."""

import sqlite3
from pathlib import Path
from typing import Final

BUSY_S: Final = 2.0


def damage(path: Path) -> str:
    """Return what is wrong with the file in SQLite's words, or an empty text. Reads only, never repairs."""
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
        try:
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            database.close()
    except sqlite3.Error as error:
        return str(error)
    return "" if verdict == "ok" else str(verdict)
