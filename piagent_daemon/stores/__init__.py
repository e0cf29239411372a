"""Where conversations live: one module per URL scheme of MEMORY_URL."""

from importlib import import_module

from piagent_daemon.errors import ConfigError
from piagent_daemon.ports import Clock, ConversationStore
from piagent_daemon.settings import Settings

STORES = {
    "memory": "piagent_daemon.stores.memory:MemoryStore",
    "sqlite": "piagent_daemon.stores.sqlite:SqliteStore",
}
"""URL scheme -> import string, loaded only when used."""


def create(settings: Settings, clock: Clock) -> ConversationStore:
    """Make the store that MEMORY_URL names, not yet started; ConfigError for a URL that no store understands."""
    scheme = settings.memory_url.partition(":")[0].strip().lower()
    if scheme not in STORES:
        known = ", ".join(f"{name}:" for name in STORES)
        raise ConfigError(f"MEMORY_URL: no store is called '{scheme[:40]}:'; known are {known}")
    module, _, name = STORES[scheme].partition(":")
    store: ConversationStore = getattr(import_module(module), name)(settings, clock)
    return store
