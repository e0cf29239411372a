"""One streamed answer, whatever the protocol: from whole JSON objects to deltas, under deadlines."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import TYPE_CHECKING, Any, NamedTuple

from piagent_daemon.contract import Usage
from piagent_daemon.errors import PiagentError, ProviderError, ProviderTimeout, ProviderUnavailable
from piagent_daemon.providers.config import ProviderConfig
from piagent_daemon.providers.deadlines import Deadlines
from piagent_daemon.values import ChatRequest, Delta, Finish, Message, ProviderState

if TYPE_CHECKING:
    from piagent_daemon.providers.client import LineStream

log = logging.getLogger("piagent.providers")

DONE: dict[str, Any] = {"[DONE]": True}
"""Stands for OpenAI's last event, whose data is no JSON."""
SPARE_LINES = 16
LARGE = 1e300
"""No number of an embedding is nearly as large; NaN is not smaller than it either."""
BATCH = 32
"""Texts that one call makes vectors of."""
INCOMPLETE = "the model server ended the answer without saying that it is complete"


class Failure(NamedTuple):
    """An answer that the server gave up: its own words (what stood under "error"), or an error of ours."""

    error: Any


Heard = tuple[str, str, Finish | Failure | None]
"""Text, thinking, and how the answer ended when it did."""
Hear = Callable[[Sequence[dict[str, Any]]], Heard]
"""Understands the next objects of an answer, up to and with the one that ends it; none at all: the stream has ended."""
Opening = Callable[[ChatRequest, Deadlines], AbstractAsyncContextManager[tuple["LineStream", Hear]]]
"""Asks the server; leaving the context closes the connection."""


async def relay(opening: Opening, request: ChatRequest, config: ProviderConfig) -> AsyncGenerator[Delta, None]:
    """Stream one answer: a delta for each read from the network (or object: `singly`), the last one with `finish`.

    Deadlines: `first_token_timeout_s` to the first text or thought, then `idle_timeout_s` to each next whole object,
    `total_timeout_s` for all. What a try again may cure is a ProviderUnavailable before the first text only.
    """
    deadlines = Deadlines(config.total_timeout_s)
    try:
        deadlines.allow(config.first_token_timeout_s, "first token")
        async with opening(request, deadlines) as (stream, hear):
            count, limit, heard = 0, _limit(request), False
            while not stream.ended:
                read = await stream.read()
                parts = [[value] for value in read] if request.singly else [read] if read else []
                for values in parts:
                    text, thinking, end = hear(values)
                    if end is None:
                        if text or thinking:
                            count += len(values)
                            if count > limit:
                                log.warning("the model server goes on after num_predict tokens: the answer is cut")
                                yield Delta(text, thinking, Finish("length", _counted(count)))
                                return
                            heard = True
                            stream.started = stream.started or bool(text)
                            yield Delta(text, thinking)
                        if heard:
                            deadlines.allow(config.idle_timeout_s, "next token")
                    elif isinstance(end, Failure):
                        if text or thinking:
                            stream.started = stream.started or bool(text)
                            yield Delta(text, thinking)
                        raise _raised(end, stream)
                    else:
                        stream.complete = True
                        yield Delta(text, thinking, end)
                        return
                stream.check()
            _, _, end = hear(())
            if isinstance(end, Failure):
                raise _raised(end, stream)
            if end:
                yield Delta("", "", end)
                return
    finally:
        deadlines.close()
    raise ProviderError(INCOMPLETE)


def _raised(failure: Failure, stream: "LineStream") -> Exception:
    return failure.error if isinstance(failure.error, PiagentError) else stream.failed(failure.error)


def _counted(count: int) -> Usage:
    return Usage(completion_tokens=count, total_tokens=count)


def _limit(request: ChatRequest) -> float:
    """Return how many objects an answer may have: each is a token or more, and a few say nothing."""
    wanted = request.options.get("num_predict")
    return wanted + SPARE_LINES if isinstance(wanted, int) and wanted > 0 else math.inf


async def read_prompt(chat: Callable[[ChatRequest], AsyncGenerator[Delta, None]], request: ChatRequest) -> None:
    """Let a model read the prompt of `request`, by an answer of one token.

    A user turn is added where there is none: some templates refuse a conversation without one, and it comes after the
    text that is to be read.
    """
    if request.prompt is None and not any(message.role == "user" for message in request.messages):
        request = request._replace(messages=(*request.messages, Message("user", ".")))
    request = request._replace(options={**request.options, "num_predict": 1}, format=None)
    async with aclosing(chat(request)) as deltas:
        async for _ in deltas:
            pass


async def look(state: Awaitable[ProviderState], seconds: float) -> ProviderState:
    """Wait for `state` no longer than `seconds`; what fails on the way becomes a state too."""
    try:
        async with asyncio.timeout(seconds):
            return await state
    except TimeoutError:
        return ProviderState(False, error=f"no answer from the model server within {seconds:g} s")
    except (ProviderUnavailable, ProviderTimeout) as error:
        return ProviderState(False, error=str(error))
    except PiagentError as error:
        return ProviderState(True, error=str(error), code=error.code)


async def in_batches(
    inputs: Sequence[str], embed: Callable[[Sequence[str]], Awaitable[list[list[float]]]]
) -> list[list[float]]:
    """Return a vector for each text, a few asked for at a time: thousands of numbers each make a large answer."""
    found: list[list[float]] = []
    for at in range(0, len(inputs), BATCH):
        found += await embed(inputs[at : at + BATCH])
    return found


def vectors(rows: Any, wanted: int) -> list[list[float]]:
    """Return embeddings as they came, after a check that there are `wanted` lists of numbers."""
    good = isinstance(rows, list) and len(rows) == wanted and all(isinstance(row, list) and row for row in rows)
    if not good or not all(type(number) in {int, float} and -LARGE < number < LARGE for row in rows for number in row):
        raise ProviderError(f"the model server did not answer with {wanted} embeddings")
    return [[float(number) for number in row] for row in rows]
