"""The way back of one question that came by Hermes."""

from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

from piagent_daemon import wire
from piagent_daemon.apologies import UNSPEAKABLE, apology
from piagent_daemon.contract import ErrorEvent, Event, Sentence
from piagent_daemon.contract import Final as FinalEvent
from piagent_daemon.doors import hermes_words as words
from piagent_daemon.doors.mqtt_reply import Receipt
from piagent_daemon.errors import Cancelled
from piagent_daemon.sentences import Splitter

Publish = Callable[[words.Said, Callable[[], None]], None]


class Reply:
    """Says the answer to one question (`ports.Channel`); the input is settled when the broker has all that was said.

    `languages` are those in which an error may be told, best first; `filler` is what the agent says while the model is
    slow.
    """

    def __init__(
        self,
        asked: words.Question,
        publish: Publish,
        receipt: Receipt,
        languages: tuple[str | None, ...],
        filler: str | None = None,
    ) -> None:
        self.asked = asked
        self.ids: tuple[str, str] | None = None
        """Conversation and request, once they are known."""
        self.on_end: Callable[[], None] | None = None
        self.on_say: Callable[[str], None] | None = None
        """Called with the id of each sentence that is to be said outside a session."""
        self.heard = -1
        """Index of the last sentence that was said to its end, as far as the loudspeaker tells."""
        self._publish = publish
        self._receipt = receipt
        self._languages = languages
        self._filler = filler
        self._waiting: list[Sentence] = []
        """What is not said while the session lasts, which ends with the whole answer."""
        self._sentences: dict[str, int] = {}
        self._unsafe = 0
        self._ended = False

    def leave_session(self) -> None:
        """Say what is still to be said outside the session, which is over or belongs to another question."""
        self.asked = replace(self.asked, session=None)

    @property
    def in_sentences(self) -> bool:
        """Tell whether a sentence of the answer was said."""
        return bool(self._sentences)

    def said(self, utterance_id: str) -> None:
        """Take note that a sentence was said to its end."""
        self.heard = max(self.heard, self._sentences.get(utterance_id, -1))

    # ------------------------------------------------------------------------------------------------------------ port

    def send(self, event: Event) -> None:
        """Hand over one event; see `ports.Channel`."""
        self.ids = (event.conversation_id, event.request_id)
        match event:
            case Sentence() if self.asked.session and event.index == 0 and event.text == self._filler:
                self._say(event.text, str(uuid4()))
            case Sentence():
                self._waiting.append(event)
                if not self.asked.session:
                    self._say_waiting()
            case FinalEvent() if event.finish_reason == "cancelled":
                self.drop()
            case FinalEvent():
                self._answer(event.speech or apology(UNSPEAKABLE, *self._languages), ask=event.expects_reply)
            case ErrorEvent() if event.code == Cancelled.code:
                self.drop()
            case ErrorEvent():
                self.fail(event.code)

    def send_again(self, terminal: bytes) -> None:
        """Hand over a stored terminal event once more; see `ports.Channel`."""
        self.send(wire.read_terminal(terminal))

    def drop(self) -> None:
        """End without a word; see `ports.Channel`."""
        if self.asked.session:
            self._tell(words.end_session(self.asked))
        elif self.asked.kind == "query":
            self._tell(words.not_recognized(self.asked))
        self._end()

    def abandon(self) -> None:
        """Leave the question to the broker, which brings it again; see `ports.Channel`."""
        self._receipt.forget()
        self._close()

    def fail(self, code: str) -> None:
        """Tell in a short sentence that there is no answer."""
        text = apology(code, *self._languages)
        if self.asked.session:
            self._tell(words.end_session(self.asked, text))
        else:
            self._say(text, str(uuid4()))
            if self.asked.kind == "query":
                self._tell(words.not_recognized(self.asked))
        self._end()

    # -------------------------------------------------------------------------------------------------------- speaking

    def _answer(self, text: str, *, ask: bool) -> None:
        if self.asked.session:
            said = words.continue_session if ask else words.end_session
            self._tell(said(self.asked, text))
        else:
            self._say_waiting()
            if not self._sentences:  # it was stored, without its sentences
                splitter = Splitter()
                for sentence in splitter.feed(text) + splitter.close() or [text]:
                    self._say(sentence, str(uuid4()))
            if self.asked.kind == "query":
                self._tell(words.intent(self.asked, text))
        self._end()

    def _say_waiting(self) -> None:
        for sentence in self._waiting:
            self._sentences[utterance_id := str(uuid4())] = sentence.index
            self._say(sentence.text, utterance_id)
            if self.on_say:
                self.on_say(utterance_id)
        self._waiting.clear()

    def _say(self, text: str, utterance_id: str) -> None:
        self._tell(words.say(self.asked, text, utterance_id))

    def _tell(self, said: words.Said) -> None:
        self._unsafe += 1
        self._publish(said, self._safe)

    def _safe(self) -> None:
        self._unsafe -= 1
        self._look_done()

    def _end(self) -> None:
        self._ended = True
        self._close()
        self._look_done()

    def _close(self) -> None:
        if self.on_end:
            self.on_end()

    def _look_done(self) -> None:
        if self._ended and not self._unsafe:
            self._receipt.settle()
