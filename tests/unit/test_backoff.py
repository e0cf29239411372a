"""Full jitter, and what a server may ask for."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon.backoff import full_jitter
from piagent_daemon.errors import ProviderUnavailable
from piagent_daemon.tries import Tries


@given(st.integers(0, 10_000), st.floats(0.001, 10), st.floats(1, 600))
def test_a_wait_is_within_its_bounds(attempt: int, factor_s: float, limit_s: float) -> None:
    assert 0 <= full_jitter(attempt, factor_s, limit_s) <= min(limit_s, factor_s * 2.0 ** min(attempt, 62))


def test_waits_grow_and_differ() -> None:
    draw = random.Random(1)  # noqa: S311 - no secret
    early = [full_jitter(0, 1, 60, draw=draw) for _ in range(100)]
    late = [full_jitter(5, 1, 60, draw=draw) for _ in range(100)]
    assert sum(early) < sum(late)
    assert len(set(early)) == 100


async def test_a_server_may_ask_for_half_a_minute_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    tries = Tries(2, 0.5)
    assert await tries.after(ProviderUnavailable("overloaded", 503, retry_after_s=3600)) == 30
    assert await tries.after(ProviderUnavailable("overloaded", 503, retry_after_s=7)) == 7
    assert slept == [30, 7]
