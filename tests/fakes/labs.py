"""Providers side by side: each kind with a faithful server of its protocol, and real servers where there are any.

    TEST_OLLAMA=http://127.0.0.1:11434 pytest tests/integration/test_providers_contract.py
    TEST_OPENAI=http://127.0.0.1:8080/v1 …   # with TEST_OPENAI_KIND (custom), TEST_OPENAI_KEY

The model is the first that can chat, or TEST_OLLAMA_MODEL, TEST_OPENAI_MODEL.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from piagent_daemon.ports import Provider
from piagent_daemon.providers import (
    client,  # noqa: F401  loaded by now, with httpx: short deadlines are for the exchange alone
    make,
)
from piagent_daemon.providers.config import ProviderConfig
from piagent_daemon.values import ChatRequest, Finish, Message
from tests.fakes.anthropic import FakeAnthropic
from tests.fakes.ollama import FakeOllama
from tests.fakes.ollama_runner import Model
from tests.fakes.openai import MODELS, FakeOpenAI

KEY: Final = "canary-key"
PATIENCE: Final[dict[str, Any]] = {
    "connect_timeout_s": 2.0,
    "first_token_timeout_s": 5.0,
    "idle_timeout_s": 2.0,
    "total_timeout_s": 10.0,
}
Server = FakeOllama | FakeOpenAI | FakeAnthropic


@dataclass(frozen=True)
class Lab:
    """A kind of provider and a server to ask. `server` is None where it is a real one."""

    kind: str
    url: str
    model: str = "chatty"
    key: str | None = KEY
    server: Any = None
    patience: dict[str, Any] = field(default_factory=lambda: PATIENCE)

    @property
    def anthropic(self) -> bool:
        return self.kind == "anthropic"

    @property
    def ollama(self) -> bool:
        return self.kind.startswith("ollama")

    @contextlib.asynccontextmanager
    async def provider(self, **changes: Any) -> AsyncIterator[Provider]:
        """Connect with `changes` to the configuration."""
        config = ProviderConfig(self.kind, self.kind, url=self.url, key=self.key, **self.patience)
        made = make(replace(config, **changes))
        try:
            yield made
        finally:
            await made.aclose()

    def asking(self, text: str = "Is the light on?", **changes: Any) -> ChatRequest:
        """Return a question; `options` are added to those that every question has."""
        options = {"num_predict": 200, "temperature": 0.5, **changes.pop("options", {})}
        system = Message("system", changes.pop("system", "Be brief."))
        user = Message("user", text, changes.pop("images", ()))
        return ChatRequest(changes.pop("model", self.model), (system, user), options, 4096, **changes)


def _ollama(key: str | None) -> FakeOllama:
    models = {**MODELS, "seer-vl": Model(capabilities=frozenset({"completion", "vision"}))}
    return FakeOllama(models, api_key=key)


FAKES: Final[dict[str, Callable[[str | None], Server]]] = {
    "ollama": _ollama,
    "ollama-cloud": _ollama,
    "openai": lambda key: FakeOpenAI(api_key=key),
    "lmstudio": lambda key: FakeOpenAI(flavour="lmstudio", api_key=key),
    "llamacpp": lambda key: FakeOpenAI(flavour="llamacpp", api_key=key),
    "huggingface": lambda key: FakeOpenAI(flavour="huggingface", api_key=key),
    "custom": lambda key: FakeOpenAI(flavour="ollama", api_key=key),
    "anthropic": lambda key: FakeAnthropic(api_key=key),
}
REAL: Final = ("TEST_OLLAMA", "TEST_OPENAI")


@contextlib.asynccontextmanager
async def fake_lab(kind: str, key: str | None = KEY) -> AsyncIterator[Lab]:
    """Start the fake server of a kind."""
    async with FAKES[kind](key) as server:
        yield Lab(kind, server.url, server=server)


@contextlib.asynccontextmanager
async def real_lab(variable: str) -> AsyncIterator[Lab]:
    """Find a model on the server that an environment variable names."""
    kind = os.environ.get(f"{variable}_KIND", "ollama" if variable.endswith("OLLAMA") else "custom")
    patience = {"first_token_timeout_s": 300.0, "idle_timeout_s": 60.0, "total_timeout_s": 600.0}
    lab = Lab(kind, os.environ[variable], key=os.environ.get(f"{variable}_KEY"), patience=patience)
    model = os.environ.get(f"{variable}_MODEL")
    async with lab.provider() as provider:
        for known in [] if model else await provider.models():
            if "completion" in await provider.capabilities(known.name):
                model = known.name
                break
    if model is None:
        raise LookupError(f"{variable}: no model there can chat")
    yield replace(lab, model=model)


async def collect(provider: Provider, request: ChatRequest) -> tuple[str, str, Finish]:
    """Return text, thinking and end of a good answer."""
    text, thinking, finish = "", "", None
    async with contextlib.aclosing(provider.chat(request)) as deltas:
        async for delta in deltas:
            assert finish is None, "nothing follows the finish"
            text, thinking, finish = text + delta.text, thinking + delta.thinking, delta.finish
    assert finish is not None
    return text, thinking, finish
