"""What a single setting may hold: types with their checks, and messages that say what is wanted."""

import re
from collections.abc import Collection
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, BeforeValidator

from piagent_daemon import topics
from piagent_daemon.model_names import ModelName

MASK: Final = "********"
_USERINFO: Final = re.compile(r"^(['\"]?(?:[a-zA-Z][a-zA-Z0-9+.-]*://)?)(.*)@", re.DOTALL)


def mask_userinfo(address: str) -> str:
    """Hide user and password in a URL, also in one without a scheme, and in the repr of one."""
    return _USERINFO.sub(rf"\1{MASK}@", address)


def secrets_in_address(address: str) -> tuple[str, ...]:
    """Return what no log line may show of an address, if there is any: user and password together, and the password."""
    found = _USERINFO.match(address.strip())
    return tuple(filter(None, (found[2], found[2].partition(":")[2]))) if found else ()


def allows(allowed: Collection[str], model: str) -> bool:
    """Tell whether MODELS_ALLOWED has a model, with or without `:latest`; when it is empty, it allows all."""
    return not allowed or _tagged(model) in map(_tagged, allowed)


def _tagged(model: str) -> str:
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _split(value: Any) -> Any:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def _word(value: Any) -> Any:
    return str(value).strip().lower() if isinstance(value, str | int) and not isinstance(value, bool) else value


def _matching(pattern: str, message: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError(message)
        return value

    return AfterValidator(check)


def _publishable(value: str) -> str:
    if not topics.is_publishable(f"{value}/{'x' * topics.MAX_CONVERSATION_CHARS}/out"):
        raise ValueError("should be a topic: no + or #, no $ in front, no control characters, not too long")
    if "" in value.split("/"):
        raise ValueError("should have no slash at its ends and no empty level")
    return value


def _prefix(value: str) -> str:
    if not topics.is_publishable(value):
        raise ValueError("should be the start of a topic: no + or #, no $ in front, no control characters")
    return value


def _client_id(value: str) -> str:
    if not value or len(value.encode("utf-8", "replace")) > 256 or not topics.is_text_safe(value):
        raise ValueError("should have 1 to 256 bytes and no control characters")
    return value


def _memory_url(value: str) -> str:
    if not re.fullmatch(r"memory:(//)?|(?!memory:|sqlite:)[a-z][a-z0-9+.-]*:.+|sqlite:///[^\0]*[^/\0]", value):
        raise ValueError(
            "should be memory: or sqlite:/// with an absolute path, such as sqlite:///var/lib/piagent/memory.db"
        )
    return value


def _server_url(value: str) -> str:
    if re.search(r"[\s\x00-\x1f\x7f]", value) or not value:
        raise ValueError("should be a host, host:port or URL without spaces")
    if "://" in value and not value.startswith(("http://", "https://")):
        raise ValueError("should start with http:// or https://")
    return value


def _tcp_uri(value: str) -> str:
    found = re.fullmatch(r"tcp://(?:\[[0-9A-Fa-f:.%\w]+\]|[^\s/:@\[\]]+):(\d{1,5})", value)
    if not found or not 0 < int(found[1]) <= 65535:
        raise ValueError("should be tcp:// with an address and a port, such as tcp://0.0.0.0:10500")
    return value


def _hermes_kinds(value: Any) -> Any:
    known: dict[str, str] = {name.lower(): name for name in get_args(HermesKind)}
    items = _split(value)
    if not isinstance(items, tuple | list) or not items or not {str(item).lower() for item in items} <= known.keys():
        raise ValueError(f"should be one or more of {', '.join(known.values())}, with commas between")
    return tuple(known[str(item).lower()] for item in items)


Topic = Annotated[str, AfterValidator(_publishable)]
Prefixes = Annotated[tuple[Annotated[str, AfterValidator(_prefix)], ...], BeforeValidator(_split)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Host = Annotated[
    str,
    _matching(
        r"[^\s/:@]+|\[?[0-9A-Fa-f:.]*:[0-9A-Fa-f:.%\w]*\]?",
        "should be a host name or address alone; the port is MQTT_PORT",
    ),
]
AgentName = Annotated[
    str, _matching(r"[a-z0-9_-]{1,64}", "should be a name of a-z, 0-9, _ and -, at most 64 characters")
]
Ladder = Annotated[
    str,
    AfterValidator(lambda value: ",".join(_split(value))),
    _matching(r"[a-z0-9_-]+(,[a-z0-9_-]+)*", "should be a provider's name, or several with commas between"),
]
KeepAlive = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if isinstance(value, int) and not isinstance(value, bool) else value),
    _matching(
        r"-?\d{1,9}|-?(\d{1,9}(\.\d{1,9})?(ms|s|m|h))+",
        'should be seconds or a duration such as "10m"; negative is for ever',
    ),
]
Model = ModelName


ClientId = Annotated[str, AfterValidator(_client_id)]
MemoryUrl = Annotated[str, AfterValidator(_memory_url)]
ServerUrl = Annotated[str, AfterValidator(_server_url)]
TcpUri = Annotated[str, AfterValidator(_tcp_uri)]
HermesKind = Literal["textCaptured", "intentNotRecognized", "query"]
HermesKinds = Annotated[tuple[HermesKind, ...], BeforeValidator(_hermes_kinds)]
Word = BeforeValidator(_word)
"""For choices: any case, and 5 as well as "5"."""
