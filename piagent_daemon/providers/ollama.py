"""Ollama over its native API."""

import logging
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from piagent_daemon.errors import ConfigError, ProviderError
from piagent_daemon.providers import ollama_wire as wire
from piagent_daemon.providers.address import parse_address
from piagent_daemon.providers.answer import Failure, Hear, Heard, in_batches, look, read_prompt, vectors
from piagent_daemon.providers.config import ProviderConfig
from piagent_daemon.providers.deadlines import Deadlines
from piagent_daemon.providers.fault_rules import OLLAMA_RULES, Site, model_not_found
from piagent_daemon.providers.instruction import in_words
from piagent_daemon.providers.remote import Remote, remember
from piagent_daemon.providers.untrusted import words
from piagent_daemon.values import ChatRequest, ModelInfo, ProviderState, PullProgress

if TYPE_CHECKING:
    from piagent_daemon.providers.client import LineStream

log = logging.getLogger("piagent.ollama")

HERE = "http://127.0.0.1:11434"
CLOUD = "https://ollama.com"
PROBE_S = 2.5
EMBED_S = 120.0
"""The first text loads the model."""
PULL_IDLE_S = 600.0
"""Checking the digest of a large model on an SD card says nothing for minutes."""


class OllamaProvider(Remote):
    """A local or remote Ollama, or its cloud (kind `ollama-cloud`, or that address with a key)."""

    def __init__(self, config: ProviderConfig) -> None:
        """Raises ConfigError when the address cannot be read or the cloud's key is missing. Opens no connection."""
        cloud = config.kind == "ollama-cloud"
        if cloud and not (config.key or config.url):
            raise ConfigError(f"{config.key_setting}: Ollama's cloud wants a key")
        self._paid = cloud
        self._keep_alive = wire.keep_alive_value(config.keep_alive)
        site = Site(
            OLLAMA_RULES,
            config.url_setting,
            config.key_setting,
            "is its name right, and does the cloud still have it?" if cloud else "run `ollama pull {model}`",
            "Is this machine online?" if cloud else f"Is it running, and is {config.url_setting} right?",
        )
        super().__init__(config, parse_address(config.url or (CLOUD if cloud else HERE), config.url_setting), site)
        self._windows: dict[str, int] = {}
        """With which each model was last asked."""
        self._unthinking: set[str] = set()

    @asynccontextmanager
    async def _ask(self, request: ChatRequest, deadlines: Deadlines) -> AsyncGenerator[tuple["LineStream", Hear], None]:
        remember(self._windows, wire.canonical(request.model), request.context_tokens)
        if self._paid:  # the cloud has no structured outputs
            request = in_words(request)
        path, body = wire.chat_body(request, await self._think(request), self._keep_alive)
        async with self._http.stream(path, body, deadlines, model=request.model) as stream:
            yield stream, _hear_chat if request.prompt is None else _hear_text

    async def prime(self, request: ChatRequest) -> None:
        """Load the model and let it read the prompt; nothing in the cloud, which keeps no model for us."""
        if not self._paid:
            await read_prompt(self.chat, request)

    async def unload(self, model: str) -> None:
        """Send /api/generate without a prompt and with keep_alive 0; nothing in the cloud."""
        if not self._paid:
            await self._http.call("POST", "/api/generate", {"model": model, "keep_alive": 0}, model=model)

    async def probe(self, model: str) -> ProviderState:
        """Look at /api/tags and /api/ps, which answer at once even while a model loads; 2.5 s at most."""
        return await look(self._state(model), PROBE_S)

    async def _state(self, model: str) -> ProviderState:
        known = wire.rows(await self._http.call("GET", "/api/tags"))
        loaded = None
        with suppress(ProviderError):  # Ollama's cloud has no such list
            loaded = _has(wire.rows(await self._http.call("GET", "/api/ps")), model)
        if not _has(known, model):
            return ProviderState(True, loaded, False, str(model_not_found(model, self._site)))
        return ProviderState(True, loaded, True)

    async def models(self) -> list[ModelInfo]:
        """List what /api/tags has."""
        return wire.models(await self._http.call("GET", "/api/tags"))

    async def capabilities(self, model: str) -> frozenset[str]:
        """Ask /api/show, once for each model: /api/tags names too few."""
        name = wire.canonical(model)
        if name not in self._capabilities:
            shown = await self._http.call("POST", "/api/show", {"model": model}, model=model)
            remember(self._capabilities, name, frozenset(words(shown, "capabilities")))
        return self._capabilities[name]

    async def embed(self, inputs: Sequence[str], model: str) -> list[list[float]]:
        """Return a vector for each text; ContextOverflow for one that is too long, which is never cut.

        The window is the one that the model was last called with: another would load it anew.
        """
        window = self._windows.get(wire.canonical(model), self._config.context_tokens)

        async def embed(texts: Sequence[str]) -> list[list[float]]:
            body = wire.embed_body(texts, model, window, self._keep_alive)
            found = await self._http.call("POST", "/api/embed", body, model=model, timeout_s=EMBED_S)
            return vectors(found.get("embeddings"), len(texts))

        return await in_batches(inputs, embed)

    async def pull(self, model: str) -> AsyncGenerator[PullProgress, None]:
        """Download a model; the server keeps what it has when the generator is closed."""
        self._capabilities.pop(wire.canonical(model), None)
        deadlines = Deadlines(math.inf)
        deadlines.allow(PULL_IDLE_S, "progress")
        body = {"model": model, "stream": True}
        async with self._http.stream("/api/pull", body, deadlines, model=model) as stream:
            while not stream.ended:
                for line in await stream.read():
                    if line.get("error"):
                        raise stream.failed(line["error"])
                    step = wire.progress(line)
                    stream.complete = step.status == "success"
                    yield step
                    if stream.complete:
                        return
                deadlines.allow(PULL_IDLE_S, "progress")
        raise ProviderError(f"the model server ended the download of {model!r} without saying that it is complete")

    async def delete(self, model: str) -> None:
        """Remove a model; ModelNotFound when there is none of that name."""
        self._capabilities.pop(wire.canonical(model), None)
        await self._http.call("DELETE", "/api/delete", {"model": model}, model=model)

    async def _think(self, request: ChatRequest) -> bool | str:
        """Return what to send as `think`: asking a model that cannot is an error there, leaving it out means yes."""
        if not request.think or "thinking" in await self.capabilities(request.model):
            return request.think or False
        if (name := wire.canonical(request.model)) not in self._unthinking:
            self._unthinking.add(name)
            log.warning("the model %r cannot think: it answers without", request.model)
        return False


def _hear_chat(lines: Sequence[dict[str, object]], *, chat: bool = True) -> Heard:
    text, thinking, end = wire.join(lines, chat=chat)
    if end is None:
        return text, thinking, None
    return text, thinking, Failure(end["error"]) if end.get("error") else wire.finish(end)


def _hear_text(lines: Sequence[dict[str, object]]) -> Heard:
    return _hear_chat(lines, chat=False)


def _has(rows: list[dict[str, object]], model: str) -> bool:
    return any(wire.canonical(str(row["name"])) == wire.canonical(model) for row in rows)
