"""A stand-in for a model server: it speaks Ollama's protocol over HTTP on loopback and can only say what it is.

Source: the protocol as documented at https://docs.ollama.com/api, as far as the daemon uses it.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

Json = dict[str, Any]

MODEL: Final = "stand-in:latest"
WORD_S: Final = 0.02
"""Seconds between two words: about as fast as a small model on a desktop computer."""
_MAX_BODY: Final = 16_000_000


@contextmanager
def standin(word_s: float = WORD_S) -> Iterator[str]:
    """Serve on a free loopback port while the context lasts; yields the URL. Raises OSError."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.word_s = word_s
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="stand-in model server")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.leaving.set()
        server.shutdown()
        thread.join()
        server.server_close()


def answer(messages: list[Json]) -> str:
    """Return what the stand-in says to a chat; `messages` as in Ollama's /api/chat."""
    said = [str(message.get("content", "")) for message in messages if message.get("role") == "user"]
    question = " ".join(said[-1].split()) if said else ""
    quoted = question if len(question) <= 200 else question[:200] + " …"
    parts = [f'You said: "{quoted}".' if quoted else "You said nothing."]
    if len(said) > 1:
        parts.append(
            f"Before that, you wrote {len(said) - 1} message{'s' if len(said) > 2 else ''}: I was sent them, too."
        )
    parts.append(
        "I am a stand-in, not a language model, so this is all I can say. The way is real: your words went over an "
        "MQTT broker to the daemon, on to me over HTTP, and come back one by one. "
        "Start Ollama with a model, and it answers in my place."
    )
    return " ".join(parts)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    word_s = WORD_S

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.leaving = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report defects; a client that leaves is none."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    timeout = 60

    def do_GET(self) -> None:
        entry = {"name": MODEL, "model": MODEL, "size": 0, "details": {"parameter_size": "0B", "format": "none"}}
        match self.path:
            case "/api/version":
                self._json({"version": "0.0.0-stand-in"})
            case "/api/tags":
                self._json({"models": [entry]})
            case "/api/ps":
                self._json({"models": [{**entry, "context_length": 4096, "expires_at": "2318-01-01T00:00:00Z"}]})
            case _:
                self._json({"error": "the stand-in does not know this path"}, HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        body = self._body()
        match self.path:
            case _ if body is None:
                self._json({"error": "the body is no JSON object"}, HTTPStatus.BAD_REQUEST)
            case "/api/show":
                self._json({"capabilities": ["completion"], "details": {"format": "none"}, "model_info": {}})
            case "/api/chat":
                self._chat(body)
            case "/api/generate":
                self._chat({**body, "messages": [{"role": "user", "content": body.get("prompt", "")}]}, "response")
            case _:
                self._json({"error": "the stand-in cannot do this; it needs a real Ollama"}, HTTPStatus.NOT_IMPLEMENTED)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it so
        """Stay quiet: the terminal belongs to the chat."""

    def _body(self) -> Json | None:
        length = int(self.headers.get("Content-Length") or 0)
        try:
            value = json.loads(self.rfile.read(min(length, _MAX_BODY)) or b"{}")
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    def _json(self, value: Json, status: HTTPStatus = HTTPStatus.OK) -> None:
        payload = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _chat(self, body: Json, key: str = "message") -> None:
        messages = body.get("messages") or []
        asked = [message for message in messages if isinstance(message, dict)]
        if not asked or not any(message.get("role") == "user" for message in asked):
            self._json({**_line(body, key, ""), "done": True, "done_reason": "load"})
            return
        words = answer(asked).split(" ")
        limit = (body.get("options") or {}).get("num_predict")
        cut = words[:limit] if isinstance(limit, int) and limit > 0 else words
        prompt_tokens = sum(len(str(message.get("content", "")).split()) for message in asked)
        counts = {"prompt_eval_count": prompt_tokens, "eval_count": len(cut)}
        reason = "length" if len(cut) < len(words) else "stop"
        if body.get("stream") is False:
            self._json({**_line(body, key, " ".join(cut)), **counts, "done": True, "done_reason": reason})
            return
        self._stream(body, key, cut, {**counts, "done": True, "done_reason": reason})

    def _stream(self, body: Json, key: str, words: list[str], last: Json) -> None:
        began = time.monotonic_ns()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for number, word in enumerate(words):
                self._piece(_line(body, key, word if number == 0 else f" {word}"))
                if self.server.leaving.wait(self.server.word_s):
                    self.close_connection = True
                    return
            took = time.monotonic_ns() - began
            self._piece({**_line(body, key, ""), **last, "eval_duration": took, "total_duration": took})
            self.wfile.write(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):  # the daemon has cancelled
            self.close_connection = True

    def _piece(self, line: Json) -> None:
        payload = json.dumps(line).encode() + b"\n"
        self.wfile.write(f"{len(payload):x}\r\n".encode() + payload + b"\r\n")
        self.wfile.flush()


def _line(body: Json, key: str, text: str) -> Json:
    content: Json = {"message": {"role": "assistant", "content": text}} if key == "message" else {"response": text}
    return {"model": body.get("model", MODEL), "created_at": datetime.now(UTC).isoformat(), **content, "done": False}
