"""Conversations in an SQLite file: they live on over restarts, power cuts included.

RAM is the truth and the file its copy. So reading never waits for a disk, and when the disk fails the store simply goes
on: what could not be written is remembered and written once the disk works again.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote
from uuid import uuid4

from piagent_daemon.errors import ConfigError, StoreError
from piagent_daemon.ports import Clock
from piagent_daemon.settings import Settings
from piagent_daemon.stores.database import Damage, Database
from piagent_daemon.stores.ledger import Contents, Ledger
from piagent_daemon.stores.worker import Worker
from piagent_daemon.values import Conversation, ConversationInfo, Delivery, Outcome, Ticket

DISK_TIMEOUT_S = 10.0
RETRY_LIMIT_S = 60.0
MAX_FORGOTTEN = 50_000
"""With more than this to delete, the file is rewritten whole: the list must not grow while the disk is away."""

log = logging.getLogger("piagent.store")
T = TypeVar("T")


def path_of(url: str) -> Path:
    """Return the path in `sqlite:///absolute/path`; ConfigError for anything else."""
    path = unquote(url.partition(":")[2].removeprefix("//"))
    if not path.startswith("/") or path.endswith("/") or "\0" in path or "?" in url or "#" in url:
        raise ConfigError("MEMORY_URL: an SQLite file is written sqlite:///absolute/path/to/file.db")
    return Path(path)


def this_boot() -> str:
    """Return the kernel's name for the boot since which the monotonic clock counts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(uuid4())


class SqliteStore:
    """The ConversationStore behind `sqlite:///path`. ConfigError for a URL without an absolute path.

    `retry_s` is the first wait in seconds after a failed write; it doubles up to a minute. `boot` names the boot that
    the monotonic clock counts from.
    """

    name = "sqlite"
    durable = True

    def __init__(self, settings: Settings, clock: Clock, *, retry_s: float = 1.0, boot: str | None = None) -> None:
        self._path = path_of(settings.memory_url)
        self._clock = clock
        self._boot = boot or this_boot()
        self._ledger = Ledger(settings, clock, filed=True)
        self._database = Database(self._path, clock, self._boot)
        self._worker = Worker("store")
        self._writing = asyncio.Lock()
        self._stuck: asyncio.Future[Any] | None = None
        self._suspect: Damage | None = None
        self._durable = False
        self._complete = False  # RAM holds all that the file has
        self._identity: tuple[int, int] | None = None
        self._retry_s = retry_s
        self._retry: asyncio.Task[None] | None = None
        self._failure: str | None = "the file is not open yet"
        self._damage = ""
        self._damage_told_until = float("-inf")
        self._health_interval_s = settings.health_interval_s
        self.on_change: Callable[[], None] | None = None

    @property
    def problem(self) -> str | None:
        if self._failure is not None:
            return f"conversations are kept in memory only: {self._path}: {self._failure}"
        return self._damage if self._clock.monotonic() < self._damage_told_until else None

    def count(self) -> int:
        return len(self._ledger.histories)

    async def start(self) -> None:
        """Open the file and take in what an earlier process left; goes on in RAM when that cannot be done."""
        async with self._writing:
            await self._try()

    async def open(self, delivery: Delivery, ticket: Ticket) -> Ticket:
        known = self._ledger.journal.open(delivery, ticket)
        await self._save()
        return known

    async def begin(self, request_id: str, conversation_id: str) -> Ticket:
        ticket = self._ledger.journal.begin((conversation_id, request_id))
        await self._save()
        return ticket

    async def release(self, request_id: str, conversation_id: str) -> None:
        self._ledger.journal.release((conversation_id, request_id))
        await self._save()

    async def forget(self, request_id: str, conversation_id: str) -> None:
        self._ledger.journal.forget((conversation_id, request_id))
        await self._save()

    async def load(self, conversation_id: str) -> Conversation:
        # The time of use is written along with the next change; alone it is not worth a write to an SD card.
        return self._ledger.histories.load(conversation_id)

    async def commit(self, outcome: Outcome) -> None:
        self._ledger.commit(outcome)
        await self._save(durable=True)

    async def shorten(self, conversation_id: str, length: int, heard: int) -> None:
        self._ledger.histories.shorten(conversation_id, length, heard)
        await self._save()

    async def clear(self, conversation_id: str | None = None) -> int:
        if conversation_id is None:
            self._complete = True  # nothing in a file that could not be read yet shall come back
        forgotten = self._ledger.clear(conversation_id)
        await self._save(durable=True)
        return forgotten

    async def conversations(self) -> list[ConversationInfo]:
        return self._ledger.histories.infos()

    async def note(self, name: str, value: bytes) -> None:
        self._ledger.note(name, value)
        await self._save(durable=True)

    def noted(self, name: str) -> bytes:
        return self._ledger.notes.get(name, b"")

    async def sweep(self) -> int:
        forgotten = self._ledger.sweep()
        await self._save()
        return forgotten

    async def aclose(self) -> None:
        """Write what is left, once more even after failures, and close the file."""
        if self._retry is not None:
            self._retry.cancel()
            await asyncio.wait({self._retry})
        async with self._writing:
            try:
                if self._failure is not None:
                    await self._connect()
                elif self._ledger.changes:
                    await self._write(durable=True)
            except StoreError as error:
                if lost := self._ledger.changes:
                    log.error("%d changes are lost: %s: %s", lost, self._path, error)  # noqa: TRY400 it is no defect
            with suppress(StoreError):
                await self._work(self._database.close)
        self._worker.shutdown(wait=self._stuck is None or self._stuck.done())

    async def _save(self, *, durable: bool = False) -> None:
        """Return when all changes made before are in the file; at once while the disk fails.

        Callers that wait for the lock find their changes written by the one before them: a group commit.
        """
        self._durable |= durable
        async with self._writing:
            if self._failure is not None:
                self._bound()
            elif self._ledger.changes:
                try:
                    await self._write()
                except Damage:
                    await self._try()
                except StoreError as error:
                    self._failed(error)

    async def _write(self, *, durable: bool = False, wipe: bool = False) -> None:
        batch = self._ledger.take(durable=durable or self._durable, wipe=wipe)
        self._durable = False
        written = False
        try:
            await self._work(self._database.write, batch)
            written = True
        except Damage as error:
            self._suspect = error
            raise
        finally:
            if not written:
                self._ledger.put_back(batch)

    async def _try(self) -> None:
        try:
            await self._connect()
        except StoreError as error:
            self._failed(error)

    async def _connect(self) -> None:
        """Open the file, bring RAM and file together and write what the file lacks."""
        contents = await self._open_sound()
        identity = self._database.identity()
        wipe = self._complete and identity != self._identity
        if not self._complete:
            self._ledger.adopt(contents, self._boot)
        if wipe:
            self._ledger.mark_all()
        await self._write(durable=True, wipe=wipe)
        self._complete = True
        self._identity = identity
        self._tell(None)

    async def _open_sound(self) -> Contents:
        try:
            if self._suspect is not None:
                raise self._suspect
            return await self._work(self._database.open)
        except Damage as error:
            aside = await self._work(self._database.set_aside)
            self._suspect = None
            now = "is written anew" if self._complete else "begins anew"
            self._damage = f"the memory file was damaged ({error}) and is kept as {aside}; what is remembered {now}"
            self._damage_told_until = self._clock.monotonic() + self._health_interval_s
            log.error("%s", self._damage)  # noqa: TRY400 the sentence says it all
            return await self._work(self._database.open)

    def _bound(self) -> None:
        if self._ledger.changes > MAX_FORGOTTEN + len(self._ledger.histories) + len(self._ledger.journal):
            self._complete = True
            self._identity = None
            self._ledger.mark_all()

    def _failed(self, error: StoreError) -> None:
        if self._retry is None or self._retry.done():
            log.error("conversations are kept in memory only: %s: %s", self._path, error)
            self._retry = asyncio.create_task(self._try_again(), name="store retry")
        self._tell(str(error))

    def _tell(self, failure: str | None) -> None:
        self._failure = failure
        if self.on_change:
            self.on_change()

    async def _try_again(self) -> None:
        wait_s = self._retry_s
        while True:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RETRY_LIMIT_S)
            async with self._writing:
                try:
                    await self._connect()
                except StoreError as error:
                    self._failure = str(error)
                else:
                    log.info("conversations are kept in %s again", self._path)
                    return

    async def _work(self, call: Callable[..., T], *arguments: object) -> T:
        """Run `call` in the one thread; StoreError when the disk does not let it end in time."""
        if self._stuck is not None and not self._stuck.done():
            raise StoreError("the disk does not answer")
        future = asyncio.wrap_future(self._worker.submit(call, *arguments))
        future.add_done_callback(_look_at)
        done, _ = await asyncio.wait({future}, timeout=DISK_TIMEOUT_S)
        if not done:
            self._stuck = future
            raise StoreError("the disk does not answer")
        return future.result()


def _look_at(future: asyncio.Future[T]) -> None:
    """Take note of the end, so that the error of a call that nobody waits for any more is not reported as forgotten."""
    if not future.cancelled():
        future.exception()
