"""The family of model servers: one line each, loaded only when used."""

from collections.abc import Collection, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from piagent_daemon.errors import ConfigError, ProviderMisconfigured
from piagent_daemon.ports import Provider
from piagent_daemon.providers.config import ProviderConfig, place
from piagent_daemon.settings import Settings

if TYPE_CHECKING:
    from piagent_daemon.providers.library import Client

PROVIDERS = {
    "ollama": "piagent_daemon.providers.ollama:OllamaProvider",
    "ollama-cloud": "piagent_daemon.providers.ollama:OllamaProvider",
    "openai": "piagent_daemon.providers.openai:OpenAIProvider",
    "lmstudio": "piagent_daemon.providers.openai:OpenAIProvider",
    "llamacpp": "piagent_daemon.providers.openai:OpenAIProvider",
    "huggingface": "piagent_daemon.providers.openai:OpenAIProvider",
    "custom": "piagent_daemon.providers.openai:OpenAIProvider",
    "anthropic": "piagent_daemon.providers.anthropic:AnthropicProvider",
    "echo": "piagent_daemon.providers.echo:EchoProvider",
}


def load(kind: str) -> type[Provider]:
    """Return the class behind a kind of provider; ConfigError for an unknown one."""
    try:
        module, _, attribute = PROVIDERS[kind].partition(":")
    except KeyError:
        raise ConfigError(f"PROVIDER: {kind!r} is not one of {', '.join(sorted(PROVIDERS))}") from None
    return cast("type[Provider]", getattr(import_module(module), attribute))


def make(config: ProviderConfig) -> Provider:
    """Make a provider; ConfigError for an unknown kind, or an address or key it cannot use. Opens no connection."""
    if config.key and not (config.key.isascii() and config.key.isprintable() and " " not in config.key):
        raise ConfigError(f"{config.key_setting}: a key has printable ASCII characters only, and no spaces")
    as_openai = config.kind == "ollama-cloud" and config.url.rstrip("/").endswith("/v1")
    made: Provider = load("openai" if as_openai else config.kind)(config)  # type: ignore[call-arg] # as all are made
    return made


def create(name: str, settings: Settings, beside: Collection[str] = ()) -> Provider:
    """Make a provider by its name: that of a table [providers.<name>], or a kind; ConfigError as in `make`.

    `beside`: see `config.place`.
    """
    if name in settings.providers and settings.providers[name].kind not in PROVIDERS:
        kind, known = settings.providers[name].kind, ", ".join(sorted(PROVIDERS))
        raise ConfigError(f"[providers.{name}] kind: {kind!r} is not one of {known}")
    if name not in settings.providers and name not in PROVIDERS:
        known = ", ".join(sorted({*settings.providers, *PROVIDERS}))
        raise ConfigError(f"PROVIDER: {name!r} is not one of {known}")
    return make(place(name, settings, beside).config)


def get_available_providers() -> list[str]:
    """Return the kinds of provider that `create_provider` knows, in alphabetical order."""
    return sorted(PROVIDERS)


def create_provider(name: str, config: Mapping[str, Any] | None = None, **more: Any) -> "Client":
    """Make a provider for use as a library (see README, *From Python*); opens no connection.

    `config` and keywords say what differs from the settings: `url`, `key`, `model`, `context_tokens`, `temperature`,
    `max_tokens`, `max_retries`, `total_timeout_s` and whatever else ProviderConfig has. Raises ProviderMisconfigured.
    """
    from piagent_daemon.providers.library import Client, choose  # noqa: PLC0415 (the daemon has no need of it)

    chosen = choose(name, get_available_providers(), {**(config or {}), **more})
    try:
        return Client(make(chosen.provider), chosen)
    except ConfigError as error:
        raise ProviderMisconfigured(*error.problems) from None
