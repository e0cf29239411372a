"""A model server as a library for other programs: text in, text out, and errors that are all ProviderErrors.

>>> import asyncio
>>> from piagent_daemon.providers import create_provider
>>> async def main() -> None:
...     async with create_provider("echo") as provider:
...         print(await provider.generate("Good morning"))
>>> asyncio.run(main())
You said: Good morning
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar, overload

from piagent_daemon.errors import (
    ConfigError,
    ContextOverflow,
    ProviderError,
    ProviderMisconfigured,
    ProviderTimeout,
    ProviderUnavailable,
)
from piagent_daemon.ports import Provider
from piagent_daemon.providers.config import ProviderConfig, place
from piagent_daemon.settings import load_settings
from piagent_daemon.tries import Tries
from piagent_daemon.values import ChatRequest, Message, ModelInfo, ProviderState
from piagent_daemon.wire import image_base64

T = TypeVar("T")
GenerateReturn = str | AsyncIterator[str]
ROLES: Final = frozenset({"system", "user", "assistant"})
ALIASES: Final = {
    "host": "url",
    "base_url": "url",
    "api_key": "key",
    "timeout": "total_timeout_s",
    "backoff_factor": "backoff_factor_s",
}


@dataclass(frozen=True, slots=True)
class Chosen:
    """How a provider is made, and what its calls default to. Times in seconds."""

    provider: ProviderConfig
    temperature: float
    max_tokens: int
    max_retries: int
    backoff_factor_s: float


def choose(name: str, kinds: Sequence[str], config: Mapping[str, Any]) -> Chosen:
    """Return what `config` says, over the settings that the daemon would have (environment, `.env`, `piagent.toml`).

    `name` is one of `kinds` or of a table [providers.<name>]. Raises ProviderMisconfigured.
    """
    try:
        settings = load_settings().settings
        if name not in kinds and name not in settings.providers:
            known = ", ".join(sorted({*kinds, *settings.providers}))
            raise ProviderMisconfigured(f"there is no provider {name!r}; known: {known}")
        found = place(name, settings)
    except ConfigError as error:
        raise ProviderMisconfigured(*error.problems) from None
    given = {ALIASES.get(key, key): value for key, value in config.items()}
    if "url" in given:  # a key of the settings is not sent elsewhere
        given = {"key": None} | given
    own = {field.name for field in fields(ProviderConfig)} - {"name", "kind"}
    calls = {field.name for field in fields(Chosen)} - {"provider"}
    if unknown := sorted(given.keys() - own - calls):
        raise ProviderMisconfigured(f"{name}: unknown: {', '.join(unknown)}; known: {', '.join(sorted(own | calls))}")
    made = replace(found.config, **{key: value for key, value in given.items() if key in own})
    return Chosen(made, **{key: given.get(key, getattr(settings, key)) for key in calls})


class Client:
    """One model server. `async with` closes its connections, and so does `aclose`.

    What a server or the way to it does wrong is a ProviderError or one of its kin (`piagent_daemon.errors`):
    ModelNotFound, ProviderUnavailable (no connection) with RateLimited, ProviderTimeout, Unauthorized, RequestRefused,
    ProviderMisconfigured. `timeout` (`total_timeout_s`, in seconds) bounds each call with all its tries.
    """

    def __init__(self, provider: Provider, chosen: Chosen) -> None:
        self.name = provider.name
        self._provider = provider
        self._chosen = chosen

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._provider.aclose()

    # -------------------------------------------------------------------------------------------------------- answers

    @overload
    async def generate(
        self,
        prompt: str,
        *,
        model: str | None = None,
        stream: Literal[False] = False,
        options: Mapping[str, Any] | None = None,
    ) -> str: ...

    @overload
    async def generate(
        self,
        prompt: str,
        *,
        model: str | None = None,
        stream: Literal[True],
        options: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[str, None]: ...

    @overload
    async def generate(
        self, prompt: str, *, model: str | None = None, stream: bool, options: Mapping[str, Any] | None = None
    ) -> GenerateReturn: ...

    async def generate(
        self,
        prompt: str,
        *,
        model: str | None = None,
        stream: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> GenerateReturn:
        """Return the answer to one prompt; with `stream`, an asynchronous iterator over its pieces.

        `options` are sampling options under Ollama's names, over the settings' `temperature`, `num_predict`
        (MAX_TOKENS) and `num_ctx` (CTX_TOKENS).
        """
        return await self._answer((Message("user", prompt),), model, options, None, stream=stream)

    @overload
    async def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        model: str | None = None,
        stream: Literal[False] = False,
        options: Mapping[str, Any] | None = None,
        format: Literal["json"] | Mapping[str, Any] | None = None,
    ) -> str: ...

    @overload
    async def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        model: str | None = None,
        stream: Literal[True],
        options: Mapping[str, Any] | None = None,
        format: Literal["json"] | Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[str, None]: ...

    @overload
    async def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        model: str | None = None,
        stream: bool,
        options: Mapping[str, Any] | None = None,
        format: Literal["json"] | Mapping[str, Any] | None = None,
    ) -> GenerateReturn: ...

    async def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        model: str | None = None,
        stream: bool = False,
        options: Mapping[str, Any] | None = None,
        format: Literal["json"] | Mapping[str, Any] | None = None,  # noqa: A002 - the field's word
    ) -> GenerateReturn:
        """Return the answer to a conversation, as `generate` does.

        A message is a mapping of `role` (system, user, assistant), `content` and perhaps `images` (base64). `format` is
        "json" or a JSON Schema: the answer then is such a text.
        """
        return await self._answer(tuple(map(_message, messages)), model, options, format, stream=stream)

    async def _answer(
        self,
        messages: tuple[Message, ...],
        model: str | None,
        options: Mapping[str, Any] | None,
        form: Literal["json"] | Mapping[str, Any] | None,
        *,
        stream: bool,
    ) -> GenerateReturn:
        defaults = {"temperature": self._chosen.temperature, "num_predict": self._chosen.max_tokens}
        merged = {**defaults, **(options or {})}
        window = merged.pop("num_ctx", self._chosen.provider.context_tokens)
        request = ChatRequest(self._model(model), messages, merged, window, format=form)
        pieces = self._pieces(request)
        if stream:
            return pieces
        async with aclosing(pieces):
            return "".join([piece async for piece in pieces])

    async def _pieces(self, request: ChatRequest) -> AsyncGenerator[str, None]:
        """Yield the texts of an answer; ask again after a failure that may pass, as long as there was none."""
        tries, until = self._patience()
        while True:
            spoke = False
            try:
                async with aclosing(self._provider.chat(request)) as deltas:
                    while (delta := await self._within(until, anext(deltas, None))) is not None:
                        if delta.text:
                            spoke = True
                            yield delta.text
            except ProviderUnavailable as error:
                if spoke:
                    raise
                await self._within(until, tries.after(error))
            else:
                return

    # ------------------------------------------------------------------------------------------------ everything else

    async def embed(self, inputs: str | Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """Return a vector for each text, in order."""
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        tries, until = self._patience()
        while True:
            try:
                return await self._within(until, self._provider.embed(texts, self._model(model)))
            except ProviderUnavailable as error:
                await self._within(until, tries.after(error))

    async def list_models(self) -> list[ModelInfo]:
        """Return the models that the server has."""
        return await self._within(self._patience()[1], self._provider.models())

    async def health_check(self, model: str | None = None) -> ProviderState:
        """Look whether the server answers and has the model; never raises for a server that is away."""
        return await self._provider.probe(self._model(model))

    def _patience(self) -> tuple[Tries, float]:
        """Return the tries of one call, and the loop time at which it ends."""
        tries = Tries(self._chosen.max_retries, self._chosen.backoff_factor_s)
        return tries, asyncio.get_running_loop().time() + self._chosen.provider.total_timeout_s

    async def _within(self, until: float, work: Awaitable[T]) -> T:
        """Wait for a part of a call no longer than the whole may take; raises ProviderError and its kin only."""
        try:
            async with asyncio.timeout_at(until):
                return await work
        except TimeoutError:
            seconds = self._chosen.provider.total_timeout_s
            raise ProviderTimeout(f"{self.name}: not complete within {seconds:g} s") from None
        except ContextOverflow as error:
            raise ProviderError(str(error), error.status_code) from error

    def _model(self, model: str | None) -> str:
        chosen = model or self._chosen.provider.model
        if not chosen:
            raise ProviderMisconfigured(f"{self.name}: name a model")
        return chosen


def _message(value: Message | Mapping[str, Any]) -> Message:
    if isinstance(value, Message):
        return value
    role, content, images = value.get("role"), value.get("content"), value.get("images") or ()
    if isinstance(images, str | bytes) or not all(isinstance(image, str) for image in images):
        raise ProviderError("images are a list of base64 texts", 422)
    if role not in ROLES or not isinstance(content, str) or value.keys() - {"role", "content", "images"}:
        raise ProviderError("a message is a mapping of role, content and perhaps images", 422)
    return Message(role, content, tuple(map(image_base64, images)))
