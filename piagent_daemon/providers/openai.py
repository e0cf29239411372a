"""Servers that speak OpenAI's protocol: OpenAI itself, LM Studio, llama-server, the Hugging Face router, any other."""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from piagent_daemon.errors import ConfigError, ProviderError
from piagent_daemon.providers import openai_wire as wire
from piagent_daemon.providers.address import Address, parse_address
from piagent_daemon.providers.answer import Hear, in_batches, look, read_prompt, vectors
from piagent_daemon.providers.api_rules import API_RULES, NoSuchPath
from piagent_daemon.providers.config import ProviderConfig
from piagent_daemon.providers.deadlines import Deadlines
from piagent_daemon.providers.fault_rules import Site, model_not_found
from piagent_daemon.providers.openai_presets import PRESETS, Preset
from piagent_daemon.providers.refusals import Refusals
from piagent_daemon.providers.remote import Remote, remember
from piagent_daemon.values import ChatRequest, ModelInfo, ProviderState, PullProgress

if TYPE_CHECKING:
    from piagent_daemon.providers.client import LineStream

log = logging.getLogger("piagent.openai")

PROBE_S = 5.0
EMBED_S = 120.0
"""The first text may load the model."""


class OpenAIProvider(Remote):
    """One server of a kind in PRESETS."""

    def __init__(self, config: ProviderConfig) -> None:
        """Raises ConfigError when the address cannot be read, or an address or key is missing. Opens no connection."""
        preset = PRESETS[config.kind]
        address = _address(config, preset)
        self._here = address.scheme == "http"
        site = Site(
            API_RULES,
            config.url_setting,
            config.key_setting,
            preset.missing,
            f"Is it running, and is {config.url_setting} right?" if self._here else "Is this machine online?",
        )
        super().__init__(config, address, site)
        self._preset = preset
        self._root = replace(address, path=address.path.removesuffix("/v1")).url
        self._refusals = Refusals(wire.OPTIONAL)
        self._ignored: set[str] = set()

    @asynccontextmanager
    async def _ask(self, request: ChatRequest, deadlines: Deadlines) -> AsyncGenerator[tuple["LineStream", Hear], None]:
        for name in wire.unknown_options(request, self._preset) - self._ignored:
            self._ignored.add(name)
            log.warning("%s does not know the option %s: it is left out", self.name, name)

        def build(left_out: frozenset[str]) -> dict[str, Any]:
            return wire.chat_body(request, self._preset, left_out)

        answer = self._refusals.ask(
            self._http, "/chat/completions", build, deadlines, model=request.model, config=self._config
        )
        async with answer as stream:
            yield stream, wire.Listener().hear

    async def prime(self, request: ChatRequest) -> None:
        """Let a server at home read the prompt. One over https counts tokens for money: there nothing is sent."""
        if self._here:
            await read_prompt(self.chat, request)

    async def unload(self, model: str) -> None:
        """Nothing: the server keeps or drops its models as it likes."""

    async def probe(self, model: str) -> ProviderState:
        """Look at the list of models; 5 s at most."""
        return await look(self._state(model), PROBE_S)

    async def _state(self, model: str) -> ProviderState:
        try:
            found = await self._rows()
        except NoSuchPath:  # some servers have no list
            return ProviderState(True)
        row = next((row for row in found if wire.named(row, model)), None)
        if self._preset.one_model:  # by whatever name it is asked for
            return ProviderState(True, model_loaded=True, model_found=True if row else None)
        if row is None:
            error = str(model_not_found(model, self._site)) if found else None
            return ProviderState(True, None, False if found else None, error)
        return ProviderState(True, row["state"] == "loaded" if "state" in row else None, True)

    async def models(self) -> list[ModelInfo]:
        """List the models that the server names."""
        return [wire.model(row) for row in await self._rows()]

    async def capabilities(self, model: str) -> frozenset[str]:
        """Return what the list of models says of a model, or what its name lets expect; asked once for each model."""
        if model not in self._capabilities:
            try:
                found = await self._rows()
            except NoSuchPath:
                found = []
            row = next((row for row in found if wire.named(row, model)), None)
            if row is None and self._preset.one_model and found:
                row = found[0]
            remember(self._capabilities, model, wire.abilities(row) if row else wire.by_name(model))
        return self._capabilities[model]

    async def embed(self, inputs: Sequence[str], model: str) -> list[list[float]]:
        """Return a vector for each text, in order."""

        async def embed(texts: Sequence[str]) -> list[list[float]]:
            body = {"model": model, "input": list(texts), "encoding_format": "float"}
            found = await self._http.call("POST", "/embeddings", body, model=model, timeout_s=EMBED_S)
            return vectors(wire.embeddings(found), len(texts))

        return await in_batches(inputs, embed)

    async def pull(self, model: str) -> AsyncGenerator[PullProgress, None]:
        """Raises ProviderError: this protocol knows no downloads."""
        raise ProviderError(f"{self.name} cannot download {model!r} for us: bring it to the server itself", 501)
        yield

    async def delete(self, model: str) -> None:
        """Raises ProviderError: this protocol knows no removal of models."""
        raise ProviderError(f"{self.name} cannot remove {model!r} for us: remove it at the server itself", 501)

    async def _rows(self) -> list[dict[str, Any]]:
        if self._preset.catalogue:
            try:
                return wire.rows(await self._http.call("GET", f"{self._root}{self._preset.catalogue}"))
            except ProviderError as error:
                if type(error) not in {ProviderError, NoSuchPath}:
                    raise
                log.debug("no list of models at %s: %s", self._preset.catalogue, error)  # an older server
        return wire.rows(await self._http.call("GET", "/models"))


def _address(config: ProviderConfig, preset: Preset) -> Address:
    """Return where the server is; an address without a path means its /v1."""
    if not (config.url or preset.url):
        raise ConfigError(f"{config.url_setting}: {config.kind} wants an address, such as http://127.0.0.1:8000/v1")
    if preset.keyed and not (config.url or config.key):
        raise ConfigError(f"{config.key_setting}: {config.kind} wants a key")
    address = parse_address(config.url or preset.url, config.url_setting, preset.port)
    return address if address.path else replace(address, path="/v1")
