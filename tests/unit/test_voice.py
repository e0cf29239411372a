"""An answer said sentence by sentence: when the filler is due."""

import pytest

from piagent_daemon.agents import Agent
from piagent_daemon.job import NEVER, Job, Stamp
from piagent_daemon.voice import Voice
from tests.fakes.doubles import FakeClock, RecordingChannel, incoming

BUTLER = Agent(name="butler", system="Serve.", filler={"text": "One moment.", "seconds": 2.0})


def voice() -> Voice:
    clock = FakeClock()
    job = Job(
        request=incoming("hello").request,
        conversation_id="kitchen",
        request_id="r",
        agent=BUTLER,
        model="m",
        channel=RecordingChannel(),
        stamp=Stamp("kitchen", "r", 1, clock),
        received=0.0,
        durable=True,
    )
    return Voice(job, 10.0)


@pytest.mark.parametrize("text", ["", "\n", "<think>He asks", "<think>He</think>\n\n", "```sh\nls\n```\n", "**"])
def test_the_filler_is_due_until_a_word_came(text: str) -> None:
    one = voice()
    for sign in text:
        assert one.hear(sign, more=False) == []
    assert one.filler_at == 12.0
    assert (one.fill().text, one.filler_at) == ("One moment.", NEVER)


@pytest.mark.parametrize("text", ["The", "\nThe", "<think>He</think>The light", "Yes. It is"])
def test_it_is_not_said_into_the_answer(text: str) -> None:
    one = voice()
    one.hear(text, more=False)
    assert one.filler_at == NEVER
