"""Breaks loops: a flow that feeds our replies back to us (contract section 6)."""

import logging
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

from piagent_daemon.ports import Clock

log = logging.getLogger("piagent.loops")

ECHOES: Final = 5
ECHO_WINDOW_S: Final = 60.0
CONVERSATIONS: Final = 1000
"""Conversations whose last reply is kept; the one that replied longest ago goes first."""


@dataclass(slots=True)
class Echo:
    """The hash of a conversation's last reply, and when texts equal to it came in (monotonic seconds)."""

    reply: int = 0
    heard: deque[float] = field(default_factory=deque)


class LoopBreaker:
    """Notices a text equal to our last reply more than ECHOES times within ECHO_WINDOW_S seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._echoes: OrderedDict[str, Echo] = OrderedDict()

    def replied(self, conversation_id: str, reply: str) -> None:
        """Note our newest reply; those to questions that named no conversation go by one empty name."""
        self._echoes[conversation_id] = echo = self._echoes.pop(conversation_id, None) or Echo()
        echo.reply = hash(reply.strip())
        if len(self._echoes) > CONVERSATIONS:
            self._echoes.popitem(last=False)

    def is_echo(self, conversation_id: str, message: str) -> bool:
        """Tell whether `message` must not be answered, because it is our own reply once too often."""
        echo = self._echoes.get(conversation_id)
        if echo is None or echo.reply != hash(message):
            return False
        now = self._clock.monotonic()
        while echo.heard and now - echo.heard[0] > ECHO_WINDOW_S:
            echo.heard.popleft()
        if len(echo.heard) > ECHOES:
            return True
        echo.heard.append(now)
        if len(echo.heard) > ECHOES:
            who = f"conversation {conversation_id[:64]!r}" if conversation_id else "somebody without a conversation"
            log.warning("%s sends our own replies back: not answered for a minute", who)
            return True
        return False

    def forget(self, conversation_id: str | None = None) -> None:
        """Forget a conversation's last reply, or those of all."""
        if conversation_id is None:
            self._echoes.clear()
        else:
            self._echoes.pop(conversation_id, None)
