"""Topic names, both ways.

Source: contract section 1; MQTT 5.0 section 4.7 (topic names and filters), 1.5.4 (UTF-8 strings).
"""

import unicodedata
from hashlib import sha256
from typing import Final, NamedTuple
from uuid import UUID

RESERVED: Final = frozenset({"request", "response", "tool", "health", "info", "in"})
MAX_CONVERSATION_CHARS: Final = 128
DOCTOR: Final = "piagent-doctor-"
"""How the conversations begin in which `piagent doctor` looks whether its own messages come back."""
_UNSAFE_CATEGORIES: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})


def is_text_safe(text: str) -> bool:
    """Tell whether a broker takes `text` as part of a topic name: no controls, surrogates or non-characters."""
    return not any(
        unicodedata.category(char) in _UNSAFE_CATEGORIES
        or (ord(char) & 0xFFFE) == 0xFFFE
        or 0xFDD0 <= ord(char) <= 0xFDEF
        for char in text
    )


def is_conversation_id(text: str) -> bool:
    """Tell whether `text` can be a conversation: one topic level that we can publish on."""
    return (
        0 < len(text) <= MAX_CONVERSATION_CHARS
        and text not in RESERVED
        and not any(char in text for char in "/+#")
        and is_text_safe(text)
    )


def conversation_for(name: str) -> str:
    """Return the conversation of somebody who has only a foreign name: that name, or a UUID made of it.

    The same name always gives the same conversation. Source: RFC 9562 section 5.5 (UUIDs made of names).
    """
    if is_conversation_id(name):
        return name
    return str(UUID(bytes=sha256(name.encode("utf-8", "surrogatepass")).digest()[:16], version=5))


def is_publishable(topic: str) -> bool:
    """Tell whether a broker takes a publish on `topic`; one that it refuses would block every other reply."""
    return (
        0 < len(topic.encode("utf-8", "replace")) <= 65_535
        and topic.count("/") < 200
        and not any(char in topic for char in "+#")
        and not topic.startswith("$")
        and is_text_safe(topic)
    )


class Inbound(NamedTuple):
    """What an incoming topic means: `kind` is in, cancel, reset or request; `name` the conversation or the method.

    `name` is None for `<base>/in`.
    """

    kind: str
    name: str | None


class Topics(NamedTuple):
    """All topic names below one base topic, which may have several levels."""

    base: str

    @property
    def filters(self) -> tuple[tuple[str, int], ...]:
        """Subscriptions as (filter, QoS). `cancel` is QoS 0, so that a full window cannot hold it back."""
        return (
            (f"{self.base}/in", 1),
            (f"{self.base}/+/in", 1),
            (f"{self.base}/+/cancel", 0),
            (f"{self.base}/+/reset", 1),
            (f"{self.base}/request/#", 1),
        )

    @property
    def health(self) -> str:
        return f"{self.base}/health"

    @property
    def info(self) -> str:
        return f"{self.base}/info"

    def inbox(self, conversation_id: str | None = None) -> str:
        return f"{self.base}/{conversation_id}/in" if conversation_id else f"{self.base}/in"

    def out(self, conversation_id: str) -> str:
        return f"{self.base}/{conversation_id}/out"

    def cancel(self, conversation_id: str) -> str:
        return f"{self.base}/{conversation_id}/cancel"

    def reset(self, conversation_id: str) -> str:
        return f"{self.base}/{conversation_id}/reset"

    def request(self, method: str) -> str:
        return f"{self.base}/request/{method}"

    def response(self, method: str) -> str:
        return f"{self.base}/response/{method}"

    def parse(self, topic: str) -> Inbound | None:
        """Say what an incoming topic means, or None when it has no safe topic to answer on."""
        if not topic.startswith(self.base + "/"):
            return None
        rest = topic[len(self.base) + 1 :]
        if rest == "in":
            return Inbound("in", None)
        if rest.startswith("request/"):
            method = rest.removeprefix("request/")
            return Inbound("request", method) if is_publishable(self.response(method)) else None
        name, _, kind = rest.rpartition("/")
        if kind not in {"in", "cancel", "reset"} or not is_conversation_id(name):
            return None
        return Inbound(kind, name)
