"""How an answer looks on the terminal."""

import json

from piagent_daemon.checks import REMEDIES
from piagent_daemon.cli.asking import Answer, Event
from piagent_daemon.cli.terminal import Terminal
from piagent_daemon.errors import DoorError


class Display:
    """Writes text to `out` as it comes and everything about it to `notes`; with `raw`, events as lines of JSON."""

    def __init__(self, out: Terminal, notes: Terminal, *, raw: bool = False, stream: bool = True) -> None:
        self._out = out
        self._notes = notes
        self._raw = raw
        self._stream = stream
        self._shown = ""
        self._attempt = 1

    def show(self, answer: Answer) -> Event | None:
        """Show an answer to its end and return the terminal event.

        The first Ctrl-C cancels the answer and shows what was said so far; None when the daemon then stays silent. A
        second one raises KeyboardInterrupt. Raises DoorError when the broker is lost or time is up.
        """
        answer.on_notice = self._warn
        try:
            return self._run(answer)
        except KeyboardInterrupt:
            answer.cancel()
        except DoorError:
            self._out.end_line()
            raise
        try:
            return self._run(answer)
        except DoorError:
            self._out.end_line()
            return None

    def _run(self, answer: Answer) -> Event | None:
        last = None
        for last in answer:
            self._take(last)
        return last

    def _take(self, event: Event) -> None:
        terminal = event["type"] in {"final", "error"}
        if self._raw:
            if terminal or self._stream:
                self._out.write(json.dumps(event, ensure_ascii=False) + "\n")
            return
        self._check_attempt(event)
        match event["type"]:
            case "accepted" if event.get("position"):
                self._note(f"waiting, {event['position']} before this one")
            case "status":
                self._note(str(event.get("detail") or event.get("stage")))
            case "chunk":
                text = str(event.get("text", ""))
                self._shown += text
                self._out.write(text)
            case "final":
                self._finish(event)
            case "error":
                self._fail(event)

    def _check_attempt(self, event: Event) -> None:
        attempt = event.get("attempt", 1)
        if attempt > self._attempt:
            self._attempt = attempt
            if self._shown:
                self._shown = ""
                self._warn("The daemon was restarted; the answer begins again.")

    def _finish(self, event: Event) -> None:
        reply = str(event.get("reply", ""))
        if reply.startswith(self._shown):
            self._out.write(reply[len(self._shown) :])
        else:  # chunks travel at QoS 0: the final answer counts
            self._warn("Pieces were lost on the way; the whole answer:")
            self._out.write(reply)
        self._out.end_line()
        if event.get("finish_reason") == "cancelled":
            self._notes.line("Cancelled.", "yellow")
        elif event.get("finish_reason") == "length":
            self._note("The answer was cut off at its greatest length (MAX_TOKENS).")

    def _fail(self, event: Event) -> None:
        self._out.end_line()
        code = str(event.get("code", "error"))
        message = str(event.get("message", "The daemon gave no reason."))
        self._notes.line(f"{code}: {message}", "red")
        if code in REMEDIES:
            self._notes.line(REMEDIES[code])

    def _warn(self, text: str) -> None:
        self._out.end_line()
        self._notes.line(text, "yellow")

    def _note(self, text: str) -> None:
        """Say something about the answer to a person, unless in the middle of a line; a script does not want it."""
        if self._notes.interactive and self._out.at_line_start:
            self._notes.line(text, "dim")
