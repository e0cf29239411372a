"""The cache gives an answer again only where the model would have given it again."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import pytest

from piagent_daemon.cache import MAX_ANSWERS, MAX_BYTES, AnswerCache, is_repeatable
from piagent_daemon.contract import Usage
from piagent_daemon.errors import ProviderError
from piagent_daemon.values import ChatRequest, Delta, Finish, Message
from tests.fakes.doubles import FakeClock, ScriptedProvider, Step, answer

PLAIN = ChatRequest(
    model="m",
    messages=(Message("system", "Be brief."), Message("user", "How far is the moon?")),
    options={"temperature": 0.0, "num_predict": 100},
    context_tokens=4096,
)


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.model = ScriptedProvider()
        self.cache = AnswerCache(self.model.chat, self.clock)

    async def ask(self, request: ChatRequest = PLAIN, ttl_s: float = 60) -> list[Delta]:
        return [delta async for delta in self.cache.chat(request, ttl_s)]

    async def is_cached(self, request: ChatRequest = PLAIN, ttl_s: float = 60) -> bool:
        finish = (await self.ask(request, ttl_s))[-1].finish
        assert finish
        return finish.cached


def change(**changes: Any) -> ChatRequest:
    return PLAIN._replace(**changes)


def said(*texts: str) -> ChatRequest:
    return change(messages=tuple(Message("user", text) for text in texts))


async def test_an_equal_question_gets_the_same_answer_without_the_model() -> None:
    world = World()
    world.model.scripts = [lambda _: answer("Far", " away.", prompt_tokens=9, reason="length")]
    first = await world.ask()
    again = await world.ask(change(options={"num_predict": 100, "temperature": 0.0}))
    assert "".join(delta.text for delta in again) == "".join(delta.text for delta in first) == "Far away."
    assert again[-1].finish == Finish("length", Usage(), cached=True)
    assert len(world.model.asked) == 1


@pytest.mark.parametrize(
    "other",
    [
        change(model="n"),
        change(messages=(Message("user", "How far is the moon?"),)),
        change(messages=(Message("system", "Be brief."), Message("user", "How far is the moon?", ("aGk=",)))),
        change(options={"temperature": 0, "num_predict": 99}),
        change(options={"temperature": 0, "num_predict": 100, "stop": ["x"]}),
        change(format="json"),
        change(format={"type": "object"}),
        change(prompt="<user>How far is the moon?</user>"),
        change(think=True),
        change(context_tokens=2048),
    ],
)
async def test_everything_that_the_model_is_told_counts(other: ChatRequest) -> None:
    world = World()
    assert not await world.is_cached()
    assert not await world.is_cached(other)
    assert await world.is_cached(other)


@pytest.mark.parametrize(
    ("options", "repeatable"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.7}, False),
        ({}, False),
        ({"temperature": 0.7, "seed": 0}, True),
        ({"seed": None, "temperature": 1}, False),
    ],
)
def test_chance_must_have_no_part_in_it(options: dict[str, Any], repeatable: bool) -> None:
    assert is_repeatable(change(options=options)) is repeatable


async def test_a_conversation_is_never_answered_from_it() -> None:
    world = World()
    request = change(messages=(Message("user", "a"), Message("assistant", "b"), Message("user", "c")))
    for _ in range(2):
        assert not await world.is_cached(request)


async def test_answers_get_old_and_switching_it_off_forgets_them() -> None:
    world = World()
    assert not await world.is_cached(ttl_s=60)
    world.clock.advance(59)
    assert await world.is_cached(ttl_s=60)
    world.clock.advance(2)
    assert not await world.is_cached(ttl_s=60)
    assert await world.is_cached(ttl_s=60)
    assert not await world.is_cached(ttl_s=0)
    assert not await world.is_cached(ttl_s=60)


@pytest.mark.parametrize("broken", [[Delta("Half"), ProviderError("broken")], [Delta("Half")], answer("  ")])
async def test_only_a_whole_answer_is_kept(broken: list[Step]) -> None:
    world = World()
    world.model.scripts = [lambda _: broken]
    with suppress(ProviderError):
        await world.ask()
    assert not await world.is_cached()


async def test_an_answer_that_was_cut_off_is_not_kept() -> None:
    world = World()
    world.model.scripts = [lambda _: [Delta("Half"), asyncio.Event()]]
    deltas: AsyncGenerator[Delta, None] = world.cache.chat(PLAIN, 60)
    assert (await anext(deltas)).text == "Half"
    await deltas.aclose()
    assert world.model.closed_early == 1
    assert not await world.is_cached()


async def test_it_is_bounded_in_number_and_the_one_used_longest_ago_goes() -> None:
    world = World()
    for number in range(MAX_ANSWERS):
        await world.ask(said(str(number)))
    assert await world.is_cached(said("0"))
    assert not await world.is_cached(said("new"))
    assert await world.is_cached(said("0"))
    assert not await world.is_cached(said("1"))


async def test_it_is_bounded_in_bytes() -> None:
    world = World()
    world.model.script = lambda _: answer("ü" * (MAX_BYTES // 4))
    assert not await world.is_cached(said("a"))
    assert not await world.is_cached(said("b"))
    assert await world.is_cached(said("a"))
    assert not await world.is_cached(said("c"))
    assert not await world.is_cached(said("b"))
    world.model.script = lambda _: answer("x" * (MAX_BYTES + 1))
    for _ in range(2):
        assert not await world.is_cached(said("too large"))
