"""Tells Home Assistant about this daemon: once connected, when Home Assistant starts, when agents or models change."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Final

from piagent_daemon.contract import Info
from piagent_daemon.errors import PiagentError
from piagent_daemon.ports import Herald, Provider
from piagent_daemon.turn import Config
from piagent_daemon.values import ModelInfo

log = logging.getLogger("piagent.discovery")

PATIENCE_S: Final = 5.0
"""How long the model server may take to list its models."""


def short_delay() -> float:
    """Return some seconds, so that not all devices of a home speak at once when Home Assistant starts."""
    return random.uniform(0.2, 2.0)  # noqa: S311 - no secret


class Announcer:
    """Sends the discovery message through `herald`, or takes it back where HA_DISCOVERY is off."""

    def __init__(
        self,
        config: Config,
        herald: Herald,
        provider: Provider,
        info: Callable[[], Info],
        delay_s: Callable[[], float] = short_delay,
    ) -> None:
        self._config = config
        self._herald = herald
        self._provider = provider
        self._info = info
        self._delay_s = delay_s
        self._wake = asyncio.Event()
        self._asked = False
        self._models: list[str] = []
        self._sent: bytes | None = None
        herald.listen(f"{config.settings.ha_discovery_prefix}/status", self._heard)

    def changed(self) -> None:
        """Look soon whether there is something new to tell."""
        self._wake.set()

    def _heard(self, payload: bytes) -> None:
        """Take what Home Assistant says of itself; it says `online` some seconds after it has connected."""
        if payload.strip() == b"online":
            self._asked = True
            self._wake.set()

    async def run(self) -> None:
        """Announce, for ever, but only while connected: nothing is made, or even loaded, that nobody can hear."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self._herald.state.connected:
                continue
            if self._asked:
                await asyncio.sleep(self._delay_s())
            await self._announce()

    async def _announce(self) -> None:
        from piagent_daemon import discovery  # noqa: PLC0415 (a start without a broker needs none of it)

        asked, self._asked = self._asked, False
        if self._config.settings.ha_discovery:
            await self._look()
        settings = self._config.settings
        message = discovery.message(self._info(), settings, self._models) if settings.ha_discovery else b""
        if message != self._sent or (asked and message):
            self._sent = message
            self._herald.announce(discovery.topic(settings), lambda: message)
            log.debug("told Home Assistant about this daemon: %d bytes on %s", len(message), discovery.topic(settings))

    async def _look(self) -> None:
        """Learn which models there are; without an answer the ones of before stand.

        `Config.models` would not do: it does not tell which of them can talk.
        """
        try:
            async with asyncio.timeout(PATIENCE_S):
                found = await self._provider.models()
        except (PiagentError, TimeoutError) as error:
            log.debug("the model server does not list its models: %s", error)
        else:
            self._models = names_of(found)


def names_of(models: Sequence[ModelInfo]) -> list[str]:
    """Return the names of the models that can talk, as far as they tell what they can."""
    return [model.name for model in models if not model.capabilities or "completion" in model.capabilities]
