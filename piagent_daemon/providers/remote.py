"""What the providers over HTTP share: where their server is, and the connections to it."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Final, TypeVar

from piagent_daemon.providers.address import Address
from piagent_daemon.providers.answer import Hear, relay
from piagent_daemon.providers.config import ProviderConfig
from piagent_daemon.providers.deadlines import Deadlines
from piagent_daemon.providers.fault_rules import Site
from piagent_daemon.values import ChatRequest, Delta

if TYPE_CHECKING:
    from piagent_daemon.providers.client import Http, LineStream

T = TypeVar("T")

MAX_MODELS: Final = 64
"""Of so many something is kept in mind: anybody may name models that nobody has."""


def remember(known: dict[str, T], model: str, value: T) -> None:
    """Keep `value` as what is known of a model, and forget the models that were noted longest ago."""
    known.pop(model, None)
    known[model] = value
    while len(known) > MAX_MODELS:
        del known[next(iter(known))]


class Remote:
    """The part of a provider that knows no protocol; `headers` say who we are, as in `client.Http`."""

    def __init__(
        self, config: ProviderConfig, address: Address, site: Site, headers: Mapping[str, str] | None = None
    ) -> None:
        self.name = config.name
        self._config = config
        self._address = address
        self._site = site
        self._headers = headers
        self._capabilities: dict[str, frozenset[str]] = {}
        self._made: tuple[asyncio.AbstractEventLoop, Http] | None = None

    @property
    def _http(self) -> "Http":
        """The connections of this event loop: a library may be used in one `asyncio.run` after the other.

        Made when first needed, since READY need not wait for httpx, a sixth of all imports.
        """
        loop = asyncio.get_running_loop()
        if self._made is None or self._made[0] is not loop:
            from piagent_daemon.providers.client import Http  # noqa: PLC0415

            self._made = loop, Http(self._address, self._config, site=self._site, headers=self._headers)
        return self._made[1]

    def chat(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Stream one answer (`answer.relay`)."""
        return relay(self._ask, request, self._config)

    def _ask(
        self, request: ChatRequest, deadlines: Deadlines
    ) -> AbstractAsyncContextManager[tuple["LineStream", Hear]]:
        """Post the question and return the stream of the answer, with what understands its lines."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close every connection."""
        if self._made:
            await self._http.aclose()
