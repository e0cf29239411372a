"""Front doors: name -> import string, loaded only when used."""

from importlib import import_module
from typing import Any, Final

from piagent_daemon.errors import ConfigError

DOORS: Final = {
    "mqtt": "piagent_daemon.doors.mqtt:MqttDoor",
}


def load(name: str) -> type[Any]:
    """Return the class of the door called `name`; raises ConfigError listing the known names for any other."""
    if name not in DOORS:
        raise ConfigError(f'There is no front door "{name}". Known: {", ".join(sorted(DOORS))}.')
    module, _, attribute = DOORS[name].partition(":")
    found: type[Any] = getattr(import_module(module), attribute)
    return found
