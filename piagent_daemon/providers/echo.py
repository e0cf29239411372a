"""A provider that needs no server: it says what it heard."""

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, Sequence

from piagent_daemon.contract import Usage
from piagent_daemon.errors import ModelNotFound
from piagent_daemon.providers.config import ProviderConfig
from piagent_daemon.values import ChatRequest, Delta, Finish, ModelInfo, ProviderState, PullProgress

_WORD = re.compile(r"\s*\S+|\s+$")


class EchoProvider:
    """Answers with the last thing the user said, word by word; a word counts as a token."""

    def __init__(self, config: ProviderConfig) -> None:
        """Takes nothing from `config` but its own name and that of the model that it stands for."""
        self.name = config.name
        self._model = config.model

    async def chat(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Stream `You said: …`; `num_predict` cuts it like any answer."""
        said = [message.content for message in request.messages if message.role == "user"]
        words = _WORD.findall(f"You said: {(said or [request.prompt or ''])[-1]}")
        limit = request.options.get("num_predict")
        spoken = words[:limit] if isinstance(limit, int) and limit > 0 else words
        for word in spoken:
            yield Delta(word)
            await asyncio.sleep(0)
        prompt = request.prompt or " ".join(message.content for message in request.messages)
        heard = len(prompt.split())
        usage = Usage(prompt_tokens=heard, completion_tokens=len(spoken), total_tokens=heard + len(spoken))
        yield Delta(finish=Finish("stop" if len(spoken) == len(words) else "length", usage))

    async def prime(self, request: ChatRequest) -> None:
        """Nothing to load."""

    async def unload(self, model: str) -> None:
        """Nothing to unload."""

    async def probe(self, model: str) -> ProviderState:  # noqa: ARG002 - any name will do
        """Always there."""
        return ProviderState(reachable=True, model_loaded=True, model_found=True)

    async def models(self) -> list[ModelInfo]:
        """List the one model that it stands for."""
        return [ModelInfo(self._model, capabilities=("completion",))]

    async def capabilities(self, model: str) -> frozenset[str]:  # noqa: ARG002 - any name will do
        """Plain answers and embeddings; it takes images, too, and says nothing of them."""
        return frozenset({"completion", "embedding", "vision"})

    async def embed(self, inputs: Sequence[str], model: str) -> list[list[float]]:  # noqa: ARG002 - any name will do
        """Return eight numbers for each text, the same for the same text: no more than a stand-in for a meaning."""
        return [[byte / 255 - 0.5 for byte in hashlib.sha256(text.encode()).digest()[:8]] for text in inputs]

    async def pull(self, model: str) -> AsyncGenerator[PullProgress, None]:
        """Nothing to download: the model is there."""
        yield PullProgress(f"{model} needs no download")
        yield PullProgress("success")

    async def delete(self, model: str) -> None:
        """Raises ModelNotFound: there are no files to remove."""
        raise ModelNotFound(f"the echo provider keeps no files of {model!r}")

    async def aclose(self) -> None:
        """Nothing to close."""
