"""Priming the model before somebody asks."""

import asyncio

import pytest

from piagent_daemon import warmup as warmup_module
from piagent_daemon.agents import Agent
from piagent_daemon.errors import ModelNotFound, ProviderError, ProviderUnavailable
from piagent_daemon.ladder import Ladder
from piagent_daemon.rung import Rung
from piagent_daemon.settings import Settings
from piagent_daemon.turn import Config
from piagent_daemon.values import ChatRequest, ProviderState
from piagent_daemon.waiting import Idle
from piagent_daemon.warmup import Warmup
from tests.fakes.doubles import FakeClock, ScriptedProvider, ladder_of

AGENTS = {
    "general": Agent(name="general", system="Be brief."),
    "voice": Agent(name="voice", system="Speak.", model="small"),
}


class Primed(ScriptedProvider):
    """Notes what is primed, and may fail at it."""

    def __init__(self, failure: Exception | None = None, name: str = "scripted") -> None:
        super().__init__(name=name)
        self.failure = failure
        self.tried = asyncio.Event()

    async def prime(self, request: ChatRequest) -> None:
        self.tried.set()
        if self.failure:
            raise self.failure
        await super().prime(request)


@pytest.fixture(autouse=True)
def _no_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup_module, "CALM_S", 0.0)


def busy() -> Idle:
    """Somebody asks something."""
    idle = Idle()
    idle.clear()
    return idle


async def settled(warmup: Warmup, provider: Primed) -> None:
    await asyncio.wait_for(provider.tried.wait(), 5)
    for _ in range(5):
        await asyncio.sleep(0)
    await warmup.stop()


def systems(provider: Primed) -> list[str]:
    return [request.messages[0].content for request in provider.primed]


async def test_the_default_agent_is_primed_last_with_the_options_of_real_calls() -> None:
    provider = Primed()
    config = Config(Settings(ctx_tokens=2048), AGENTS)
    warmup = Warmup(ladder_of(provider, settings=config), config, Idle())
    warmup.begin()
    await settled(warmup, provider)
    assert systems(provider) == ["Speak.", "Be brief."]
    assert {request.context_tokens for request in provider.primed} == {2048}
    assert [request.model for request in provider.primed] == ["small", Settings().ollama_model_general]


async def test_only_changed_agents_are_primed_again() -> None:
    provider = Primed()
    warmup = Warmup(ladder_of(provider), Config(Settings(), AGENTS), Idle())
    warmup.begin({"voice"})
    await settled(warmup, provider)
    assert systems(provider) == ["Speak."]


async def test_nothing_new_lets_what_runs_go_on_and_something_new_joins_it() -> None:
    class Slow(Primed):
        async def prime(self, request: ChatRequest) -> None:
            await super().prime(request)
            await gate.wait()

    provider, gate = Slow(), asyncio.Event()
    agents = {**AGENTS, "cook": Agent(name="cook", system="Cook.")}
    warmup = Warmup(ladder_of(provider), Config(Settings(), agents), Idle())
    warmup.begin()
    await asyncio.wait_for(provider.tried.wait(), 5)
    running = warmup._task
    warmup.begin(set())
    assert warmup._task
    assert warmup._task is running
    assert not warmup._task.cancelling()
    warmup.begin({"cook"})
    gate.set()
    assert warmup._task
    await asyncio.wait_for(warmup._task, 5)
    assert systems(provider) == ["Speak.", "Speak.", "Cook.", "Be brief."], "what was cut off is begun anew"
    provider.primed.clear()
    warmup.begin({"cook"})
    await asyncio.wait_for(warmup._task, 5)
    assert systems(provider) == ["Cook."]


async def test_real_requests_go_first() -> None:
    class Asked(Primed):
        async def prime(self, request: ChatRequest) -> None:
            await super().prime(request)
            idle.clear()

    provider, idle = Asked(), busy()
    warmup = Warmup(ladder_of(provider), Config(Settings(), AGENTS), idle)
    warmup.begin()
    for _ in range(5):
        await asyncio.sleep(0)
    assert provider.primed == []
    idle.set()
    await asyncio.wait_for(provider.tried.wait(), 5)
    for _ in range(5):
        await asyncio.sleep(0)
    assert systems(provider) == ["Speak."], "between two agents somebody asked"
    idle.set()
    assert warmup._task
    await asyncio.wait_for(warmup._task, 5)
    assert systems(provider) == ["Speak.", "Be brief."]


async def test_a_talk_is_left_in_peace_and_a_minute_more(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    provider, idle = Primed(), busy()

    async def pause(seconds: float) -> None:
        pauses.append(round(seconds, 1))
        idle._since -= 4  # so much later …
        if len(pauses) == 1:
            idle.clear()  # … somebody asks again, and is answered at once
            idle.set()

    monkeypatch.setattr(asyncio, "sleep", pause)
    monkeypatch.setattr(warmup_module, "CALM_S", 7.0)
    warmup = Warmup(ladder_of(provider), Config(Settings(), AGENTS), idle)
    warmup.begin()
    asyncio.get_running_loop().call_soon(idle.set)
    assert warmup._task
    await asyncio.wait_for(warmup._task, 5)
    assert pauses == [7.0, 7.0, 3.0]
    assert len(provider.primed) == 2


GONE, FRESH, WARM = ProviderState(False), ProviderState(True, False, True), ProviderState(True, True, True)
UNAVAILABLE = ProviderUnavailable("it is off")


async def primed_after(warmup: Warmup, provider: Primed, *looks: ProviderState) -> list[str]:
    """Return whose prompts are read after some looks at the only server."""
    provider.primed.clear()
    for state in looks:
        warmup.looked(warmup._ladder.rungs[0], state)
    if warmup._task:
        await asyncio.wait([warmup._task], timeout=5)
    return systems(provider)


@pytest.mark.parametrize("known", [True, False])
async def test_what_was_away_at_start_is_primed_when_it_comes(known: bool) -> None:
    provider = Primed(UNAVAILABLE)
    warmup = Warmup(ladder_of(provider), Config(Settings(), AGENTS), Idle())
    told: list[int] = []
    warmup.on_primed = lambda: told.append(len(provider.primed))
    if known:
        warmup.looked(warmup._ladder.rungs[0], GONE)
    warmup.begin()
    assert await primed_after(warmup, provider) == []
    assert await primed_after(warmup, provider, GONE, GONE) == []
    provider.failure = None
    assert await primed_after(warmup, provider, FRESH) == ["Speak.", "Be brief."]
    assert await primed_after(warmup, provider, FRESH, WARM) == [], "once is enough"
    assert told == [2], "so that somebody looks what is loaded now"


async def test_a_server_that_was_started_anew_reads_all_again_and_one_that_was_slow_nothing() -> None:
    provider = Primed()
    warmup = Warmup(ladder_of(provider), Config(Settings(), AGENTS), Idle())
    warmup.begin()
    assert await primed_after(warmup, provider, WARM) == ["Speak.", "Be brief."]
    assert await primed_after(warmup, provider, GONE, WARM) == []
    assert await primed_after(warmup, provider, GONE, FRESH) == ["Speak.", "Be brief."]
    warmup._config.settings = Settings(ollama_keep_alive="10m")
    assert await primed_after(warmup, provider, GONE, FRESH) == [], "its time was simply over"


async def test_a_model_that_is_brought_later_is_primed_then() -> None:
    class Small(Primed):
        async def prime(self, request: ChatRequest) -> None:
            self.failure = ModelNotFound("pull it") if request.model == "small" and lacks else None
            await super().prime(request)

    provider, lacks = Small(), True
    warmup = Warmup(ladder_of(provider), Config(Settings(), AGENTS), Idle())
    rung = warmup._ladder.rungs[0]
    warmup.begin()
    assert await primed_after(warmup, provider) == ["Be brief."]
    rung.missing = {"small": "pull it"}
    assert await primed_after(warmup, provider, WARM) == []
    rung.missing, lacks = {}, False
    assert await primed_after(warmup, provider, ProviderState(True)) == [], "such a look tells nothing of models"
    assert await primed_after(warmup, provider, WARM) == ["Speak."]


async def test_an_agent_that_goes_away_is_not_primed() -> None:
    provider = Primed()
    config, idle = Config(Settings(), AGENTS), busy()
    warmup = Warmup(ladder_of(provider), config, idle)
    warmup.begin()
    config.agents = {"general": AGENTS["general"]}
    idle.set()
    assert await primed_after(warmup, provider) == ["Be brief."]


async def test_nothing_is_primed_beside_a_reload_of_the_model() -> None:
    class Slow(Primed):
        async def unload(self, model: str) -> None:
            await super().unload(model)
            warmup.looked(warmup._ladder.rungs[0], FRESH)
            warmup.begin({"voice"})
            for _ in range(5):
                await asyncio.sleep(0)
            assert provider.primed == []

    provider = Slow()
    warmup = Warmup(ladder_of(provider), Config(Settings(), AGENTS), Idle())
    warmup.begin()
    await warmup.reload(warmup._ladder.rungs[0], "small")
    assert systems(provider) == ["Speak."]
    assert warmup._task
    await asyncio.wait_for(warmup._task, 5)
    assert systems(provider) == ["Speak.", "Be brief."], "each once"


async def test_what_the_server_fails_at_is_not_tried_again_and_again() -> None:
    provider = Primed(ProviderError("it is broken"))
    warmup = Warmup(ladder_of(provider), Config(Settings(), AGENTS), Idle())
    warmup.begin()
    assert await primed_after(warmup, provider) == []
    provider.failure = None
    assert await primed_after(warmup, provider, WARM, GONE, WARM) == []


async def test_nothing_is_primed_after_the_stop() -> None:
    provider = Primed(UNAVAILABLE)
    warmup = Warmup(ladder_of(provider), Config(Settings(), AGENTS), Idle())
    warmup.begin()
    await settled(warmup, provider)
    provider.failure = None
    assert await primed_after(warmup, provider, GONE, FRESH) == []


@pytest.mark.parametrize(
    ("failure", "levels"),
    [
        (ModelNotFound("pull it"), ["INFO", "INFO"]),  # the next agent may have another model
        (ProviderUnavailable("it is off"), ["INFO"]),
        (ZeroDivisionError(), ["ERROR"]),
    ],
)
async def test_a_failure_is_logged_and_stops_nothing(
    failure: Exception, levels: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    provider = Primed(failure)
    warmup = Warmup(ladder_of(provider), Config(Settings(), AGENTS), Idle())
    warmup.begin()
    await settled(warmup, provider)
    assert [record.levelname for record in caplog.records] == levels


async def test_a_reload_drops_the_model_and_primes_its_agents() -> None:
    provider = Primed()
    ladder = ladder_of(provider)
    warmup = Warmup(ladder, Config(Settings(), AGENTS), Idle())
    await warmup.reload(ladder.rungs[0], "small")
    assert provider.unloaded == ["small"]
    assert [(request.model, request.messages[0].content) for request in provider.primed] == [("small", "Speak.")]
    provider.primed.clear()
    await warmup.reload(ladder.rungs[0], "nobody's")
    assert [(request.model, request.messages[0].content) for request in provider.primed] == [("nobody's", "Be brief.")]


async def test_a_reload_that_fails_says_so() -> None:
    ladder = ladder_of(Primed(ModelNotFound("pull it")))
    warmup = Warmup(ladder, Config(Settings(), AGENTS), Idle())
    with pytest.raises(ModelNotFound):
        await warmup.reload(ladder.rungs[0], "small")


async def test_each_agent_is_primed_where_it_lives_with_the_window_of_that_server() -> None:
    first, desk, away = Primed(name="first"), Primed(name="desk"), Primed(ProviderUnavailable("it is off"), "away")
    settings, clock = Settings(ctx_tokens=2048, default_agent="general"), FakeClock()
    ladder = Ladder([Rung(first, clock)], lambda: settings, clock)
    ladder.add(Rung(away, clock))
    ladder.add(Rung(desk, clock, model="big", context_tokens=8192))
    agents = {
        "general": Agent(name="general", system="Be brief."),
        "gone": Agent(name="gone", system="Off.", provider="away"),
        "coder": Agent(name="coder", system="Code.", provider="desk"),
    }
    warmup = Warmup(ladder, Config(settings, agents), Idle())
    warmup.begin()
    async with asyncio.timeout(5):
        while not first.primed:  # noqa: ASYNC110 - it tells nobody when it is done
            await asyncio.sleep(0)
    await warmup.stop()
    assert [(one.model, one.context_tokens) for one in desk.primed] == [("big", 8192)]
    assert [(one.model, one.context_tokens) for one in first.primed] == [(settings.ollama_model_general, 2048)]
