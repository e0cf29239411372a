"""The Hermes door with everything around it played: what it asks for, says, settles and stops."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from piagent_daemon.agents import Agent
from piagent_daemon.contract import ErrorEvent, Sentence
from piagent_daemon.doors.hermes import ACL_HERMES, HermesDoor
from piagent_daemon.doors.mqtt_guest import Guest
from piagent_daemon.doors.mqtt_letter import Letter, delivery_of
from piagent_daemon.doors.mqtt_link import Link
from piagent_daemon.doors.mqtt_reply import Receipt
from piagent_daemon.doors.mqtt_trouble import NOT_AUTHORIZED
from piagent_daemon.settings import Settings
from piagent_daemon.topics import Inbound
from piagent_daemon.values import DoorState
from tests.fakes.doubles import FakeClock
from tests.fakes.echo_engine import EchoEngine, final

CAPTURED = "hermes/asr/textCaptured"
NOT_RECOGNIZED = "hermes/dialogueManager/intentNotRecognized"
QUERY = "hermes/nlu/query"
END = "hermes/dialogueManager/endSession"
CONTINUE = "hermes/dialogueManager/continueSession"
SAY = "hermes/tts/say"
ALL = "textCaptured,intentNotRecognized,query"


class NoLink(Link):
    """A link that notes what is acknowledged."""

    def __init__(self) -> None:
        self.acked: list[int] = []

    def ack(self, generation: int, packet_id: int, qos: int) -> None:
        assert (generation, qos) == (1, 1)
        self.acked.append(packet_id)


@dataclass
class World:
    """The door, and the host and engine around it."""

    settings: dict[str, Any] = field(default_factory=dict)
    said: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    unsafe: list[Callable[[int], None]] = field(default_factory=list)
    guests: list[Guest] = field(default_factory=list)
    state: DoorState = field(default_factory=lambda: DoorState(connected=True, protocol="5"))
    safe_at_once: bool = True
    agent: Agent = field(default_factory=lambda: Agent("voice", "Answer.", languages=("de",)))

    def __post_init__(self) -> None:
        self.engine = EchoEngine(hold=True)
        self.link = NoLink()
        self.packets = 0
        self.door = HermesDoor(
            Settings(hermes=True, **self.settings), self.engine, FakeClock(), self, lambda: {"voice": self.agent}
        )

    def invite(self, guest: Guest) -> None:
        self.guests.append(guest)

    def publish(self, topic: str, payload: bytes, done: Callable[[int], None]) -> None:
        self.said.append((topic, json.loads(payload)))
        if self.safe_at_once:
            done(0)
        else:
            self.unsafe.append(done)

    async def hear(self, topic: str, payload: dict[str, Any] | bytes, received: float = 1000.0) -> Receipt:
        """Bring a message as the inbox would, at QoS 1."""
        self.packets += 1
        raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        letter = Letter(topic, Inbound("guest", None), raw, 1, self.packets, False, 1, received)
        receipt = Receipt(self.link)
        receipt.add(1, letter.packet_id, 1)
        assert self.door.claims(topic)
        if not self.door.overhear(letter):
            await self.door.take(letter, delivery_of(letter, None, None), receipt)
        return receipt

    def answer(self, reply: str = "It is warm.", **fields: Any) -> None:
        """Let the newest question be answered."""
        _, channel, conversation_id, request_id = self.engine.held[-1]
        channel.send(final(conversation_id, request_id, reply).model_copy(update=fields))

    def sentence(self, text: str, index: int = 0) -> None:
        _, channel, conversation_id, request_id = self.engine.held[-1]
        event = final(conversation_id, request_id, "")
        channel.send(
            Sentence(
                conversation_id=conversation_id,
                request_id=request_id,
                attempt=1,
                seq=1,
                ts=event.ts,
                text=text,
                index=index,
            )
        )

    def error(self, code: str) -> None:
        _, channel, conversation_id, request_id = self.engine.held[-1]
        channel.send(
            ErrorEvent(
                conversation_id=conversation_id,
                request_id=request_id,
                attempt=1,
                seq=1,
                ts=final("", "", "").ts,
                code=code,
                message="Technical words.",
                status_code=500,
                retryable=False,
            )
        )


async def test_a_question_in_a_session_is_answered_whole_and_ends_it() -> None:
    world = World()
    await world.hear(CAPTURED, {"text": " How warm? ", "siteId": "kitchen", "sessionId": "s1"})
    (incoming,) = world.engine.incoming
    request = incoming.request
    assert (request.message, request.agent, request.stream) == ("How warm?", "voice", "sentences")
    assert (request.context, incoming.conversation_id) == ({"site": "kitchen"}, "s1")
    assert world.link.acked == []
    world.sentence("It is warm.")
    assert world.said == []
    world.answer()
    assert world.said == [(END, {"siteId": "kitchen", "sessionId": "s1", "text": "It is warm."})]
    assert world.link.acked == [1]


async def test_in_a_session_the_filler_is_said_and_the_answer_still_ends_it() -> None:
    world = World(agent=Agent("voice", "Answer.", filler={"text": "One moment.", "seconds": 2.0}))
    await world.hear(CAPTURED, {"text": "How warm?", "siteId": "kitchen", "sessionId": "s1"})
    world.sentence("One moment.", 0)
    ((topic, said),) = world.said
    assert (topic, said["text"], said["siteId"], said["sessionId"]) == (SAY, "One moment.", "kitchen", "s1")
    await world.hear("hermes/tts/sayFinished", {"id": said["id"], "siteId": "kitchen", "sessionId": "s1"})
    world.sentence("It is warm.", 1)
    world.sentence("One moment.", 2)
    world.answer("It is warm. One moment.")
    assert world.said[1:] == [(END, {"siteId": "kitchen", "sessionId": "s1", "text": "It is warm. One moment."})]
    assert world.link.acked == [1]


async def test_of_what_is_stopped_in_a_session_nothing_was_heard() -> None:
    world = World(agent=Agent("voice", "Answer.", filler={"text": "One moment.", "seconds": 2.0}))
    await world.hear(CAPTURED, {"text": "How warm?", "siteId": "kitchen", "sessionId": "s1"})
    world.sentence("One moment.", 0)
    world.sentence("It is warm.", 1)
    await world.hear("hermes/hotword/porcupine/detected", {"siteId": "kitchen"})
    assert world.engine.heard == [-1]
    world.answer("", finish_reason="cancelled")
    assert [said["text"] for _, said in world.said] == ["One moment."]


async def test_an_answer_that_asks_back_goes_on_with_the_session() -> None:
    world = World()
    await world.hear(CAPTURED, {"text": "Play music.", "sessionId": "s1"})
    world.answer("Which?", expects_reply=True)
    ((topic, said),) = world.said
    assert (topic, said["text"], said["sendIntentNotRecognized"]) == (CONTINUE, "Which?", True)


async def test_outside_a_session_each_sentence_is_said_when_it_comes() -> None:
    world = World()
    await world.hear(CAPTURED, {"text": "How warm?", "siteId": "hall", "lang": "en"})
    assert world.engine.incoming[0].conversation_id == "hall"
    assert world.engine.incoming[0].request.stream == "sentences"
    world.sentence("It is warm.")
    assert [(topic, said["text"], said["siteId"], said["lang"]) for topic, said in world.said] == [
        (SAY, "It is warm.", "hall", "en")
    ]
    world.sentence("Very warm.", 1)
    world.answer("It is warm. Very warm.")
    assert [said["text"] for _, said in world.said] == ["It is warm.", "Very warm."]
    assert len({said["id"] for _, said in world.said}) == 2
    assert world.link.acked == [1]


async def test_an_answer_without_sentences_is_said_whole() -> None:
    world = World()
    await world.hear(CAPTURED, {"text": "How warm?"})
    world.answer("It is warm.")
    assert [(topic, said["text"]) for topic, said in world.said] == [(SAY, "It is warm.")]


async def test_a_query_of_nobodys_session_also_gets_an_intent() -> None:
    world = World(settings={"hermes_listen": "query"})
    await world.hear(QUERY, {"input": "How warm?", "id": "q1", "siteId": "hall"})
    world.sentence("It is warm.")
    world.answer()
    assert [topic for topic, _ in world.said] == [SAY, "hermes/intent/piagent"]
    assert world.said[-1][1]["id"] == "q1"
    await world.hear(QUERY, {"input": "How warm?", "id": "q2"})
    world.error("provider_unavailable")
    assert [topic for topic, _ in world.said[2:]] == [SAY, "hermes/nlu/intentNotRecognized"]
    assert world.said[-1][1]["id"] == "q2"
    await world.hear(QUERY, {"input": "How warm?", "id": "q3", "sessionId": "s1"})
    world.answer()
    assert world.said[-1][0] == END


async def test_the_input_is_settled_when_all_that_was_said_is_safe() -> None:
    world = World(safe_at_once=False)
    await world.hear(CAPTURED, {"text": "How warm?"})
    world.sentence("It is warm.")
    world.sentence("Very warm.", 1)
    world.answer()
    for done in reversed(world.unsafe):
        assert world.link.acked == []
        done(0)
    assert world.link.acked == [1]


@pytest.mark.parametrize("code", ["busy", "provider_unavailable", "timeout", "internal", "context_overflow"])
async def test_errors_become_a_short_sentence_in_the_listeners_language(code: str) -> None:
    world = World()
    for payload in ({"sessionId": "s1"}, {"sessionId": "s2", "lang": "en"}, {}):
        await world.hear(CAPTURED, {"text": "How warm?", **payload})
        world.error(code)
    german, english, said = world.said
    assert (german[0], english[0], said[0]) == (END, END, SAY)
    assert german[1]["text"] == said[1]["text"] != english[1]["text"]
    assert "Technical" not in str(world.said)
    assert world.link.acked == [1, 2, 3]


async def test_what_is_cancelled_ends_without_a_word() -> None:
    world = World(settings={"hermes_listen": ALL})
    await world.hear(CAPTURED, {"text": "How warm?", "sessionId": "s1"})
    world.answer("It is", finish_reason="cancelled")
    await world.hear(CAPTURED, {"text": "How warm?", "sessionId": "s2"})
    world.error("cancelled")
    assert world.said == [
        (END, {"siteId": "default", "sessionId": "s1"}),
        (END, {"siteId": "default", "sessionId": "s2"}),
    ]
    await world.hear(CAPTURED, {"text": "How warm?"})
    world.answer("It is", finish_reason="cancelled")
    assert len(world.said) == 2
    await world.hear(QUERY, {"input": "How warm?"})
    world.answer("It is", finish_reason="cancelled")
    assert world.said[2][0] == "hermes/nlu/intentNotRecognized"
    assert world.link.acked == [1, 2, 3, 4]


async def test_a_wake_word_stops_what_is_answered_on_its_site_alone() -> None:
    world = World()
    await world.hear(CAPTURED, {"text": "How warm?", "siteId": "kitchen", "sessionId": "s1"})
    await world.hear(CAPTURED, {"text": "How warm?", "siteId": "kitchen"})
    await world.hear(CAPTURED, {"text": "How warm?", "siteId": "hall"})
    ids = [(conversation_id, request_id) for _, _, conversation_id, request_id in world.engine.held]
    await world.hear("hermes/hotword/porcupine/detected", {"siteId": "kitchen", "modelId": "porcupine"})
    assert set(world.engine.cancelled) == set(ids[:2])
    _, channel, conversation_id, request_id = world.engine.held[0]
    channel.send(final(conversation_id, request_id, "").model_copy(update={"finish_reason": "cancelled"}))
    assert world.said == []
    world.engine.cancelled.clear()
    world.answer()
    await world.hear("hermes/hotword/porcupine/detected", {"siteId": "hall"})
    assert world.engine.cancelled == []


async def test_a_wake_word_tells_how_much_was_heard() -> None:
    world = World()
    await world.hear(CAPTURED, {"text": "How warm?", "siteId": "kitchen"})
    world.sentence("It is warm.", 0)
    await world.hear("hermes/hotword/porcupine/detected", {"siteId": "kitchen"})
    assert world.engine.heard == [None], "nothing is known of a loudspeaker that never told"
    world.answer("It is warm.", finish_reason="cancelled")
    await world.hear(CAPTURED, {"text": "How cold?", "siteId": "kitchen"})
    for index in range(3):
        world.sentence("It is cold.", index)
    world.answer("It is cold. It is cold. It is cold.")
    said = [data["id"] for topic, data in world.said if data["text"] == "It is cold."]
    for utterance_id in ("somebody else's", *said[:2]):
        await world.hear("hermes/tts/sayFinished", {"id": utterance_id, "siteId": "kitchen"})
    await world.hear("hermes/hotword/porcupine/detected", {"siteId": "kitchen"})
    assert world.engine.heard == [None, 1]
    assert world.engine.cancelled[-1][1] == world.engine.held[-1][3]
    # by now nobody speaks in the kitchen, and now that it is known to tell, silence means that nothing was heard
    await world.hear("hermes/hotword/porcupine/detected", {"siteId": "kitchen"})
    assert world.engine.heard == [None, 1]
    await world.hear(CAPTURED, {"text": "How wet?", "siteId": "kitchen"})
    world.sentence("It is wet.", 0)
    await world.hear("hermes/hotword/porcupine/detected", {"siteId": "kitchen"})
    assert world.engine.heard == [None, 1, -1]


async def test_the_end_of_a_session_stops_its_answer_or_lets_it_be_said() -> None:
    world = World()
    await world.hear(CAPTURED, {"text": "How warm?", "sessionId": "s1"})
    await world.hear("hermes/dialogueManager/sessionEnded", {"sessionId": "s0", "termination": "abortedByUser"})
    assert world.engine.cancelled == []
    await world.hear("hermes/dialogueManager/sessionEnded", {"sessionId": "s1", "termination": "abortedByUser"})
    assert [conversation_id for conversation_id, _ in world.engine.cancelled] == ["s1"]
    await world.hear(CAPTURED, {"text": "How warm?", "sessionId": "s2"})
    await world.hear("hermes/dialogueManager/sessionEnded", {"sessionId": "s2", "termination": {"reason": "timeout"}})
    world.answer("It is warm. It stays so.")
    assert [(topic, said["text"]) for topic, said in world.said] == [(SAY, "It is warm."), (SAY, "It stays so.")]


async def test_what_came_before_its_session_took_too_long_is_said_with_the_rest() -> None:
    world = World()
    await world.hear(CAPTURED, {"text": "How warm?", "sessionId": "s1"})
    world.sentence("It is warm.", 0)
    await world.hear("hermes/dialogueManager/sessionEnded", {"sessionId": "s1", "termination": {"reason": "timeout"}})
    assert world.said == []
    world.sentence("It stays so.", 1)
    assert [said["text"] for _, said in world.said] == ["It is warm.", "It stays so."]
    world.answer("It is warm. It stays so.")
    assert len(world.said) == 2
    await world.hear("hermes/tts/sayFinished", {"id": world.said[0][1]["id"]})
    await world.hear("hermes/hotword/porcupine/detected", {})
    assert world.engine.heard == [0]


async def test_a_session_belongs_to_its_newest_question() -> None:
    world = World()
    await world.hear(CAPTURED, {"text": "How warm?", "sessionId": "s1"})
    await world.hear(CAPTURED, {"text": "How cold?", "sessionId": "s1"})
    _, channel, conversation_id, request_id = world.engine.held[0]
    channel.send(final(conversation_id, request_id, "").model_copy(update={"finish_reason": "cancelled"}))
    world.answer("It is cold.")
    assert [(topic, said["text"]) for topic, said in world.said] == [(END, "It is cold.")]


async def test_what_runs_through_all_kinds_of_messages_is_asked_once() -> None:
    world = World(settings={"hermes_listen": ALL})
    for kind, field_ in ((CAPTURED, "text"), (QUERY, "input"), (NOT_RECOGNIZED, "input")):
        await world.hear(kind, {field_: "yes", "sessionId": "s1"})
    assert world.engine.messages == ["yes"]
    await world.hear(CAPTURED, {"text": "yes", "sessionId": "s1"})
    await world.hear(QUERY, {"input": "no", "sessionId": "s1"})
    await world.hear(CAPTURED, {"text": "no", "sessionId": "s2"}, received=1000.0)
    await world.hear(QUERY, {"input": "no", "sessionId": "s2"}, received=1031.0)
    await world.hear(CAPTURED, {"text": "yes"})
    await world.hear(QUERY, {"input": "yes"})
    assert world.engine.messages == ["yes", "yes", "no", "no", "no", "yes", "yes"]
    assert len(world.link.acked) == 2


async def test_a_recogniser_that_changes_case_or_spaces_does_not_make_it_another_question() -> None:
    world = World(settings={"hermes_listen": ALL})
    await world.hear(CAPTURED, {"text": "Wie  heißt du", "sessionId": "s1"})
    await world.hear(NOT_RECOGNIZED, {"input": "wie heisst DU", "sessionId": "s1"})
    assert world.engine.messages == ["Wie  heißt du"]


async def test_silence_ends_a_session_and_asks_nobody() -> None:
    world = World(settings={"hermes_listen": ALL})
    await world.hear(CAPTURED, {"text": " ", "sessionId": "s1"})
    await world.hear(CAPTURED, {"text": ""})
    await world.hear(QUERY, {"input": "", "id": "q"})
    assert world.engine.incoming == []
    assert world.said == [
        (END, {"siteId": "default", "sessionId": "s1"}),
        ("hermes/nlu/intentNotRecognized", {"siteId": "default", "input": "", "id": "q"}),
    ]
    assert world.link.acked == [1, 2, 3]


async def test_only_the_sites_that_are_named() -> None:
    world = World(settings={"hermes_sites": "kitchen, hall"})
    for site in ("kitchen", "cellar", "hall"):
        await world.hear(CAPTURED, {"text": "How warm?", "siteId": site})
    assert [one.conversation_id for one in world.engine.incoming] == ["kitchen", "hall"]
    assert world.link.acked == [2]
    assert not world.engine.refusals


async def test_what_is_no_question_is_counted_and_settled() -> None:
    world = World(settings={"max_message_chars": 10})
    await world.hear(CAPTURED, b"{")
    await world.hear("hermes/hotword/x/detected", b"[]")
    await world.hear(CAPTURED, {"text": "x" * 11, "sessionId": "s1"})
    assert world.engine.refusals == {"invalid_request": 3}
    assert world.link.acked == [1, 3]
    ((topic, said),) = world.said
    assert topic == END
    assert said["text"]


@pytest.mark.parametrize(
    "payload",
    [
        {"text": 5, "sessionId": "s4"},
        {"text": "\ud800", "sessionId": "s4", "siteId": 7},
        {"text": "How warm?", "lang": "x" * 1001, "sessionId": "s4"},
    ],
)
async def test_a_malformed_question_does_not_leave_its_session_open(payload: dict[str, Any]) -> None:
    world = World()
    await world.hear(CAPTURED, payload)
    ((topic, said),) = world.said
    assert (topic, said["sessionId"], said["siteId"]) == (END, "s4", "default")
    assert "Frage" in said["text"]
    assert world.engine.refusals == {"invalid_request": 1}
    assert (world.engine.incoming, world.link.acked) == ([], [1])


async def test_a_malformed_message_ends_no_session_that_waits_for_an_answer_or_is_not_ours() -> None:
    world = World(settings={"hermes_listen": ALL, "hermes_sites": "hall"})
    await world.hear(CAPTURED, {"text": "How warm?", "sessionId": "s1", "siteId": "hall"})
    await world.hear(QUERY, {"input": "How warm?", "id": 7, "sessionId": "s1", "siteId": "hall"})
    await world.hear(CAPTURED, {"text": 5, "sessionId": "s2", "siteId": "kitchen"})
    await world.hear(CAPTURED, {"text": 5, "sessionId": ["s3"], "siteId": "hall"})
    assert world.said == []
    world.answer()
    assert [(topic, said["text"]) for topic, said in world.said] == [(END, "It is warm.")]
    for kind in (CAPTURED, QUERY):
        await world.hear(kind, {"text": 5, "input": 5, "sessionId": "s4", "siteId": "hall"})
    assert len(world.said) == 2
    assert sorted(world.link.acked) == [1, 2, 3, 4, 5, 6]


async def test_only_what_is_named_is_listened_to() -> None:
    assert dict(World().door.filters) == {
        CAPTURED: 1,
        "hermes/hotword/+/detected": 0,
        "hermes/dialogueManager/sessionEnded": 0,
        "hermes/tts/sayFinished": 0,
    }
    filters = dict(World(settings={"hermes_listen": "query,intentNotRecognized"}).door.filters)
    assert {name for name, qos in filters.items() if qos} == {QUERY, NOT_RECOGNIZED}


async def test_a_stored_answer_is_told_once_more() -> None:
    world = World()
    await world.hear(CAPTURED, {"text": "How warm?", "sessionId": "s1"})
    _, channel, _, _ = world.engine.held[-1]
    channel.send_again(final("s1", "r1", "It was warm.").encode())
    assert world.said[0][1]["text"] == "It was warm."
    assert world.link.acked == [1]


async def test_what_is_left_to_the_broker_stays_unacknowledged() -> None:
    world = World()
    await world.hear(CAPTURED, {"text": "How warm?", "sessionId": "s1"})
    world.engine.held[-1][1].abandon()
    assert (world.said, world.link.acked) == ([], [])


async def test_after_the_stop_who_asks_is_told_so() -> None:
    world = World()
    await world.door.stop_intake()
    await world.hear(CAPTURED, {"text": "How warm?", "sessionId": "s1"})
    assert world.engine.incoming == []
    assert world.said[0][0] == END
    assert "gleich" in world.said[0][1]["text"]


async def test_a_defect_while_a_question_is_taken_in_ends_its_session() -> None:
    world = World()
    world.engine.defect = ZeroDivisionError()
    await world.hear(CAPTURED, {"text": "How warm?", "sessionId": "s1"})
    await world.hear(CAPTURED, {"text": "How warm?"})
    assert [topic for topic, _ in world.said] == [END, SAY]
    assert all("schiefgegangen" in said["text"] for _, said in world.said)
    assert (world.engine.refusals, world.link.acked) == ({"internal": 2}, [1, 2])


async def test_a_broker_that_forbids_to_speak_is_noticed() -> None:
    world, heard = World(safe_at_once=False), asyncio.Event()
    world.door.on_change = heard.set
    assert world.door.state == DoorState(connected=True, protocol="5")
    for code, reasons in ((NOT_AUTHORIZED, (ACL_HERMES,)), (0, ())):
        await world.hear(CAPTURED, {"text": "How warm?"})
        world.answer()
        world.unsafe.pop()(code)
        assert world.door.state.reasons == reasons
        assert heard.is_set()
        heard.clear()


async def test_a_broker_that_forbids_one_topic_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World(safe_at_once=False)
    changes: list[int] = []
    world.door.on_change = lambda: changes.append(1)
    for _ in range(3):
        await world.hear(CAPTURED, {"text": "How warm?"})
        world.answer()
        world.unsafe.pop()(0)
        await world.hear(CAPTURED, {"text": "How warm?", "sessionId": "s1"})
        world.answer()
        world.unsafe.pop()(NOT_AUTHORIZED)
        assert world.door.state.reasons == (ACL_HERMES,)
    assert len(changes) == 1
    assert [END in record.message for record in caplog.records if record.levelname == "ERROR"] == [True]


async def test_an_answer_that_has_nothing_to_read_aloud_says_so() -> None:
    world = World()
    await world.hear(CAPTURED, {"text": "Show me code.", "sessionId": "s1"})
    world.answer("```\nprint()\n```", speech="")
    assert "vorlesen" in world.said[0][1]["text"]
