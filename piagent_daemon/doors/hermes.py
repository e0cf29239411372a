"""The Hermes front door: what Rhasspy's microphones heard comes in, what its loudspeakers say goes out.

It lives on the MQTT door's connection. Inside a session the answer ends or continues the session, and only an agent's
filler is said before; outside one it is said sentence by sentence. A wake word on a site stops what is being answered
there, and when the loudspeaker tells how far it came (`sayFinished`), only what was heard is remembered.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

from piagent_daemon import wire
from piagent_daemon.agents import Agent
from piagent_daemon.contract import Request
from piagent_daemon.doors import hermes_words as words
from piagent_daemon.doors.hermes_reply import Reply
from piagent_daemon.doors.mqtt_guest import Host
from piagent_daemon.doors.mqtt_letter import Letter
from piagent_daemon.doors.mqtt_reply import Receipt
from piagent_daemon.doors.mqtt_trouble import NOT_AUTHORIZED
from piagent_daemon.doors.seldom import Seldom
from piagent_daemon.errors import InternalError, InvalidRequest, ShuttingDown
from piagent_daemon.ports import Clock, Intake
from piagent_daemon.setting_types import HermesKind
from piagent_daemon.settings import Settings
from piagent_daemon.topics import conversation_for
from piagent_daemon.values import Delivery, DoorState, Incoming

log = logging.getLogger("piagent.hermes")

ACL_HERMES: Final = "acl_hermes"
SIGNALS: Final = (words.HOTWORD, words.SESSION_ENDED, words.SAY_FINISHED)
SAME_S: Final = 30.0
"""What one person said comes by several messages within this time."""
SESSIONS: Final = 1000
SITES: Final = 1000
UTTERANCES: Final = 1000
"""Sentences whose end is waited for; a loudspeaker may never tell."""


class HermesDoor:
    """A way in and out over Hermes (`ports.FrontDoor`), a guest of the MQTT door (`mqtt_guest.Guest`)."""

    def __init__(
        self,
        settings: Settings,
        intake: Intake,
        clock: Clock,
        host: Host,
        agents: Callable[[], Mapping[str, Agent]],
    ) -> None:
        self.on_change: Callable[[], None] | None = None
        self._settings = settings
        self._intake = intake
        self._clock = clock
        self._host = host
        self._agents = agents
        self._open: set[Reply] = set()
        self._asked: OrderedDict[str, tuple[HermesKind, str, float]] = OrderedDict()
        """The newest question of each session: its kind, its gist, and when."""
        self._speaking: OrderedDict[str, Reply] = OrderedDict()
        self._telling: set[str] = set()
        """Sites whose loudspeaker has told at least once that it has said something."""
        self._denied: set[str] = set()
        """Topics on which the broker does not let us speak."""
        self._closed = False
        self._seldom = Seldom()
        host.invite(self)

    # ------------------------------------------------------------------------------------------------------------ port

    @property
    def state(self) -> DoorState:
        """How the door stands: as the MQTT door does, and whether its answers are let through."""
        mqtt = self._host.state
        return DoorState(mqtt.connected, mqtt.protocol, (ACL_HERMES,) if self._denied else (), mqtt.detail)

    @property
    def alive(self) -> bool:
        """It has no loop of its own."""
        return True

    async def start(self) -> None:
        """Do nothing: the MQTT door connects."""

    async def ready(self) -> None:
        """Return at once; see `start`."""

    async def stop_intake(self) -> None:
        """Say that we stop to those who still ask."""
        self._closed = True

    async def stop(self, deadline_s: float) -> None:
        """Do nothing: the MQTT door hands over what is still to be said."""

    # ----------------------------------------------------------------------------------------------------------- guest

    @property
    def filters(self) -> tuple[tuple[str, int], ...]:
        """See `mqtt_guest.Guest`. What is no question is QoS 0, so that a full window cannot hold it back."""
        heard = [topic for topic, kind in words.QUESTIONS.items() if kind in self._settings.hermes_listen]
        return (*((topic, 1) for topic in heard), *((topic, 0) for topic in SIGNALS))

    def claims(self, topic: str) -> bool:
        """See `mqtt_guest.Guest`."""
        return topic in words.QUESTIONS or topic in SIGNALS or words.is_hotword(topic)

    def overhear(self, letter: Letter) -> bool:
        """Take all that is no question; see `mqtt_guest.Guest`."""
        if letter.topic in words.QUESTIONS:
            return False
        try:
            if letter.topic == words.SESSION_ENDED:
                self._on_session_ended(words.ended(letter.payload))
            elif letter.topic == words.SAY_FINISHED:
                self._on_said(words.finished(letter.payload))
            else:
                self._on_hotword(words.detected(letter.payload))
        except InvalidRequest as error:
            self._refuse(letter, error)
        return True

    async def take(self, letter: Letter, delivery: Delivery, receipt: Receipt) -> None:
        """Hand a question to the engine; see `mqtt_guest.Guest`."""
        try:
            asked = words.question(letter.topic, letter.payload)
        except InvalidRequest as error:
            self._refuse(letter, error)
            self._end_session(letter, receipt, error.code)
            return
        if not self._is_ours(asked, letter.received):
            receipt.settle()
            return
        reply = self._reply(asked, receipt)
        if not asked.text:
            reply.drop()
            return
        try:
            request = self._request(asked)
        except (InvalidRequest, ShuttingDown) as error:
            self._intake.refused(error.code)
            reply.fail(error.code)
            return
        for older in self._in_session(asked.session):
            older.leave_session()  # the session belongs to the newest question
        self._open.add(reply)
        reply.on_end = lambda: self._open.discard(reply)
        reply.on_say = lambda utterance_id: self._wait_for(utterance_id, reply)
        conversation_id = conversation_for(asked.session or asked.site)
        try:
            await self._intake.submit(Incoming(request, conversation_id, delivery, letter.received, letter.size), reply)
        except Exception:
            log.exception("a question on %.64r failed by a defect", letter.topic)
            self._intake.refused(InternalError.code)
            reply.fail(InternalError.code)

    def _request(self, asked: words.Question) -> Request:
        if self._closed:
            raise ShuttingDown
        request = Request(
            message=asked.text,
            agent=self._settings.voice_agent,
            stream="sentences",
            context={"site": asked.site},
        )
        return wire.check(request, self._settings)

    def _reply(self, asked: words.Question, receipt: Receipt) -> Reply:
        """Return the way back; an error is told in the asker's language, else in one of the agent's."""
        agent = self._agents().get(self._settings.voice_agent)
        languages = (asked.language, *(agent.languages if agent else ()))
        filler = str(agent.filler["text"]) if agent and agent.filler else None
        return Reply(asked, self._publish, receipt, languages, filler)

    def _end_session(self, letter: Letter, receipt: Receipt, code: str) -> None:
        """Say that a message is no question where its session can be read: somebody waits there for an answer."""
        asked = words.asker(letter.topic, letter.payload)
        if asked and not self._in_session(asked.session) and self._is_ours(asked, letter.received):
            self._reply(asked, receipt).fail(code)
        else:
            receipt.settle()

    def _is_ours(self, asked: words.Question, now: float) -> bool:
        sites = self._settings.hermes_sites
        return (not sites or asked.site in sites) and not self._is_same(asked, now)

    def _is_same(self, asked: words.Question, now: float) -> bool:
        """Tell whether this was asked already in the same session, by a message of another kind.

        What is heard in a session runs through all kinds of messages, so it would be answered once for each that
        HERMES_LISTEN names.
        """
        if asked.session is None:
            return False
        gist = words.gist(asked.text)
        kind, before, when = self._asked.get(asked.session, (asked.kind, gist, now))
        if kind != asked.kind and before == gist and now - when < SAME_S:
            return True
        self._asked[asked.session] = (asked.kind, gist, now)
        self._asked.move_to_end(asked.session)
        if len(self._asked) > SESSIONS:
            self._asked.popitem(last=False)
        return False

    # --------------------------------------------------------------------------------------------------------- signals

    def _on_hotword(self, site: str) -> None:
        """Stop what is being answered on a site: somebody wants to say something else.

        The dialogue manager ends the session by itself. To end it again could end the new one: some managers look at
        the site alone.
        """
        for reply in {reply for reply in (*self._open, *self._speaking.values()) if reply.asked.site == site}:
            self._cancel(reply)
        self._speaking = OrderedDict((key, reply) for key, reply in self._speaking.items() if reply.asked.site != site)

    def _wait_for(self, utterance_id: str, reply: Reply) -> None:
        self._speaking[utterance_id] = reply
        if len(self._speaking) > UTTERANCES:
            self._speaking.popitem(last=False)

    def _on_said(self, utterance_id: str) -> None:
        """Note how far somebody listened."""
        if reply := self._speaking.pop(utterance_id, None):
            if len(self._telling) < SITES:
                self._telling.add(reply.asked.site)
            reply.said(utterance_id)

    def _on_session_ended(self, ended: words.Ended) -> None:
        """Stop what somebody broke off; what only took too long is said outside the session."""
        for reply in self._in_session(ended.session):
            if ended.reason == words.ABORTED:
                self._cancel(reply)
            else:
                reply.leave_session()

    def _in_session(self, session: str | None) -> list[Reply]:
        return [reply for reply in self._open if session is not None and reply.asked.session == session]

    def _cancel(self, reply: Reply) -> None:
        """Stop an answer; only what was heard of it is remembered, as far as that is known."""
        reply.leave_session()
        if reply.ids:
            known = not reply.in_sentences or reply.asked.site in self._telling
            self._intake.cancel(*reply.ids, reply.heard if known else None)

    # -------------------------------------------------------------------------------------------------------- speaking

    def _publish(self, said: words.Said, done: Callable[[], None]) -> None:
        def heard(code: int) -> None:
            self._learn(said.topic, code)
            done()

        self._host.publish(said.topic, said.payload, heard)

    def _learn(self, topic: str, code: int) -> None:
        """Learn from a PUBACK (MQTT 5) whether the broker lets us speak; it may do so on some topics only."""
        denied = code == NOT_AUTHORIZED
        if denied == (topic in self._denied):
            return
        before = bool(self._denied)
        if denied:
            self._denied.add(topic)
            log.error('the broker does not let us answer on "%s": allow this user to write "hermes/#"', topic)
        else:
            self._denied.remove(topic)
        if self.on_change and before != bool(self._denied):
            self.on_change()

    def _refuse(self, letter: Letter, error: InvalidRequest) -> None:
        self._intake.refused(error.code)
        if self._seldom(letter.topic, self._clock.monotonic()):
            log.warning("a message on %.64r is dropped: %s", letter.topic, error)
