"""Admin requests over MQTT: `<base>/request/<method>` in, `<base>/response/<method>` out (contract section 5)."""

import asyncio
import logging
from contextlib import aclosing
from typing import Any, Final

from pydantic_core import from_json

from piagent_daemon.contract import AdminError, AdminResponse
from piagent_daemon.doors.mqtt_connection import JSON, Packed
from piagent_daemon.doors.mqtt_letter import Letter, check_response_topic, delivery_of
from piagent_daemon.doors.mqtt_link import Link
from piagent_daemon.doors.mqtt_reply import Receipt
from piagent_daemon.errors import Busy, InternalError, InvalidRequest, PiagentError
from piagent_daemon.ports import Admin
from piagent_daemon.topics import Topics

log = logging.getLogger("piagent.mqtt")

MAX_TASKS: Final = 32
"""Admin requests that run at a time; one more is answered `busy`."""
TWICE: Final = frozenset({"cancel", "in", "reset"})
"""Methods whose topics two of our subscriptions match (`request/#`, `+/cancel`): most brokers then bring two copies."""
TWIN_S: Final = 1.0


class Clerk:
    """Has admin requests answered, each in a task of its own; the input is acknowledged after the last response."""

    def __init__(self, admin: Admin, link: Link, topics: Topics, prefixes: tuple[str, ...]) -> None:
        self._admin = admin
        self._link = link
        self._topics = topics
        self._prefixes = prefixes
        self._tasks: set[asyncio.Task[None]] = set()
        self._live: dict[str, Receipt] = {}
        self._last: Letter | None = None

    def take(self, letter: Letter) -> None:
        """Begin to answer one admin request."""
        method = letter.inbound.name or ""
        receipt = Receipt(self._link)
        receipt.add(letter.generation, letter.packet_id, letter.qos)
        if method in TWICE and self._is_twin(letter):
            receipt.settle()
            return
        key = delivery_of(letter, None, None).key
        if letter.redelivered and key in self._live:
            self._live[key].merge(receipt)
            return
        topic = self._topics.response(method)
        try:
            if letter.response_topic is not None:
                check_response_topic(letter.response_topic, self._prefixes, self._topics)
                topic = letter.response_topic
        except InvalidRequest as error:
            self._publish(topic, letter, receipt, _failure(error, letter.payload))
            return
        if len(self._tasks) >= MAX_TASKS:
            busy = Busy("Too many admin requests run; ask again in a moment.")
            self._publish(topic, letter, receipt, _failure(busy, letter.payload))
            return
        self._live[key] = receipt
        task = asyncio.get_running_loop().create_task(
            self._answer(method, topic, letter, receipt), name=f"admin {method}"
        )
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, key, topic, letter, receipt))

    def _is_twin(self, letter: Letter) -> bool:
        """Tell whether this is the second copy of one message; they may differ in their QoS."""
        last, self._last = self._last, letter
        if last is None or letter.received - last.received > TWIN_S:
            return False
        same = (last.topic, last.payload, last.correlation) == (letter.topic, letter.payload, letter.correlation)
        self._last = None if same else letter
        return same

    def _ended(self, task: asyncio.Task[None], key: str, topic: str, letter: Letter, receipt: Receipt) -> None:
        """Say so when the answer died by a defect; else the request would come again at each connect."""
        self._tasks.discard(task)
        self._live.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed by a defect", task.get_name(), exc_info=error)
            why = InternalError()
            self._publish(topic, letter, receipt, _failure(why, letter.payload))

    async def _answer(self, method: str, topic: str, letter: Letter, receipt: Receipt) -> None:
        async with aclosing(self._admin.handle(method, letter.payload)) as responses:
            async for response in responses:
                self._publish(topic, letter, receipt, response)

    def _publish(self, topic: str, letter: Letter, receipt: Receipt, response: AdminResponse) -> None:
        properties = JSON if letter.correlation is None else Packed(letter.correlation)
        payload = response.encode()
        if not self._link.outbox.fits(topic, payload, properties):
            why = InternalError(f"The response has {len(payload)} bytes; the MQTT broker does not take that.")
            response = _failure(why, letter.payload)
            payload = response.encode()
        last = response.status != "progress"
        self._link.outbox.publish(topic, payload, 1, properties, done=(lambda _: receipt.settle()) if last else None)

    async def stop(self) -> None:
        """Cut off what still runs."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


def _failure(error: PiagentError, payload: bytes) -> AdminResponse:
    why = AdminError(code=error.code, message=str(error))
    transaction = _transaction(payload)
    if transaction is None:
        return AdminResponse(status="error", error=why)
    return AdminResponse(status="error", error=why, transaction=transaction)


def _transaction(payload: bytes) -> Any:
    """Return what the asker wants echoed, however broken the rest is."""
    try:
        value = from_json(payload, allow_inf_nan=False)
    except ValueError:
        return None
    return value.get("transaction") if isinstance(value, dict) else None
