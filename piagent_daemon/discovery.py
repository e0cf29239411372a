"""How Home Assistant sees this daemon: one device with entities, in one message of its MQTT discovery. Pure.

Source: https://www.home-assistant.io/integrations/mqtt/ (device discovery). A message with one mistake in its frame is
refused whole, so the frame is small: `o`, `dev`, `cmps`, and the availability that all components share.

The entities talk in one conversation of their own, `home-assistant`. Pieces of an answer never reach them: they ask
with `"stream": false`, and their templates pass over everything but the end of an answer.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from math import ceil
from typing import Any, Final
from zlib import crc32

from piagent_daemon.contract import Info
from piagent_daemon.settings import Settings
from piagent_daemon.topics import Topics

Json = dict[str, Any]

CONVERSATION: Final = "home-assistant"
MAX_STATE: Final = 250
"""Characters; at more than 255 a state becomes `unknown`."""
MAX_TEXT: Final = 255
"""Characters that Home Assistant takes in a `text`; the way for more is `notify`."""
MAX_ATTRIBUTE: Final = 15_000
"""Characters of a text as JSON in ASCII, never fewer than its bytes in the recorder, which drops over 16384."""
CUT_ATTRIBUTE: Final = 2_500
"""What is left of a longer text: no character takes more than six bytes."""
MAX_MODELS: Final = 50
"""Of a server that has more only those are a choice that the settings or agents name: the rest is a catalogue."""
LEAST_EXPIRY_S: Final = 60


def topic(settings: Settings) -> str:
    """Return the topic of the one message."""
    return f"{settings.ha_discovery_prefix}/device/{device_id(settings.mqtt_base_topic)}/config"


def device_id(base: str) -> str:
    """Return the device's name among ids, [a-z0-9_]: another one for each base topic, and always the same."""
    slug = re.sub(r"[^a-z0-9]+", "_", base.lower()).strip("_")[:64].strip("_")
    return slug if slug == base else f"{slug or 'piagent'}_{crc32(base.encode('utf-8', 'surrogatepass')):08x}"


def models_to_choose(info: Info, settings: Settings, on_server: Iterable[str]) -> list[str]:
    """Return the models between which one may choose, the one in force among them."""
    known = {info.defaults.model}
    if settings.models_allowed:
        return sorted(known | set(settings.models_allowed))
    first = info.provider.split(",")[0].strip()
    named = {info.model, *(agent.model for agent in info.agents if agent.provider == first)}
    found = set(on_server)
    return sorted(known | named | (found if len(found) <= MAX_MODELS else set()))


def message(info: Info, settings: Settings, on_server: Iterable[str] = ()) -> bytes:
    """Return the payload. `on_server` are those of the model server's models that can talk."""
    topics, name = Topics(settings.mqtt_base_topic), device_id(settings.mqtt_base_topic)
    components = {
        key: {
            "p": platform,
            "unique_id": f"{name}_{key}",
            "default_entity_id": f"{platform}.{name}_{key}",
            "qos": 1,
            **rest,
        }
        for key, platform, rest in _components(topics, info, settings, models_to_choose(info, settings, on_server))
    }
    base = settings.mqtt_base_topic
    device = {
        "ids": [name],
        "name": "piagent" if base == "piagent" else f"piagent {base}",
        "mf": "piagent",
        "mdl": "Assistant over MQTT",
        "sw": info.version,
    }
    available = [{"topic": topics.health, "value_template": AVAILABLE}]
    frame = {"o": {"name": "piagent", "sw": info.version}, "dev": device, "availability": available, "cmps": components}
    return json.dumps(frame, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


# ---------------------------------------------------------------------------------------------------------- templates

AVAILABLE: Final = "{{ 'offline' if value_json.status == 'offline' else 'online' }}"
ASK: Final = '{{ {"message": value, "stream": false} | tojson }}'
EVENT: Final = """
{%- if value_json.type == 'final' -%}
{{ {'event_type': 'cancelled' if value_json.finish_reason == 'cancelled' else 'reply',
    'text': value_json.reply, 'speech': value_json.speech, 'expects_reply': value_json.expects_reply,
    'finish_reason': value_json.finish_reason, 'agent': value_json.agent, 'model': value_json.model,
    'seconds': value_json.timing.total_s, 'data': value_json.data | default(none),
    'request_id': value_json.request_id, 'metadata': value_json.metadata} | tojson }}
{%- elif value_json.type == 'error' -%}
{{ {'event_type': 'cancelled' if value_json.code == 'cancelled' else 'error',
    'text': value_json.message, 'code': value_json.code, 'retryable': value_json.retryable,
    'partial': value_json.partial, 'request_id': value_json.request_id, 'metadata': value_json.metadata} | tojson }}
{%- endif -%}"""
SAID: Final = "{%- set said = (value_json.reply if value_json.type == 'final' else '') | trim -%}"
ANSWER: Final = (
    f"{SAID}{{{{ said | truncate({MAX_STATE}, true, '…', 0) if said"
    " else 'None' if this.state in ('unknown', 'unavailable') else this.state }}"
)
ANSWER_ATTRIBUTES: Final = f"""{SAID}
{{%- if said -%}}
{{%- set fits = said | length <= {CUT_ATTRIBUTE} or said | tojson | length <= {MAX_ATTRIBUTE} -%}}
{{{{ {{'text': said if fits else said | truncate({CUT_ATTRIBUTE}, true, '…', 0), 'complete': fits,
    'agent': value_json.agent, 'model': value_json.model, 'request_id': value_json.request_id}} | tojson }}}}
{{%- else -%}}{{{{ this.attributes | tojson }}}}{{%- endif -%}}"""
CONTEXT_USED: Final = """
{%- if value_json.type == 'final' and value_json.context.limit -%}
{{ (100 * value_json.context.tokens / value_json.context.limit) | round(1) }}
{%- endif -%}"""
SERVER: Final = "{%- set server = value_json.provider | default({}) -%}"
TROUBLE: Final = (
    f"{SERVER}{{{{ 'None' if server.reachable | default(none) is none"
    " else 'OFF' if server.reachable and not server.error else 'ON' }}"
)
TROUBLE_ATTRIBUTES: Final = (
    f"{SERVER}{{{{ {{'error': server.error | default(none), 'server': server.name | default(none),"
    " 'model': server.model | default(none), 'model_loaded': server.model_loaded | default(none)} | tojson }}"
)
CONNECTED: Final = "{{ 'OFF' if value_json.status == 'offline' else 'ON' }}"
CONNECTED_ATTRIBUTES: Final = (
    "{{ {'status': value_json.status, 'reasons': value_json.reasons | default([]),"
    " 'protocol': value_json.protocol | default(none)} | tojson }}"
)


def _of_health(part: str, value: str) -> str:
    """Return the template for a number in health; the last will has none, and an empty number is passed over."""
    return f"{{{{ (value_json.{part} | default({{}})).{value} | default('') }}}}"


# ----------------------------------------------------------------------------------------------------------- entities


def _components(
    topics: Topics, info: Info, settings: Settings, models: Sequence[str]
) -> Iterator[tuple[str, str, Json]]:
    """Yield key, platform and the rest of each component."""
    yield from _talking(topics)
    yield from _choosing(topics, info, models)
    yield from _pressing(topics)
    yield from _watching(topics)
    yield from _measuring(topics, settings)


def _talking(topics: Topics) -> Iterator[tuple[str, str, Json]]:
    asks = {"command_topic": topics.inbox(CONVERSATION), "command_template": ASK}
    hears = {"state_topic": topics.out(CONVERSATION)}
    types = {"event_types": ["reply", "error", "cancelled"], "value_template": EVENT}
    yield "reply", "event", {"name": "Reply", "icon": "mdi:message-reply-text", **hears, **types}
    yield "ask", "notify", {"name": "Ask", "icon": "mdi:message-question", **asks}
    yield "question", "text", {"name": "Question", "icon": "mdi:chat-question", "min": 1, "max": MAX_TEXT, **asks}
    answer = {
        "value_template": ANSWER,
        "json_attributes_topic": topics.out(CONVERSATION),
        "json_attributes_template": ANSWER_ATTRIBUTES,
    }
    yield "last_answer", "sensor", {"name": "Last answer", "icon": "mdi:message-text", **hears, **answer}


def _choosing(topics: Topics, info: Info, models: Sequence[str]) -> Iterator[tuple[str, str, Json]]:
    agents = [agent.name for agent in info.agents]
    for key, icon, options in (("agent", "mdi:account-voice", agents), ("model", "mdi:brain", models)):
        chosen = {"name": key.capitalize(), "icon": icon, "options": list(options)}
        yield key, "select", chosen | _setting(topics, key, "value")
    number = {
        "name": "Creativity",
        "icon": "mdi:thermometer",
        "min": 0,
        "max": 2 if info.defaults.temperature <= 2 else 5,
        "step": 0.05,
        "mode": "slider",
    }
    yield "temperature", "number", number | _setting(topics, "temperature", "value | float")


def _setting(topics: Topics, key: str, value: str) -> Json:
    return {
        "entity_category": "config",
        "state_topic": topics.info,
        "value_template": f"{{{{ value_json.defaults.{key} }}}}",
        "command_topic": topics.request("defaults/set"),
        "command_template": f'{{{{ {{"{key}": {value}}} | tojson }}}}',
    }


def _pressing(topics: Topics) -> Iterator[tuple[str, str, Json]]:
    for key, name, icon, address in (
        ("stop", "Stop", "mdi:stop-circle", topics.cancel(CONVERSATION)),
        ("forget", "Forget conversation", "mdi:eraser", topics.reset(CONVERSATION)),
        ("reload_model", "Reload model", "mdi:reload", topics.request("models/reload")),
    ):
        kind = {"entity_category": "config"} if key == "reload_model" else {}
        yield key, "button", {"name": name, "icon": icon, "command_topic": address, "payload_press": "{}", **kind}


def _watching(topics: Topics) -> Iterator[tuple[str, str, Json]]:
    health = {
        "state_topic": topics.health,
        "json_attributes_topic": topics.health,
        "entity_category": "diagnostic",
    }
    yield (
        "connection",
        "binary_sensor",
        {
            "name": "Connection",
            "device_class": "connectivity",
            "availability": [],  # else it would be unavailable just when it has something to say
            "value_template": CONNECTED,
            "json_attributes_template": CONNECTED_ATTRIBUTES,
            **health,
        },
    )
    yield (
        "model_server",
        "binary_sensor",
        {
            "name": "Model server",
            "device_class": "problem",
            "value_template": TROUBLE,
            "json_attributes_template": TROUBLE_ATTRIBUTES,
            **health,
        },
    )


def _measuring(topics: Topics, settings: Settings) -> Iterator[tuple[str, str, Json]]:
    expiry_s = max(LEAST_EXPIRY_S, ceil(3 * settings.health_interval_s))
    seconds = {"device_class": "duration", "unit_of_measurement": "s", "suggested_display_precision": 1}
    speed = {"unit_of_measurement": "tokens/s", "suggested_display_precision": 1, "icon": "mdi:speedometer"}
    size = {"device_class": "data_size", "unit_of_measurement": "MiB", "suggested_display_precision": 0}
    for key, name, template, more in (
        ("first_word", "First word", _of_health("speed", "first_token_s"), seconds),
        ("tokens_per_second", "Speed", _of_health("speed", "tokens_per_s"), speed),
        ("waiting", "Waiting questions", _of_health("queue", "waiting"), {"icon": "mdi:tray-full"}),
        ("memory", "Memory", _of_health("process", "rss_mb"), size),
    ):
        yield key, "sensor", _diagnostic(name, topics.health, template, expiry_s) | more
    used = _diagnostic("Context used", topics.out(CONVERSATION), CONTEXT_USED, _memory_s(settings))
    yield "context_used", "sensor", used | {"unit_of_measurement": "%", "icon": "mdi:gauge"}


def _diagnostic(name: str, state_topic: str, template: str, expiry_s: int) -> Json:
    return {
        "name": name,
        "entity_category": "diagnostic",
        "state_class": "measurement",
        "state_topic": state_topic,
        "value_template": template,
        "expire_after": expiry_s,
    }


def _memory_s(settings: Settings) -> int:
    """Return how long a conversation is remembered in seconds; a day where it is never forgotten."""
    return max(LEAST_EXPIRY_S, ceil(settings.memory_ttl_min * 60)) if settings.memory_ttl_min else 86_400
