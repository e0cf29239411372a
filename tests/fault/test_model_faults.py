"""A model server that goes wrong in every way it can (faults 16 to 28), asked through the whole daemon."""

import asyncio
from typing import Any, Final

import pytest

from tests.fakes.answers import Event, check_answer
from tests.fakes.ollama import DEFAULT_MODEL, FakeOllama, Model
from tests.fakes.ollama_script import (
    BREAKING,
    LINE_BREAKS,
    MODES,
    ODD_TEXT,
    REFUSING,
    SERVER_WIDE,
    TALKING,
    THOUGHT,
    Record,
)
from tests.fault.conftest import HouseFactory
from tests.fault.house import API_KEY, House

PATIENCE: Final = {
    "fast": 5,  # the daemon's seconds: so it looks at a server in trouble five times as often
    "connect_timeout_s": 5,
    "first_token_timeout_s": 5,
    "idle_timeout_s": 2,
    "total_timeout_s": 100,
    "max_retries": 1,
    "backoff_factor_s": 0.1,
}
REPLY: Final = "One two three four five six"
BEGINNING: Final = "One two three"
RETRYABLE: Final = {"timeout", "provider_unavailable"}
GROWTH_MB: Final = 5.0


async def answer(home: House, room: str, text: str = "Hello", **fields: Any) -> Event:
    """Ask, and check the whole answer: one terminal event, `seq` without gaps, chunks that join to the reply."""
    request_id = await home.post(room, text, **fields)
    await home.observer.terminal(request_id, 15)
    return check_answer(home.observer.events(request_id))


def failed(end: Event, code: str, partial: str = "") -> None:
    """Assert what an error says."""
    assert (end["type"], end.get("code"), end.get("partial")) == ("error", code, partial), end
    assert end["retryable"] == (code in RETRYABLE)
    assert end["message"].isprintable()
    assert len(end["message"]) < 400


def sent(record: Record) -> list[str]:
    return [message["role"] for message in record.body["messages"]]


def test_every_mode_of_the_server_is_played() -> None:
    """The modes of the tests below; a new one must find its place in them."""
    assert SERVICES.keys() == SERVER_WIDE
    assert {"429", "503"} | REFUSALS.keys() == REFUSING
    assert BROKEN_OFF | SILENT | {"utf8"} == BREAKING
    assert WHOLE.keys() | {"noheader", "nodone", "endless", "empty", "thinking_only", "repeat_guard"} == TALKING
    assert MODES == SERVER_WIDE | REFUSING | BREAKING | TALKING


# -------------------------------------------------------------------------------------------- it is away: 16 and 17


@pytest.mark.parametrize("protocol", ["5", "311"])
async def test_16_a_server_that_is_down_and_comes_back(house: HouseFactory, protocol: str) -> None:
    async with FakeOllama() as away:
        url, port = away.url, away.port
    async with house(protocol=protocol, ollama_host=url, **PATIENCE) as home:
        ill = await home.reason("provider_unavailable")
        assert ill["status"] == "degraded"
        assert ill["provider"]["reachable"] is False
        assert "refused" in ill["provider"]["error"].lower()
        for number in range(3):
            started = asyncio.get_running_loop().time()
            failed(await answer(home, f"room{number}"), "provider_unavailable")
            assert asyncio.get_running_loop().time() - started < 5
        assert home.log.count("WARNING piagent.provider") == 1, "once for each change of state"
        async with FakeOllama(port=port):
            await home.good(15)  # nobody had to ask
            await home.well()
            assert home.log.count("the model server is well again") == 1
        before = len(home.observer.messages)
        failed(await answer(home, "after"), "provider_unavailable")
        await home.health(lambda now: now["reasons"] == ["provider_unavailable"], start=before)


async def test_17_a_model_that_takes_long_to_load(house: HouseFactory) -> None:
    async with house() as home:
        home.server.next("noheader", delay_s=1.6)
        request_id = await home.post("slow")
        final = await home.observer.terminal(request_id)
        events = home.observer.events(request_id)
        assert list(dict.fromkeys(event["type"] for event in events)) == ["accepted", "status", "chunk", "final"]
        assert events[1]["stage"] == "loading"
        assert final["timing"]["first_token_s"] > 1.5
        home.server.runners.clear()
        home.server.runners.load_s = 1.2
        final = await home.ask("cold")
        assert final["timing"]["load_s"] > 1
        await home.logged("took 1 s to load")
        assert not any(now["reasons"] for now in home.healths), "slow is not ill"


async def test_17_a_model_that_never_begins(house: HouseFactory) -> None:
    async with house(**PATIENCE) as home:
        home.server.next("noheader")
        failed(await answer(home, "k"), "timeout")
        await home.server.until(lambda server: server.questions[0].disconnected)
        await home.well()


# ----------------------------------------------------------------------------------------- it refuses: 18, 19 and 20


async def test_18_a_model_that_is_not_pulled(house: HouseFactory) -> None:
    async with house(ollama_model_general="llama9:1b", **PATIENCE) as home:
        ill = await home.reason("model_not_found")
        assert "llama9:1b" in ill["provider"]["error"]
        error = await answer(home, "k")
        failed(error, "model_not_found")
        assert error["status_code"] == 404
        assert "`ollama pull llama9:1b`" in error["message"]
        assert home.log.count("ERROR   piagent.provider") == 1
        home.server.models["llama9:1b"] = Model()
        await home.good(15)
        await home.well()
    assert len(home.server.questions) == 2, "what cannot pass is not tried again"


async def test_19_a_busy_server_is_asked_again(house: HouseFactory) -> None:
    async with house(**{**PATIENCE, "max_retries": 3}) as home:
        home.server.next("503", times=3)
        assert (await answer(home, "patient"))["type"] == "final"
        assert len(home.server.questions) == 4
        home.server.next("429")
        final = await answer(home, "told")
        assert final["type"] == "final"
        assert final["timing"]["first_token_s"] >= 1, "it asked for a second"
        home.server.mode = "503"
        failed(await answer(home, "in vain"), "provider_unavailable")
        assert len(home.server.questions) == 10
        home.server.mode = "ok"
        await home.good()
        await home.well()


SERVICES: Final = {
    "html502": "provider_error",
    "redirect": "provider_error",
    "wrong_service": "provider_error",
    "not_http": "provider_unavailable",
    "unauthorized": "unauthorized",
}


async def test_20_something_else_at_the_port(house: HouseFactory) -> None:
    async with house(**PATIENCE) as home:
        for mode, code in SERVICES.items():
            home.server.mode = mode
            before = len(home.observer.messages)
            failed(await answer(home, mode), code)
            ill = await home.health(lambda now: now["reasons"], start=before)
            assert ill["provider"]["error"].isprintable()
            home.server.mode = "ok"
            await home.well(f"after {mode}")
            await home.good()


REFUSALS: Final = {
    "404": "model_not_found",
    "500": "provider_unavailable",
    "error_200_first_line": "provider_unavailable",
    "gzipbomb": "provider_error",
}


async def test_20_refused_before_the_first_token(house: HouseFactory) -> None:
    async with house(**PATIENCE) as home:
        await home.well()
        peak = home.process.peak_rss_mb()
        for mode, code in REFUSALS.items():
            home.server.next(mode, times=2)
            failed(await answer(home, mode), code)
            home.server.forget()
        assert home.process.peak_rss_mb() - peak < GROWTH_MB
        await home.good()
        await home.well("again")


# --------------------------------------------------------------------------------- it breaks off: 21 to 24, and 26

BROKEN_OFF: Final = frozenset({"rst", "eof", "eof_clean", "err", "runner_dies", "bad", "hugeline"})
SILENT: Final = frozenset({"hang", "trickle"})


async def test_21_to_26_an_answer_that_breaks_off(house: HouseFactory) -> None:
    async with house(**PATIENCE) as home:
        await home.well()
        peak = home.process.peak_rss_mb()
        home.server.reply = REPLY
        for mode in sorted(BROKEN_OFF | {"nodone", "repeat_guard"}):
            partial = {"nodone": REPLY, "repeat_guard": " again" * 31}.get(mode, BEGINNING)
            before, count = len(home.observer.messages), len(home.server.questions)
            home.server.next(mode, error=f"the runner crashed near {API_KEY}\x1b[31m")
            failed(await answer(home, mode, metadata={"lamp": 1}), "provider_error", partial)
            await home.health(lambda now: "provider_error" in now["reasons"], start=before)
            await home.server.until(lambda server: server.questions[-1].disconnected or server.questions[-1].ended)
            assert home.server.questions[-1].disconnected or mode != "hugeline", "nobody reads 64 MB"
            assert len(home.server.questions) == count + 1, "not asked again after the first text"
            await home.good()
            assert (await answer(home, mode, "Again"))["reply"] == REPLY
            assert sent(home.server.questions[-1]) == ["system", "user"], "half an answer is no memory"
        assert home.process.peak_rss_mb() - peak < GROWTH_MB
        assert home.log.count("WARNING piagent.provider") == len(BROKEN_OFF) + 2


async def test_21_broken_off_before_the_first_token_is_asked_again(house: HouseFactory) -> None:
    async with house(**PATIENCE) as home:
        for mode in ("rst", "eof", "err", "runner_dies"):
            count = len(home.server.questions)
            home.server.next(mode, after=0)
            assert (await answer(home, f"lucky {mode}"))["type"] == "final"
            assert len(home.server.questions) == count + 2
            tries = 3 if mode == "rst" else 2  # the first finds a connection that was kept, whose loss says nothing yet
            home.server.next(mode, after=0, times=tries)
            failed(await answer(home, f"unlucky {mode}"), "provider_unavailable")
            assert len(home.server.questions) == count + 2 + tries
        await home.good()
        await home.well()


# --------------------------------------------------------------------------------------------------- it is slow: 25


async def test_25_an_answer_that_stops_in_the_middle(house: HouseFactory) -> None:
    async with house(**PATIENCE) as home:
        home.server.reply = REPLY
        for mode in sorted(SILENT):
            before = len(home.observer.messages)
            home.server.next(mode)
            failed(await answer(home, mode), "timeout", BEGINNING)
            await home.server.until(lambda server: server.questions[-1].disconnected)
            await home.health(lambda now: "timeout" in now["reasons"], start=before)
            await home.good()
        await home.well()


async def test_25_an_answer_without_end_in_time(house: HouseFactory) -> None:
    async with house(**{**PATIENCE, "total_timeout_s": 5}) as home:
        home.server.next("endless", tokens_per_s=20)
        error = await answer(home, "k")
        failed(error, "timeout", error["partial"])
        assert error["partial"].startswith(" word0 word1")
        await home.server.until(lambda server: server.questions[0].disconnected)
        await home.well()


# --------------------------------------------------------------------------------- it answers oddly: 23, 27 and 28

WHOLE: Final = {
    "ok": REPLY,
    "extra_fields": REPLY,
    "leading_space": f" {REPLY}",
    "think_tags": f"<think>{THOUGHT}</think>\n{REPLY}",
    "thinking": REPLY,
    "split": ODD_TEXT,
    "nel": LINE_BREAKS,
}


async def test_23_27_odd_answers_are_whole(house: HouseFactory) -> None:
    async with house(chunk_interval_ms=0) as home:
        for mode, reply in WHOLE.items():
            home.server.next(mode, reply=None if mode in {"split", "nel"} else REPLY)
            final = await answer(home, mode)
            assert (final["type"], final.get("reply")) == ("final", reply), mode
            assert THOUGHT not in final["speech"], mode
        assert not any(now["reasons"] for now in home.healths)


async def test_27_bytes_that_are_no_text(house: HouseFactory) -> None:
    async with house() as home:
        home.server.reply = REPLY
        home.server.next("utf8")
        final = await answer(home, "k")
        assert final["reply"].startswith(f"{BEGINNING}caf\ufffd")
        assert final["reply"].endswith("four five six")
        assert "U+FFFD" in home.log


async def test_28_an_answer_without_end_is_cut(house: HouseFactory) -> None:
    async with house(**PATIENCE, max_tokens=500) as home:
        home.server.next("endless")
        final = await answer(home, "k")
        assert (final["type"], final["finish_reason"]) == ("final", "length")
        assert final["reply"].startswith(" word0 word1 ")
        await home.server.until(lambda server: server.questions[0].disconnected)
        assert home.server.questions[0].tokens < 100_000
        await home.well()


async def test_28_a_very_long_answer(house: HouseFactory) -> None:
    async with house(max_tokens=12_000, ctx_tokens=16_384) as home:
        home.server.next(tokens=[f" w{number}" for number in range(10_000)])
        final = await answer(home, "k")
        assert (final["finish_reason"], final["usage"]["completion_tokens"]) == ("stop", 10_000)
        assert final["reply"].endswith(" w9999")


async def test_28_an_answer_that_says_nothing(house: HouseFactory) -> None:
    async with house(**PATIENCE, think=True) as home:
        home.server.models[DEFAULT_MODEL] = Model(capabilities=frozenset({"completion", "thinking"}))
        for mode in ("empty", "thinking_only"):
            home.server.next(mode)
            error = await answer(home, mode)
            failed(error, "provider_error")
            assert "returned nothing" in error["message"]
        await home.good()
        await home.well()
