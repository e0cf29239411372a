"""Talk with a running daemon over MQTT, in one conversation.

Ctrl-C cancels a running answer and leaves at the prompt; so do /quit and the end of input. /help lists the commands.
"""

import argparse
import uuid
from contextlib import suppress
from typing import Final, Self

from piagent_daemon.cli import FAILED, FINE, USAGE
from piagent_daemon.cli.ask import NO_CONVERSATION, add_request_options, request_body
from piagent_daemon.cli.asking import HEALTH_WAIT_S, Line
from piagent_daemon.cli.showing import Display
from piagent_daemon.cli.terminal import stderr, stdin, stdout
from piagent_daemon.doors.mqtt_client import MqttClient
from piagent_daemon.errors import DoorError
from piagent_daemon.settings import Settings, load_settings
from piagent_daemon.topics import is_conversation_id

_HELP: Final = (
    "/reset       forget this conversation",
    "/agent NAME  let another agent answer; without a name: list them",
    "/quit        leave (also Ctrl-D, and Ctrl-C at the prompt)",
)


def configure(parser: argparse.ArgumentParser) -> None:
    add_request_options(parser)
    parser.add_argument("--conversation", metavar="ID", help="go on with this conversation (default: a new one)")


def run(args: argparse.Namespace) -> int:
    settings = load_settings(args.config).settings
    conversation_id = args.conversation or f"chat-{uuid.uuid4().hex[:12]}"
    if not is_conversation_id(conversation_id):
        stderr().line(f"piagent chat: {NO_CONVERSATION}")
        return USAGE
    with Chat(settings, conversation_id, args.agent, args.model) as chat:
        return chat.run()


class Chat:
    """A conversation on the terminal; connects at entering and anew when the broker was lost. Raises DoorError."""

    def __init__(
        self,
        settings: Settings,
        conversation_id: str,
        agent: str | None = None,
        model: str | None = None,
        wait_s: float = HEALTH_WAIT_S,
    ) -> None:
        self._settings = settings
        self._conversation_id = conversation_id
        self._agent = agent
        self._model = model
        self._wait_s = wait_s
        self._out = stdout()
        self._notes = stderr()
        self._client = MqttClient(settings, "piagent-chat")
        self._line: Line | None = None

    def __enter__(self) -> Self:
        try:
            self._connected_line()
        except BaseException:
            self._client.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def run(self) -> int:
        """Read questions to the end of input; return an exit code, 1 when input is no terminal and an answer failed."""
        interactive = stdin().isatty()
        if interactive:
            with suppress(ImportError):  # editing and history of the lines typed here, in memory only
                import readline  # noqa: F401, PLC0415
            self._out.line("Write a message; /help lists the commands, Ctrl-D leaves.", "dim")
        failed = False
        while True:
            try:
                words = input("> " if interactive else "").strip()
            except (EOFError, KeyboardInterrupt):
                if interactive:
                    self._out.line()
                return FAILED if failed and not interactive else FINE
            if words in {"/quit", "/exit"}:
                return FINE
            if words:
                failed |= not self._handle(words)

    def ask(self, message: str) -> int:
        """Ask one question and show the answer; return an exit code: 0 answered, 1 failed or cancelled."""
        line = self._connected_line()
        body = request_body(message, self._agent, self._model, stream=True)
        timeout_s = self._settings.first_token_timeout_s + self._settings.total_timeout_s
        answer = line.ask(body, timeout_s)
        last = Display(self._out, self._notes).show(answer)
        return FINE if last and last["type"] == "final" and not answer.cancelled else FAILED

    def _handle(self, words: str) -> bool:
        try:
            match words.split():
                case ["/help"]:
                    for text in _HELP:
                        self._out.line(text)
                case ["/reset"]:
                    self._connected_line().reset()
                    self._out.line("Forgotten.", "dim")
                case ["/agent"]:
                    self._list_agents()
                case ["/agent", name]:
                    self._choose_agent(name)
                case [command, *_] if command.startswith("/"):
                    self._notes.line(f"There is no {command}; /help lists the commands.", "yellow")
                    return False
                case _:
                    return self.ask(words) != FAILED
        except KeyboardInterrupt:
            self._out.end_line()
            return False
        except DoorError as error:
            self._notes.line(str(error), "red")
            return False
        return True

    def _list_agents(self) -> None:
        for name, description in self._connected_line().agents.items():
            self._out.line(f"{'*' if name == self._agent else ' '} {name:<16} {description}")

    def _choose_agent(self, name: str) -> None:
        known = self._connected_line().agents
        if known and name not in known:
            self._notes.line(f"There is no agent {name}; known are {', '.join(known)}.", "yellow")
            return
        self._agent = name
        self._out.line(f"{name} answers now.", "dim")

    def _connected_line(self) -> Line:
        if self._line is None or not self._line.connected:
            self._client.connect()
            self._line = Line(self._client, self._settings, self._conversation_id)
        self._line.drain()
        self._line.require_daemon(self._wait_s)
        return self._line
