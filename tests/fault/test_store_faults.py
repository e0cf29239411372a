"""What a memory file may suffer: cut off, bits flipped, disk full, folder read-only, writer killed, clock wrong.

Faults 44, 45 and 46 of the catalogue, on a real file system.
"""

import asyncio
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from piagent_daemon.settings import Settings
from piagent_daemon.stores.sqlite import SqliteStore
from piagent_daemon.values import Delivery, Outcome, Ticket, Turn
from tests.fakes.doubles import FakeClock

MOMENT = datetime(2026, 1, 2, tzinfo=UTC)
NAMES = [f"room {number}" for number in range(12)]
DAMAGED = [("closed", ""), ("busy", ""), ("busy", "-wal")]


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(Settings(memory_url=f"sqlite://{path}"), FakeClock(), retry_s=0.02, boot="boot")
    await store.start()
    try:
        yield store
    finally:
        await store.aclose()


def outcome(name: str, request_id: str, text: str) -> Outcome:
    turns = (Turn("user", text, MOMENT), Turn("assistant", f"You said: {text}", MOMENT))
    return Outcome(name, request_id, f"end of {request_id}: {text}".encode(), "general", turns)


def delivery(request_id: str) -> Delivery:
    return Delivery(request_id, by_id=True, redelivered=True, durable=True)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 what is waited for has no event
            await asyncio.sleep(0.01)


# ------------------------------------------------------------------------------------------------------ damaged files


Files = dict[str, bytes]
"""What lies on a disk: suffix of the file's name -> content."""


@pytest.fixture
async def good(tmp_path: Path) -> dict[str, Files]:
    """Return the files of a busy store: closed in good order, and in mid-life with a write-ahead log."""
    path = tmp_path / "good" / "memory.db"
    async with running(path) as store:
        for number, name in enumerate(NAMES * 2):
            await store.open(delivery(str(number)), Ticket(name, str(number)))
            await store.commit(outcome(name, str(number), f"{number} {'text ' * 100}"))
            if number == len(NAMES):
                await store._work(store._database.close)
                await store._work(store._database.open)
        busy = read(path, "", "-wal")
    return {"busy": busy, "closed": read(path, "")}


def read(path: Path, *suffixes: str) -> Files:
    return {suffix: path.with_name(path.name + suffix).read_bytes() for suffix in suffixes}


def lay(folder: Path, files: Files) -> Path:
    """Make a folder with these files; return the path of the database."""
    folder.mkdir()
    for suffix, data in files.items():
        (folder / f"memory.db{suffix}").write_bytes(data)
    return folder / "memory.db"


def set_aside(folder: Path) -> int:
    return len(list(folder.glob("memory.db.corrupt-*")))


async def expect_a_start(folder: Path, files: Files) -> bool:
    """Start on damaged files, expect only whole states in them, and go on; return whether they were set aside."""
    path = lay(folder, files)
    async with running(path) as store:
        for row in await store.conversations():
            kept = (await store.load(row.conversation_id)).turns
            numbers = [int(turn.content.split()[0]) for turn in kept if turn.role == "user"]
            first = NAMES.index(row.conversation_id)
            assert numbers in ([first], [first, first + len(NAMES)])
        problem = store.problem or ""
        assert problem == "" or "damaged" in problem or "another program" in problem
        aside = set_aside(folder) > 0
        assert aside == ("damaged" in problem)
        await store.commit(outcome("new", "new", "new"))
        assert len(await turns(store, "new")) == 2
    async with running(path) as store:
        assert bool(await turns(store, "new")) is ("another program" not in problem)
    shutil.rmtree(folder)
    return aside


async def turns(store: SqliteStore, name: str) -> tuple[Turn, ...]:
    return (await store.load(name)).turns


@pytest.mark.parametrize(("state", "suffix"), DAMAGED)
async def test_a_truncated_file(good: dict[str, Files], tmp_path: Path, state: str, suffix: str) -> None:
    size = len(good[state][suffix])
    for offset in {*range(0, 120, 20), *(size * step // 60 for step in range(60)), size - 1}:
        await expect_a_start(tmp_path / str(offset), good[state] | {suffix: good[state][suffix][:offset]})


@pytest.mark.parametrize(("state", "suffix"), DAMAGED)
async def test_flipped_bits(good: dict[str, Files], tmp_path: Path, state: str, suffix: str) -> None:
    draw = random.Random(state + suffix)  # noqa: S311 no secret
    noticed = 0
    for number in range(60):
        data = bytearray(good[state][suffix])
        for _ in range(draw.choice([1, 1, 8])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        noticed += await expect_a_start(tmp_path / str(number), good[state] | {suffix: bytes(data)})
    assert noticed > 20 or state == "busy", "SQLite itself does not look into texts"


async def test_a_log_without_its_file(good: dict[str, Files], tmp_path: Path) -> None:
    await expect_a_start(tmp_path / "lone", {"-wal": good["busy"]["-wal"]})


@pytest.mark.parametrize("data", [b"", b"not a database", b"\0" * 8192, os.urandom(8192), b"SQLite format 3\0"])
async def test_no_database_at_all(tmp_path: Path, data: bytes) -> None:
    await expect_a_start(tmp_path / "none", {"": data})


async def test_damage_while_running(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    async with running(path) as store:
        for number, name in enumerate(NAMES):
            await store.commit(outcome(name, str(number), "before"))
        await store._work(store._database.close)
        path.write_bytes(b"nonsense" * 4096)
        store._database._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        await store.commit(outcome("room 0", "later", "after"))
        await until(lambda: store._failure is None)
        assert "damaged" in (store.problem or "")
    async with running(path) as store:
        assert store.count() == len(NAMES)
        assert len(await turns(store, "room 0")) == 4


# ------------------------------------------------------------------------------------------------- full and read-only


def mounted(folder: Path, *options: str) -> None:
    """Mount, or skip the test where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system takes root")
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no mounting here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted(folder, "-t", "tmpfs", "-o", "size=256k", "tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Use up every byte of a disk."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue
    return filler


async def test_a_full_disk_loses_no_answer(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = small_disk / "memory.db"
    async with running(path) as store:
        await store.commit(outcome("before", "0", "written"))
        filler = fill(small_disk)
        for number in range(40):
            await store.open(delivery(str(number)), Ticket(f"room {number}", str(number)))
            await store.commit(outcome(f"room {number}", str(number), "x" * 500))
        assert "full" in (store.problem or "")
        assert store.count() == 41
        assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
        async with running(small_disk.parent / "copy.db") as other:
            assert other.count() == 0
        filler.unlink()
        await until(lambda: store.problem is None)
        shutil.copytree(small_disk, small_disk.parent / "copy")
    for copy in (small_disk.parent / "copy" / "memory.db", path):
        async with running(copy) as store:
            assert store.count() == 41
            assert len(await turns(store, "before")) == 2
            assert (await store.open(delivery("39"), Ticket("x", "y"))).terminal is not None


async def test_the_old_file_is_whole_when_the_full_disk_never_recovers(small_disk: Path) -> None:
    path = small_disk / "memory.db"
    async with running(path) as store:
        await store.commit(outcome("before", "0", "written"))
        fill(small_disk)
        for number in range(40):
            await store.commit(outcome(f"room {number}", str(number), "x" * 500))
        copy = small_disk.parent / "copy"
        shutil.copytree(small_disk, copy)
    (copy / "filler").unlink()
    async with running(copy / "memory.db") as store:
        assert store.problem is None
        assert len(await turns(store, "before")) == 2


async def test_a_disk_that_is_full_at_the_start(small_disk: Path) -> None:
    filler = fill(small_disk)
    path = small_disk / "memory.db"
    async with running(path) as store:
        assert store.problem is not None
        await store.commit(outcome("kitchen", "0", "x"))
        filler.unlink()
        await until(lambda: store.problem is None)
    async with running(path) as store:
        assert len(await turns(store, "kitchen")) == 2


async def test_a_folder_that_becomes_read_only(small_disk: Path) -> None:
    path = small_disk / "memory.db"
    async with running(path) as store:
        await store.commit(outcome("before", "0", "written"))
    remount(small_disk, "ro")
    async with running(path) as store:
        assert store.problem is not None
        await store.commit(outcome("after", "1", "x"))
        assert len(await turns(store, "after")) == 2
        remount(small_disk, "rw")
        await until(lambda: store.problem is None)
        assert store.count() == 2, "the conversations of the file are back as well"
    async with running(path) as store:
        assert store.count() == 2


async def test_a_damaged_file_in_a_read_only_folder(small_disk: Path) -> None:
    path = small_disk / "memory.db"
    path.write_bytes(b"not a database")
    remount(small_disk, "ro")
    async with running(path) as store:
        assert store.problem is not None
        await store.commit(outcome("kitchen", "1", "x"))
    assert path.read_bytes() == b"not a database"


# -------------------------------------------------------------------------------------------------------------- kills

WRITER = """
    import asyncio, sys, time
    from datetime import UTC, datetime
    from piagent_daemon.values import Delivery, Outcome, Ticket, Turn
    from piagent_daemon.settings import Settings
    from piagent_daemon.stores.sqlite import SqliteStore

    class Clock:
        now = staticmethod(lambda: datetime.now(UTC))
        monotonic = staticmethod(time.monotonic)

    async def main() -> None:
        store = SqliteStore(Settings(memory_url="sqlite://" + sys.argv[1]), Clock())
        await store.start()
        assert store.problem is None, store.problem
        number = int(sys.argv[2])
        while True:
            name, request_id = f"room {number % 12}", str(number)
            await store.open(Delivery(request_id, True, True, True), Ticket(name, request_id))
            await store.begin(request_id, name)
            before = await store.load(name)
            turns = (Turn("user", request_id, datetime.now(UTC)),)
            await store.commit(Outcome(name, request_id, request_id.encode(), "general", turns,
                                       max(0, len(before.turns) - 7), before.epoch))
            sys.stdout.write(request_id + "\\n")
            sys.stdout.flush()
            number += 1

    asyncio.run(main())
"""


def write_and_kill(path: Path, start: int, commits: int) -> int:
    """Run a writer and kill it -9 after `commits` or a few more; return the last number that it knew to be stored."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(start)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        for _ in range(commits):
            assert writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        rest = [line for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    return start + commits - 1 + len(rest)


async def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "memory.db"
    draw = random.Random(9)  # noqa: S311 no secret
    stored: list[int] = []
    start = 0
    for _ in range(20):
        safe = await asyncio.to_thread(write_and_kill, path, start, draw.randrange(1, 40))
        stored.extend(range(start, safe + 1))
        store = SqliteStore(Settings(memory_url=f"sqlite://{path}", memory_ttl_min=0), FakeClock(), boot="later")
        await store.start()
        assert store.problem is None
        for request in stored:
            assert (await store.open(delivery(str(request)), Ticket("x", "y"))).terminal == str(request).encode()
        start = safe + 1
        begun = store._ledger.journal.row((f"room {start % 12}", str(start)))
        if begun is not None and begun[6] is not None:
            stored.append(start)  # it was written, only the word of it was lost
            start += 1
        for room in range(12):
            kept = [int(turn.content) for turn in await turns(store, f"room {room}")]
            assert kept == [request for request in stored if request % 12 == room][-8:]
        await store.aclose()
    assert set_aside(tmp_path) == 0


async def test_no_secret_in_what_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    path = tmp_path / "memory.db"
    path.write_bytes(b"canary words" * 100)
    async with running(path) as store:
        await store.commit(outcome("kitchen", "1", "canary words"))
        assert not re.search("canary", f"{store.problem} {caplog.text}")
