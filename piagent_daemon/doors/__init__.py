"""Front doors: name -> import string, loaded only when used."""

from importlib import import_module
from typing import Any, Final

from piagent_daemon.errors import ConfigError

DOORS: Final = {
    "mqtt": "piagent_daemon.doors.mqtt:MqttDoor",
    "hermes": "piagent_daemon.doors.hermes:HermesDoor",
    "wyoming": "piagent_daemon.doors.wyoming:WyomingDoor",
}


def load(name: str) -> type[Any]:
    """Return the class of the door called `name`.

    Raises ConfigError for any other name, listing the known ones, and when a package is missing that the extra of the
    door's name brings.
    """
    if name not in DOORS:
        raise ConfigError(f'There is no front door "{name}". Known: {", ".join(sorted(DOORS))}.')
    module, _, attribute = DOORS[name].partition(":")
    try:
        found: type[Any] = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("piagent_daemon"):
            raise
        raise ConfigError(
            f'The front door "{name}" needs the package {error.name}: `pip install "piagent-daemon[{name}]"` brings it.'
        ) from error
    return found
