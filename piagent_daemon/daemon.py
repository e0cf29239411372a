"""The daemon's life: start, ready, serve, drain, stop (contract section 10)."""

import asyncio
import logging
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

from piagent_daemon.announcer import Announcer
from piagent_daemon.catalogue import Catalogue
from piagent_daemon.defaults import Chooser
from piagent_daemon.errors import ConfigError
from piagent_daemon.ladder import Ladder
from piagent_daemon.ports import ConversationStore, FrontDoor
from piagent_daemon.reporting import Reporting
from piagent_daemon.scheduler import Scheduler
from piagent_daemon.systemd import Notifier
from piagent_daemon.turn import Config
from piagent_daemon.warmup import READ_ANEW, Warmup
from piagent_daemon.watch import ProviderWatch

log = logging.getLogger("piagent.daemon")

DOORS_PATIENCE_S: Final = 10.0
"""After this long without a broker the start counts as done, so that boot order causes no restarts."""
FAREWELL_S: Final = 5.0
SWEEP_S: Final = 60.0


class Daemon:
    """Owns the parts that live as long as the process, and every task among them."""

    def __init__(
        self,
        *,
        config: Config,
        doors: Sequence[FrontDoor],
        scheduler: Scheduler,
        store: ConversationStore,
        ladder: Ladder,
        reporting: Reporting,
        watch: ProviderWatch,
        catalogue: Catalogue,
        announcer: Announcer,
        chooser: Chooser,
        warmup: Warmup,
        notifier: Notifier,
        reload: Callable[[], Awaitable[Config]],
    ) -> None:
        self.config = config
        self._doors = doors
        self._scheduler = scheduler
        self._store = store
        self._ladder = ladder
        self._reporting = reporting
        self._watch = watch
        self._catalogue = catalogue
        self._announcer = announcer
        self._chooser = chooser
        self._warmup = warmup
        self._notifier = notifier
        self._reload = reload
        self.on_ready: Callable[[], None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._readying: set[asyncio.Task[None]] = set()
        """Those of them that end with READY=1."""
        self._failed: asyncio.Future[None] | None = None
        self._reloading = asyncio.Lock()
        self._ready = asyncio.Event()
        """READY=1 was said for the start."""
        self.stopping = asyncio.Event()
        self.hurry = asyncio.Event()

    async def run(self) -> int:
        """Live until SIGTERM or SIGINT; return the exit code: 0, or 1 when a part of the daemon died."""
        with self._signals():
            async with self.running():
                await self.stopping.wait()
        return 1 if self._failed and self._failed.done() else 0

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Start, tell systemd when ready, and on leaving drain and stop."""
        self._failed = asyncio.get_running_loop().create_future()
        await self._store.start()
        await self._chooser.restore()
        for door in self._doors:
            await door.start()
        self._get_ready(self._announce_ready(), "announce ready")
        self._start(self._reporting.run(), "report health")
        self._start(self._sweep(), "sweep the memory")
        self._start(self._ping(), "ping the watchdog")
        try:
            yield
        finally:
            await self._stop()

    async def _announce_ready(self) -> None:
        try:
            async with asyncio.timeout(DOORS_PATIENCE_S):
                for door in self._doors:
                    await door.ready()
        except TimeoutError:
            for door in self._doors:
                if not door.state.connected:
                    log.warning("not everything is there yet: %s", door.state.detail)
        self._notifier.ready()
        self._ready.set()
        if self.on_ready:
            self.on_ready()
        self._reporting.changed()
        # Only now, since these load the HTTP client, which would take the processor from the way to being ready.
        self._start(self._announcer.run(), "tell Home Assistant")
        self._start(self._watch.run(), "watch the model server")
        self._start(self._catalogue.run(), "know the models")
        self._warmup.begin()

    async def _stop(self) -> None:
        self.stopping.set()
        for task in self._readying:
            task.cancel()  # READY=1 after STOPPING=1 would be a lie
        self._notifier.stopping()
        log.info("stopping: finishing what runs")
        for door in self._doors:
            await door.stop_intake()
        await self._warmup.stop()
        await self._scheduler.drain(self.config.settings.shutdown_grace_s, self.hurry)
        await asyncio.gather(*(door.stop(FAREWELL_S) for door in self._doors))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._ladder.aclose()
        await self._store.aclose()
        log.info("stopped")

    # ----------------------------------------------------------------------------------------------------- the upkeep

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            await self._store.sweep()

    async def _ping(self) -> None:
        """Ping the watchdog from the loop that does the work, and only while the work goes on."""
        interval_s = self._notifier.watchdog_interval()
        while interval_s is not None:
            if self._scheduler.alive and all(door.alive for door in self._doors):
                self._notifier.watchdog()
            await asyncio.sleep(interval_s)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _get_ready(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._start(work, name)
        self._readying.add(task)
        task.add_done_callback(self._readying.discard)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Stop the daemon when one of its tasks dies by a defect: systemd starts it anew, and nothing is lost."""
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.critical("the task %r died", task.get_name(), exc_info=error)
        if self._failed and not self._failed.done():
            self._failed.set_result(None)
        self.stopping.set()

    # -------------------------------------------------------------------------------------------------------- signals

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: self.reload}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Begin to stop; called again, stop at once."""
        if self.stopping.is_set():
            self.hurry.set()
        self.stopping.set()

    def reload(self) -> None:
        """Read settings and agents anew, once the start is over; what cannot be read leaves the old ones in force.

        While stopping: nothing.
        """
        if not self.stopping.is_set():
            self._get_ready(self._reload_in_turn(), "reload")

    async def _reload_in_turn(self) -> None:
        await self._ready.wait()  # the READY=1 at its end would be taken for that of the start
        async with self._reloading:
            await self._do_reload()

    async def _do_reload(self) -> None:
        self._notifier.reloading()
        self._reporting.config_rejected = not await self._renew()
        self._reporting.introduce()
        self._reporting.changed()
        self._announcer.changed()
        self._notifier.ready()

    async def _renew(self) -> bool:
        """Take over what settings and prompts say now; tell whether that could be done."""
        try:
            await self._take_over(await self._reload())
        except ConfigError as error:
            for problem in error.problems:
                log.error("reload refused: %s", problem)  # noqa: TRY400 - the problem says it all, a trace says nothing
        except Exception:
            # Whatever a file brings about is no reason to end what runs.
            log.exception("reload failed by a defect: the old settings and agents stay")
        else:
            return True
        return False

    async def _take_over(self, fresh: Config) -> None:
        before = self.config.settings
        changed = {name for name, agent in fresh.agents.items() if self.config.agents.get(name) != agent}
        settings = await self._chooser.over(fresh.settings, fresh.agents)
        self.config.settings, self.config.agents = settings, fresh.agents
        anew = any(getattr(settings, name) != getattr(before, name) for name in READ_ANEW)
        self.prepare(None if anew else changed)
        log.info("reloaded: %d agents", len(fresh.agents))

    def prepare(self, agents: Collection[str] | None = None) -> None:
        """Look for the models that are asked for now, and have these agents' loaded and primed, all when None."""
        self._watch.look_soon()
        self._warmup.begin(agents)
