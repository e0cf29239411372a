"""Anthropic over its Messages API."""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from piagent_daemon.errors import ConfigError, ModelNotFound, ProviderError
from piagent_daemon.providers import anthropic_wire as wire
from piagent_daemon.providers.address import parse_address
from piagent_daemon.providers.answer import Hear, look
from piagent_daemon.providers.api_rules import API_RULES, NoSuchPath
from piagent_daemon.providers.config import ProviderConfig
from piagent_daemon.providers.deadlines import Deadlines
from piagent_daemon.providers.fault_rules import Site
from piagent_daemon.providers.refusals import Refusals
from piagent_daemon.providers.remote import Remote, remember
from piagent_daemon.values import ChatRequest, ModelInfo, ProviderState, PullProgress

if TYPE_CHECKING:
    from piagent_daemon.providers.client import LineStream

log = logging.getLogger("piagent.anthropic")

HERE = "https://api.anthropic.com"
VERSION = "2023-06-01"
PROBE_S = 5.0
MOST_MODELS = 1000


class AnthropicProvider(Remote):
    """Anthropic's cloud, or a server that speaks like it."""

    def __init__(self, config: ProviderConfig) -> None:
        """Raises ConfigError when the address cannot be read or the key is missing. Opens no connection."""
        if not (config.key or config.url):
            raise ConfigError(f"{config.key_setting}: {config.kind} wants a key")
        address = parse_address(config.url or HERE, config.url_setting, 443)
        site = Site(
            API_RULES,
            config.url_setting,
            config.key_setting,
            "is its name right, and may this key use it?",
            f"Is it running, and is {config.url_setting} right?" if config.url else "Is this machine online?",
        )
        key = {"x-api-key": config.key} if config.key else {}
        super().__init__(config, address, site, {"anthropic-version": VERSION, **key})
        self._path = "" if address.path.endswith("/v1") else "/v1"
        self._refusals = Refusals(wire.OPTIONAL)
        self._ignored: set[str] = set()

    @asynccontextmanager
    async def _ask(self, request: ChatRequest, deadlines: Deadlines) -> AsyncGenerator[tuple["LineStream", Hear], None]:
        for name in request.options.keys() - wire.KNOWN_OPTIONS - self._ignored:
            self._ignored.add(name)
            log.warning("%s does not know the option %s: it is left out", self.name, name)

        def build(left_out: frozenset[str]) -> dict[str, Any]:
            return wire.chat_body(request, left_out)

        path = f"{self._path}/messages"
        answer = self._refusals.ask(self._http, path, build, deadlines, model=request.model, config=self._config)
        async with answer as stream:
            yield stream, wire.Listener().hear

    async def prime(self, request: ChatRequest) -> None:
        """Do nothing: no model is loaded for us, and reading costs money."""

    async def unload(self, model: str) -> None:
        """Nothing: the server keeps or drops its models as it likes."""

    async def probe(self, model: str) -> ProviderState:
        """Ask for the model's entry, under which its aliases are found too; 5 s at most."""
        return await look(self._state(model), PROBE_S)

    async def _state(self, model: str) -> ProviderState:
        try:
            await self._entry(model)
        except NoSuchPath:  # a server that only speaks like it may have no list
            return ProviderState(True)
        except ModelNotFound as error:
            return ProviderState(True, None, False, str(error))
        return ProviderState(True, None, True)

    async def models(self) -> list[ModelInfo]:
        """List the models that the key may use."""
        found = await self._http.call("GET", f"{self._path}/models?limit={MOST_MODELS}")
        return [wire.model(row) for row in wire.rows(found)]

    async def capabilities(self, model: str) -> frozenset[str]:
        """Return what the model's entry says, nothing where there are no entries; asked once for each model."""
        if model not in self._capabilities:
            try:
                found = wire.abilities(await self._entry(model))
            except NoSuchPath:
                found = frozenset()
            remember(self._capabilities, model, found)
        return self._capabilities[model]

    async def embed(self, inputs: Sequence[str], model: str) -> list[list[float]]:  # noqa: ARG002 - the seam's signature
        """Raises ProviderError: there are none."""
        raise ProviderError(f"{self.name} has no embeddings: let another provider make them", 501)

    async def pull(self, model: str) -> AsyncGenerator[PullProgress, None]:
        """Raises ProviderError: there is nothing to download."""
        raise ProviderError(f"{self.name} has no models to download: {model!r} runs there", 501)
        yield

    async def delete(self, model: str) -> None:
        """Raises ProviderError: there is nothing to remove."""
        raise ProviderError(f"{self.name} has no models to remove: {model!r} runs there", 501)

    async def _entry(self, model: str) -> dict[str, Any]:
        return await self._http.call("GET", f"{self._path}/models/{quote(model, safe='')}", model=model)
