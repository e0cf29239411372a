"""Fields that a model refuses and an answer can do without, learnt once for each model.

Cloud models differ in what they take (temperature, thinking, the name of the token limit), no list of them stays true,
and a refusal names the field. Sources: OpenAI's `unsupported_parameter` and `unsupported_value`; Anthropic's "is
deprecated for this model", "is not supported for this model", "cannot both be specified".
"""

import logging
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from piagent_daemon.errors import ProviderError, RequestRefused
from piagent_daemon.providers.config import ProviderConfig
from piagent_daemon.providers.deadlines import Deadlines
from piagent_daemon.providers.remote import remember

if TYPE_CHECKING:
    from piagent_daemon.providers.client import Http, LineStream

log = logging.getLogger("piagent.providers")

LeftOut = frozenset[str]
Build = Callable[[LeftOut], dict[str, Any]]
"""Makes a body without the fields that were refused."""

_REFUSED = re.compile(
    r"unsupported|not support|unrecognized|unknown|unexpected|deprecated|not permitted|cannot both|not allowed"
    r"|only be set|does not accept",
    re.IGNORECASE,
)


class Refusals:
    """What each model refused.

    `optional` maps the fields that may be left out to a pattern that finds them in a refusal; the first that is found
    is left out. A field that holds an object with a `type` is remembered with it (`thinking.adaptive`).
    """

    def __init__(self, optional: Mapping[str, str]) -> None:
        self._optional = {name: re.compile(rf"\b(?:{words})\b") for name, words in optional.items()}
        self._left_out: dict[str, LeftOut] = {}

    @asynccontextmanager
    async def ask(
        self, http: "Http", path: str, build: Build, deadlines: Deadlines, *, model: str, config: ProviderConfig
    ) -> AsyncGenerator["LineStream", None]:
        """Post what `build` makes and hand out the events of the answer; ask again without what was refused."""
        from piagent_daemon.providers.sse import EventStream  # noqa: PLC0415 (READY need not wait for it)

        while True:
            body = build(self._left_out.get(model, frozenset()))
            opened = False
            try:
                async with http.stream(path, body, deadlines, model=model, kind=EventStream) as stream:
                    opened = True
                    yield stream
            except ProviderError as error:
                if opened or not self.learn(model, body, error):
                    raise
                deadlines.allow(config.first_token_timeout_s, "first token")
            else:
                return

    def learn(self, model: str, sent: Mapping[str, Any], error: ProviderError) -> bool:
        """Note which field of `sent` was refused; False when `error` means something else."""
        words = str(error)
        if type(error) not in {ProviderError, RequestRefused} or not _REFUSED.search(words):
            return False
        for name, pattern in self._optional.items():
            if name in sent and pattern.search(words):
                value = sent[name]
                kind = value.get("type") if isinstance(value, Mapping) else None
                mark = f"{name}.{kind}" if isinstance(kind, str) else name
                remember(self._left_out, model, self._left_out.get(model, frozenset()) | {mark})
                log.warning("the model %r does not take %s: it is asked without", model, mark)
                return True
        return False
