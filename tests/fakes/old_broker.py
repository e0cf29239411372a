"""A gate before a real broker that lets nobody in who speaks MQTT 5, as brokers do that only know 3.1.1."""

import asyncio
from typing import Final

from tests.fakes.streams import StreamServer

REFUSAL: Final = b"\x20\x02\x00\x01"
"""A 3.1.1 CONNACK: unacceptable protocol version."""


class OldBroker(StreamServer):
    """Listens on loopback under `port`; `answer` is what a CONNECT of MQTT 5 gets before the connection is closed."""

    def __init__(self, broker_port: int, answer: bytes = REFUSAL) -> None:
        super().__init__()
        self.refused = 0
        self._behind = broker_port
        self._answer = answer

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Refuse a client or join it with the broker behind."""
        first = await reader.read(65_536)
        if first.partition(b"MQTT")[2][:1] == b"\x05":
            self.refused += 1
            writer.write(self._answer)
            await writer.drain()
        elif first:
            await self._pass_on(first, reader, writer)

    async def _pass_on(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_broker, to_broker = await asyncio.open_connection("127.0.0.1", self._behind)
        to_broker.write(first)
        ways = [asyncio.create_task(_copy(reader, to_broker)), asyncio.create_task(_copy(from_broker, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
            to_broker.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
