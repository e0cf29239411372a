"""The ladder: who is asked, in which order, who rests, and what is said of it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from piagent_daemon.contract import Stage
from piagent_daemon.errors import (
    ContextOverflow,
    ModelNotFound,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    RateLimited,
    RequestRefused,
    Unauthorized,
)
from piagent_daemon.ladder import STAYS_S, Call, Ladder, Narrower
from piagent_daemon.routing import capable, embedder
from piagent_daemon.rung import MAX_REST_S, WAKE_AGAIN_S, WAKES_S, Rung
from piagent_daemon.settings import Settings
from piagent_daemon.turn import Config
from piagent_daemon.values import ChatRequest, Delta, Message, ProviderState
from piagent_daemon.watch import ProviderWatch
from tests.fakes.doubles import FakeClock, ScriptedProvider, Step, answer

GENERAL = Settings().ollama_model_general


def fails(error: Exception) -> Any:
    return lambda _: [error]


def dies(error: Exception) -> Any:
    return lambda _: [Delta("some "), error]


class House:
    """A ladder of scripted providers `a`, `b`, `c`, whose rests are exactly as long as they may be."""

    def __init__(self, *names: str, wake: str = "", own: dict[str, str] | None = None, **settings: Any) -> None:
        self.clock = FakeClock()
        self.settings = Settings(**{"backoff_factor_s": 0.5, "max_retries": 0, **settings})
        self.woken: list[str] = []
        self.providers = {name: ScriptedProvider(name=name) for name in names}
        self.rungs = {
            name: Rung(
                provider,
                self.clock,
                model=(own or {}).get(name),
                context_tokens=1000 if name == "narrow" else None,
                wake=(lambda name=name: self.woken.append(name)) if name == wake else None,  # type: ignore[misc]
                jitter=lambda attempt, factor, limit: min(limit, factor * 2**attempt),
            )
            for name, provider in self.providers.items()
        }
        for name, provider in self.providers.items():
            provider.script = lambda _, name=name: answer(f"from {name}", prompt_tokens=5)  # type: ignore[misc]
        self.ladder = Ladder(list(self.rungs.values()), lambda: self.settings, self.clock)
        self.told: list[tuple[Stage, str]] = []

    def call(self, conversation: str = "kitchen", **fields: Any) -> Call:
        fields = {"home": None, "model": self.ladder.general(fields.get("home"))} | fields
        return Call(conversation, told=lambda stage, detail: self.told.append((stage, detail)), **fields)

    async def ask(self, conversation: str = "kitchen", call: Call | None = None, **fields: Any) -> str:
        """Return the answer, which names who gave it."""
        call = call or self.call(conversation)
        model, window = self.ladder.choice(call)
        request = ChatRequest(model, (Message("user", "hi"),), {"num_predict": 10}, window)._replace(**fields)
        async with aclosing(self.ladder.answer(request, call)) as deltas:
            return "".join([delta.text async for delta in deltas])

    async def embedder(self, model: str | None) -> tuple[Rung, str]:
        return await embedder(self.ladder.rungs, model, self.ladder.general, self.settings.models_allowed)

    def asked(self) -> list[str]:
        return [name for name, provider in self.providers.items() for _ in provider.asked]

    def use(self, name: str) -> Any:
        return next(use for use in self.ladder.report() if use.name == name)


FAILURES = [
    ProviderUnavailable("refused"),
    Unauthorized("bad key"),
    ModelNotFound("pull it"),
    ProviderTimeout("no first token"),
    ProviderError("broken"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: error.code)
async def test_a_failure_before_the_first_text_is_made_good_by_the_next_rung(error: ProviderError) -> None:
    house = House("a", "b")
    house.providers["a"].script = fails(error)
    call = house.call()
    assert await house.ask(call=call) == "from b"
    assert (call.rung, call.served) == (house.rungs["b"], GENERAL)
    assert house.told == [("fallback", f"a: {error} Asking b.")]
    assert (house.use("a").errors, house.use("a").cooldowns, house.use("b").errors) == ({error.code: 1}, 1, {})


async def test_after_the_first_text_there_is_no_second_rung() -> None:
    house = House("a", "b")
    house.providers["a"].script = dies(ProviderError("broke off"))
    with pytest.raises(ProviderError, match="broke off"):
        await house.ask()
    assert house.asked() == ["a"]
    assert await house.ask() == "from b", "the next request goes to the next rung"


async def test_a_rung_that_failed_rests_longer_each_time_and_comes_back_by_a_trial() -> None:
    house = House("a", "b")
    house.providers["a"].script = fails(ProviderUnavailable("refused"))
    rests = []
    for number in range(8):
        assert await house.ask(str(number)) == "from b"
        assert house.ladder.serving.name == "b"
        rests.append(house.use("a").resting_s)
        house.clock.advance(rests[-1] - 0.1)
        assert await house.ask(f"still {number}") == "from b"
        assert len(house.providers["a"].asked) == number + 1
        house.clock.advance(0.2)
    assert rests == [10, 20, 40, 80, 160, MAX_REST_S, MAX_REST_S, MAX_REST_S]
    house.providers["a"].script = lambda _: answer("from a")
    assert await house.ask("new") == "from a"
    assert (house.ladder.serving.name, house.use("a").resting_s) == ("a", 0)


async def test_rests_grow_by_chance_too_and_tries_of_one_request_are_one_failure() -> None:
    house = House("a", "b", max_retries=3, backoff_factor_s=0.001)
    for name, provider in house.providers.items():
        house.rungs[name]._jitter = lambda *_: 0.0  # the shortest that there is
        provider.script = fails(ProviderUnavailable("refused"))
    rests = []
    for _ in range(4):
        with pytest.raises(ProviderUnavailable):
            await house.ask()
        assert len(house.providers["a"].asked) == 4
        house.providers["a"].asked.clear()
        rests.append(house.rungs["a"].rest_until - house.clock.monotonic())
        house.clock.advance(rests[-1] + 0.001)
    assert rests == pytest.approx([rests[0] * 2**number for number in range(4)])
    assert rests[0] > 0


@pytest.mark.parametrize("silence", [(), (" ", "\n")], ids=["nothing", "blanks"])
async def test_an_empty_answer_is_made_good_by_the_next_rung(silence: tuple[str, ...]) -> None:
    house = House("a", "b")
    house.providers["a"].script = lambda _: answer(*silence)
    if silence:
        with pytest.raises(ProviderError, match="returned nothing"):
            await house.ask()
    else:
        assert await house.ask() == "from b"
    assert house.use("a").errors == {"provider_error": 1}
    assert house.use("a").resting_s > 0


async def test_an_answer_that_came_too_late_counts_against_its_rung() -> None:
    house = House("a", "b")
    call = house.call()
    call.rung = house.rungs["a"]
    house.ladder.overdue(call, ProviderTimeout("too late"))
    assert house.use("a").errors == {"timeout": 1}
    assert await house.ask() == "from b"


async def test_while_one_request_tries_a_rung_the_others_pass_over_it() -> None:
    house = House("a", "b")
    house.providers["a"].scripts = [fails(ProviderError("x")), lambda _: [Delta("slow "), *answer("a")]]
    await house.ask("one")
    house.clock.advance(11)
    request = ChatRequest(GENERAL, (), {"num_predict": 1}, 4096)
    trial: AsyncGenerator[Delta, None] = house.ladder.answer(request, house.call("two"))
    assert (await anext(trial)).text == "slow "
    assert await house.ask("three") == "from b"
    await trial.aclose()
    assert await house.ask("four") == "from a"


async def test_a_conversation_stays_on_its_rung_while_its_cache_is_warm() -> None:
    house = House("a", "b")
    house.providers["a"].scripts = [fails(ProviderUnavailable("refused"))]
    assert await house.ask("kitchen") == "from b"
    house.clock.advance(20)
    assert await house.ask("garden") == "from a"
    assert await house.ask("kitchen") == "from b"
    house.clock.advance(STAYS_S + 1)
    assert await house.ask("kitchen") == "from a"


async def test_a_conversation_whose_rung_fails_goes_on_with_the_others() -> None:
    house = House("a", "b", "c")
    house.providers["a"].scripts = [fails(ProviderUnavailable("refused"))]
    await house.ask()
    house.clock.advance(20)
    house.providers["b"].script = fails(ProviderUnavailable("refused"))
    assert await house.ask() == "from a"


async def test_when_all_rest_the_one_that_wakes_first_is_asked() -> None:
    house = House("a", "b")
    house.providers["a"].scripts = [fails(ProviderError("x")), fails(ProviderError("x"))]
    house.providers["b"].scripts = [lambda _: answer("from b"), fails(ProviderError("x"))]
    await house.ask("1")
    house.clock.advance(11)
    with pytest.raises(ProviderError, match=r"^a: x. b: x.$"):
        await house.ask("2")
    assert house.use("a").resting_s == 20
    assert house.use("b").resting_s == 10
    assert await house.ask("3") == "from b"


async def test_the_failure_that_may_pass_is_told_first_and_all_of_them_named() -> None:
    house = House("a", "b")
    house.providers["a"].script = fails(Unauthorized("bad key"))
    house.providers["b"].script = fails(ProviderUnavailable("refused"))
    with pytest.raises(ProviderUnavailable, match=r"a: bad key. b: refused.") as caught:
        await house.ask()
    assert caught.value.retryable


async def test_all_rungs_share_the_further_tries() -> None:
    house = House("a", "b", max_retries=2, backoff_factor_s=0)
    for provider in house.providers.values():
        provider.script = fails(ProviderUnavailable("refused"))
    with pytest.raises(ProviderUnavailable):
        await house.ask()
    assert house.asked() == ["a"] * 3 + ["b"] * 3
    assert [stage for stage, _ in house.told] == ["fallback", "retrying", "fallback", "retrying", "fallback"]
    assert house.use("a").retries == 2


async def test_what_will_not_pass_is_not_tried_again() -> None:
    house = House("a", "b", max_retries=2, backoff_factor_s=0)
    house.providers["a"].script = fails(Unauthorized("bad key"))
    house.providers["b"].script = fails(ProviderUnavailable("refused"))
    with pytest.raises(ProviderUnavailable):
        await house.ask()
    assert house.asked() == ["a"] + ["b"] * 3


async def test_a_single_rung_never_rests_and_its_errors_are_as_they_are() -> None:
    house = House("a", max_retries=1, backoff_factor_s=0)
    error = ProviderUnavailable("refused")
    house.providers["a"].script = fails(error)
    for _ in range(2):
        with pytest.raises(ProviderUnavailable) as caught:
            await house.ask()
        assert caught.value is error
    assert len(house.providers["a"].asked) == 4
    assert (house.use("a").resting_s, house.use("a").cooldowns, house.use("a").retries) == (0, 0, 2)
    assert house.told == [("retrying", "refused")] * 2


async def test_a_cancelled_request_says_nothing_of_its_rung() -> None:
    house = House("a", "b")
    request = ChatRequest(GENERAL, (), {"num_predict": 1}, 4096)
    stream = house.ladder.answer(request, house.call())
    await anext(stream)
    await stream.aclose()
    assert (house.use("a").errors, house.use("a").resting_s) == ({}, 0)
    assert await house.ask() == "from a"


# --------------------------------------------------------------------------------------------------- models and windows


async def test_each_rung_is_asked_for_its_own_model() -> None:
    house = House("a", "b", own={"b": "big"})
    house.providers["a"].script = fails(ProviderUnavailable("refused"))
    call = house.call()
    await house.ask(call=call)
    assert (house.providers["a"].asked[0].model, house.providers["b"].asked[0].model) == (GENERAL, "big")
    assert call.served == "big"


async def test_a_model_that_was_named_counts_at_home_and_where_there_is_no_other() -> None:
    house = House("a", "b", "c", own={"b": "big"})
    house.providers["a"].script = fails(ModelNotFound("what?"))
    house.providers["b"].script = fails(ProviderUnavailable("refused"))
    call = house.call(model="odd")
    assert await house.ask(call=call) == "from c"
    assert [provider.asked[0].model for provider in house.providers.values()] == ["odd", "big", "odd"]
    assert house.use("a").resting_s == 0, "that it lacks somebody's wish is no reason to pass over it"


async def test_an_agent_s_provider_is_asked_first() -> None:
    house = House("a", "b", own={"b": "big"})
    call = house.call(home="b")
    assert (house.ladder.choice(call)[0], await house.ask(call=call)) == ("big", "from b")
    house.providers["b"].script = fails(ProviderUnavailable("refused"))
    assert await house.ask(call=house.call(home="b")) == "from a"
    assert house.providers["a"].asked[0].model == GENERAL


async def test_a_prompt_that_does_not_fit_the_next_window_is_made_anew() -> None:
    house = House("a", "narrow")
    house.providers["a"].script = fails(ProviderUnavailable("refused"))
    call = house.call(estimate=2000)
    with pytest.raises(Narrower):
        await house.ask(call=call)
    assert house.ladder.choice(call) == (GENERAL, 1000)
    call.estimate = 500
    assert await house.ask(call=call) == "from narrow"
    assert house.asked() == ["a", "narrow"]
    assert house.providers["narrow"].asked[0].context_tokens == 1000


async def test_an_overflow_is_for_the_prompt_and_no_other_rung() -> None:
    house = House("a", "b")
    house.providers["a"].scripts = [fails(ContextOverflow("too long"))]
    call = house.call()
    with pytest.raises(ContextOverflow):
        await house.ask(call=call)
    assert await house.ask(call=call) == "from a"


# ----------------------------------------------------------------------------------------------------------- routing

SEEN = (Message("user", "what is this?", ("aW1hZ2U=",)),)


async def test_images_go_to_a_model_that_sees() -> None:
    house = House("a")
    house.providers["a"].abilities = {
        GENERAL: frozenset({"completion"}),
        "embed": frozenset({"embedding"}),
        "llava": frozenset({"completion", "vision"}),
    }
    call = house.call()
    await house.ask(call=call, messages=SEEN)
    assert (house.providers["a"].asked[0].model, call.served) == ("llava", "llava")
    await house.ask()
    assert house.providers["a"].asked[1].model == GENERAL


async def test_images_go_up_the_ladder_where_no_model_sees() -> None:
    house = House("a", "b")
    house.providers["a"].abilities = {GENERAL: frozenset({"completion"})}
    assert await house.ask(messages=SEEN) == "from b"
    assert house.use("a").resting_s == 0
    house.providers["b"].abilities = {GENERAL: frozenset({"completion"})}
    with pytest.raises(ModelNotFound, match=r"a has no model that can look at images: bring one .*b has no model"):
        await house.ask("other", messages=SEEN)


async def test_only_allowed_models_take_another_s_place() -> None:
    house = House("a", models_allowed=(GENERAL,))
    house.providers["a"].abilities = {GENERAL: frozenset({"completion"}), "llava": frozenset({"vision"})}
    with pytest.raises(ModelNotFound):
        await house.ask(messages=SEEN)


async def test_a_model_is_allowed_with_and_without_its_tag() -> None:
    house = House("a", models_allowed=(GENERAL, "llava"))
    house.providers["a"].abilities = {GENERAL: frozenset({"completion"}), "llava:latest": frozenset({"vision"})}
    call = house.call()
    assert await house.ask(call=call, messages=SEEN) == "from a"
    assert call.served == "llava:latest"


async def test_a_named_model_makes_embeddings_where_it_is_and_not_where_any_name_will_do() -> None:
    house = House("a", "b", "c")
    for name, found in (("a", None), ("b", False), ("c", True)):
        house.providers[name].state = ProviderState(reachable=True, model_found=found)
        house.providers[name].abilities = {"nomic": frozenset({"embedding"})}
    assert await house.embedder("nomic") == (house.rungs["c"], "nomic")
    house.providers["c"].state = ProviderState(reachable=True, model_found=False)
    assert await house.embedder("nomic") == (house.rungs["a"], "nomic")


async def test_an_embedding_model_is_found_also_where_the_general_one_is_missing() -> None:
    house = House("a")
    house.providers["a"].abilities = {"nomic": frozenset({"embedding"})}
    missing = house.providers["a"].capabilities

    async def capabilities(model: str) -> frozenset[str]:
        if model in {GENERAL, "other"}:
            raise ModelNotFound(f"there is no {model}")
        return await missing(model)

    house.providers["a"].capabilities = capabilities  # type: ignore[method-assign]
    assert await house.embedder(None) == (house.ladder.known["a"], "nomic")
    with pytest.raises(ModelNotFound, match="there is no other"):
        await house.embedder("other")


async def test_what_is_not_known_of_a_model_is_tried() -> None:
    provider = ScriptedProvider()
    provider.abilities = {"m": frozenset()}
    assert await capable(provider, "vision", "m") == "m"


async def test_embeddings_come_from_a_model_that_makes_them() -> None:
    house = House("a", "b")
    house.providers["a"].abilities = {GENERAL: frozenset({"completion"})}
    house.providers["b"].abilities = {GENERAL: frozenset({"completion"}), "nomic": frozenset({"embedding"})}
    assert await house.embedder(None) == (house.ladder.known["b"], "nomic")
    with pytest.raises(ModelNotFound, match="a has no model that makes embeddings"):
        await house.embedder(GENERAL)


# ------------------------------------------------------------------------------------------------------ metrics, health


async def test_what_a_provider_did_is_counted() -> None:
    house = House("a", "b")
    house.providers["a"].script = lambda _: answer("x", "y")
    for number in range(3):
        await house.ask(str(number))
    use = house.use("a")
    assert (use.requests, use.errors, use.speed.first_token_s) == (3, {}, 0.0)
    assert house.use("b").requests == 0


async def test_health_names_the_rung_that_serves_and_what_will_not_pass() -> None:
    house = House("a", "b", own={"b": "big"})
    watch = ProviderWatch(house.ladder, Config(house.settings, {}))
    await watch.look()
    assert (watch.health.name, watch.health.model, watch.reasons) == ("a", GENERAL, [])
    changes: list[str] = []
    watch.on_change = lambda: changes.append(watch.health.name)
    house.providers["a"].script = fails(Unauthorized("bad key"))
    await house.ask()
    assert (watch.health.name, watch.health.model, watch.reason) == ("b", "big", None)
    assert watch.reasons == ["unauthorized"]
    assert changes == ["b"]
    assert {use.name: use.error for use in watch.report} == {"a": "bad key", "b": None}


async def test_a_rung_that_rests_is_looked_at_when_its_rest_is_over() -> None:
    house = House("a", "b")
    watch = ProviderWatch(house.ladder, Config(house.settings, {}))
    down, up = ProviderState(reachable=False, error="refused"), house.providers["a"].state
    house.providers["a"].state = down
    await watch.look()
    assert (watch.health.name, watch.reasons, house.ladder.trial_in_s) == ("b", [], 10)
    house.clock.advance(10)
    await watch.look()
    assert (watch.health.name, house.ladder.trial_in_s) == ("b", 20)
    house.providers["a"].state = up
    await watch.look()
    assert watch.health.name == "b", "it rests still, so nobody looked"
    house.clock.advance(20)
    await watch.look()
    assert (watch.health.name, watch.health.reachable) == ("a", True)


async def test_a_refused_key_is_told_until_an_answer_comes() -> None:
    house = House("a")
    watch = ProviderWatch(house.ladder, Config(house.settings, {}))
    house.providers["a"].scripts = [fails(Unauthorized("no"))]
    with pytest.raises(Unauthorized):
        await house.ask()
    await watch.look()
    assert watch.reasons == ["unauthorized"], "a look at the list of models needs no key"
    house.providers["a"].state = ProviderState(reachable=True, error="the key is refused", code="unauthorized")
    await watch.look()
    assert watch.reasons == ["unauthorized"]
    house.providers["a"].state = ProviderState(reachable=True, model_found=True)
    await watch.look()
    assert watch.reasons == []


async def test_a_model_that_only_this_request_named_is_nobodys_trouble() -> None:
    house = House("a")
    watch = ProviderWatch(house.ladder, Config(house.settings, {}))
    house.providers["a"].script = fails(ModelNotFound("no such model"))
    with pytest.raises(ModelNotFound):
        await house.ask(call=house.call(model="tpyo"))
    assert watch.reasons == []
    with pytest.raises(ModelNotFound):
        await house.ask()
    assert watch.reasons == ["model_not_found"]


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
async def test_a_request_that_is_refused_as_such_is_nobodys_trouble(names: tuple[str, ...]) -> None:
    house = House(*names)
    watch = ProviderWatch(house.ladder, Config(house.settings, {}))
    for provider in house.providers.values():
        provider.scripts = [fails(RequestRefused("bad schema"))]
    with pytest.raises(RequestRefused):
        await house.ask()
    assert house.asked() == list(names), "another server may take it"
    assert (watch.reasons, [house.use(name).resting_s for name in names]) == ([], [0.0] * len(names))
    assert await house.ask() == "from a"


async def test_a_server_is_asked_again_only_after_the_time_that_it_named(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def pause(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("piagent_daemon.tries.asyncio.sleep", pause)
    monkeypatch.setattr("piagent_daemon.tries.full_jitter", lambda *_: 1.0)
    house = House("a", "b", "c", max_retries=3)
    house.providers["a"].script = fails(ProviderUnavailable("refused"))
    house.providers["b"].script = fails(RateLimited("slowly", retry_after_s=2.5))
    house.providers["c"].script = fails(ProviderUnavailable("refused"))
    with pytest.raises(ProviderUnavailable, match=r"a: refused\. b: slowly\. c: refused\."):
        await house.ask()
    assert waits == [1.0, 1.0, 1.0]
    assert [len(provider.asked) for provider in house.providers.values()] == [4, 2, 4]
    assert [house.use(name).retries for name in house.providers] == [3, 1, 3]
    house = House("a", "b", max_retries=3)
    house.providers["a"].script = fails(ProviderUnavailable("refused"))
    house.providers["b"].scripts = [fails(RateLimited("slowly", retry_after_s=8))]
    waits.clear()
    assert await house.ask() == "from b", "the last try waits for whoever asked for more time"
    assert waits == [1.0, 1.0, 6.0]
    assert [len(provider.asked) for provider in house.providers.values()] == [4, 2]


async def test_nothing_is_kept_of_what_is_outside_the_conversations() -> None:
    house = House("a", "b")
    house.providers["a"].scripts = [fails(ProviderUnavailable("refused"))]
    assert await house.ask("") == "from b"
    house.clock.advance(60)
    assert await house.ask("") == "from a"


async def test_everybody_is_looked_at_when_somebody_asks() -> None:
    house = House("a", "b")
    watch = ProviderWatch(house.ladder, Config(house.settings, {}))
    await watch.look()
    house.providers["b"].state = ProviderState(reachable=False, error="gone")
    await watch.look()
    assert house.use("b").reachable
    await watch.look(everyone=True)
    assert not house.use("b").reachable


async def test_a_look_that_began_before_a_failure_does_not_hide_it() -> None:
    house = House("a", "b")
    watch = ProviderWatch(house.ladder, Config(house.settings, {}))
    well, house.providers["a"].script = house.providers["a"].state, fails(Unauthorized("bad key"))

    async def probe(model: str) -> ProviderState:  # noqa: ARG001 - the seam's signature
        await house.ask()
        return well

    house.providers["a"].probe = probe  # type: ignore[method-assign]
    await watch.look()
    assert watch.reasons == ["unauthorized"]


# --------------------------------------------------------------------------------------------------------------- waking


async def test_a_machine_that_sleeps_is_woken_when_somebody_asks_and_serves_once_it_is_up() -> None:
    house = House("a", "b", wake="a")
    watch = ProviderWatch(house.ladder, Config(house.settings, {}))
    up = house.providers["a"].state
    house.providers["a"].state = ProviderState(reachable=False, error="refused")
    await watch.look()
    assert house.woken == [], "nobody has asked"
    assert await house.ask("1") == "from b"
    assert house.woken == ["a"]
    assert house.asked() == ["b"]
    house.clock.advance(3)
    await watch.look()
    assert house.ladder.trial_in_s == 3, "while it wakes, it is looked at often"
    assert await house.ask("2") == "from b"
    assert house.woken == ["a"]
    house.clock.advance(3)
    house.providers["a"].state = up
    await watch.look()
    assert await house.ask("3") == "from a"


async def test_nobody_waits_for_a_machine_that_wakes_up() -> None:
    house = House("a", "b", wake="a")
    watch = ProviderWatch(house.ladder, Config(house.settings, {}))
    house.providers["a"].script = fails(ProviderUnavailable("asleep"))
    house.providers["a"].state = ProviderState(reachable=False, error="asleep")
    assert await house.ask("first") == "from b"
    for number in range(5):
        house.clock.advance(3.1)
        assert house.rungs["a"].due
        await watch.look()
        assert await house.ask(str(number)) == "from b"
    assert len(house.providers["a"].asked) == 1
    house.providers["a"].script = lambda _: answer("from a")
    house.providers["a"].state = ProviderState(reachable=True, model_found=True)
    house.clock.advance(3.1)
    await watch.look()
    assert await house.ask("new") == "from a"


async def test_the_packet_is_sent_again_but_not_often() -> None:
    house = House("a", "b", wake="a")
    house.providers["a"].script = fails(ProviderUnavailable("refused"))
    ProviderWatch(house.ladder, Config(house.settings, {}))
    for number in range(10):
        await house.ask(str(number))
        house.clock.advance(WAKE_AGAIN_S / 3)
    assert len(house.woken) == 4


async def test_with_no_other_rung_a_request_waits_until_the_machine_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House("a", wake="a", backoff_factor_s=0)
    steps: list[Step] = [ProviderUnavailable("refused")] * 3
    house.providers["a"].scripts = [lambda _, step=step: [step] for step in steps]  # type: ignore[misc]

    async def sleep(seconds: float) -> None:
        house.clock.advance(seconds)

    monkeypatch.setattr("piagent_daemon.ladder.sleep", sleep)
    assert await house.ask() == "from a"
    assert house.woken == ["a"]
    house.providers["a"].script = fails(ProviderUnavailable("refused"))
    with pytest.raises(ProviderUnavailable):
        await house.ask()
    assert house.clock.elapsed > 1000 + WAKES_S
