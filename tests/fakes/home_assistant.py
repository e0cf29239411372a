"""A Home Assistant that knows MQTT discovery: what it refuses, how it renders templates, what becomes of its entities.

Its rules are those of the real one, seen live on 2026.2 and read in its source (homeassistant/components/mqtt): a
mistake in the frame refuses the whole device, one in a component that component. `complaints` has what the real one
would write into its log.
"""

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

Json = dict[str, Any]

AVAILABILITY: Final = {"availability", "availability_mode", "availability_topic", "availability_template"}
FRAME: Final = AVAILABILITY | {"payload_available", "payload_not_available", "state_topic", "command_topic"}
FRAME_KEYS: Final = FRAME | {"o", "origin", "dev", "device", "cmps", "components", "qos", "encoding"}
DEVICE_KEYS: Final = {"ids", "cns", "name", "mf", "mdl", "sw", "hw", "sn", "sa", "cu", "via_device"}
ORIGIN_KEYS: Final = {"name", "sw", "url"}
NEEDED: Final[dict[str, set[str]]] = {
    "event": {"state_topic", "event_types"},
    "notify": {"command_topic"},
    "text": {"command_topic"},
    "sensor": {"state_topic"},
    "binary_sensor": {"state_topic"},
    "select": {"command_topic", "options"},
    "number": {"command_topic"},
    "button": {"command_topic"},
}
"""What each platform that we use cannot do without."""
READ_ONLY: Final = {"event", "sensor", "binary_sensor"}
BLOCKED: Final = {
    "friendly_name",
    "icon",
    "device_class",
    "state",
    "unique_id",
    "unit_of_measurement",
    "entity_category",
}
"""Attributes that a message cannot set."""
MAX_STATE: Final = 255
MAX_RECORDED: Final = 16_384
SENSOR_CLASSES: Final = {"duration": {"s", "min", "h"}, "data_size": {"B", "kB", "KiB", "MB", "MiB", "GiB"}}

ENVIRONMENT: Final = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
template_of = functools.cache(ENVIRONMENT.from_string)


class RefusedError(Exception):
    """Home Assistant would not take this."""


def check_message(topic: str, payload: bytes) -> Json:
    """Return the discovery message as JSON; raise RefusedError for whatever Home Assistant would refuse or lose."""
    found = re.fullmatch(r".+/device/(?:([a-zA-Z0-9_-]+)/)?([a-zA-Z0-9_-]+)/config", topic)
    _need(found is not None, f"the topic {topic!r}")
    frame = json.loads(payload)
    _need(isinstance(frame, dict), "no object")
    _need(not frame.keys() - FRAME_KEYS, f"unknown keys {frame.keys() - FRAME_KEYS}")
    origin, device, parts = frame.get("o"), frame.get("dev"), frame.get("cmps")
    _need(isinstance(origin, dict) and bool(origin.get("name")), "no origin with a name")
    _need(not origin.keys() - ORIGIN_KEYS, "unknown keys in the origin")
    _need(isinstance(device, dict) and bool(device.get("ids") or device.get("cns")), "no device with ids")
    _need(not device.keys() - DEVICE_KEYS, "unknown keys in the device")
    _need(isinstance(parts, dict) and bool(parts), "no components")
    _check_availability(frame)
    seen: set[tuple[str, str]] = set()
    for key, part in parts.items():
        _need(part.get("p") in NEEDED, f"{key}: the platform {part.get('p')!r}")
        _need(isinstance(part.get("unique_id"), str) and part["unique_id"], f"{key}: no unique_id")
        _need((part["p"], part["unique_id"]) not in seen, f"{key}: the unique_id stands twice")
        seen.add((part["p"], part["unique_id"]))
        shared = {name: value for name, value in frame.items() if name in FRAME and name not in part}
        _check_component(key, part | shared)
    _need(len(topic.encode()) + len(payload) < 60_000, "larger than some brokers take")
    result: Json = frame
    return result


def _check_component(key: str, part: Json) -> None:
    platform = part["p"]
    _need(NEEDED[platform] <= part.keys(), f"{key}: lacks {NEEDED[platform] - part.keys()}")
    _need(part.get("qos", 0) in {0, 1, 2}, f"{key}: qos")
    _need(platform not in READ_ONLY or part.get("entity_category") in {None, "diagnostic"}, f"{key}: its category")
    _need(part.get("entity_category") in {None, "config", "diagnostic"}, f"{key}: an unknown category")
    entity_id = part.get("default_entity_id", "")
    _need(re.fullmatch(rf"{platform}\.(?!_)(?!.*__)[a-z0-9_]+(?<!_)", entity_id) is not None, f"{key}: {entity_id!r}")
    _check_availability(part)
    for name, value in part.items():
        if name.endswith("_template"):
            template_of(value)
        elif name.endswith("_topic"):
            _check_topic(value)
    match platform:
        case "text":
            _need(0 <= part.get("min", 0) <= part.get("max", 255) <= MAX_STATE, f"{key}: its length")
        case "number":
            _need(part["min"] < part["max"] and part["step"] >= 0.001, f"{key}: its range")
            _need(part.get("mode", "auto") in {"auto", "box", "slider"}, f"{key}: its mode")
        case "select":
            options = part["options"]
            _need(bool(options) and all(isinstance(option, str) for option in options), f"{key}: its options")
            _need(len(set(options)) == len(options), f"{key}: an option twice")
        case "sensor":
            unit, kind = part.get("unit_of_measurement"), part.get("device_class")
            _need(kind is None or unit in SENSOR_CLASSES[kind], f"{key}: the unit {unit!r} of a {kind}")
            expiry = part.get("expire_after", 0)
            _need(isinstance(expiry, int) and expiry >= 0, f"{key}: expire_after")
        case "binary_sensor":
            _need(part.get("device_class") in {None, "connectivity", "problem"}, f"{key}: its class")


def _check_availability(part: Json) -> None:
    _need(not {"availability", "availability_topic"} <= part.keys(), "two forms of availability")
    _need(isinstance(part.get("availability", []), list), "availability is no list")
    for one in part.get("availability", []):
        _check_topic(one["topic"])
        template_of(one.get("value_template", ""))


def _check_topic(topic: str) -> None:
    _need(0 < len(topic.encode()) <= 65_535 and not set(topic) & set("+#\0"), f"the topic {topic!r}")


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise RefusedError(what)


@dataclass
class Entity:
    """One entity: `state` is None while unknown. `available` as its topics last said; without any it always is."""

    key: str
    config: Json
    available: bool
    state: str | None = None
    attributes: Json = field(default_factory=dict)
    events: list[Json] = field(default_factory=list)
    writes: int = 0
    """How often it was written into the state machine."""

    @property
    def this(self) -> "This":
        if not self.available:
            return This("unavailable", {"friendly_name": self.key})
        return This("unknown" if self.state is None else self.state, {"friendly_name": self.key, **self.attributes})


@dataclass(frozen=True)
class This:
    """What a template knows of its own entity."""

    state: str
    attributes: Json


class HomeAssistant:
    """Reads what comes from the broker: `hear` it, then look at `entities` by their default id."""

    def __init__(self, prefix: str = "homeassistant") -> None:
        self.entities: dict[str, Entity] = {}
        self.complaints: list[str] = []
        self._prefix = prefix
        self._retained: dict[str, bytes] = {}

    def __getitem__(self, entity_id: str) -> Entity:
        return self.entities[entity_id]

    def hear(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Take one message as the integration would."""
        if topic.startswith(f"{self._prefix}/device/"):
            self._discover(topic, payload)
            return
        if topic.endswith(("/health", "/info")):
            self._retained[topic] = payload
        for entity in self.entities.values():
            before = (entity.state, dict(entity.attributes), entity.available, len(entity.events))
            for one in entity.config.get("availability", []):
                if one["topic"] == topic:
                    entity.available = self._render(one["value_template"], payload, entity) != "offline"
            if entity.config.get("state_topic") == topic:
                self._state(entity, payload, retain=retain)
            if entity.config.get("json_attributes_topic") == topic:
                self._attributes(entity, payload)
            entity.writes += before != (entity.state, entity.attributes, entity.available, len(entity.events))

    def command(self, entity_id: str, value: Any = None) -> tuple[str, str, int]:
        """Return topic, payload and QoS of what it publishes when somebody sets `value`, or presses."""
        config = self.entities[entity_id].config
        if config["p"] == "button":
            value = config["payload_press"]
        if config["p"] == "text":
            assert config["min"] <= len(value) <= config["max"], "an error for the user"
        if config["p"] == "select":
            assert value in config["options"], "an error for the user"
        template = config.get("command_template")
        payload = template_of(template).render(value=value).strip() if template else value
        return config["command_topic"], payload, config.get("qos", 0)

    def _discover(self, topic: str, payload: bytes) -> None:
        if not payload:
            self.entities.clear()
            return
        frame = check_message(topic, payload)
        for key, part in frame["cmps"].items():
            config = {name: frame[name] for name in FRAME & frame.keys()} | part
            known = self.entities.get(part["default_entity_id"])
            if known:
                known.config = config
            else:
                self.entities[part["default_entity_id"]] = Entity(key, config, available=not config["availability"])
        for kept in dict(self._retained).items():  # it subscribes to what it has just heard of
            self.hear(*kept, retain=True)

    def _render(self, template: str, payload: bytes, entity: Entity) -> str | None:
        """Return None when the template fails, which the real one logs."""
        try:
            given: Mapping[str, Any] = {
                "value": payload.decode(),
                "this": entity.this,
                "value_json": json.loads(payload),
            }
            return template_of(template).render(given).strip()
        except (TemplateError, ValueError, TypeError) as error:
            self.complaints.append(f"{entity.key}: {error!r}")
            return None

    def _state(self, entity: Entity, payload: bytes, *, retain: bool) -> None:
        if entity.config["p"] == "event" and retain:
            return
        value = self._render(entity.config["value_template"], payload, entity)
        if value is None:
            return
        match entity.config["p"]:
            case "event":
                self._event(entity, value)
            case "binary_sensor":
                self._one_of(entity, value, {"ON": "on", "OFF": "off", "None": None})
            case "select":
                self._one_of(entity, value, {option: option for option in entity.config["options"]})
            case "number":
                if entity.config["min"] <= float(value) <= entity.config["max"]:
                    entity.state = value
                else:
                    self.complaints.append(f"{entity.key}: {value} is out of range")
            case "sensor":
                self._sensor(entity, value)

    def _one_of(self, entity: Entity, value: str, known: Mapping[str, str | None]) -> None:
        if value in known:
            entity.state = known[value]
        else:
            self.complaints.append(f"{entity.key}: {value!r} is none of {sorted(known)}")

    def _sensor(self, entity: Entity, value: str) -> None:
        if value == "None":
            entity.state = None
        elif {"state_class", "unit_of_measurement"} & entity.config.keys():
            if value:
                float(value)
                entity.state = value
        elif len(value) > MAX_STATE:
            self.complaints.append(f"{entity.key}: the state is too long")
            entity.state = None
        else:
            entity.state = value

    def _event(self, entity: Entity, value: str) -> None:
        if not value:
            return
        event = json.loads(value)
        if event.get("event_type") not in entity.config["event_types"]:
            self.complaints.append(f"{entity.key}: {event.get('event_type')!r} is no event type")
            return
        entity.events.append(event)

    def _attributes(self, entity: Entity, payload: bytes) -> None:
        value = self._render(entity.config["json_attributes_template"], payload, entity)
        found = json.loads(value) if value else None
        if isinstance(found, dict):
            entity.attributes = {name: one for name, one in found.items() if name not in BLOCKED}
        else:
            self.complaints.append(f"{entity.key}: attributes are no object")
