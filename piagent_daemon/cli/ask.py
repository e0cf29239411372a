"""Ask a running daemon one question over MQTT and print the answer as it comes.

The text `-` reads the question from standard input. Ctrl-C cancels the answer; a second one leaves at once.
"""

import argparse
import json
import uuid
from typing import Any, Final

from piagent_daemon.cli import FAILED, FINE, USAGE
from piagent_daemon.cli.asking import Line
from piagent_daemon.cli.showing import Display
from piagent_daemon.cli.terminal import Terminal, stderr, stdin, stdout
from piagent_daemon.doors.mqtt_client import MqttClient
from piagent_daemon.errors import DoorError, PiagentError
from piagent_daemon.settings import Settings, load_settings
from piagent_daemon.topics import is_conversation_id

MAX_TIMEOUT_S: Final = 7 * 86_400
NO_CONVERSATION: Final = (
    "a conversation is one topic level of at most 128 characters, without / + # and not a reserved word"
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="+", help='the question; "-" reads it from standard input')
    add_request_options(parser)
    parser.add_argument("--conversation", metavar="ID", help="ask within this conversation (default: a new one)")
    parser.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, help="print the answer as it comes, or only when it is whole"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the last event as JSON; with --stream every event, one a line"
    )
    parser.add_argument("--timeout", type=float, metavar="S", help="give up after so many seconds")


def add_request_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agent", metavar="NAME", help="the agent that answers")
    parser.add_argument("--model", metavar="NAME", help="the model that answers, instead of the agent's")


def run(args: argparse.Namespace) -> int:
    settings = load_settings(args.config).settings
    message = (stdin().read() if args.text == ["-"] else " ".join(args.text)).strip()
    conversation_id = args.conversation or str(uuid.uuid4())
    if problem := _usage_problem(message, conversation_id, args.timeout):
        stderr().line(f"piagent ask: {problem}")
        return USAGE
    out = stdout()
    try:
        return _ask(args, settings, message, conversation_id, out)
    except DoorError as error:
        if not args.json:
            raise
        out.write(json.dumps({"type": "error", "code": error.code, "message": str(error)}, ensure_ascii=False) + "\n")
        return FAILED


def _ask(args: argparse.Namespace, settings: Settings, message: str, conversation_id: str, out: Terminal) -> int:
    """Ask and show the answer; return an exit code: 0 answered, 1 failed or cancelled. Raises PiagentError."""
    stream = not args.json if args.stream is None else args.stream
    display = Display(out, stderr(), raw=args.json, stream=stream)
    timeout_s = args.timeout or settings.first_token_timeout_s + settings.total_timeout_s
    with MqttClient(settings, "piagent-ask") as client:
        line = Line(client, settings, conversation_id)
        line.require_daemon()
        answer = line.ask(request_body(message, args.agent, args.model, stream=stream), timeout_s)
        try:
            last = display.show(answer)
        except (PiagentError, BrokenPipeError):  # nobody reads it any more, or it cannot come
            if client.connected:
                answer.cancel()
            raise
    return FINE if last and last["type"] == "final" and not answer.cancelled else FAILED


def request_body(message: str, agent: str | None, model: str | None, *, stream: bool) -> dict[str, Any]:
    """Return the fields of a request, leaving out what the daemon shall decide."""
    fields = {"message": message, "agent": agent, "model": model, "stream": stream}
    return {name: value for name, value in fields.items() if value is not None}


def _usage_problem(message: str, conversation_id: str, timeout_s: float | None) -> str | None:
    if not message:
        return "the question is empty"
    if not is_conversation_id(conversation_id):
        return NO_CONVERSATION
    if timeout_s is not None and not 0 < timeout_s <= MAX_TIMEOUT_S:
        return f"--timeout must be more than 0 seconds, and at most {MAX_TIMEOUT_S}"
    return None
