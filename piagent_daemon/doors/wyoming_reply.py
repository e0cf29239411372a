"""The way back of one question that came by Wyoming: its events, in the order that Home Assistant wants them."""

import asyncio
from collections.abc import Callable

from piagent_daemon import wire
from piagent_daemon.apologies import UNSPEAKABLE, apology
from piagent_daemon.contract import ErrorEvent, Event, Sentence
from piagent_daemon.contract import Final as FinalEvent
from piagent_daemon.doors import wyoming_words as words
from piagent_daemon.errors import Cancelled, InternalError


class Reply:
    """Says the answer to one question (`ports.Channel`).

    `languages` are those in which an error may be told, best first.
    """

    def __init__(self, write: Callable[[words.Event], None], languages: tuple[str | None, ...]) -> None:
        self.ids: tuple[str, str] | None = None
        """Conversation and request, once they are known."""
        self.ended = asyncio.Event()
        self._write = write
        self._languages = languages
        self._said = ""

    def send(self, event: Event) -> None:
        """Hand over one event; see `ports.Channel`."""
        self.ids = (event.conversation_id, event.request_id)
        match event:
            case Sentence():
                self._say(event.text)
            case FinalEvent():
                cancelled = event.finish_reason == "cancelled"
                self._finish(event.speech or ("" if cancelled else apology(UNSPEAKABLE, *self._languages)))
            case ErrorEvent() if event.code == Cancelled.code:
                self.drop()
            case ErrorEvent():
                self.fail(event.code)

    def send_again(self, terminal: bytes) -> None:
        """Hand over a stored terminal event; see `ports.Channel`."""
        self.send(wire.read_terminal(terminal))

    def drop(self) -> None:
        """End without a word; see `ports.Channel`."""
        self._end(words.not_handled(""))

    def abandon(self) -> None:
        """End with an apology: this transport brings nothing back; see `ports.Channel`."""
        self.fail(InternalError.code)

    def fail(self, code: str) -> None:
        """Tell in a short sentence that there is no answer."""
        self._end(words.not_handled(apology(code, *self._languages)))

    def _say(self, text: str) -> None:
        if not self._said:
            self._write(words.start(self._conversation))
        piece = words.joined(self._said, text)
        self._said += piece
        self._write(words.chunk(piece))

    def _finish(self, speech: str) -> None:
        if speech and not self._said:
            self._say(speech)
        alike = "".join(self._said.split()) == "".join(speech.split())  # white space between sentences is our guess
        self._end(words.handled(self._said if alike else speech, self._conversation))

    def _end(self, last: words.Event) -> None:
        self._write(last)
        if self._said:
            self._write(words.stop())
        self.ended.set()

    @property
    def _conversation(self) -> str:
        return self.ids[0] if self.ids else ""
