"""The AsyncAPI 3.0 document, made from the contract's models and topic names, so that it cannot drift from them.

Actions are the daemon's: it receives on `in` and sends on `out`. Source: https://www.asyncapi.com/docs/reference/specification/v3.0.0
and its MQTT bindings 0.2.0.
"""

import re
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from piagent_daemon import __version__, admin, contract, discovery
from piagent_daemon.admin_method import Long
from piagent_daemon.topics import MAX_CONVERSATION_CHARS, RESERVED, Topics

Json = dict[str, Any]

_BINDING: Final = "0.2.0"


def document(base: str = "piagent") -> Json:
    """Return the document for a daemon with this base topic, as plain JSON values."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "piagent",
            "version": __version__,
            "description": "The assistant on your home's message bus: MQTT in, a local model, MQTT out.\n\n"
            "Every accepted message gets exactly one terminal event (`final` or `error`) per request id. "
            "With MQTT 5, a request's response topic is honoured and its correlation data copied.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": "127.0.0.1:1883",
                "protocol": "mqtt",
                "protocolVersion": "5.0",
                "description": "Your MQTT broker; the daemon falls back to 3.1.1 when it refuses MQTT 5.",
                "bindings": {
                    "mqtt": {
                        "clientId": "piagent-<hostname>",
                        "cleanSession": False,
                        "lastWill": {
                            "topic": Topics(base).health,
                            "qos": 1,
                            "message": contract.Offline().model_dump_json(),
                            "retain": True,
                        },
                        "bindingVersion": _BINDING,
                    }
                },
            }
        },
        "channels": _channels(Topics(base)),
        "operations": _operations(),
        "components": {"messages": _messages(base), "schemas": _schemas()},
    }


def events() -> list[type[contract.Event]]:
    """Return the classes of everything that comes on `…/out`."""
    return list(contract.Event.__subclasses__())


def _name(model: type[BaseModel]) -> str:
    """Return the message name of an event class: its `type` on the wire."""
    return str(model.model_fields["type"].default)


# ----------------------------------------------------------------------------------------------------------- channels


def _channels(topics: Topics) -> Json:
    of_conversation = {
        "conversation_id": {
            "description": f"One topic level of 1 to {MAX_CONVERSATION_CHARS} characters, no control characters, "
            f"not one of: {', '.join(sorted(RESERVED))}.",
            "examples": ["kitchen"],
        }
    }
    of_method = {"method": {"description": "The admin method; it may span two levels.", "enum": sorted(admin.METHODS)}}
    conversation, method = "{conversation_id}", "{method}"
    return {
        "in": _channel(topics.inbox(conversation), "Ask within a conversation.", ["request", "text"], of_conversation),
        "inAnywhere": _channel(topics.inbox(), "Ask in the conversation named in the request.", ["request", "text"]),
        "out": _channel(topics.out(conversation), "The answer.", [_name(model) for model in events()], of_conversation),
        "cancel": _channel(topics.cancel(conversation), "Stop the running answer.", ["cancel"], of_conversation),
        "reset": _channel(topics.reset(conversation), "Forget the conversation.", ["reset"], of_conversation),
        "health": _channel(topics.health, "How the daemon is; retained.", ["health", "offline"]),
        "info": _channel(topics.info, "What the daemon offers; retained.", ["info"]),
        "adminRequest": _channel(
            topics.request(method), "Ask the daemon about itself.", ["adminRequest", "setDefaults"], of_method
        ),
        "adminResponse": _channel(topics.response(method), "What it says.", ["adminResponse"], of_method),
        "homeAssistantDevice": _channel(
            f"homeassistant/device/{discovery.device_id(topics.base)}/config",
            "The daemon as a device of Home Assistant (HA_DISCOVERY, HA_DISCOVERY_PREFIX); retained.",
            ["homeAssistantDevice"],
        ),
        "homeAssistantStatus": _channel(
            "homeassistant/status",
            "How Home Assistant is: at `online` the device is told again.",
            ["homeAssistantStatus"],
        ),
    }


def _channel(address: str, description: str, messages: list[str], parameters: Json | None = None) -> Json:
    channel: Json = {
        "address": address,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
    }
    if parameters:
        channel["parameters"] = parameters
    return channel


# --------------------------------------------------------------------------------------------------------- operations


def _operations() -> Json:
    return {
        "ask": _operation("receive", "in", "Answer a message.", reply="out"),
        "askAnywhere": _operation("receive", "inAnywhere", "Answer a message of any conversation.", reply="out"),
        "answer": _operation("send", "out", "Events of an answer; chunks and sentences at QoS 0.", retain=False),
        "cancel": _operation("receive", "cancel", "Stop the running answer and, without id, what waits.", qos=0),
        "reset": _operation("receive", "reset", "Forget a conversation."),
        "health": _operation("send", "health", "Say how the daemon is, on each change and regularly.", retain=True),
        "info": _operation("send", "info", "Say what the daemon offers.", retain=True),
        "admin": _operation("receive", "adminRequest", "Answer an admin request.", reply="adminResponse"),
        "announce": _operation("send", "homeAssistantDevice", "Tell Home Assistant of the daemon.", retain=True),
        "homeAssistant": _operation("receive", "homeAssistantStatus", "Tell it again.", qos=0),
        "adminAnswer": _operation("send", "adminResponse", "The answer to an admin request.", retain=False),
    }


def _operation(
    action: str, channel: str, summary: str, *, qos: int = 1, retain: bool | None = None, reply: str | None = None
) -> Json:
    binding: Json = {"qos": qos, "bindingVersion": _BINDING}
    if retain is not None:
        binding["retain"] = retain
    operation: Json = {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "bindings": {"mqtt": binding},
    }
    if reply:
        operation["reply"] = {"channel": {"$ref": f"#/channels/{reply}"}}
    return operation


# ----------------------------------------------------------------------------------------------- messages and schemas


def _messages(base: str) -> Json:
    asked = {
        "bindings": {
            "mqtt": {
                "correlationData": {"type": "string", "description": "Copied into every event (MQTT 5)."},
                "responseTopic": {
                    "type": "string",
                    "pattern": f"^{re.escape(base)}/",
                    "description": "Gets the events (MQTT 5).",
                },
                "bindingVersion": _BINDING,
            }
        }
    }
    text = {"type": "string", "description": "Any payload that is no JSON object is the message itself."}
    nothing = {"description": "Anything, also nothing."}
    messages = {
        "request": {**_message("Request", "What somebody asks.", "$message.payload#/id"), **asked},
        "text": {"summary": "The same as plain text.", "contentType": "text/plain", "payload": text, **asked},
        "cancel": _message("CancelRequest", "Empty, or which request to stop and what was spoken of it."),
        "reset": {"summary": "Forget the conversation.", "payload": nothing},
        "health": _message("Health", "How the daemon is."),
        "offline": _message("Offline", "The daemon is stopped; also its last will."),
        "info": _message("Info", "What the daemon offers."),
        "adminRequest": {**_message("AdminRequest", "The method's parameters."), **asked},
        "adminResponse": _message("AdminResponse", "Progress, the result or an error."),
        "setDefaults": _message("SetDefaults", "The parameters of `defaults/set`."),
        "homeAssistantDevice": {
            "summary": "Home Assistant's device discovery; empty takes the device back.",
            "payload": {"type": "object", "required": ["o", "dev", "cmps"]},
        },
        "homeAssistantStatus": {
            "summary": "One word.",
            "contentType": "text/plain",
            "payload": {"enum": ["online", "offline"]},
        },
    }
    for model in events():
        terminal = " Terminal: nothing follows it." if model.terminal else ""
        summary = (model.__doc__ or "").split("\n", maxsplit=1)[0] + terminal
        messages[_name(model)] = _message(model.__name__, summary, "$message.payload#/request_id")
    return messages


def _message(schema: str, summary: str, correlation: str | None = None) -> Json:
    message: Json = {"summary": summary, "payload": {"$ref": f"#/components/schemas/{schema}"}}
    if correlation:
        message["correlationId"] = {"location": correlation}
    return message


def _schemas() -> Json:
    incoming: list[type[BaseModel]] = [contract.Request, contract.CancelRequest, contract.SetDefaults]
    outgoing: list[type[BaseModel]] = [*events(), contract.Health, contract.Offline, contract.Info]
    schemas = _definitions(incoming, "validation")
    schemas["Request"]["properties"]["text"] = {"type": "string", "description": "Alias of `message`."}
    schemas["Request"]["required"] = []
    schemas["Request"]["oneOf"] = [{"required": ["message"]}, {"required": ["text"]}]
    schemas |= _admin_schemas()
    schemas |= _definitions([contract.AdminResponse], "serialization")
    sent = _definitions(outgoing, "serialization")
    for schema in sent.values():  # every key is always written; later versions may add some
        schema["required"] = [name for name in schema["properties"] if name not in {"data", "cached"}]
    schemas |= sent
    for schema in schemas.values():
        if schema.get("title") not in {"Request", "Options", "File", "CancelRequest"}:
            schema.pop("additionalProperties", None)
    return schemas


def _admin_schemas() -> Json:
    """Return what the admin requests take: a schema for each shape of parameters, and one that names the methods."""
    shapes = {method: admin.load(method).shape for method in sorted(admin.METHODS)}
    schemas = _definitions(list(dict.fromkeys(shapes.values())), "validation")
    for shape in shapes.values():
        if issubclass(shape, Long):  # without an id it is called by its transaction
            schema = schemas[shape.__name__]
            schema["required"] = [name for name in schema.get("required", ()) if name != "id"]
    schemas["AdminRequest"] = {
        "type": "object",
        "properties": {"transaction": {"description": "Echoed in the response."}},
        "description": "Empty or a JSON object; its other keys are those of the method.",
        "anyOf": [
            {"title": method, "allOf": [{"$ref": f"#/components/schemas/{shape.__name__}"}]}
            for method, shape in shapes.items()
        ],
    }
    return schemas


def _definitions(models: list[type[BaseModel]], mode: Any) -> dict[str, Json]:
    _, found = models_json_schema(
        [(model, mode) for model in models], ref_template="#/components/schemas/{model}", by_alias=True
    )
    definitions: dict[str, Json] = found["$defs"]
    return definitions
