"""Ollama over its native API."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace

from piagent_daemon.contract import Usage
from piagent_daemon.errors import PiagentError, ProviderError, ProviderTimeout, ProviderUnavailable
from piagent_daemon.providers import faults
from piagent_daemon.providers import ollama_wire as wire
from piagent_daemon.providers.address import parse_address
from piagent_daemon.providers.client import Http
from piagent_daemon.providers.deadlines import Deadlines
from piagent_daemon.settings import Settings
from piagent_daemon.values import ChatRequest, Delta, Finish, Message, ModelInfo, ProviderState, PullProgress

log = logging.getLogger("piagent.ollama")

PROBE_S = 2.5
SPARE_LINES = 16
PULL_IDLE_S = 600.0
"""Checking the digest of a large model on an SD card says nothing for minutes."""


class OllamaProvider:
    """A local or remote Ollama, or its cloud (`OLLAMA_HOST=https://ollama.com` with a key)."""

    name = "ollama"

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError when OLLAMA_HOST cannot be read. Opens no connection."""
        key = settings.ollama_api_key
        self._keep_alive = wire.keep_alive_value(settings.ollama_keep_alive)
        self._first_token_s = settings.first_token_timeout_s
        self._idle_s = settings.idle_timeout_s
        self._total_s = settings.total_timeout_s
        self._http = Http(
            parse_address(settings.ollama_host),
            key=key.get_secret_value() if key else None,
            connections=settings.max_concurrent + 2,
            connect_timeout_s=settings.connect_timeout_s,
        )
        self._capabilities: dict[str, frozenset[str]] = {}
        self._unthinking: set[str] = set()

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Stream one answer: a delta for each read from the network (or line: `singly`), the last one with `finish`.

        Deadlines: FIRST_TOKEN_TIMEOUT_S to the first text or thought, then IDLE_TIMEOUT_S to each next whole line,
        TOTAL_TIMEOUT_S for all. What a try again may cure is a ProviderUnavailable before the first text only.
        """
        path, body = wire.chat_body(request, await self._think(request), self._keep_alive)
        deadlines = Deadlines(self._total_s)
        deadlines.allow(self._first_token_s, "first token")
        async with self._http.stream(path, body, deadlines, model=request.model) as stream:
            chat, count, limit = request.prompt is None, 0, _line_limit(request)
            while not stream.ended:
                read = await stream.read()
                parts = [[line] for line in read] if request.singly else [read] if read else []
                for lines in parts:
                    text, thinking, end = wire.join(lines, chat=chat)
                    if end is None:
                        count += len(lines)
                        if count > limit:
                            log.warning("the model server goes on after num_predict tokens: the answer is cut")
                            yield Delta(
                                text, thinking, Finish("length", Usage(completion_tokens=count, total_tokens=count))
                            )
                            return
                        if text or thinking:
                            stream.started = True
                            yield Delta(text, thinking)
                        if stream.started:
                            deadlines.allow(self._idle_s, "next token")
                    elif end.get("error"):
                        if text or thinking:
                            stream.started = True
                            yield Delta(text, thinking)
                        raise stream.failed(end["error"])
                    else:
                        stream.complete = True
                        yield Delta(text, thinking, wire.finish(end))
                        return
        raise ProviderError("the model server ended the answer without saying that it is complete")

    async def prime(self, request: ChatRequest) -> None:
        """Load the model and let it read the prompt, by an answer of one token.

        A user turn is added where there is none: some templates refuse a conversation without one, and it comes after
        the text that is to be read.
        """
        if request.prompt is None and not any(message.role == "user" for message in request.messages):
            request = replace(request, messages=(*request.messages, Message("user", ".")))
        request = replace(request, options={**request.options, "num_predict": 1}, format=None)
        async with aclosing(self.chat(request)) as deltas:
            async for _ in deltas:
                pass

    async def probe(self, model: str) -> ProviderState:
        """Look at /api/tags and /api/ps, which answer at once even while a model loads; 2.5 s at most."""
        loaded = None
        try:
            async with asyncio.timeout(PROBE_S):
                known = wire.rows(await self._http.call("GET", "/api/tags"))
                with suppress(ProviderError):  # Ollama's cloud has no such list
                    running = wire.rows(await self._http.call("GET", "/api/ps"))
                    loaded = _has(running, model)
        except TimeoutError:
            return ProviderState(False, error=f"no answer from the model server within {PROBE_S:g} s")
        except (ProviderUnavailable, ProviderTimeout) as error:
            return ProviderState(False, error=str(error))
        except PiagentError as error:
            return ProviderState(True, error=str(error))
        if not _has(known, model):
            return ProviderState(True, loaded, False, str(faults.model_not_found(model)))
        return ProviderState(True, loaded, True)

    async def models(self) -> list[ModelInfo]:
        """List what /api/tags has."""
        return wire.models(await self._http.call("GET", "/api/tags"))

    async def capabilities(self, model: str) -> frozenset[str]:
        """Ask /api/show, once for each model: /api/tags names too few."""
        name = wire.canonical(model)
        if name not in self._capabilities:
            shown = await self._http.call("POST", "/api/show", {"model": model}, model=model)
            self._capabilities[name] = frozenset(wire.words(shown, "capabilities"))
        return self._capabilities[name]

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

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def _think(self, request: ChatRequest) -> bool | str:
        """Return what to send as `think`: asking a model that cannot is an error there, leaving it out means yes."""
        if not request.think or "thinking" in await self.capabilities(request.model):
            return request.think or False
        if request.model not in self._unthinking:
            self._unthinking.add(request.model)
            log.warning("the model %r cannot think: it answers without", request.model)
        return False


def _line_limit(request: ChatRequest) -> float:
    """Return how many lines an answer may have: a line is a token or more, and a few say nothing."""
    wanted = request.options.get("num_predict")
    return wanted + SPARE_LINES if isinstance(wanted, int) and wanted > 0 else math.inf


def _has(rows: list[dict[str, object]], model: str) -> bool:
    return any(wire.canonical(str(row["name"])) == wire.canonical(model) for row in rows)
