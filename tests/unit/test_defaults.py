"""Defaults chosen while the daemon runs: what they cover, how long they stand, and who follows them."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from piagent_daemon.agents import Agent
from piagent_daemon.contract import Defaults, Options, SetDefaults
from piagent_daemon.defaults import Chooser, _decode
from piagent_daemon.errors import InvalidRequest, PiagentError, UnknownAgent
from piagent_daemon.health import Tally
from piagent_daemon.ports import ConversationStore
from piagent_daemon.scheduler import Scheduler
from piagent_daemon.settings import Settings
from piagent_daemon.stores.memory import MemoryStore
from piagent_daemon.stores.sqlite import SqliteStore
from piagent_daemon.turn import Assistant, Config
from piagent_daemon.window import Ledger
from tests.fakes.doubles import FakeClock, RecordingChannel, ScriptedProvider, incoming, ladder_of

AGENTS = {
    "general": Agent(name="general", system="Be brief."),
    "pirate": Agent(name="pirate", system="Arr."),
    "cook": Agent(name="cook", system="Cook.", model="chef", options=Options(temperature=0.9)),
}
PLAIN = Defaults(agent="general", model="qwen2.5:3b-instruct", temperature=0.7)


class Home:
    """A daemon's choices and answers, over restarts with the same store."""

    def __init__(self, store: ConversationStore | None = None, **settings: Any) -> None:
        clock = FakeClock()
        self.config = Config(Settings(**settings), AGENTS)
        self.store = store or MemoryStore(self.config.settings, clock)
        self.provider = ScriptedProvider()
        self.chooser = Chooser(self.config, self.store)
        assistant = Assistant(
            self.config, ladder_of(self.provider, settings=self.config, clock=clock), self.store, Ledger(), clock
        )
        self.scheduler = Scheduler(assistant, self.config, self.store, Tally(clock), clock)
        self.changes = 0
        self.chooser.on_change = self._count

    def _count(self) -> None:
        self.changes += 1

    async def choose(self, **wanted: Any) -> Defaults:
        return await self.chooser.set(SetDefaults(**wanted))

    async def reload(self, **settings: Any) -> None:
        self.config.settings = await self.chooser.over(Settings(**settings), AGENTS)

    async def restart(self, **settings: Any) -> "Home":
        home = Home(self.store, **settings)
        await home.chooser.restore()
        return home

    async def ask(self, **fields: Any) -> tuple[str, str, float]:
        """Return agent, model and temperature of an answer."""
        channel = RecordingChannel()
        await self.scheduler.submit(incoming(**fields), channel)
        final = await channel.terminal()
        asked = self.provider.asked[-1]
        return getattr(final, "agent", ""), asked.model, asked.options["temperature"]


async def test_a_choice_stands_until_it_is_taken_back() -> None:
    home = Home()
    assert home.chooser.defaults == PLAIN
    assert await home.ask() == ("general", "qwen2.5:3b-instruct", 0.7)
    chosen = await home.choose(agent="pirate", model="small", temperature=0.1)
    assert chosen == home.chooser.defaults == Defaults(agent="pirate", model="small", temperature=0.1)
    assert await home.ask() == ("pirate", "small", 0.1), "also in a conversation that goes on"
    assert await home.choose(agent=None) == Defaults(agent="general", model="small", temperature=0.1)
    assert await home.choose(model=None, temperature=None) == PLAIN
    assert await home.ask() == ("general", "qwen2.5:3b-instruct", 0.7)
    assert home.changes == 3


async def test_what_is_named_goes_first() -> None:
    home = Home()
    await home.choose(agent="pirate", model="small", temperature=0.1)
    assert await home.ask(model="big", options=Options(temperature=1.5)) == ("pirate", "big", 1.5)
    assert await home.ask(agent="cook") == ("cook", "chef", 0.9), "an agent's file goes first"
    assert await home.ask() == ("cook", "chef", 0.9), "a conversation keeps the agent that was named in it"
    await home.scheduler.reset("kitchen")
    assert await home.ask() == ("pirate", "small", 0.1)


async def test_only_what_changes_is_told() -> None:
    home = Home()
    await home.choose()
    await home.choose(model="qwen2.5:3b-instruct", temperature=0.7)
    assert home.changes == 0
    await home.choose(model="small")
    await home.choose(model="small")
    assert home.changes == 1


@pytest.mark.parametrize(
    ("wanted", "error"), [({"agent": "nobody"}, UnknownAgent), ({"model": "other"}, InvalidRequest)]
)
async def test_what_cannot_be_is_refused(wanted: dict[str, Any], error: type[PiagentError]) -> None:
    home = Home(models_allowed=("qwen2.5:3b-instruct", "small"))
    with pytest.raises(error):
        await home.choose(temperature=0.1, **wanted)
    assert home.chooser.defaults == PLAIN
    assert (await home.choose(model="small")).model == "small"


async def test_choices_outlive_the_process_where_conversations_do(tmp_path: Path) -> None:
    settings = Settings(memory_url=f"sqlite://{tmp_path}/memory.db")
    store = SqliteStore(settings, FakeClock())
    await store.start()
    home = Home(store)
    await home.chooser.restore()
    await home.choose(agent="pirate", temperature=0.2)
    await store.clear()
    await store.aclose()
    store = SqliteStore(settings, FakeClock())
    await store.start()
    again = Home(store)
    await again.chooser.restore()
    assert again.chooser.defaults == Defaults(agent="pirate", model="qwen2.5:3b-instruct", temperature=0.2)
    await store.aclose()


async def test_the_newest_word_counts_also_when_it_is_a_setting() -> None:
    home = Home()
    await home.choose(model="small", temperature=0.2)
    await home.reload(max_tokens=77)
    assert home.chooser.defaults == Defaults(agent="general", model="small", temperature=0.2)
    assert home.config.settings.max_tokens == 77
    await home.reload(ollama_model_general="big")
    assert home.chooser.defaults == Defaults(agent="general", model="big", temperature=0.2)
    again = await home.restart()
    assert again.chooser.defaults == Defaults(agent="general", model="qwen2.5:3b-instruct", temperature=0.2), (
        "what was dropped does not come back"
    )


async def test_a_choice_that_fits_no_more_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    home = Home()
    await home.choose(agent="pirate", model="small")
    few = {"general": AGENTS["general"]}
    settings = await home.chooser.over(Settings(models_allowed=("qwen2.5:3b-instruct",)), few)
    assert (settings.default_agent, settings.ollama_model_general) == ("general", "qwen2.5:3b-instruct")
    assert "pirate" in caplog.text
    assert "MODELS_ALLOWED" in caplog.text


@hypothesis_settings(deadline=None)
@given(
    st.binary(max_size=40)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda part: (
            st.lists(part, max_size=3)
            | st.dictionaries(st.sampled_from(["agent", "model", "temperature", "x"]), part, max_size=3)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
async def test_a_strange_note_is_no_choice(note: bytes) -> None:
    _decode(note)
    store = MemoryStore(Settings(), FakeClock())
    await store.note("defaults", note)
    home = Home(store)
    await home.chooser.restore()
    assert home.chooser.defaults.agent in AGENTS
