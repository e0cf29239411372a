"""How Home Assistant runs a script: YAML with its tags, templates, steps, waits. As much of it as our own files need.

Source: homeassistant/helpers/script.py, script_variables.py and template, homeassistant/components/mqtt/client.py.
"""

import ast
import functools
import heapq
import itertools
import json
import random
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

STEPS: Final = {
    "variables": set(),
    "parallel": set(),
    "sequence": set(),
    "wait_for_trigger": {"timeout", "continue_on_timeout"},
    "delay": set(),
    "action": {"data", "target", "response_variable"},
    "if": {"then", "else"},
    "stop": {"response_variable", "error"},
    "condition": {"value_template"},
}
"""Each kind of step that we use, and what may stand beside its name."""
SUBSCRIBE_LATE_S: Final = 0.1
"""Home Assistant gathers subscriptions for so long before it sends them."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Input:
    """`!input name` in a blueprint."""

    name: str


class Loader(yaml.SafeLoader):
    """YAML as Home Assistant reads it, with the one tag that we use."""


Loader.add_constructor("!input", lambda _loader, node: Input(str(node.value)))


def load(path: Path) -> Any:
    return yaml.load(path.read_text("utf-8"), Loader)  # noqa: S506 - a safe loader with one more tag


ENVIRONMENT: Final = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
ENVIRONMENT.filters |= {"to_json": json.dumps, "from_json": json.loads}
ENVIRONMENT.filters["random"] = random.choice  # Jinja's own would be folded to a constant
ENVIRONMENT.globals["now"] = lambda: datetime.now(UTC)

template = functools.cache(ENVIRONMENT.from_string)


def render(value: Any, variables: Json) -> Any:
    """Render as Home Assistant does: whatever reads like a Python value becomes one."""
    if isinstance(value, dict):
        return {key: render(one, variables) for key, one in value.items()}
    if isinstance(value, list):
        return [render(one, variables) for one in value]
    if not isinstance(value, str) or not re.search(r"{[{%]", value):
        return value
    text = template(value).render(variables).strip()
    try:
        result = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    is_number = type(result) in {int, float}
    return text if isinstance(result, str) or (is_number and not re.fullmatch(r"-?\d+(\.\d+)?", text)) else result


def as_text(value: Any, variables: Json) -> str:
    """Render what has to be a text: a value that became something else is taken as it was written."""
    return template(value).render(variables).strip() if isinstance(value, str) else str(value)


# ------------------------------------------------------------------------------------------------- acting it through


@dataclass(eq=False)
class Wait:
    """A step that waits for one of its triggers; `since` is when the broker knows of the subscription."""

    triggers: list[Json]
    variables: Json
    since: float
    trigger: Json | None = None

    def hear(self, topic: str, payload: bytes) -> bool:
        """Tell whether this message ends the wait. Patterns are rendered with what was known when it began."""
        for one in self.triggers:
            value = as_text(one["value_template"], {"value_json": json.loads(payload)})
            wanted = as_text(one["topic"], self.variables), as_text(one["payload"], self.variables)
            if (topic, value) == wanted:
                self.trigger = {"topic": topic, "payload_json": json.loads(payload)}
                return True
        return False


Steps = Generator[float | Wait, None, None]


class Stopped(Exception):
    """A `stop`, or a condition that is not met."""


@dataclass
class Stage:
    """Runs scripts. `reply` is what the daemon says to a question: the events as they come on `…/out`."""

    reply: Callable[[str, bytes], list[tuple[str, bytes]]] = lambda _topic, _payload: []
    published: list[tuple[str, str, int]] = field(default_factory=list)
    calls: list[tuple[str, Any, Json]] = field(default_factory=list)
    answer: Json = field(default_factory=dict)
    """What `script.ask_piagent` returns to an automation."""
    clock_s: float = 0.0
    waits: dict[Wait, Steps] = field(default_factory=dict)

    def run(self, sequence: list[Json], variables: Json) -> Any:
        """Return what the script returns; `variables` keeps what it set."""
        variables["wait"] = None
        try:
            self._side_by_side([self._steps(sequence, variables)])
        except Stopped as end:
            return variables[str(end)] if str(end) else None
        return None

    def _side_by_side(self, branches: list[Steps]) -> None:
        number = itertools.count()
        queue = [(self.clock_s, next(number), branch) for branch in branches]
        waiting: dict[Wait, Steps] = {}
        while queue or waiting:
            if not queue:  # nothing else happens: the waits time out
                queue = [(self.clock_s, next(number), branch) for branch in waiting.values()]
                waiting.clear()
            self.clock_s, _, branch = heapq.heappop(queue)
            self.waits = waiting
            what = next(branch, None)
            if isinstance(what, Wait):
                waiting[what] = branch
            elif what is not None:
                heapq.heappush(queue, (self.clock_s + what, next(number), branch))
            for wait in [wait for wait in waiting if wait.trigger]:
                heapq.heappush(queue, (self.clock_s, next(number), waiting.pop(wait)))

    def _steps(self, sequence: list[Json], variables: Json) -> Steps:
        for step in sequence:
            match next(kind for kind in STEPS if kind in step):
                case "sequence":
                    yield from self._steps(step["sequence"], variables)
                case "if":
                    if self._holds(step["if"], variables):
                        yield from self._steps(step["then"], variables)
                case "parallel":  # `wait` belongs to its branch, all else is seen outside
                    scopes = [Scope(variables) for _ in step["parallel"]]
                    steps = zip(step["parallel"], scopes, strict=True)
                    self._side_by_side([self._steps(one["sequence"], scope) for one, scope in steps])
                case "wait_for_trigger":
                    assert float(render(step["timeout"], variables)["seconds"]) > 0
                    wait = Wait(step["wait_for_trigger"], dict(variables), self.clock_s + SUBSCRIBE_LATE_S)
                    yield wait
                    variables["wait"] = {"trigger": wait.trigger}
                case "delay":
                    yield step["delay"]["milliseconds"] / 1000
                case kind:
                    self._at_once(kind, step, variables)

    def _at_once(self, kind: str, step: Json, variables: Json) -> None:
        match kind:
            case "variables":
                for name, value in step["variables"].items():
                    variables[name] = render(value, variables)
            case "action":
                self._call(step, variables)
            case "condition":
                if not self._holds([step], variables):
                    raise Stopped
            case "stop":
                raise Stopped(step["response_variable"])

    def _holds(self, conditions: list[Json], variables: Json) -> bool:
        return all(render(one["value_template"], variables) is True for one in conditions)

    def _call(self, step: Json, variables: Json) -> None:
        data = step["data"]
        if step["action"] == "mqtt.publish":
            topic, payload = as_text(data["topic"], variables), as_text(data["payload"], variables)
            self.published.append((topic, payload, data["qos"]))
            for where, event in self.reply(topic, payload.encode()):
                for wait in self.waits:
                    if wait.trigger is None and wait.since <= self.clock_s:
                        wait.hear(where, event)
            return
        self.calls.append((step["action"], step.get("target"), render(data, variables)))
        if "response_variable" in step:
            variables[step["response_variable"]] = self.answer


class Scope(dict[str, Any]):
    """The variables of one branch: `wait` is its own, the rest is that of the script."""

    def __init__(self, outer: Json) -> None:
        super().__init__(outer)
        self._outer = outer

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        if name != "wait":
            self._outer[name] = value
