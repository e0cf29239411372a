"""A daemon that is only played: retained health and info, and answers by script."""

import json
from datetime import UTC, datetime
from typing import Any

from tests.fakes.observer import Message, Observer


class Responder:
    """Speaks through an observer that sees everything below its base topic."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._seq: dict[str, int] = {}

    async def show(self, status: str = "ok", **fields: Any) -> None:
        """Publish retained health, and info with two agents."""
        await self._observer.publish(
            f"{self._observer.base}/health", {"status": status, "version": "0", **fields}, retain=True
        )
        agents = [{"name": "general", "description": "answers"}, {"name": "voice", "description": "speaks"}]
        await self._observer.publish(f"{self._observer.base}/info", {"agents": agents}, retain=True)

    async def asked(self, number: int = 1) -> Message:
        """Wait for the request with that number and return it."""
        start = 0
        for _ in range(number):
            found = await self._observer.wait(lambda message: message.topic.endswith("/in"), 10, start=start)
            start = self._observer.messages.index(found) + 1
        return found

    async def send(self, request: Message, kind: str, **fields: Any) -> None:
        """Publish one event of the answer where the request wants it."""
        request_id = request.field("id")
        seq = self._seq.get(request_id, 0)
        self._seq[request_id] = seq + 1
        event = {
            "type": kind,
            "conversation_id": request.topic.split("/")[-2],
            "request_id": request_id,
            "attempt": 1,
            "seq": seq,
            "ts": datetime.now(UTC).isoformat(),
            **fields,
        }
        topic = request.properties.get("ResponseTopic") or request.topic.removesuffix("/in") + "/out"
        correlation = request.properties.get("CorrelationData")
        more = {"CorrelationData": correlation} if correlation and self._observer.v5 else {}
        await self._observer.publish(topic, json.dumps(event), **more)

    async def answer(self, request: Message, *texts: str, **fields: Any) -> None:
        """Publish a whole answer: accepted, a chunk for each text, final."""
        await self.send(request, "accepted", position=0, agent="general", model="m")
        for text in texts:
            await self.send(request, "chunk", text=text)
        await self.send(request, "final", **{"reply": "".join(texts), "finish_reason": "stop", **fields})
