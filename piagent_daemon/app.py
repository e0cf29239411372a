"""The wiring: the only file that names concrete classes."""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from piagent_daemon import __version__, doors, log, providers, settings, stores
from piagent_daemon.admin import AdminDesk, Parts
from piagent_daemon.agents import load_agents, misplaced
from piagent_daemon.announcer import Announcer
from piagent_daemon.catalogue import Catalogue
from piagent_daemon.contract import Offline
from piagent_daemon.daemon import Daemon
from piagent_daemon.defaults import Chooser
from piagent_daemon.errors import ConfigError
from piagent_daemon.health import Reporter, Tally
from piagent_daemon.ladder import Ladder
from piagent_daemon.ports import Clock, ConversationStore, FrontDoor, Intake
from piagent_daemon.reporting import Reporting
from piagent_daemon.rung import Rung
from piagent_daemon.scheduler import Scheduler
from piagent_daemon.settings import Loaded, Settings
from piagent_daemon.systemd import Notifier, memory_limit_live
from piagent_daemon.turn import Assistant, Config
from piagent_daemon.values import ProviderState
from piagent_daemon.waiting import in_loop
from piagent_daemon.warmup import Warmup
from piagent_daemon.watch import ProviderWatch
from piagent_daemon.window import Ledger

T = TypeVar("T")


class SystemClock:
    """The machine's own clocks (`ports.Clock`)."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


def build(loaded: Loaded) -> Daemon:
    """Put the daemon together; connects to nothing yet. Raises ConfigError."""
    clock, notifier, tally = SystemClock(), Notifier(), Tally(SystemClock())
    config, store, found = _made(loaded.settings, clock)
    ladder = Ladder(found, lambda: config.settings, clock)
    extend(ladder, config, clock)
    provider = ladder.first
    assistant = Assistant(config, ladder, store, Ledger(), clock)
    scheduler = Scheduler(assistant, config, store, tally, clock)
    watch = ProviderWatch(ladder, config)
    warmup = Warmup(ladder, config, scheduler.idle)
    chooser = Chooser(config, store)
    catalogue = Catalogue(ladder, config)
    admin = AdminDesk()
    mqtt = doors.load("mqtt")(config.settings, scheduler, admin, clock, Offline().encode())
    front: list[FrontDoor] = [mqtt, *_further_doors(config, scheduler, clock, mqtt)]
    reporting = Reporting(
        config=config,
        herald=mqtt,
        doors=front,
        scheduler=scheduler,
        watch=watch,
        reporter=Reporter(tally, store, clock),
        tally=tally,
        notifier=notifier,
    )
    announcer = Announcer(config, mqtt, provider, reporting.info)
    admin.parts = Parts(
        config=config,
        scheduler=scheduler,
        store=store,
        ladder=ladder,
        clock=clock,
        chooser=chooser,
        warmup=warmup,
        watch=watch,
        catalogue=catalogue,
        reporting=reporting,
    )
    store.on_change = tally.on_reason = reporting.changed
    tally.on_end = watch.ended

    def changed() -> None:
        reporting.changed()
        announcer.changed()

    def introduced() -> None:
        reporting.introduce()
        announcer.changed()

    def looked(rung: Rung, state: ProviderState) -> None:
        catalogue.looked(rung, state)
        warmup.looked(rung, state)

    watch.on_change, watch.on_look = changed, looked
    warmup.on_primed = watch.look_soon
    for door in front:
        door.on_change = changed
    daemon = Daemon(
        config=config,
        doors=front,
        scheduler=scheduler,
        store=store,
        ladder=ladder,
        reporting=reporting,
        watch=watch,
        catalogue=catalogue,
        announcer=announcer,
        chooser=chooser,
        warmup=warmup,
        notifier=notifier,
        reload=lambda: reload(config, loaded.path, ladder),
    )

    def chosen() -> None:
        introduced()
        daemon.prepare()

    catalogue.on_change, catalogue.on_arrival = introduced, chosen
    chooser.on_change = chosen
    return daemon


def _made(chosen: Settings, clock: Clock) -> tuple[Config, ConversationStore, list[Rung]]:
    """Make what can be wrong in several ways at once; raises one ConfigError with all of them."""
    problems: list[str] = []

    def attempt(make: Callable[[], T]) -> T | None:
        try:
            return make()
        except ConfigError as error:
            problems.extend(error.problems)
            return None

    config = attempt(lambda: configure(chosen))
    store = attempt(lambda: stores.create(chosen, clock))
    found = attempt(lambda: rungs(config or Config(chosen, {}), clock))
    if config is None or store is None or found is None:
        raise ConfigError(*problems)
    return config, store, found


def _further_doors(config: Config, intake: Intake, clock: Clock, mqtt: Any) -> Iterator[FrontDoor]:
    """Yield the doors that are switched on; the code of the others is never loaded."""
    chosen = config.settings
    if chosen.hermes:
        yield doors.load("hermes")(chosen, intake, clock, mqtt, lambda: config.agents)
    if chosen.wyoming_uri:
        yield doors.load("wyoming")(chosen, intake, clock, lambda: config.agents)


def rungs(config: Config, clock: Clock) -> list[Rung]:
    """Make the providers of PROVIDER, in order. Raises ConfigError."""
    return [_rung(name, config, clock) for name in dict.fromkeys(config.settings.provider.split(","))]


def extend(ladder: Ladder, config: Config, clock: Clock) -> None:
    """Make the providers that only agents name. Raises ConfigError, and changes nothing then."""
    made = {}
    for agent in config.agents.values():
        name = agent.provider
        if name and name not in ladder.known and name not in made:
            try:
                made[name] = _rung(name, config, clock)
            except ConfigError as error:
                raise misplaced(agent, error) from None
    for rung in made.values():
        ladder.add(rung)


def _rung(name: str, config: Config, clock: Clock) -> Rung:
    beside = {agent.provider for agent in config.agents.values() if agent.provider}
    place = providers.config.place(name, config.settings, beside)
    wake = None
    if place.wake:
        from piagent_daemon.providers.wake import send  # noqa: PLC0415 (few have a machine to wake)

        wake = partial(send, place.wake)
    made = providers.create(name, config.settings, beside)
    return Rung(made, clock, model=place.model, context_tokens=place.context_tokens, wake=wake)


def configure(chosen: Settings) -> Config:
    """Return settings and agents that fit each other. Raises ConfigError."""
    agents = load_agents(Path(chosen.prompts_dir) if chosen.prompts_dir else None)
    for name, agent in (("DEFAULT_AGENT", chosen.default_agent), ("VOICE_AGENT", chosen.voice_agent)):
        if agent not in agents:
            raise ConfigError(f"{name}: there is no agent {agent!r}; known: {', '.join(agents)}")
    return Config(chosen, agents)


async def reload(current: Config, path: Path | None, ladder: Ladder) -> Config:
    """Read settings and agents anew; what needs a restart keeps its value. Raises ConfigError."""
    loaded = await asyncio.to_thread(settings.load_settings, path)
    if names := settings.restart_needed(current.settings, loaded.settings):
        logging.getLogger("piagent").warning("only a restart changes %s", ", ".join(names))
    fresh = await asyncio.to_thread(configure, settings.reloaded(current.settings, loaded.settings))
    extend(ladder, fresh, SystemClock())
    configure_log(fresh.settings)
    return fresh


def configure_log(chosen: Settings) -> None:
    """Log as the settings say, and never a secret of theirs."""
    keys = [key for table in chosen.providers.values() for key in log.secrets_in(table)]
    log.configure(chosen.log_level, chosen.log_format, [*log.secrets_in(chosen), *keys])


def run(loaded: Loaded) -> int:
    """Run the daemon until it is told to stop; return its exit code."""
    configure_log(loaded.settings)
    limit = memory_limit_live()
    bound = f"memory limit {limit // 1_048_576} MiB" if limit else "no memory limit in force"
    logging.getLogger("piagent").info("piagent %s starts, %s", __version__, bound)
    gc.disable()
    daemon = build(loaded)
    daemon.on_ready = tidy
    return in_loop(daemon.run())


def tidy() -> None:
    """Take back what the start left over, and spare the collector the rest from now on: it stays for ever."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.enable()


@asynccontextmanager
async def running(loaded: Loaded) -> AsyncGenerator[Daemon, None]:
    """Run the daemon inside somebody else's event loop, as the demo does."""
    daemon = build(loaded)
    async with daemon.running():
        yield daemon
