"""The family of model servers: one line each, loaded only when used."""

from importlib import import_module
from typing import cast

from piagent_daemon.errors import ConfigError
from piagent_daemon.ports import Provider
from piagent_daemon.settings import Settings

PROVIDERS = {
    "ollama": "piagent_daemon.providers.ollama:OllamaProvider",
    "echo": "piagent_daemon.providers.echo:EchoProvider",
}


def load(name: str) -> type[Provider]:
    """Return the class behind a provider's name; ConfigError for an unknown one."""
    try:
        module, _, attribute = PROVIDERS[name].partition(":")
    except KeyError:
        raise ConfigError(f"PROVIDER: {name!r} is not one of {', '.join(sorted(PROVIDERS))}") from None
    return cast("type[Provider]", getattr(import_module(module), attribute))


def create(name: str, settings: Settings) -> Provider:
    """Make a provider; ConfigError for an unknown name or settings that it cannot use. Opens no connection."""
    made: Provider = load(name)(settings)  # type: ignore[call-arg] # a Protocol cannot say how it is made
    return made
