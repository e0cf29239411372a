"""What health says (contract section 4)."""

import asyncio
import json
import time
from collections.abc import Callable
from datetime import timedelta
from math import inf
from typing import Any

import pytest

from piagent_daemon.agents import Agent
from piagent_daemon.contract import ContextUse, ErrorEvent, Final, ProviderHealth, QueueHealth, Speed, Timing, Usage
from piagent_daemon.errors import ProviderTimeout, Unauthorized
from piagent_daemon.health import Reporter, Tally, rss_mb
from piagent_daemon.settings import Settings
from piagent_daemon.stores.memory import MemoryStore
from piagent_daemon.turn import Config
from piagent_daemon.values import DoorState, ProviderState
from piagent_daemon.watch import ProviderWatch
from tests.fakes.desk import World
from tests.fakes.doubles import FakeClock, RecordingChannel, ScriptedProvider, answer, incoming, ladder_of

COMMON: dict[str, Any] = {"conversation_id": "c", "request_id": "r", "attempt": 1, "seq": 0, "ts": FakeClock().now()}


def final(reason: Any = "stop", first_token_s: float = 1.0, tokens_per_s: float = 5.0, model: str = "m") -> Final:
    return Final(
        **COMMON,
        reply="a",
        speech="a",
        model=model,
        provider="p",
        agent="g",
        finish_reason=reason,
        expects_reply=False,
        usage=Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5),
        timing=Timing(first_token_s=first_token_s, tokens_per_s=tokens_per_s),
        context=ContextUse(),
    )


def error(code: str) -> ErrorEvent:
    return ErrorEvent(**COMMON, code=code, message="it failed", status_code=500, retryable=False)


def test_terminal_events_are_counted() -> None:
    tally = Tally(FakeClock())
    for event in (final(), final(), final("cancelled"), error("cancelled"), error("timeout")):
        tally.ended(event)
    totals = tally.totals
    assert (totals.replies, totals.cancelled, totals.errors) == (2, 2, 1)
    assert (totals.prompt_tokens, totals.completion_tokens) == (9, 6)


def test_what_came_twice_or_too_late_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    tally = Tally(FakeClock())
    tally.duplicate()
    tally.ended(error("expired"))
    tally.ended(error("timeout"))
    again, late = caplog.messages
    assert "came in again" in again
    assert "waited too long" in late
    assert tally.totals.duplicates == 1


@pytest.mark.parametrize("jump_s", [-7200, 7200])
def test_a_clock_that_is_set_is_told_once(jump_s: float, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    clock = FakeClock()
    reporter = Reporter(Tally(clock), MemoryStore(Settings(), clock), clock)
    clock.advance(7200)
    reporter.look_at_clock()
    clock.wall += timedelta(seconds=jump_s)
    for correction_s in (0, 5, -5):
        clock.wall += timedelta(seconds=correction_s)
        reporter.look_at_clock()
    (told,) = caplog.messages
    assert f"jumped by {jump_s:+} s" in told


def test_speed_is_the_median_of_recent_answers() -> None:
    tally = Tally(FakeClock())
    assert tally.speed == Speed()
    for seconds in (1.0, 9.0, 2.0):
        tally.ended(final(first_token_s=seconds, tokens_per_s=seconds * 2))
    assert tally.speed == Speed(first_token_s=2.0, tokens_per_s=4.0)
    for _ in range(9):
        tally.ended(final("cancelled", first_token_s=99.0, tokens_per_s=99.0))
        tally.ended(final(first_token_s=0.0, tokens_per_s=0.0).model_copy(update={"cached": True}))
    assert tally.speed == Speed(first_token_s=2.0, tokens_per_s=4.0), "what was cut off or kept tells nothing"


def test_overload_passes() -> None:
    clock = FakeClock()
    tally = Tally(clock)
    tally.overload()
    assert tally.reasons == ["overload"]
    clock.advance(31)
    assert tally.reasons == []


def test_a_reason_that_passes_is_told_when_it_begins_and_when_to_look_again() -> None:
    clock, told = FakeClock(), 0

    def hear() -> None:
        nonlocal told
        told += 1

    tally = Tally(clock)
    tally.on_reason = hear
    assert tally.passes_in_s == inf
    for _ in range(3):
        tally.overload()
    tally.refused("invalid_request")
    assert told == 1
    tally.refused("loop:k")
    assert (told, tally.passes_in_s) == (2, 30.0)
    clock.advance(31)
    assert tally.reasons == ["loop:k"]
    tally.overload()
    assert told == 3


def test_any_reason_degrades() -> None:
    clock = FakeClock()
    started_at = clock.now()
    reporter = Reporter(Tally(clock), MemoryStore(Settings(), clock), clock)
    clock.advance(5)
    parts: dict[str, Any] = {"provider": ProviderHealth(name="p", model="m"), "queue": QueueHealth(limit=1)}
    well = reporter.health(door=DoorState(connected=True, protocol="5"), **parts)
    assert (well.status, well.reasons, well.protocol, well.process.uptime_s) == ("ok", [], "5", 5.0)
    assert well.memory.store == "memory"
    assert (well.started_at, well.ts) == (started_at, clock.now())
    ill = reporter.health(
        door=DoorState(connected=True, reasons=("acl_publish",)), reasons=["model_not_found"], **parts
    )
    assert (ill.status, ill.reasons) == ("degraded", ["model_not_found", "acl_publish"])


async def test_health_comes_every_interval_however_often_somebody_looks() -> None:
    world = World(health_interval_s=0.1)
    told: list[bytes] = []

    def announce(topic: str, payload: Callable[[], bytes]) -> None:
        if topic.endswith("/health"):
            told.append(payload())

    world.herald.announce = announce  # type: ignore[method-assign]
    begun = time.monotonic()
    task = asyncio.create_task(world.reporting.run())
    async with asyncio.timeout(5):
        while len(told) < 3:
            world.reporting.changed()
            await asyncio.sleep(0.01)
    task.cancel()
    assert time.monotonic() - begun > 0.19, "and not each time that somebody looks"


async def test_systemd_is_told_how_many_are_answered_and_wait_and_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, lines, gate = World(), list[str](), asyncio.Event()
    monkeypatch.setattr(world.reporting._notifier, "status", lines.append)
    world.reporting._publish()
    assert isinstance(world.provider, ScriptedProvider)
    world.provider.script = lambda _: [gate, *answer("now")]
    channels = [RecordingChannel() for _ in range(3)]
    for channel in channels:
        await world.scheduler.submit(incoming(), channel)
    world.reporting.config_rejected = True
    world.reporting._publish()
    gate.set()
    for channel in channels:
        await channel.terminal()
    assert lines == [
        "ok; 0 answered, 0 active, 0 waiting",
        "degraded: config_rejected; 0 answered, 1 active, 2 waiting",
    ]


async def test_another_reason_is_told_at_once_though_the_status_stays() -> None:
    world, told = World(), list[list[str]]()

    def announce(topic: str, payload: Callable[[], bytes]) -> None:
        if topic.endswith("/health"):
            told.append(json.loads(payload())["reasons"])

    world.herald.announce = announce  # type: ignore[method-assign]
    world.reporting.config_rejected = True
    world.reporting._publish()
    world.herald.state = DoorState(connected=True, protocol="5", reasons=("acl_publish",))
    world.reporting._publish()
    world.reporting._publish()
    assert told == [["config_rejected"], ["config_rejected", "acl_publish"]]


def test_resident_memory_is_read() -> None:
    assert 5 < rss_mb() < 2000


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (ProviderState(reachable=True, model_loaded=True, model_found=True), None),
        (ProviderState(reachable=False, error="refused"), "provider_unavailable"),
        (ProviderState(reachable=True, model_found=False, error="ollama pull m"), "model_not_found"),
        (ProviderState(reachable=True, model_found=True, error="odd"), "provider_error"),
    ],
)
async def test_a_look_at_the_model_server_becomes_a_reason(state: ProviderState, reason: str | None) -> None:
    provider = ScriptedProvider()
    provider.state = state
    watch = ProviderWatch(ladder_of(provider), Config(Settings(), {}))
    told: list[None] = []
    watch.on_change = lambda: told.append(None)
    assert watch.health == ProviderHealth(name="scripted", model=Settings().ollama_model_general)
    await watch.look()
    await watch.look()
    assert (watch.reason, watch.health.reachable, watch.health.error) == (reason, state.reachable, state.error)
    assert len(told) == 1


async def test_a_model_that_only_an_agent_names_is_missed_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    provider, settings = ScriptedProvider(), Settings()
    there = {settings.ollama_model_general}

    async def probe(model: str) -> ProviderState:
        found = model in there
        return ProviderState(True, found, found, None if found else f"ollama pull {model}")

    monkeypatch.setattr(provider, "probe", probe)
    agents = {"cook": Agent(name="cook", system="You cook.", model="rare:1b")}
    watch = ProviderWatch(ladder_of(provider, settings=settings), Config(settings, agents))
    await watch.look()
    assert (watch.reason, watch.reasons) == (None, ["model_not_found"])
    assert "ollama pull rare:1b" in caplog.text
    there.add("rare:1b")
    await watch.look()
    assert watch.reasons == []


async def test_a_failed_answer_degrades_and_a_good_one_heals() -> None:
    ladder = ladder_of(ScriptedProvider())
    watch = ProviderWatch(ladder, Config(Settings(), {}))
    await watch.look()
    assert ladder.on_failure
    ladder.on_failure(ladder.rungs[0], Unauthorized("it failed"))
    assert (watch.reason, watch.health.error) == ("unauthorized", "it failed")
    watch.ended(error("busy"))
    assert watch.reason == "unauthorized"
    watch.ended(final("cancelled"))
    assert watch.reason == "unauthorized"
    watch.ended(final())
    assert watch.reason is None


async def test_an_answer_by_another_model_does_not_bring_the_missing_one() -> None:
    provider, settings = ScriptedProvider(), Settings(ollama_model_general="general:1b")
    provider.state = ProviderState(reachable=True, model_found=False, error="ollama pull general:1b")
    watch = ProviderWatch(ladder_of(provider, settings=settings), Config(settings, {}))
    await watch.look()
    watch.ended(final(model="other:1b"))
    assert (watch.reason, watch.health.error) == ("model_not_found", "ollama pull general:1b")
    watch.ended(final(model="general:1b"))
    assert (watch.reason, watch.health.error) == (None, None)


async def test_a_change_of_the_model_server_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    provider = ScriptedProvider()
    watch = ProviderWatch(ladder_of(provider), Config(Settings(), {}))
    await watch.look()
    assert not caplog.records
    for state in (ProviderState(reachable=False, error="refused"), ProviderState(True, None, False, "ollama pull m")):
        provider.state = state
        await watch.look()
        await watch.look()
    watch.ended(final(model=Settings().ollama_model_general))
    watch.ended(final(model=Settings().ollama_model_general))
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "provider_unavailable: refused"),
        ("ERROR", "model_not_found: ollama pull m"),
        ("INFO", "the model server is well again"),
    ]


async def test_trouble_brings_the_next_look_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piagent_daemon.watch.FIRST_LOOK_S", 0.0)
    ladder = ladder_of(ScriptedProvider())
    watch = ProviderWatch(ladder, Config(Settings(health_interval_s=3600), {}))
    healed = asyncio.Event()
    task = asyncio.create_task(watch.run())
    await asyncio.sleep(0)
    assert ladder.on_failure
    ladder.on_failure(ladder.rungs[0], ProviderTimeout("silence"))
    watch.on_change = healed.set
    await asyncio.wait_for(healed.wait(), 5)
    assert watch.reason is None
    task.cancel()


async def test_a_server_in_trouble_is_looked_at_soon_and_then_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = ScriptedProvider()
    well, provider.state = provider.state, ProviderState(reachable=False, error="refused")
    watch = ProviderWatch(ladder_of(provider), Config(Settings(health_interval_s=30), {}))
    pauses: list[float] = []

    async def woken(_event: asyncio.Event, seconds: float) -> bool:
        pauses.append(seconds)
        if len(pauses) == 3:
            provider.state = well
        if len(pauses) == 5:
            raise asyncio.CancelledError
        return False

    monkeypatch.setattr("piagent_daemon.watch.woken", woken)
    with pytest.raises(asyncio.CancelledError):
        await watch.run()
    assert pauses == [2, 4, 8, 30, 30]
