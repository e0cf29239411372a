"""What only a store with a file promises: it lives on over restarts, and its ages are sane."""

import asyncio
import contextlib
import sqlite3
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from piagent_daemon.settings import Settings
from piagent_daemon.stores import sqlite
from piagent_daemon.stores.sqlite import SqliteStore
from piagent_daemon.values import Conversation, Delivery, Outcome, Ticket, Turn
from tests.fakes.doubles import FakeClock

QUESTION = Turn("user", "Is it raining?", datetime(2026, 1, 2, tzinfo=UTC))
DELIVERY = Delivery("id:kitchen:r1", by_id=True, redelivered=True, durable=True)


def outcome(conversation_id: str = "kitchen", request_id: str = "r1", **fields: Any) -> Outcome:
    given: dict[str, Any] = {"terminal": b"{}", "agent": "general", "turns": (QUESTION,)}
    return Outcome(conversation_id, request_id, **(given | fields))


class Machine:
    """A machine with one disk, on which processes come and go."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state" / "memory.db"
        self.clock = FakeClock()
        self.boot = "first boot"
        self.store: SqliteStore | None = None

    async def process(self, **settings: Any) -> SqliteStore:
        """End the running process and start a new one."""
        await self.stop()
        chosen = Settings(memory_url=f"sqlite://{self.path}", **settings)
        self.store = SqliteStore(chosen, self.clock, retry_s=0.01, boot=self.boot)
        await self.store.start()
        return self.store

    async def kill(self, **settings: Any) -> SqliteStore:
        """Start a new process beside one that never came to say goodbye."""
        self.store, left = None, self.store
        store = await self.process(**settings)
        if left is not None:
            await left._work(left._database.close)
            left._worker.shutdown()
        return store

    async def stop(self) -> None:
        if self.store is not None:
            await self.store.aclose()
            self.store = None


@pytest.fixture
async def machine(tmp_path: Path) -> Any:
    machine = Machine(tmp_path)
    yield machine
    await machine.stop()


async def test_a_conversation_outlives_the_process(machine: Machine) -> None:
    store = await machine.process()
    await store.commit(outcome(drop=0))
    await store.commit(outcome(drop=1))
    for again in (machine.process, machine.kill):
        store = await again()
        assert await store.load("kitchen") == Conversation((QUESTION,), 1, "general")
        assert store.count() == 1
        assert store.problem is None


async def test_an_answer_is_on_the_disk_before_it_is_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await machine.process()
    levels: list[int] = []
    apply = store._database._apply

    def look(connection: sqlite3.Connection, batch: Any) -> None:
        if batch.durable:
            levels.append(connection.execute("PRAGMA synchronous").fetchone()[0])
        apply(connection, batch)

    monkeypatch.setattr(store._database, "_apply", look)
    await store.commit(outcome())
    assert levels == [2], "FULL: each commit is synchronised"


async def test_file_and_folder_are_private(machine: Machine) -> None:
    store = await machine.process()
    await store.commit(outcome())
    for path in (machine.path, machine.path.with_name("memory.db-wal")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(machine.path.parent.stat().st_mode) == 0o700
    await machine.stop()
    machine.path.chmod(0o644)
    await machine.process()
    assert stat.S_IMODE(machine.path.stat().st_mode) == 0o600


async def test_the_end_of_a_request_outlives_the_process(machine: Machine) -> None:
    store = await machine.process()
    await store.open(DELIVERY, Ticket("kitchen", "r1"))
    await store.begin("r1", "kitchen")
    await store.commit(outcome(terminal=b"\x00\xff"))
    store = await machine.kill()
    known = await store.open(DELIVERY, Ticket("kitchen", "r2"))
    assert (known.request_id, known.terminal, known.crashes) == ("r1", b"\x00\xff", 0)


async def test_a_process_that_ends_in_an_attempt_is_a_crash(machine: Machine) -> None:
    store = await machine.process()
    assert (await store.open(DELIVERY, Ticket("kitchen", "r1"))).crashes == 0
    assert (await store.begin("r1", "kitchen")).attempt == 1
    store = await machine.kill()
    known = await store.open(DELIVERY, Ticket("kitchen", "r2"))
    assert (known.request_id, known.attempt, known.crashes) == ("r1", 2, 1)
    store = await machine.kill()
    known = await store.open(DELIVERY, Ticket("kitchen", "r2"))
    assert (known.attempt, known.crashes) == (2, 1), "dying before the next attempt is no second crash"
    begun = await store.begin("r1", "kitchen")
    assert (begun.attempt, begun.crashes) == (2, 1)
    store = await machine.kill()
    assert (await store.begin("r1", "kitchen")).crashes == 2


async def test_a_graceful_stop_is_no_crash(machine: Machine) -> None:
    store = await machine.process()
    await store.open(DELIVERY, Ticket("kitchen", "r1"))
    await store.begin("r1", "kitchen")
    await store.release("r1", "kitchen")
    store = await machine.process()
    known = await store.begin("r1", "kitchen")
    assert (known.attempt, known.crashes) == (2, 0)


async def test_what_was_forgotten_stays_forgotten(machine: Machine) -> None:
    store = await machine.process()
    for name in ("a", "b", "c"):
        await store.commit(outcome(name))
    await store.clear("a")
    store = await machine.kill()
    assert sorted(row.conversation_id for row in await store.conversations()) == ["b", "c"]
    await store.clear()
    store = await machine.kill()
    assert store.count() == 0


async def test_the_bound_holds_for_the_file(machine: Machine) -> None:
    store = await machine.process(memory_max_conversations=3)
    for number in range(10):
        await store.commit(outcome(str(number)))
    store = await machine.kill(memory_max_conversations=2)
    assert [row.conversation_id for row in await store.conversations()] == ["9", "8"]
    store = await machine.process(memory_max_conversations=500)
    assert store.count() == 2


async def test_text_that_sqlite_cannot_hold(machine: Machine) -> None:
    store = await machine.process()
    odd = Turn("user", "\ud800\0\u2028", QUESTION.ts)
    await store.commit(outcome("kitchen", turns=(odd,), agent="\udfff"))
    await store.commit(outcome("\ud800"))
    store = await machine.kill()
    assert (await store.load("kitchen")).turns == (odd,)
    assert store.problem is None


# --------------------------------------------------------------------------------------------------------------- ages


async def test_a_restart_in_the_same_boot_keeps_ages_exact(machine: Machine) -> None:
    store = await machine.process(memory_ttl_min=60)
    await store.commit(outcome("old"))
    machine.clock.advance(50 * 60)
    await store.commit(outcome("new"))
    machine.clock.wall -= timedelta(days=20_000)
    store = await machine.process(memory_ttl_min=60)
    machine.clock.advance(11 * 60)
    assert [row.conversation_id for row in await store.conversations()] == ["new"]


@pytest.mark.parametrize("jump", [timedelta(hours=2), timedelta(hours=-2), timedelta(days=-56 * 365), timedelta()])
@pytest.mark.parametrize("uptime", [5.0, 500_000.0])
async def test_a_reboot_without_a_clock_forgets_nothing(machine: Machine, jump: timedelta, uptime: float) -> None:
    store = await machine.process(memory_ttl_min=60)
    await store.open(DELIVERY, Ticket("kitchen", "r1"))
    await store.commit(outcome("old"))
    machine.clock.advance(50 * 60)
    await store.commit(outcome("new"))
    machine.boot, machine.clock.elapsed = "second boot", uptime
    machine.clock.wall += jump
    store = await machine.kill(memory_ttl_min=60)
    assert await store.sweep() == 0
    store = await machine.kill(memory_ttl_min=60)
    assert store.count() == 2
    assert (await store.open(DELIVERY, Ticket("kitchen", "r2"))).request_id == "r1"
    machine.clock.advance(11 * 60)
    assert [row.conversation_id for row in await store.conversations()] == ["new"], "the distance of ages is kept"


async def test_a_clock_that_began_anew_in_the_same_boot(machine: Machine) -> None:
    store = await machine.process(memory_ttl_min=60)
    await store.commit(outcome())
    machine.clock.elapsed = 1.0
    store = await machine.process(memory_ttl_min=60)
    machine.clock.advance(59 * 60)
    assert (await store.load("kitchen")).turns


# -------------------------------------------------------------------------------------------------------------- files


async def test_a_wrong_version_is_set_aside(machine: Machine) -> None:
    store = await machine.process()
    await store.commit(outcome())
    await machine.stop()
    with sqlite3.connect(machine.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    store = await machine.process(health_interval_s=30)
    assert store.count() == 0
    assert "version 99" in (store.problem or "")
    assert len(list(machine.path.parent.glob("memory.db.corrupt-*"))) == 1
    machine.clock.advance(31)
    assert store.problem is None


async def test_notes_live_on_and_are_the_newest(machine: Machine) -> None:
    store = await machine.process()
    assert store.noted("defaults") == b""
    await store.note("defaults", b"old")
    await store.note("defaults", b"new")
    await store.note("other", b"\0\xff")
    await store.clear()
    store = await machine.kill()
    assert (store.noted("defaults"), store.noted("other")) == (b"new", b"\0\xff")
    await store.note("defaults", b"")
    assert (await machine.process()).noted("defaults") == b""


async def test_a_note_is_kept_also_when_the_file_comes_back_late(machine: Machine) -> None:
    machine.path.mkdir(parents=True)
    store = await machine.process()
    await store.note("defaults", b"mine")
    assert store.noted("defaults") == b"mine"
    machine.path.rmdir()
    await until(lambda: store.problem is None)
    machine.path.rename(machine.path.with_name("elsewhere"))
    await store.commit(outcome())
    await until(lambda: store.problem is None and machine.path.exists())
    assert (await machine.kill()).noted("defaults") == b"mine"


async def test_a_file_from_before_there_were_notes_keeps_its_conversations(machine: Machine) -> None:
    store = await machine.process()
    await store.commit(outcome())
    await machine.stop()
    with sqlite3.connect(machine.path) as connection:
        connection.execute("DROP TABLE notes")
    connection.close()
    store = await machine.process()
    assert (await store.load("kitchen")).turns
    await store.note("defaults", b"mine")
    assert store.problem is None
    assert (await machine.process()).noted("defaults") == b"mine"


async def test_at_most_three_damaged_files_are_kept(machine: Machine) -> None:
    for number in range(5):
        store = await machine.process()
        await store.commit(outcome())
        await machine.stop()
        machine.path.write_bytes(b"nonsense %d" % number * 100)
        machine.clock.advance(number % 2)
    await machine.process()
    kept = [path.read_bytes()[:10] for path in machine.path.parent.glob("memory.db.corrupt-*")]
    assert sorted(kept) == [b"nonsense 2", b"nonsense 3", b"nonsense 4"]


@pytest.mark.parametrize("table", ["states", "notes", "requests"])
async def test_the_file_of_another_program_is_left_alone(machine: Machine, table: str) -> None:
    machine.path.parent.mkdir()
    with sqlite3.connect(machine.path) as connection:
        connection.execute(f"CREATE TABLE {table} (id INTEGER)")
    connection.close()
    machine.path.chmod(0o644)
    before = machine.path.read_bytes(), machine.path.stat().st_mode
    store = await machine.process()
    assert "another program" in (store.problem or "")
    await store.commit(outcome())
    assert (await store.load("kitchen")).turns
    await machine.stop()
    assert (machine.path.read_bytes(), machine.path.stat().st_mode) == before


async def test_nothing_is_lost_where_there_was_nothing_to_write(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.path.mkdir(parents=True)
    await machine.process()
    await machine.stop()
    assert "are lost" not in caplog.text


async def test_damage_that_a_write_finds_loses_nothing(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    store = await machine.process()
    await store.commit(outcome())
    with sqlite3.connect(machine.path) as connection:
        connection.execute("DROP TABLE requests")
    connection.close()
    await store.open(Delivery("k", by_id=True, redelivered=False, durable=True), Ticket("kitchen", "r9"))
    assert "what is remembered is written anew" in (store.problem or "")
    store = await machine.process()
    assert (await store.load("kitchen")).turns
    assert "are lost" not in caplog.text


async def test_a_folder_in_place_of_the_file(machine: Machine) -> None:
    machine.path.mkdir(parents=True)
    store = await machine.process()
    assert store.problem is not None
    await store.commit(outcome())
    machine.path.rmdir()
    await until(lambda: store.problem is None)
    store = await machine.kill()
    assert (await store.load("kitchen")).turns


async def test_a_removed_file_is_written_again(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    store = await machine.process()
    await store.commit(outcome("a"))
    caplog.set_level("INFO")
    machine.path.rename(machine.path.with_name("elsewhere"))
    await store.commit(outcome("b"))
    assert store.problem is not None
    await until(lambda: store.problem is None)
    assert [record.levelname for record in caplog.records if record.name == "piagent.store"] == [
        "ERROR",
        "INFO",
    ]
    store = await machine.kill()
    assert store.count() == 2


async def test_what_ram_knows_is_newer_than_a_file_that_turns_up_late(machine: Machine) -> None:
    store = await machine.process()
    await store.open(DELIVERY, Ticket("a", "r1"))
    for name in ("a", "b", "c"):
        await store.commit(outcome(name))
    await machine.stop()
    hidden = machine.path.with_name("hidden")
    machine.path.rename(hidden)
    machine.path.mkdir()
    store = await machine.process()
    await store.commit(outcome("a", agent="newer"))
    await store.clear("b")
    machine.path.rmdir()
    hidden.rename(machine.path)
    await until(lambda: store.problem is None)
    store = await machine.kill()
    assert sorted(row.conversation_id for row in await store.conversations()) == ["a", "c"]
    assert await store.load("a") == Conversation((QUESTION,), 0, "newer")
    assert (await store.open(DELIVERY, Ticket("a", "r2"))).request_id == "r1"


async def test_a_clear_reaches_a_file_that_could_not_be_read(machine: Machine) -> None:
    store = await machine.process()
    await store.commit(outcome("secret"))
    await machine.stop()
    hidden = machine.path.with_name("hidden")
    machine.path.rename(hidden)
    machine.path.mkdir()
    store = await machine.process()
    await store.clear()
    machine.path.rmdir()
    hidden.rename(machine.path)
    await until(lambda: store.problem is None)
    store = await machine.kill()
    assert store.count() == 0


async def test_unwritten_deletions_are_bounded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "MAX_FORGOTTEN", 50)
    machine.path.mkdir(parents=True)
    store = await machine.process()
    for number in range(200):
        await store.clear(str(number))
        await store.commit(outcome("kitchen", epoch=(await store.load("kitchen")).epoch))
    assert store._ledger.changes < 60
    machine.path.rmdir()
    await until(lambda: store.problem is None)
    assert (await machine.kill()).count() == 1


async def test_a_file_locked_by_another_process(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piagent_daemon.stores.database.BUSY_S", 0.01)
    store = await machine.process()
    other = sqlite3.connect(machine.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    await store.commit(outcome())
    assert "locked" in (store.problem or "")
    other.execute("ROLLBACK")
    other.close()
    await until(lambda: store.problem is None)
    assert (await machine.kill()).count() == 1


async def test_a_disk_that_hangs_does_not_hold_answers_back(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "DISK_TIMEOUT_S", 0.05)
    store = await machine.process()
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    hang = store._worker.submit(lambda: asyncio.run_coroutine_threadsafe(event.wait(), loop).result())
    await asyncio.wait_for(store.commit(outcome("a")), 1)
    assert "does not answer" in (store.problem or "")
    await asyncio.wait_for(store.commit(outcome("b")), 1)
    event.set()
    await until(lambda: hang.done() and store.problem is None)
    assert (await machine.kill()).count() == 2


async def test_a_cancelled_commit_is_written_by_the_next(machine: Machine) -> None:
    store = await machine.process()
    for number in range(20):
        task = asyncio.create_task(store.commit(outcome(str(number))))
        for _ in range(number % 4):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
    await store.commit(outcome("last"))
    assert store.problem is None
    count = store.count()
    assert (await machine.kill()).count() == count


async def test_commits_that_wait_share_one_transaction(machine: Machine) -> None:
    store = await machine.process()
    written: list[int] = []
    write = store._database.write

    def counted(batch: Any) -> None:
        written.append(len(batch.histories))
        assert batch.durable
        write(batch)

    store._database.write = counted  # type: ignore[method-assign]
    await asyncio.gather(*(store.commit(outcome(str(number))) for number in range(50)))
    assert sum(written) == 50
    assert len(written) == 2


async def until(true: Any) -> None:
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110 what is waited for has no event
            await asyncio.sleep(0.005)


async def test_what_was_cleared_before_a_restart_goes_as_well_when_its_window_is_over(machine: Machine) -> None:
    store = await machine.process(dedupe_window_s=600)
    for name in ("kitchen", "hall"):
        await store.open(DELIVERY._replace(key=f"id:{name}:r1"), Ticket(name, "r1"))
        await store.commit(outcome(name, terminal=b'{"reply": "secret"}'))
    await store.clear("kitchen")
    for _ in range(2):
        store = await machine.process(dedupe_window_s=600)
    assert (await store.open(DELIVERY, Ticket("kitchen", "r1"))).terminal, "within the window it is known"
    machine.clock.advance(601)
    await store.sweep()
    await machine.stop()
    with contextlib.closing(sqlite3.connect(machine.path)) as file:
        assert file.execute("SELECT conversation_id FROM requests").fetchall() == [("hall",)]
