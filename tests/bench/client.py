"""The load: a bare MQTT 3.1.1 client that puts a stamp on whatever arrives before it looks at it.

Nothing but a socket and one reading thread, so that the load is never what limits a measurement. It subscribes at QoS 0
and publishes at QoS 1. Source: MQTT 3.1.1, sections 3.1 (CONNECT), 3.3 (PUBLISH), 3.8 (SUBSCRIBE).
"""

import json
import queue
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any, Self

CONNECT = b"\x10\x15\x00\x04MQTT\x04\x02\x00\x00\x00\x09benchload"
PUBLISH_QOS_1 = 0x32


class BenchError(Exception):
    """A measurement could not be made."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One message; `at` is the time.monotonic() of the read that brought it."""

    at: float
    topic: str
    event: dict[str, Any]

    @property
    def tag(self) -> str:
        return str(self.event.get("request_id"))


def field(text: bytes) -> bytes:
    return struct.pack("!H", len(text)) + text


def packet(kind: int, body: bytes) -> bytes:
    size, length = len(body), bytearray()
    while True:
        size, digit = divmod(size, 128)
        length.append(digit | (0x80 if size else 0))
        if not size:
            return bytes([kind, *length]) + body


class Client:
    """Publishes requests and collects events; terminal events also go to `terminals`, where a caller waits."""

    def __init__(self, port: int, *filters: str) -> None:
        self.arrivals: list[Arrival] = []
        self.terminals: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(None)
        subscribe = packet(0x82, b"\x00\x01" + b"".join(field(each.encode()) + b"\x00" for each in filters))
        self._ready = threading.Event()
        self._packet_id = 1
        self._socket.sendall(CONNECT + subscribe)
        self._thread = threading.Thread(target=self._read, name="bench-client", daemon=True)
        self._thread.start()
        if not self._ready.wait(5):
            raise BenchError("the broker did not acknowledge the subscription within 5 s")

    def publish(self, topic: str, payload: dict[str, Any]) -> float:
        """Send one message at QoS 1 and return the moment just before."""
        self._packet_id = self._packet_id % 65_535 + 1
        body = field(topic.encode()) + struct.pack("!H", self._packet_id) + json.dumps(payload).encode()
        data = packet(PUBLISH_QOS_1, body)
        at = time.monotonic()
        self._socket.sendall(data)
        return at

    def terminal(self, timeout_s: float) -> Arrival:
        """Wait for the next terminal event."""
        try:
            return self.terminals.get(timeout=timeout_s)
        except queue.Empty:
            raise BenchError(f"no terminal event within {timeout_s} s") from None

    def take(self) -> list[Arrival]:
        """Return what has arrived so far and forget it."""
        taken, self.arrivals = self.arrivals, []
        return taken

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        rest = b""
        while data := self._socket.recv(1 << 18):
            rest = self._parse(rest + data, time.monotonic())

    def _parse(self, data: bytes, at: float) -> bytes:
        start, total = 0, len(data)
        while total - start >= 2:
            size, shift, body = 0, 0, start + 1
            while body < total and data[body] & 0x80:
                size |= (data[body] & 0x7F) << shift
                shift, body = shift + 7, body + 1
            if body >= total:
                break
            size |= data[body] << shift
            end = body + 1 + size
            if end > total:
                break
            self._packet(data[start] >> 4, data[body + 1 : end], at)
            start = end
        return data[start:]

    def _packet(self, kind: int, body: bytes, at: float) -> None:
        if kind == 9:  # SUBACK
            self._ready.set()
        elif kind == 3:  # PUBLISH at QoS 0
            (length,) = struct.unpack_from("!H", body)
            event = json.loads(body[2 + length :])
            arrival = Arrival(at, body[2 : 2 + length].decode(), event)
            self.arrivals.append(arrival)
            if event.get("type") in {"final", "error"}:
                self.terminals.put(arrival)
