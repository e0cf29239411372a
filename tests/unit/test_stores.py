"""What a store promises, asked of every store in the table."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piagent_daemon import stores
from piagent_daemon.errors import ConfigError
from piagent_daemon.ports import ConversationStore
from piagent_daemon.settings import Settings
from piagent_daemon.stores import history, journal
from piagent_daemon.values import Conversation, Delivery, Outcome, Ticket, Turn
from tests.fakes.doubles import FakeClock

NOW = datetime(2026, 1, 2, tzinfo=UTC)
QUESTION = Turn("user", "Is it raining?", NOW)
ANSWER = Turn("assistant", "No. Größe 𝄞\n", NOW, interrupted=True, tokens=4)
BY_ID = Delivery("id:kitchen:r1", by_id=True, redelivered=False, durable=True)
BY_PACKET = Delivery("packet:7:abcd", by_id=False, redelivered=False, durable=True)
AGAIN = Delivery("packet:7:abcd", by_id=False, redelivered=True, durable=True)
ONCE = Delivery("packet:0:abcd", by_id=False, redelivered=False, durable=False)

Make = Callable[..., Any]


def outcome(conversation_id: str = "kitchen", request_id: str = "r1", **fields: Any) -> Outcome:
    given: dict[str, Any] = {"terminal": b'{"type":"final"}', "agent": "general", "turns": (QUESTION, ANSWER)}
    return Outcome(conversation_id, request_id, **(given | fields))


def unchecked(url: str) -> Settings:
    """Return settings as if they did not look at the URL themselves."""
    return Settings().model_copy(update={"memory_url": url})


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["memory", "sqlite"])
async def make(request: pytest.FixtureRequest, clock: FakeClock, tmp_path: Path) -> AsyncIterator[Make]:
    """Return what makes and starts a store with the given settings."""
    url = {"memory": "memory:", "sqlite": f"sqlite://{tmp_path}/state/memory.db"}[request.param]
    made: list[ConversationStore] = []

    async def make_store(**settings: Any) -> ConversationStore:
        store = stores.create(Settings(memory_url=url, **settings), clock)
        made.append(store)
        await store.start()
        return store

    yield make_store
    for store in made:
        assert store.problem is None
        await store.aclose()


@pytest.fixture
async def store(make: Make) -> ConversationStore:
    made: ConversationStore = await make()
    return made


# -------------------------------------------------------------------------------------------------------------- table


@pytest.mark.parametrize(
    "url",
    ["", "mem ory:", "redis://u:secret@h", "sqlite:", "sqlite://", "sqlite:///", "sqlite://relative.db", "sqlite:///a/",
     "sqlite:///a?b", "sqlite:///a#b", "sqlite:///a%00", "memory:file", "::", "/path"],
)  # fmt: skip
def test_a_url_that_no_store_understands_is_a_configuration_error(url: str, clock: FakeClock) -> None:
    with pytest.raises(ConfigError, match="MEMORY_URL") as caught:
        stores.create(unchecked(url), clock)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "name"), [("memory:", "memory"), ("memory://", "memory"), ("sqlite:///a%20b", "sqlite")]
)
def test_the_scheme_chooses_the_store(url: str, name: str, clock: FakeClock) -> None:
    assert stores.create(unchecked(url), clock).name == name


@given(st.text(max_size=30))
def test_any_url_gives_a_store_or_a_configuration_error(url: str) -> None:
    try:
        stores.create(unchecked(url), FakeClock())
    except ConfigError:
        return


# ------------------------------------------------------------------------------------------------------ conversations


async def test_a_new_conversation_is_empty(store: ConversationStore) -> None:
    assert await store.load("kitchen") == Conversation()
    assert store.count() == 0
    assert await store.conversations() == []


async def test_turns_come_back_as_they_were(store: ConversationStore) -> None:
    await store.commit(outcome())
    assert await store.load("kitchen") == Conversation((QUESTION, ANSWER), 0, "general")
    await store.commit(outcome(agent="voice", turns=(QUESTION,), drop=1))
    assert await store.load("kitchen") == Conversation((ANSWER, QUESTION), 1, "voice")
    await store.commit(outcome(agent=None, turns=(), drop=5))
    assert await store.load("kitchen") == Conversation((), 3, "voice")


async def test_an_outcome_without_turns_keeps_the_turns_and_the_agent_that_was_named(store: ConversationStore) -> None:
    await store.commit(outcome(turns=(), agent=None))
    assert store.count() == 0
    await store.commit(outcome(turns=(), agent="voice"))
    assert await store.load("kitchen") == Conversation((), 0, "voice")
    await store.commit(outcome())
    await store.commit(outcome(turns=(), agent="voice"))
    assert await store.load("kitchen") == Conversation((QUESTION, ANSWER), 0, "voice")


async def test_the_newest_answer_can_be_cut_to_what_was_heard(store: ConversationStore) -> None:
    earlier = Turn("assistant", "Yes.", NOW)
    newest = Turn("assistant", "No. Größe", NOW, tokens=4)
    await store.commit(outcome(turns=(QUESTION, earlier, QUESTION, newest)))
    await store.shorten("kitchen", 8, 3)  # it is another one
    await store.shorten("hall", 9, 3)
    assert (await store.load("kitchen")).turns[-1] == newest
    await store.shorten("kitchen", 9, 3)
    heard = Turn("assistant", "No.", NOW, interrupted=True)
    assert (await store.load("kitchen")).turns == (QUESTION, earlier, QUESTION, heard)
    await store.shorten("kitchen", 3, 0)
    unheard = Turn("assistant", "", NOW, interrupted=True)
    assert (await store.load("kitchen")).turns == (QUESTION, earlier, QUESTION, unheard)
    assert (await store.conversations())[0].turns == 4
    assert store.count() == 1


async def test_cutting_an_answer_counts_as_use(make: Make, clock: FakeClock) -> None:
    store = await make(memory_ttl_min=1)
    await store.commit(outcome("a"))
    clock.advance(50)
    await store.commit(outcome("b"))
    clock.advance(5)
    await store.shorten("a", len(ANSWER.content), 3)
    clock.advance(10)
    assert await store.sweep() == 0
    clock.advance(46)
    assert (await store.sweep(), [row.conversation_id for row in await store.conversations()]) == (1, ["a"])


async def test_conversations_do_not_leak_into_each_other(store: ConversationStore) -> None:
    hostile = ["kitchen", "Kitchen", "kitchen'; DROP TABLE histories; --", "%s", "..", "ki\0tchen", "küche", "\ud800"]
    for number, name in enumerate(hostile):
        await store.commit(outcome(name, turns=(Turn("user", str(number), NOW),)))
    for number, name in enumerate(hostile):
        assert [turn.content for turn in (await store.load(name)).turns] == [str(number)]
    assert store.count() == len(hostile)


async def test_the_list_names_the_last_used_first(store: ConversationStore, clock: FakeClock) -> None:
    started = clock.now()
    for name in ("a", "b"):
        await store.commit(outcome(name))
        clock.advance(60)
    await store.load("a")
    clock.advance(1)
    clock.wall += timedelta(hours=2)
    rows = await store.conversations()
    assert [(row.conversation_id, row.turns, row.agent) for row in rows] == [("a", 2, "general"), ("b", 2, "general")]
    assert rows[0].last_used == started + timedelta(hours=2, seconds=120)


@given(
    st.lists(
        st.builds(
            Turn,
            role=st.sampled_from(["user", "assistant"]),
            content=st.text(st.characters(codec=None), max_size=50),
            ts=st.datetimes(timezones=st.just(UTC)),
            interrupted=st.booleans(),
            tokens=st.none() | st.integers(),
        ),
        max_size=5,
    )
)
def test_turns_survive_their_encoding(turns: list[Turn]) -> None:
    assert history.decode(history.encode(tuple(turns))) == tuple(turns)


# ---------------------------------------------------------------------------------------------------- ages and bounds


async def test_ttl_on_access(make: Make, clock: FakeClock) -> None:
    store = await make(memory_ttl_min=1)
    await store.commit(outcome())
    clock.advance(59)
    assert (await store.load("kitchen")).turns
    clock.advance(59)
    assert (await store.load("kitchen")).turns, "loading counts as use"
    clock.advance(61)
    assert await store.load("kitchen") == Conversation()
    assert store.count() == 0


async def test_ttl_by_sweep(make: Make, clock: FakeClock) -> None:
    store = await make(memory_ttl_min=1)
    for name in ("a", "b", "c"):
        await store.commit(outcome(name))
        clock.advance(30)
    assert await store.sweep() == 1
    assert [row.conversation_id for row in await store.conversations()] == ["c", "b"]
    clock.advance(60)
    assert await store.conversations() == []
    assert await store.sweep() == 0


async def test_an_expired_conversation_begins_anew(make: Make, clock: FakeClock) -> None:
    store = await make(memory_ttl_min=1)
    await store.commit(outcome(drop=1))
    clock.advance(61)
    await store.commit(outcome(turns=(QUESTION,), drop=2))
    assert await store.load("kitchen") == Conversation((QUESTION,), 0, "general")


async def test_no_ttl(make: Make, clock: FakeClock) -> None:
    store = await make(memory_ttl_min=0)
    await store.commit(outcome())
    clock.advance(10 * 365 * 86_400)
    assert await store.sweep() == 0
    assert (await store.load("kitchen")).turns


async def test_a_jump_of_the_wall_clock_forgets_nothing(make: Make, clock: FakeClock) -> None:
    store = await make(memory_ttl_min=60)
    await store.commit(outcome())
    for jump in (timedelta(hours=2), timedelta(hours=-4), timedelta(days=-365 * 56), timedelta(days=365 * 60)):
        clock.wall += jump
        assert await store.sweep() == 0
        assert (await store.load("kitchen")).turns
        assert len(await store.conversations()) == 1


async def test_the_least_recently_used_goes_first(make: Make) -> None:
    store = await make(memory_max_conversations=2)
    await store.commit(outcome("a"))
    await store.commit(outcome("b"))
    await store.load("a")
    await store.commit(outcome("c"))
    assert sorted(row.conversation_id for row in await store.conversations()) == ["a", "c"]


async def test_ram_is_bounded_by_bytes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_BYTES", 50_000)
    store = await make()
    for number in range(20):
        await store.commit(outcome(str(number), turns=(Turn("user", "x" * 10_000, NOW),)))
    assert store.count() == 4
    await store.commit(outcome("big", turns=(Turn("user", "x" * 100_000, NOW),)))
    assert [row.conversation_id for row in await store.conversations()] == ["big"]


# -------------------------------------------------------------------------------------------------------------- clear


async def test_clear_counts_what_it_forgets(store: ConversationStore) -> None:
    for name in ("a", "b", "c"):
        await store.commit(outcome(name))
    assert await store.clear("a") == 1
    assert await store.clear("a") == 0
    assert await store.clear() == 2
    assert store.count() == 0


@pytest.mark.parametrize("cleared", ["kitchen", None])
@pytest.mark.parametrize("known", [True, False])
async def test_clear_during_an_answer_stays_a_clear(
    store: ConversationStore, cleared: str | None, *, known: bool
) -> None:
    if known:
        await store.commit(outcome())
    await store.open(BY_ID, Ticket("kitchen", "r1"))
    before = await store.load("kitchen")
    other = await store.load("hall")
    await store.clear(cleared)
    await store.commit(outcome(epoch=before.epoch))
    assert (await store.load("kitchen")).turns == ()
    assert (await store.open(BY_ID, Ticket("kitchen", "r2"))).terminal == outcome().terminal
    await store.commit(outcome("hall", epoch=other.epoch))
    assert bool((await store.load("hall")).turns) is (cleared is not None)
    after = await store.load("kitchen")
    await store.commit(outcome(epoch=after.epoch))
    assert (await store.load("kitchen")).turns


async def test_a_flood_of_clears_takes_no_memory_and_brings_nothing_back(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "CLEARED_KEPT", 10)
    before = await store.load("kitchen")
    await store.clear("kitchen")
    for number in range(30):
        await store.clear(str(number))
    await store.commit(outcome(epoch=before.epoch))
    assert store.count() == 0
    await store.commit(outcome(epoch=(await store.load("kitchen")).epoch))
    assert store.count() == 1


# ------------------------------------------------------------------------------------------------------------ journal


async def test_the_same_delivery_gets_the_same_ticket(store: ConversationStore) -> None:
    assert await store.open(BY_ID, Ticket("kitchen", "r1")) == Ticket("kitchen", "r1")
    assert await store.open(BY_ID, Ticket("kitchen", "other")) == Ticket("kitchen", "r1")
    assert await store.begin("r1", "kitchen") == Ticket("kitchen", "r1", attempt=1)
    known = await store.open(BY_ID, Ticket("kitchen", "other"))
    assert (known.request_id, known.crashes, known.terminal) == ("r1", 0, None)
    await store.commit(outcome())
    known = await store.open(BY_ID, Ticket("kitchen", "other"))
    assert (known.request_id, known.terminal, known.crashes) == ("r1", outcome().terminal, 0)


async def test_a_client_id_counts_within_the_window(make: Make, clock: FakeClock) -> None:
    store = await make(dedupe_window_s=600)
    await store.open(BY_ID, Ticket("kitchen", "r1"))
    clock.advance(7200)
    assert (await store.open(BY_ID, Ticket("kitchen", "other"))).request_id == "r1", "it has not ended yet"
    await store.commit(outcome())
    clock.advance(600)
    assert (await store.open(BY_ID, Ticket("kitchen", "other"))).request_id == "r1"
    clock.advance(1)
    redelivered = Delivery(BY_ID.key, by_id=True, redelivered=True, durable=True)
    assert (await store.open(redelivered, Ticket("kitchen", "r1"))).terminal == outcome().terminal
    assert await store.open(BY_ID, Ticket("kitchen", "r1")) == Ticket("kitchen", "r1")
    assert (await store.begin("r1", "kitchen")).attempt == 1


async def test_what_is_brought_again_to_a_store_without_a_file_is_another_attempt(make: Make) -> None:
    store = await make()
    expected = 2 if store.name == "memory" else 1
    assert (await store.open(AGAIN, Ticket("kitchen", "r1"))).attempt == expected
    assert (await store.begin("r1", "kitchen")).attempt == expected
    assert (await store.begin("r1", "kitchen")).crashes == 1


async def test_a_packet_counts_only_when_redelivered(store: ConversationStore) -> None:
    first = await store.open(BY_PACKET, Ticket("kitchen", "r1"))
    assert (await store.open(AGAIN, Ticket("kitchen", "r2"))).request_id == first.request_id
    assert await store.open(BY_PACKET, Ticket("kitchen", "r3")) == Ticket("kitchen", "r3")
    assert (await store.open(AGAIN, Ticket("kitchen", "r4"))).request_id == "r3"


async def test_what_cannot_come_back_is_not_kept(store: ConversationStore) -> None:
    await store.open(ONCE, Ticket("kitchen", "r1"))
    assert (await store.begin("r1", "kitchen")).attempt == 1
    assert (await store.begin("r1", "kitchen")).crashes == 1
    await store.commit(outcome())
    assert (await store.begin("r1", "kitchen")).attempt == 1
    assert (await store.load("kitchen")).turns


async def test_attempts_and_crashes(store: ConversationStore) -> None:
    await store.open(BY_ID, Ticket("kitchen", "r1"))
    assert await store.begin("r1", "kitchen") == Ticket("kitchen", "r1", attempt=1, crashes=0)
    await store.release("r1", "kitchen")
    assert (await store.open(BY_ID, Ticket("kitchen", "r1"))).attempt == 2
    assert await store.begin("r1", "kitchen") == Ticket("kitchen", "r1", attempt=2, crashes=0)
    assert await store.begin("r1", "kitchen") == Ticket("kitchen", "r1", attempt=3, crashes=1)
    await store.release("r1", "kitchen")
    await store.release("r1", "kitchen")
    await store.release("unknown", "kitchen")
    await store.commit(outcome())
    ended = await store.begin("r1", "kitchen")
    assert (ended.attempt, ended.crashes, ended.terminal) == (3, 1, outcome().terminal)


async def test_a_request_that_is_struck_out_is_unknown(store: ConversationStore) -> None:
    await store.open(BY_ID, Ticket("kitchen", "r1"))
    await store.begin("r1", "kitchen")
    await store.forget("r1", "kitchen")
    await store.forget("unknown", "kitchen")
    assert await store.open(BY_ID, Ticket("kitchen", "r2")) == Ticket("kitchen", "r2", attempt=1, crashes=0)


async def test_the_same_request_id_in_two_conversations_is_two_requests(store: ConversationStore) -> None:
    await store.open(BY_ID, Ticket("kitchen", "r1"))
    await store.open(Delivery("id:hall:r1", by_id=True, redelivered=False, durable=True), Ticket("hall", "r1"))
    await store.commit(outcome())
    assert (await store.begin("r1", "hall")).terminal is None
    assert (await store.begin("r1", "kitchen")).terminal is not None


async def test_old_entries_go(make: Make, clock: FakeClock) -> None:
    store = await make()
    await store.open(BY_ID, Ticket("kitchen", "r1"))
    await store.open(BY_PACKET, Ticket("kitchen", "r2"))
    await store.commit(outcome())
    clock.advance(journal.KEEP_S + 1)
    await store.sweep()
    for delivery in (BY_ID, AGAIN):
        assert (await store.open(delivery, Ticket("kitchen", delivery.key))).request_id == delivery.key


async def test_a_window_longer_than_a_day_is_kept(make: Make, clock: FakeClock) -> None:
    store = await make(dedupe_window_s=7 * journal.KEEP_S)
    await store.open(BY_ID, Ticket("kitchen", "r1"))
    await store.commit(outcome())
    clock.advance(7 * journal.KEEP_S - 1)
    await store.sweep()
    assert (await store.open(BY_ID, Ticket("kitchen", "other"))).terminal == outcome().terminal
    clock.advance(2)
    await store.sweep()
    assert (await store.begin("r1", "kitchen")).terminal is None


async def test_clear_forgets_replies_whose_window_is_over(make: Make, clock: FakeClock) -> None:
    store = await make(dedupe_window_s=600)
    for request_id in ("r1", "r2"):
        delivery = Delivery(request_id, by_id=True, redelivered=True, durable=True)
        await store.open(delivery, Ticket("kitchen", request_id))
        await store.commit(outcome(request_id=request_id))
        clock.advance(400)
    await store.clear("hall")
    await store.clear("kitchen")
    assert (await store.begin("r1", "kitchen")).terminal is None
    assert (await store.begin("r2", "kitchen")).terminal is not None
    clock.advance(300)
    await store.sweep()
    assert (await store.begin("r2", "kitchen")).terminal is None


async def test_a_reply_that_was_made_during_a_clear_goes_with_its_window(make: Make, clock: FakeClock) -> None:
    store = await make(dedupe_window_s=600)
    await store.open(BY_ID, Ticket("kitchen", "r1"))
    await store.begin("r1", "kitchen")
    await store.clear("kitchen")
    clock.advance(700)
    await store.sweep()
    await store.commit(outcome(request_id="r1"))
    await store.sweep()
    assert (await store.begin("r1", "kitchen")).terminal is not None
    clock.advance(700)
    await store.sweep()
    assert (await store.begin("r1", "kitchen")).terminal is None


async def test_the_journal_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_ENTRIES", 12)
    store = await make()
    deliveries = [Delivery(str(number), by_id=True, redelivered=False, durable=True) for number in range(20)]
    for number, delivery in enumerate(deliveries):
        await store.open(delivery, Ticket("kitchen", str(number)))
        if number % 2:
            await store.commit(outcome(request_id=str(number)))
    known = [(await store.open(delivery, Ticket("kitchen", f"again {delivery.key}"))) for delivery in deliveries]
    assert known[0].request_id == "0", "what has not ended outlives what has"
    assert known[1].request_id == "again 1"


async def test_the_journal_is_bounded_by_bytes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 50_000)
    store = await make()
    deliveries = [Delivery(str(number), by_id=True, redelivered=False, durable=True) for number in range(10)]
    for delivery in deliveries:
        await store.open(delivery, Ticket("kitchen", delivery.key))
        await store.commit(outcome(request_id=delivery.key, terminal=b"x" * 10_000))
    known = [(await store.open(delivery, Ticket("kitchen", delivery.key))).terminal for delivery in deliveries[-4:]]
    assert all(known)
    assert (await store.open(deliveries[0], Ticket("kitchen", "0"))).terminal is None


async def test_100_conversations_of_8_turns_are_small(make: Make) -> None:
    store = await make()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(100):
            turns = tuple(Turn(turn.role, f"{number} {'word ' * 40}", NOW) for turn in (QUESTION, ANSWER) * 4)
            await store.commit(outcome(str(number), turns=turns))
        assert tracemalloc.get_traced_memory()[0] - before < 600_000
    finally:
        tracemalloc.stop()
    assert store.count() == 100


async def test_many_at_once(store: ConversationStore) -> None:
    async def talk(name: str) -> None:
        for number in range(5):
            request_id = f"{name}-{number}"
            delivery = Delivery(request_id, by_id=True, redelivered=False, durable=True)
            ticket = await store.open(delivery, Ticket(name, request_id))
            await store.begin(ticket.request_id, name)
            before = await store.load(name)
            await store.commit(outcome(name, request_id, epoch=before.epoch))

    await asyncio.gather(*(talk(f"room {number}") for number in range(20)))
    assert store.count() == 20
    assert len((await store.load("room 7")).turns) == 10
