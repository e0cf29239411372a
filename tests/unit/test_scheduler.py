"""Order, fairness, bounds, cancelling and duplicates (contract section 6)."""

import asyncio
from typing import Any

import pytest

from piagent_daemon.admission import LARGE_WAITING_BYTES
from piagent_daemon.agents import Agent
from piagent_daemon.contract import Accepted, ErrorEvent
from piagent_daemon.contract import Final as FinalEvent
from piagent_daemon.health import Tally
from piagent_daemon.scheduler import Scheduler
from piagent_daemon.settings import Settings
from piagent_daemon.stores.memory import MemoryStore
from piagent_daemon.turn import Assistant, Config
from piagent_daemon.values import ChatRequest, Delivery, Delta, Outcome, Ticket
from piagent_daemon.window import Ledger
from tests.fakes.doubles import FakeClock, RecordingChannel, ScriptedProvider, Step, answer, incoming, ladder_of

AGENTS = {
    "general": Agent(name="general", system="Be brief."),
    "voice": Agent(name="voice", system="Speak.", interrupt=True, model="small", stop_phrases=("never mind", "停")),
}


class World:
    """A scheduler whose model server answers when told to."""

    def __init__(self, **settings: Any) -> None:
        settings = {"chunk_interval_ms": 0, "backoff_factor_s": 0.0} | settings
        self.settings = Settings(**settings)
        self.clock = FakeClock()
        self.provider = ScriptedProvider()
        self.store = MemoryStore(self.settings, self.clock)
        self.tally = Tally(self.clock)
        config = Config(self.settings, AGENTS)
        assistant = Assistant(
            config, ladder_of(self.provider, settings=config, clock=self.clock), self.store, Ledger(), self.clock
        )
        self.scheduler = Scheduler(assistant, config, self.store, self.tally, self.clock)
        self.gate = asyncio.Event()

    def hold(self) -> None:
        """Let every answer say one word and then wait for the gate."""

        def script(request: ChatRequest) -> list[Step]:
            return [Delta("well, "), self.gate, *answer(request.messages[-1].content)]

        self.provider.script = script

    async def submit(self, message: str = "hello", **fields: Any) -> RecordingChannel:
        channel = RecordingChannel()
        fields.setdefault("received", self.clock.monotonic())
        await self.scheduler.submit(incoming(message, **fields), channel)
        return channel

    async def speaking(self, channel: RecordingChannel) -> RecordingChannel:
        """Return once an answer has begun."""
        async with asyncio.timeout(5):
            while "chunk" not in channel.kinds:  # noqa: ASYNC110 - the double has no event for this
                await asyncio.sleep(0)
        return channel


@pytest.fixture
async def world() -> World:
    return World()


def code(event: FinalEvent | ErrorEvent) -> str:
    return event.code if isinstance(event, ErrorEvent) else event.finish_reason


async def test_a_request_is_accepted_at_once_and_answered(world: World) -> None:
    channel = await world.submit(id="r1")
    accepted = channel.events[0]
    assert isinstance(accepted, Accepted)
    assert (accepted.seq, accepted.position, accepted.agent, accepted.model) == (0, 0, "general", "qwen2.5:3b-instruct")
    last = await channel.terminal()
    assert last.request_id == "r1"
    assert [event.seq for event in channel.events] == list(range(len(channel.events)))
    assert {event.attempt for event in channel.events} == {1}


async def test_without_conversation_or_id_both_are_made(world: World) -> None:
    one, two = await world.submit(conversation=None), await world.submit(conversation=None)
    first, second = await one.terminal(), await two.terminal()
    assert len({first.conversation_id, second.conversation_id, first.request_id, second.request_id}) == 4


async def test_one_conversation_is_answered_in_order_one_at_a_time() -> None:
    world = World(max_concurrent=10)
    channels = [await world.submit(f"q{number}") for number in range(20)]
    replies = [await channel.terminal() for channel in channels]
    assert [request.messages[-1].content for request in world.provider.asked] == [f"q{number}" for number in range(20)]
    assert all(isinstance(reply, FinalEvent) for reply in replies)


async def test_conversations_run_side_by_side_up_to_the_limit() -> None:
    world = World(max_concurrent=2)
    world.hold()
    channels = [await world.submit(conversation=f"c{number}") for number in range(3)]
    await world.speaking(channels[0])
    await world.speaking(channels[1])
    assert (world.scheduler.queue.active, world.scheduler.queue.waiting) == (2, 1)
    positions = [event.position for channel in channels for event in channel.events if isinstance(event, Accepted)]
    assert positions == [0, 0, 1]
    world.gate.set()
    for channel in channels:
        await channel.terminal()


async def test_a_request_that_could_be_answered_and_is_not_is_no_progress(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(world.scheduler, "_dispatch", lambda: None)
        channel = await world.submit()
        assert not world.scheduler.alive
    world.scheduler._dispatch()
    assert world.scheduler.alive
    await channel.terminal()


async def test_a_flood_does_not_starve_others(world: World) -> None:
    flood = [await world.submit(f"f{number}", conversation="flood") for number in range(10)]
    other = await world.submit("other", conversation="quiet")
    await other.terminal()
    assert sum(channel.ended.is_set() for channel in flood) <= 2
    for channel in flood:
        await channel.terminal()


async def test_one_more_than_may_wait_is_busy_at_once() -> None:
    world = World(max_waiting=2)
    world.hold()
    channels = [await world.submit(f"q{number}") for number in range(4)]
    last = await channels[3].terminal()
    assert (code(last), channels[3].kinds) == ("busy", ["error"])
    assert "overload" in world.tally.reasons
    world.gate.set()
    assert [code(await channel.terminal()) for channel in channels[:3]] == ["stop"] * 3


async def test_who_interrupts_takes_the_place_of_what_it_stops() -> None:
    world = World(max_waiting=0)
    world.hold()
    first = await world.speaking(await world.submit("first"))
    second = await world.submit("second", interrupt=True)
    third = await world.submit("third", interrupt=True)
    assert code(await third.terminal()) == "busy", "there is one place"
    world.gate.set()
    assert [code(await channel.terminal()) for channel in (first, second)] == ["cancelled", "stop"]


async def test_who_interrupts_where_the_queue_is_full_stops_what_runs_and_is_next() -> None:
    world = World(max_waiting=1)
    world.hold()
    first = await world.speaking(await world.submit("first"))
    second = await world.submit("second")
    third = await world.submit("third", interrupt=True)
    fourth = await world.submit("fourth", interrupt=True)
    assert code(await fourth.terminal()) == "busy"
    world.gate.set()
    assert [code(await channel.terminal()) for channel in (first, third, second)] == ["cancelled", "stop", "stop"]
    assert [request.messages[-1].content.rpartition("] ")[2] for request in world.provider.asked] == [
        "first",
        "third",
        "second",
    ]


async def test_a_full_queue_makes_room_for_a_quiet_conversation() -> None:
    world = World(max_waiting=3)
    world.hold()
    flood = [await world.submit(f"f{number}", conversation="flood") for number in range(4)]
    quiet = await world.submit("quiet", conversation="quiet")
    assert code(await flood[3].terminal()) == "busy"
    world.gate.set()
    assert code(await quiet.terminal()) == "stop"
    assert [code(await channel.terminal()) for channel in flood[:3]] == ["stop"] * 3


async def test_an_unknown_agent_is_an_error_and_nothing_else(world: World) -> None:
    channel = await world.submit(agent="butler")
    last = await channel.terminal()
    assert isinstance(last, ErrorEvent)
    assert (last.code, last.status_code, channel.kinds) == ("unknown_agent", 404, ["error"])
    assert "general, voice" in last.message


async def test_the_conversations_last_agent_answers_next(world: World) -> None:
    await (await world.submit("one", agent="voice")).terminal()
    last = await (await world.submit("two")).terminal()
    assert isinstance(last, FinalEvent)
    assert (last.agent, last.model) == ("voice", "small")


async def test_models_outside_the_list_are_refused() -> None:
    world = World(models_allowed=("qwen2.5:3b-instruct",))
    assert code(await (await world.submit(model="huge")).terminal()) == "invalid_request"
    assert code(await (await world.submit()).terminal()) == "stop"


async def test_the_list_of_models_is_for_those_that_a_request_names() -> None:
    world = World(models_allowed=("tiny",))
    assert code(await (await world.submit()).terminal()) == "stop"
    assert code(await (await world.submit(agent="voice")).terminal()) == "stop"
    assert code(await (await world.submit(model="tiny:latest")).terminal()) == "stop"
    assert code(await (await world.submit(model="qwen2.5:3b-instruct")).terminal()) == "invalid_request"


async def test_no_whole_reply_is_kept_to_notice_loops(world: World) -> None:
    world.provider.script = lambda _: answer("I am an echo")
    await (await world.submit()).terminal()
    assert "echo" not in repr(world.scheduler._loops._echoes)


async def test_cancel_stops_what_runs_and_drops_what_waits(world: World) -> None:
    world.hold()
    channels = [await world.submit(f"q{number}") for number in range(3)]
    await world.speaking(channels[0])
    world.scheduler.cancel("kitchen")
    first = await channels[0].terminal()
    assert isinstance(first, FinalEvent)
    assert (first.finish_reason, first.reply) == ("cancelled", "well, ")
    assert [code(await channel.terminal()) for channel in channels[1:]] == ["cancelled"] * 2
    assert world.tally.totals.cancelled == 3


async def test_cancel_by_id_leaves_the_others_alone(world: World) -> None:
    world.hold()
    channels = [await world.submit(f"q{number}", id=f"r{number}") for number in range(3)]
    world.scheduler.cancel("kitchen", "r1")
    world.scheduler.cancel("kitchen", "unknown")
    world.scheduler.cancel("nowhere")
    assert code(await channels[1].terminal()) == "cancelled"
    world.gate.set()
    assert [code(await channels[number].terminal()) for number in (0, 2)] == ["stop", "stop"]


async def test_cancel_by_request_id_alone_finds_it(world: World) -> None:
    world.hold()
    channel = await world.speaking(await world.submit(id="r1"))
    assert world.scheduler.cancel_request("r1")
    assert not world.scheduler.cancel_request("r2")
    assert code(await channel.terminal()) == "cancelled"


async def test_interrupt_cancels_what_runs_then_answers(world: World) -> None:
    world.hold()
    first = await world.speaking(await world.submit("long story"))
    second = await world.submit("stop that", interrupt=True)
    assert code(await first.terminal()) == "cancelled"
    world.gate.set()
    assert code(await second.terminal()) == "stop"
    sent = world.provider.asked[1].messages
    assert [message.content for message in sent[1:]] == ["long story", "well, ", "[interrupts you] stop that"]


async def test_who_interrupts_is_answered_before_those_who_wait(world: World) -> None:
    world.hold()
    channels = [await world.speaking(await world.submit("first")), await world.submit("second")]
    channels += [await world.submit(text, interrupt=True) for text in ("third", "fourth")]
    positions = [channel.events[0].encode().partition(b'"position":')[2][:1] for channel in channels]
    assert positions == [b"0", b"1", b"1", b"2"]
    world.gate.set()
    assert [code(await channel.terminal()) for channel in channels] == ["cancelled", "stop", "stop", "stop"]
    assert [request.messages[-1].content.split()[-1] for request in world.provider.asked] == [
        *("first", "third", "fourth", "second"),
    ]


async def test_an_agent_may_interrupt_by_itself(world: World) -> None:
    world.hold()
    first = await world.speaking(await world.submit("long story"))
    await world.submit("hey", agent="voice")
    assert code(await first.terminal()) == "cancelled"
    world.gate.set()


async def test_what_waited_too_long_is_expired(world: World) -> None:
    world.hold()
    await world.speaking(await world.submit("long story"))
    late = await world.submit("too late", expires_s=0.01)
    assert code(await late.terminal()) == "expired"
    stale = await world.submit("stale", expires_s=5.0, received=world.clock.monotonic() - 6)
    assert code(await stale.terminal()) == "expired"
    world.gate.set()


async def test_what_waited_too_long_outside_is_expired_also_when_nothing_runs(world: World) -> None:
    channel = await world.submit("stale", expires_s=5.0, received=world.clock.monotonic() - 6)
    assert (code(await channel.terminal()), channel.kinds) == ("expired", ["error"])
    assert code(await (await world.submit("fresh", expires_s=5.0)).terminal()) == "stop"
    at_once = await world.submit("at once", expires_s=0, received=world.clock.monotonic() - 0.01)
    assert code(await at_once.terminal()) == "stop"
    assert [request.messages[-1].content for request in world.provider.asked] == ["fresh", "at once"]


async def test_the_same_id_again_is_not_run_twice(world: World) -> None:
    first = await world.submit(id="r1")
    last = await first.terminal()
    again = await world.submit(id="r1")
    assert again.again == [last.encode()]
    assert len(world.provider.asked) == 1
    assert world.tally.totals.duplicates == 1
    world.clock.advance(world.settings.dedupe_window_s + 1)
    await (await world.submit(id="r1")).terminal()
    assert len(world.provider.asked) == 2


async def test_the_same_id_again_is_not_run_twice_at_qos_0_either(world: World) -> None:
    last = await (await world.submit(id="r1", durable=False)).terminal()
    again = await world.submit(id="r1", durable=False)
    assert again.again == [last.encode()]
    assert len(world.provider.asked) == 1


async def test_the_same_id_in_another_conversation_is_another_request(world: World) -> None:
    await (await world.submit(id="1", conversation="a")).terminal()
    await (await world.submit(id="1", conversation="b")).terminal()
    assert len(world.provider.asked) == 2


async def test_a_running_request_is_not_run_again(world: World) -> None:
    world.hold()
    first = await world.speaking(await world.submit(id="r1"))
    again = await world.submit(id="r1")
    assert (again.abandoned, again.events) == (1, [])
    world.gate.set()
    await first.terminal()


async def test_an_interrupted_attempt_is_counted_and_a_poisonous_one_given_up(world: World) -> None:
    delivery = Delivery("id:kitchen:r1", by_id=True, redelivered=False, durable=True)
    await world.store.open(delivery, Ticket("kitchen", "r1"))
    await world.store.begin("r1", "kitchen")
    second = await world.submit(id="r1", redelivered=True)
    assert (await second.terminal()).attempt == 2

    delivery = Delivery("id:kitchen:r2", by_id=True, redelivered=False, durable=True)
    await world.store.open(delivery, Ticket("kitchen", "r2"))
    await world.store.begin("r2", "kitchen")
    await world.store.begin("r2", "kitchen")
    asked = len(world.provider.asked)
    third = await world.submit(id="r2", redelivered=True)
    last = await third.terminal()
    assert (code(last), last.attempt) == ("internal", 3)
    assert len(world.provider.asked) == asked


async def test_a_stored_answer_is_given_again_without_the_model(world: World) -> None:
    delivery = Delivery("id:kitchen:r1", by_id=True, redelivered=False, durable=True)
    await world.store.open(delivery, Ticket("kitchen", "r1"))
    await world.store.commit(Outcome("kitchen", "r1", b'{"type": "final"}'))
    channel = await world.submit(id="r1", redelivered=True)
    assert channel.again == [b'{"type": "final"}']
    assert world.provider.asked == []


async def test_a_defect_becomes_one_internal_error(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.provider.script = lambda _: [Delta("a"), ZeroDivisionError("secret detail")]
    last = await (await world.submit()).terminal()
    assert isinstance(last, ErrorEvent)
    assert (last.code, last.status_code) == ("internal", 500)
    assert "secret" not in last.message
    assert "secret detail" in caplog.text
    assert code(await (await world.submit("again")).terminal()) == "internal"


async def test_a_defect_after_the_answer_was_told_gives_no_second_one(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: Outcome) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(world.store, "commit", broken)
        channel = await world.submit()
        assert isinstance(await channel.terminal(), FinalEvent)
        await asyncio.wait_for(world.scheduler.idle.wait(), 5)
    assert [event.terminal for event in channel.events].count(True) == 1
    assert "failed by a defect" in caplog.text
    assert isinstance(await (await world.submit("again")).terminal(), FinalEvent)


async def test_our_own_reply_sent_back_stops_being_answered(world: World) -> None:
    world.provider.script = lambda _: answer("I am an echo")
    await (await world.submit("start")).terminal()
    channels = [await world.submit("I am an echo", received=world.clock.monotonic()) for _ in range(7)]
    for channel in channels[:5]:
        assert code(await channel.terminal()) == "stop"
    assert [channel.dropped for channel in channels] == [0, 0, 0, 0, 0, 1, 1]
    assert "loop:kitchen" in world.tally.reasons
    world.clock.advance(61)
    assert code(await (await world.submit("I am an echo")).terminal()) == "stop"


async def test_our_own_reply_is_known_without_the_space_around_it_and_a_reset_forgets_it(world: World) -> None:
    world.provider.script = lambda _: answer(" I am an echo\n")
    await (await world.submit("start")).terminal()
    for _ in range(5):
        await (await world.submit("I am an echo")).terminal()
    assert (await world.submit("I am an echo")).dropped
    await world.scheduler.reset("kitchen")
    assert code(await (await world.submit("I am an echo")).terminal()) == "stop"


async def test_our_own_reply_sent_back_without_a_conversation_stops_as_well(world: World) -> None:
    world.provider.script = lambda _: answer("I am an echo")
    await (await world.submit("start", conversation=None)).terminal()
    dropped = []
    for _ in range(7):
        channel = await world.submit("I am an echo", conversation=None)
        if not channel.dropped:
            assert code(await channel.terminal()) == "stop"
        dropped.append(channel.dropped)
    assert dropped == [0, 0, 0, 0, 0, 1, 1]
    assert "loop:in" in world.tally.reasons
    assert code(await (await world.submit("something else", conversation=None)).terminal()) == "stop"


@pytest.mark.parametrize("name", ["kitchen", None])
async def test_reset_forgets_and_a_running_answer_is_not_remembered(world: World, name: str | None) -> None:
    world.hold()
    channel = await world.speaking(await world.submit("one", agent="voice"))
    await world.scheduler.reset(name)
    next_one = await world.submit("two")
    world.gate.set()
    agents = [getattr(await one.terminal(), "agent", None) for one in (channel, next_one)]
    assert agents == ["voice", "general"], "that it was the voice agent's is forgotten, too"
    turns = (await world.store.load("kitchen")).turns
    assert [turn.content for turn in turns if turn.role == "user"] == ["two"]


async def test_drain_finishes_what_runs_and_leaves_what_the_broker_keeps(world: World) -> None:
    world.hold()
    running = await world.speaking(await world.submit("running"))
    waiting = await world.submit("waiting")
    unkept = await world.submit("unkept", conversation="other", durable=False)
    drain = asyncio.create_task(world.scheduler.drain(5, asyncio.Event()))
    await asyncio.sleep(0)
    world.gate.set()
    await asyncio.wait_for(drain, 5)
    assert code(await running.terminal()) == "stop"
    assert code(await unkept.terminal()) == "stop"
    assert (waiting.abandoned, waiting.kinds) == (1, ["accepted"])


async def test_when_the_grace_is_over_durable_requests_stay_and_others_are_told(world: World) -> None:
    world = World(max_concurrent=2)
    world.hold()
    durable = await world.speaking(await world.submit("durable", id="r1"))
    unkept = await world.speaking(await world.submit("unkept", conversation="b", durable=False))
    queued = await world.submit("queued", conversation="c", durable=False)
    await asyncio.wait_for(world.scheduler.drain(0.01, asyncio.Event()), 5)
    assert (durable.abandoned, durable.ended.is_set()) == (1, False)
    last = await unkept.terminal()
    assert isinstance(last, ErrorEvent)
    assert (last.code, last.partial) == ("shutting_down", "well, ")
    assert code(await queued.terminal()) == "shutting_down"
    again = await world.store.begin("r1", "kitchen")
    assert (again.attempt, again.crashes) == (2, 0)


async def test_none_ends_while_another_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(max_concurrent=2)
    world.hold()
    channels = [await world.speaking(await world.submit("q", conversation=name)) for name in ("a", "b")]
    release = world.store.release

    async def slowly(request_id: str, conversation_id: str) -> None:
        world.gate.set()
        for _ in range(20):
            await asyncio.sleep(0)
        await release(request_id, conversation_id)

    monkeypatch.setattr(world.store, "release", slowly)
    await asyncio.wait_for(world.scheduler.drain(0.0, asyncio.Event()), 5)
    assert [(channel.abandoned, channel.ended.is_set()) for channel in channels] == [(1, False)] * 2


async def test_nothing_begins_while_what_ran_is_given_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.hold()
    running = await world.speaking(await world.submit("running"))
    queued = await world.submit("queued", conversation="other", durable=False)
    release = world.store.release

    async def slowly(request_id: str, conversation_id: str) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        await release(request_id, conversation_id)

    monkeypatch.setattr(world.store, "release", slowly)
    await asyncio.wait_for(world.scheduler.drain(0.01, asyncio.Event()), 5)
    assert (running.abandoned, code(await queued.terminal())) == (1, "shutting_down")
    assert world.scheduler.queue.active == 0


async def test_large_requests_are_busy_before_they_fill_the_memory(world: World) -> None:
    world.hold()
    await world.speaking(await world.submit("first"))
    size = LARGE_WAITING_BYTES // 2 + 1
    one, two = await world.submit("large", size=size), await world.submit("too large", size=size)
    small = await world.submit("small")
    assert code(await two.terminal()) == "busy"
    world.gate.set()
    assert [(await channel.terminal()).type for channel in (one, small)] == ["final", "final"]
    lonely = await world.submit("larger than all", size=2 * size)
    assert (await lonely.terminal()).type == "final"


async def test_what_comes_in_during_the_drain_is_left_to_the_broker(world: World) -> None:
    await world.scheduler.drain(0.01, asyncio.Event())
    durable = await world.submit("durable")
    assert (durable.abandoned, durable.kinds) == (1, [])
    assert code(await (await world.submit("unkept", durable=False)).terminal()) == "shutting_down"


async def test_what_is_on_its_way_in_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, opened = asyncio.Event(), world.store.open

    async def slowly(delivery: Delivery, ticket: Ticket) -> Ticket:
        await gate.wait()
        return await opened(delivery, ticket)

    monkeypatch.setattr(world.store, "open", slowly)
    channel = RecordingChannel()
    entering = asyncio.create_task(world.scheduler.submit(incoming(durable=False), channel))
    await asyncio.sleep(0)
    drain = asyncio.create_task(world.scheduler.drain(5, asyncio.Event()))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not drain.done()
    gate.set()
    await asyncio.wait_for(drain, 5)
    assert (channel.kinds, entering.done()) == (["error"], True)
    assert code(await channel.terminal()) == "shutting_down"


async def test_a_second_signal_ends_the_drain(world: World) -> None:
    world.hold()
    await world.speaking(await world.submit("durable"))
    hurry = asyncio.Event()
    hurry.set()
    await asyncio.wait_for(world.scheduler.drain(3600, hurry), 5)


async def test_totals_are_counted(world: World) -> None:
    await (await world.submit()).terminal()
    await (await world.submit(agent="nobody")).terminal()
    world.scheduler.refused("no safe topic")
    world.scheduler.duplicate()
    totals = world.tally.totals
    assert (totals.requests, totals.replies, totals.errors, totals.refused, totals.duplicates) == (2, 1, 1, 1, 1)


async def test_it_is_alive_while_what_waits_is_worked_on(world: World) -> None:
    assert world.scheduler.alive
    assert world.scheduler.idle.is_set()
    world.hold()
    channel = await world.submit()
    assert world.scheduler.alive
    assert not world.scheduler.idle.is_set()
    world.gate.set()
    await channel.terminal()


@pytest.mark.parametrize("wanted", [True, False])
async def test_what_people_say_is_logged_only_when_wanted(caplog: pytest.LogCaptureFixture, wanted: bool) -> None:
    world = World(log_messages=wanted)
    caplog.set_level("DEBUG")
    await (await world.submit("my secret diary")).terminal()
    assert ("my secret diary" in caplog.text) is wanted
    assert all(record.levelname == "DEBUG" for record in caplog.records if "diary" in record.getMessage())


# --------------------------------------------------------------------------------------------- stop phrases, barge-in


async def test_a_stop_phrase_cancels_without_a_model_call(world: World) -> None:
    world.hold()
    running = await world.speaking(await world.submit("story", agent="voice"))
    waiting = await world.submit("more", interrupt=False)
    stop = await world.submit("Never, mind!", id="s1", metadata={"a": 1})
    last = await stop.terminal()
    assert isinstance(last, FinalEvent)
    assert (last.finish_reason, last.reply, last.speech, last.metadata) == ("cancelled", "", "", {"a": 1})
    assert (last.agent, last.model, last.provider, last.request_id) == ("voice", "small", "scripted", "s1")
    assert stop.kinds == ["accepted", "final"]
    assert [event.seq for event in stop.events] == [0, 1]
    assert (code(await running.terminal()), code(await waiting.terminal())) == ("cancelled", "cancelled")
    assert len(world.provider.asked) == 1
    assert [turn.content for turn in (await world.store.load("kitchen")).turns] == ["story", "well, "]


async def test_a_stop_phrase_is_answered_also_when_nothing_runs(world: World) -> None:
    assert code(await (await world.submit("停。", agent="voice")).terminal()) == "cancelled"
    assert (world.provider.asked, world.store.count()) == ([], 0)
    again = await world.submit("停。", agent="voice", key="k")
    await again.terminal()
    copy = await world.submit("停。", agent="voice", key="k", redelivered=True)
    assert len(copy.again) == 1


async def test_a_stop_phrase_leaves_other_conversations_and_agents_alone() -> None:
    world = World(max_concurrent=2)
    world.hold()
    other = await world.speaking(await world.submit("story", conversation="hall", agent="voice"))
    general = await world.submit("never mind", conversation="kitchen")
    await world.submit("never mind", conversation="kitchen2", agent="voice")
    await world.speaking(general)
    world.gate.set()
    assert [code(await other.terminal()), code(await general.terminal())] == ["stop", "stop"]


async def remembered(world: World) -> list[tuple[str, bool]]:
    return [(turn.content, turn.interrupted) for turn in (await world.store.load("kitchen")).turns]


async def told(world: World, reply: str = "One is it. Two is it. Three is it.", **fields: Any) -> None:
    world.provider.script = lambda _: answer(reply)
    await (await world.submit("count", stream="sentences", **fields)).terminal()
    await settled(world)


async def settled(world: World) -> None:
    async with asyncio.timeout(5):
        while world.scheduler._errands or world.scheduler._tasks:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("index", "request_id", "kept"),
    [
        (0, None, [("count", False), ("One is it.", True)]),
        (1, "r1", [("count", False), ("One is it. Two is it.", True)]),
        (-1, None, [("count", False), ("", True)]),
        (2, None, [("count", False), ("One is it. Two is it. Three is it.", False)]),
        (0, "other", [("count", False), ("One is it. Two is it. Three is it.", False)]),
    ],
)
async def test_an_answer_that_is_complete_is_cut_to_what_was_spoken(
    world: World, index: int, request_id: str | None, kept: list[tuple[str, bool]]
) -> None:
    await told(world, id="r1")
    world.scheduler.cancel("kitchen", request_id, index)
    await settled(world)
    assert await remembered(world) == kept


async def test_an_answer_is_cut_once_and_only_while_it_is_the_newest(world: World) -> None:
    await told(world)
    world.scheduler.cancel("kitchen", spoken_index=1)
    world.scheduler.cancel("kitchen", spoken_index=0)
    await settled(world)
    assert (await remembered(world))[1] == ("One is it. Two is it.", True)
    await (await world.submit("more")).terminal()
    world.scheduler.cancel("kitchen", spoken_index=0)
    await settled(world)
    assert len(await remembered(world)) == 4


async def test_a_word_on_what_was_spoken_that_comes_with_the_end(world: World) -> None:
    """The answer is complete at the model, and its last sentences are not handed out yet."""
    world.provider.script = lambda _: answer("One is it. Two is it. Three is it.")
    channel = await world.submit("count", stream="sentences")
    send = channel.send

    def cancel_at_the_first(event: Any) -> None:
        send(event)
        if event.type == "sentence" and event.index == 0:
            world.scheduler.cancel("kitchen", spoken_index=0)

    channel.send = cancel_at_the_first  # type: ignore[method-assign]
    last = await channel.terminal()
    await settled(world)
    assert await remembered(world) == [("count", False), ("One is it.", True)], last


async def test_only_the_newest_conversations_are_known(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.setattr("piagent_daemon.spoken.CONVERSATIONS", 1)
    await told(world)
    await told(world, conversation="hall")
    world.scheduler.cancel("kitchen", spoken_index=0)
    await settled(world)
    assert not (await remembered(world))[1][1]


async def test_an_answered_request_leaves_no_alarm_behind(world: World) -> None:
    channel = await world.submit(expires_s=3600.0)
    await channel.terminal()
    asyncio.get_running_loop().call_soon(lambda: None)
    alarms = [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
    assert not [handle for handle in alarms if handle.when() > asyncio.get_running_loop().time() + 1000]


async def test_a_defect_in_mid_answer_gives_what_was_said(world: World) -> None:
    world.provider.script = lambda _: [Delta("so far"), ZeroDivisionError()]
    last = await (await world.submit()).terminal()
    assert isinstance(last, ErrorEvent)
    assert (last.code, last.partial) == ("internal", "so far")


@pytest.mark.parametrize(("stream", "partial"), [(False, ""), ("sentences", "One is it.")])
async def test_a_defect_tells_only_of_what_went_out(world: World, stream: Any, partial: str) -> None:
    world.provider.script = lambda _: [Delta("One is it. Two"), ZeroDivisionError()]
    last = await (await world.submit(stream=stream)).terminal()
    assert isinstance(last, ErrorEvent)
    assert (last.code, last.partial) == ("internal", partial)


async def test_an_event_that_cannot_be_made_leaves_no_gap(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("piagent_daemon.turn.expects_reply", lambda _: object())  # a field that pydantic refuses
    channel = await world.submit()
    assert code(await channel.terminal()) == "internal"
    assert [event.seq for event in channel.events] == list(range(len(channel.events)))
