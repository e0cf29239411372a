"""One question over MQTT to a running daemon, and its answer, event by event."""

import json
import math
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, Self

from piagent_daemon.doors.mqtt_client import MqttClient, Received
from piagent_daemon.errors import DoorError
from piagent_daemon.settings import Settings
from piagent_daemon.topics import Topics
from piagent_daemon.wire import object_in

Event = dict[str, Any]
"""One event as it came: a newer daemon may add fields, so it is not held against the models."""

HEALTH_WAIT_S: Final = 2.0
CANCEL_WAIT_S: Final = 3.0
ACCEPT_WAIT_S: Final = 5.0
"""`accepted` comes before any model call: later than this, something keeps the daemon from hearing or speaking."""
_TERMINAL: Final = frozenset({"final", "error"})


class Line:
    """A client's end of one conversation on a connected client; every method raises DoorError."""

    def __init__(self, client: MqttClient, settings: Settings, conversation_id: str) -> None:
        self.conversation_id = conversation_id
        self.agents: dict[str, str] = {}
        """Agents of the daemon with their descriptions, as far as its info told."""
        self._client = client
        self._topics = Topics(settings.mqtt_base_topic)
        self._health: str | None = None
        self._out = self._topics.out(conversation_id)
        # The response topic is `…/out` itself: it is what an ACL lets a client read.
        answers_there = client.protocol == "5" and self._out.startswith(settings.response_topic_prefixes)
        self._reply_to = self._out if answers_there else None
        # Brokers send what is retained in this order: when health is there, so are the agents.
        client.subscribe((self._out, 1), (self._topics.info, 1), (self._topics.health, 1))

    @property
    def connected(self) -> bool:
        return self._client.connected

    @property
    def daemon_gone(self) -> bool:
        """Tell whether the last health said offline."""
        return self._health == "offline"

    def require_daemon(self, wait_s: float = HEALTH_WAIT_S) -> None:
        """Return when the daemon's health says that it runs; raise DoorError with a remedy after `wait_s` seconds."""
        deadline = time.monotonic() + wait_s
        while self._health in {None, "offline"}:
            if not self.receive(deadline - time.monotonic()) and time.monotonic() >= deadline:
                state = "is stopped" if self._health else f"does not show itself on {self._topics.health}"
                raise DoorError(
                    f"The piagent daemon {state}. Start it with `piagent run` or `sudo systemctl start piagent`; "
                    "`piagent demo` needs neither daemon nor broker, `piagent doctor` looks for what is wrong."
                )

    def ask(self, body: Mapping[str, Any], timeout_s: float) -> "Answer":
        """Send one request (its fields without `id`) and return its answer to be iterated."""
        request_id = str(uuid.uuid4())
        payload = json.dumps({"id": request_id, **body}, ensure_ascii=False).encode("utf-8", "replace")
        self._client.publish(
            self._topics.inbox(self.conversation_id),
            payload,
            reply_to=self._reply_to,
            correlation=request_id.encode() if self._reply_to else None,
        )
        return Answer(self, request_id, timeout_s)

    def cancel(self, request_id: str) -> None:
        self._client.publish(self._topics.cancel(self.conversation_id), json.dumps({"id": request_id}).encode(), 0)

    def reset(self) -> None:
        """Make the daemon forget the conversation."""
        self._client.publish(self._topics.reset(self.conversation_id), b"", 1)

    def receive(self, timeout_s: float) -> Event | None:
        """Return the next event; None when something else or nothing came within `timeout_s` seconds."""
        message = self._client.receive(timeout_s)
        return self._read(message) if message else None

    def drain(self) -> None:
        """Read what came since the last question: health, info, and events that nobody waits for."""
        while message := self._client.receive(0.0):
            self._read(message)

    def _read(self, message: Received) -> Event | None:
        found = object_in(message.payload)
        if message.topic == self._out:
            return found or None
        if message.topic == self._topics.health:
            self._health = str(found.get("status")) if found else None
        elif found:
            agents = found.get("agents")
            rows = [row for row in agents if isinstance(row, dict)] if isinstance(agents, list) else []
            self.agents = {str(row.get("name")): str(row.get("description", "")) for row in rows}
        return None


class Answer:
    """The events of one request until its terminal one; an iterator that outlives a KeyboardInterrupt."""

    def __init__(self, line: Line, request_id: str, timeout_s: float) -> None:
        self.on_notice: Callable[[str], None] | None = None
        """Called with a sentence when the daemon goes away or gives no sign of life, once each."""
        self.cancelled = False
        """Whether this side asked to stop."""
        self._line = line
        self._request_id = request_id
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._doubt = time.monotonic() + ACCEPT_WAIT_S
        self._seen = (0, -1)
        self._gone = False
        self._ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        if self._ended:
            raise StopIteration
        while True:
            now = time.monotonic()
            if now >= self._deadline:
                raise DoorError(f"No answer within {self._timeout_s:g} s.")
            event = self._line.receive(min(self._deadline, self._doubt) - now)
            self._watch()
            if event and self._is_news(event):
                self._ended = event["type"] in _TERMINAL
                return event

    def cancel(self, wait_s: float = CANCEL_WAIT_S) -> None:
        """Ask the daemon to stop; the iteration then goes on for at most `wait_s` seconds."""
        self.cancelled = True
        self._line.cancel(self._request_id)
        self._timeout_s = wait_s
        self._deadline = time.monotonic() + wait_s

    def _watch(self) -> None:
        """Tell once when the daemon goes away, and once when it did not even accept the request."""
        if self._line.daemon_gone and not self._gone:
            self._gone = True
            self._notice("The daemon went away; the answer comes after its restart. Ctrl-C gives up.")
        if time.monotonic() >= self._doubt:
            self._doubt = math.inf
            if not self._gone and not self.cancelled:
                self._notice(
                    "The daemon gives no sign. May this user write the question and read the answer? "
                    "Brokers refuse silently; `piagent doctor` proves it."
                )

    def _notice(self, text: str) -> None:
        if self.on_notice:
            self.on_notice(text)

    def _is_news(self, event: Event) -> bool:
        """Tell whether an event is ours and comes the first time: QoS 1 may bring it twice."""
        attempt, seq = event.get("attempt", 1), event.get("seq", 0)
        ours = event.get("request_id") == self._request_id and isinstance(event.get("type"), str)
        if not ours or not isinstance(attempt, int) or not isinstance(seq, int) or (attempt, seq) <= self._seen:
            return False
        self._seen = (attempt, seq)
        self._doubt = math.inf
        return True
