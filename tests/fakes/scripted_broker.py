"""A peer that speaks just enough MQTT to do what no real broker can be told to do: refuse, stay silent, hold back."""

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tests.fakes.streams import StreamServer

CONNECT, PUBLISH, PUBACK, SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT = 1, 3, 4, 8, 10, 12, 14


@dataclass(frozen=True)
class Packet:
    """One packet of the client; `version` is the protocol level of its connection (4 is 3.1.1, 5 is 5)."""

    kind: int
    flags: int
    body: bytes
    version: int

    @property
    def topic(self) -> str:
        """The topic of a PUBLISH."""
        (size,) = struct.unpack_from("!H", self.body)
        return self.body[2 : 2 + size].decode()

    @property
    def qos(self) -> int:
        return self.flags >> 1 & 3

    @property
    def packet_id(self) -> int:
        """The packet id of a PUBLISH at QoS 1, a PUBACK or a SUBSCRIBE."""
        offset = 2 + len(self.topic.encode()) if self.kind == PUBLISH else 0
        return int.from_bytes(self.body[offset : offset + 2], "big")


def packet(kind: int, body: bytes, flags: int = 0) -> bytes:
    """Return a packet with its fixed header."""
    length, size = b"", len(body)
    while True:
        size, digit = size >> 7, size & 127
        length += bytes([digit | (128 if size else 0)])
        if not size:
            return bytes([kind << 4 | flags]) + length + body


def publish(topic: str, payload: bytes, packet_id: int, version: int, *, dup: bool = False) -> bytes:
    """Return a PUBLISH at QoS 1."""
    name = topic.encode()
    body = struct.pack("!H", len(name)) + name + struct.pack("!H", packet_id) + (b"\0" if version == 5 else b"")
    return packet(PUBLISH, body + payload, 2 | (8 if dup else 0))


class ScriptedBroker(StreamServer):
    """Listens on loopback. `connack` gives the answer to a CONNECT of a protocol level: bytes, or None to close.

    With `acks` False a PUBLISH gets no PUBACK until `ack` is called. A SUBSCRIBE is answered with the codes `subacks`,
    the last one for all that are left; with None it gets no SUBACK until `suback` is called. `packets` are those of all
    connections.
    """

    def __init__(self, connack: Callable[[int], bytes | None] | None = None) -> None:
        super().__init__()
        self.connack = connack or (lambda version: packet(2, b"\0\0\0" if version == 5 else b"\0\0"))
        self.acks = True
        self.subacks: bytes | None = b"\1"
        self.packets: list[Packet] = []
        self.connects = 0
        self.version = 0
        self._writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take packets until the client leaves."""
        self.connects += 1
        self._writer = writer
        while True:
            self._take(await self._packet(reader))

    async def _packet(self, reader: asyncio.StreamReader) -> Packet:
        (head,) = await reader.readexactly(1)
        size = shift = 0
        while True:
            (digit,) = await reader.readexactly(1)
            size |= (digit & 127) << shift
            shift += 7
            if not digit & 128:
                break
        body = await reader.readexactly(size)
        if head >> 4 == CONNECT:
            self.version = body[6]
        return Packet(head >> 4, head & 15, body, self.version)

    def _take(self, one: Packet) -> None:
        self.packets.append(one)
        if one.kind == CONNECT:
            answer = self.connack(one.version)
            if answer is None:
                self.drop()
            else:
                self.send(answer)
        elif one.kind == SUBSCRIBE:
            if self.subacks:
                self.suback(one, self.subacks)
        elif one.kind == PUBLISH and one.qos and self.acks:
            self.ack(one)
        elif one.kind == PINGREQ:
            self.send(packet(13, b""))

    def ack(self, one: Packet, code: int = 0) -> None:
        """Send the PUBACK of a PUBLISH."""
        number = struct.pack("!H", one.packet_id)
        self.send(packet(PUBACK, number if one.version == 4 or not code else number + bytes([code])))

    def suback(self, one: Packet, codes: bytes = b"\1") -> None:
        """Send the SUBACK of a SUBSCRIBE."""
        count = 6 if one.version == 4 else 5
        properties = b"\0" if one.version == 5 else b""
        self.send(packet(9, one.body[:2] + properties + codes + codes[-1:] * (count - len(codes))))

    def send(self, data: bytes) -> None:
        """Write to the newest connection."""
        assert self._writer
        self._writer.write(data)

    def drop(self) -> None:
        """Close the newest connection."""
        assert self._writer
        self._writer.close()

    @property
    def segments(self) -> int:
        """How many TCP segments with data came on the newest connection (Linux; linux/tcp.h, `tcpi_data_segs_in`)."""
        assert self._writer
        info = self._writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
        return int.from_bytes(info[152:156], sys.byteorder)

    def of(self, kind: int, ending: str = "") -> list[Packet]:
        """Return the packets of a kind; for PUBLISH those whose topic ends so."""
        return [one for one in self.packets if one.kind == kind and (not ending or one.topic.endswith(ending))]
