"""Publishes health and info: on every change of status, and every HEALTH_INTERVAL_S."""

import asyncio
import logging
from collections.abc import Sequence
from math import inf
from typing import Final

from piagent_daemon import CONTRACT_VERSION, __version__
from piagent_daemon.contract import AgentInfo, Defaults, Health, Info
from piagent_daemon.health import Reporter, Tally
from piagent_daemon.ports import FrontDoor, Herald
from piagent_daemon.scheduler import Scheduler
from piagent_daemon.settings import Settings
from piagent_daemon.systemd import Notifier
from piagent_daemon.topics import Topics
from piagent_daemon.turn import Config
from piagent_daemon.waiting import woken
from piagent_daemon.watch import ProviderWatch

log = logging.getLogger("piagent.health")

LIMITS: Final = (
    "ctx_tokens",
    "max_tokens",
    "max_concurrent",
    "max_waiting",
    "max_message_chars",
    "max_payload_bytes",
    "max_image_bytes",
    "memory_max_turns",
    "memory_max_conversations",
)


class Reporting:
    """Looks at all parts and tells the broker, through `herald`, and systemd how they stand."""

    def __init__(
        self,
        *,
        config: Config,
        herald: Herald,
        doors: Sequence[FrontDoor],
        scheduler: Scheduler,
        watch: ProviderWatch,
        reporter: Reporter,
        tally: Tally,
        notifier: Notifier,
    ) -> None:
        self.config_rejected = False
        self._config = config
        self._herald = herald
        self._doors = doors
        self._scheduler = scheduler
        self._watch = watch
        self._reporter = reporter
        self._tally = tally
        self._notifier = notifier
        self._topics = Topics(config.settings.mqtt_base_topic)
        self._wake = asyncio.Event()
        self._told: tuple[object, ...] | None = None
        self._told_at = -inf
        """Loop time of the last publication."""

    def health(self) -> Health:
        """Return the health of this moment."""
        reasons = self._watch.reasons
        if self.config_rejected:
            reasons.append("config_rejected")
        reasons += [reason for door in self._doors if door is not self._herald for reason in door.state.reasons]
        return self._reporter.health(
            door=self._herald.state,
            provider=self._watch.health,
            providers=self._watch.report,
            queue=self._scheduler.queue,
            reasons=reasons,
        )

    def info(self) -> Info:
        """Return the description of this daemon."""
        return describe(self._config)

    def introduce(self) -> None:
        """Publish what this daemon is."""
        self._herald.announce(self._topics.info, lambda: self.info().encode())

    def changed(self) -> None:
        """Look again soon: something may have changed."""
        self._wake.set()

    async def run(self) -> None:
        """Publish at once, on each change of status or reasons, and every HEALTH_INTERVAL_S."""
        self.introduce()
        while True:
            self._wake.clear()
            self._reporter.look_at_clock()
            self._publish()
            await woken(self._wake, min(self._due_in_s, self._tally.passes_in_s))

    @property
    def _due_in_s(self) -> float:
        """Return in how many seconds health is to be published though nothing has changed."""
        return self._told_at + self._config.settings.health_interval_s - asyncio.get_running_loop().time()

    def _publish(self) -> None:
        health = self.health()
        self._notifier.status(self._status(health))
        if _essence(health) != self._told or self._due_in_s <= 0:
            self._told_at = asyncio.get_running_loop().time()
            self._herald.announce(self._topics.health, self._tell)

    def _tell(self) -> bytes:
        """Return the health of this moment as it goes out, which may be later than it was asked for."""
        health = self.health()
        self._told, self._told_at = _essence(health), asyncio.get_running_loop().time()
        return health.encode()

    def _status(self, health: Health) -> str:
        if not self._herald.state.connected:
            detail = self._herald.state.detail
            return (
                detail if detail.startswith("waiting for") else f"waiting for the broker: {detail or 'not connected'}"
            )
        counts = f"{health.totals.replies} answered, {health.queue.active} active, {health.queue.waiting} waiting"
        return f"{health.status}: {', '.join(health.reasons)}; {counts}" if health.reasons else f"ok; {counts}"


def _essence(health: Health) -> tuple[object, ...]:
    """Return the part of it whose change is told at once."""
    return (health.status, health.reasons, health.protocol, health.provider)


def describe(config: Config) -> Info:
    """Return the description of a daemon with this configuration."""
    settings, topics = config.settings, Topics(config.settings.mqtt_base_topic)
    model, first = settings.ollama_model_general, settings.provider.split(",")[0].strip()
    agents = [
        AgentInfo(
            name=agent.name,
            description=agent.description,
            provider=agent.provider or first,
            model=agent.model or _model_of(agent.provider or first, settings),
        )
        for agent in config.agents.values()
    ]
    return Info(
        version=__version__,
        contract=CONTRACT_VERSION,
        agents=agents,
        defaults=Defaults(agent=settings.default_agent, model=model, temperature=settings.temperature),
        limits={name: int(getattr(settings, name)) for name in LIMITS},
        provider=settings.provider,
        model=model,
        models=sorted({*config.models, model, *(agent.model for agent in agents if agent.provider == first)}),
        topics={
            "in": topics.inbox("<convo>"),
            "out": topics.out("<convo>"),
            "cancel": topics.cancel("<convo>"),
            "reset": topics.reset("<convo>"),
            "health": topics.health,
            "info": topics.info,
            "request": topics.request("<method>"),
            "response": topics.response("<method>"),
        },
    )


def _model_of(provider: str, settings: Settings) -> str:
    """Return the model that a provider answers with where neither agent nor request names one."""
    table = settings.providers.get(provider)
    return (table.model if table else None) or settings.ollama_model_general
