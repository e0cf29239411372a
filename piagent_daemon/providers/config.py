"""What one provider is told, whichever settings it came from."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from urllib.parse import urlsplit

from piagent_daemon.errors import ConfigError
from piagent_daemon.settings import Settings

OLLAMA = ("OLLAMA_HOST", "OLLAMA_API_KEY")
ANY = ("PROVIDER_URL", "PROVIDER_KEY")
PLAIN = {
    "ollama": OLLAMA,
    "ollama-cloud": ("", "OLLAMA_API_KEY"),
    "openai": ("PROVIDER_URL", "OPENAI_API_KEY"),
    "anthropic": ("PROVIDER_URL", "ANTHROPIC_API_KEY"),
    "huggingface": ("PROVIDER_URL", "HF_TOKEN"),
}
"""Which settings hold the address and the key of a kind when it is the only provider; ANY where it is not listed."""


OWN = {
    "ollama-cloud": "ollama.com",
    "openai": "api.openai.com",
    "anthropic": "api.anthropic.com",
    "huggingface": "router.huggingface.co",
}
"""Where the keys of a kind belong."""


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """One provider: what people call it (`name`), its line in the table (`kind`), its address, key, model and patience.

    `url` empty means the kind's own address. `context_tokens` is the size of a local model's window where a call does
    not name one. Up to `connections` are kept open between questions; times are in seconds. `url_setting` and
    `key_setting` are what messages tell people to correct.
    """

    name: str
    kind: str
    url: str = field(default="", repr=False)
    key: str | None = field(default=None, repr=False)
    model: str = ""
    context_tokens: int = 4096
    keep_alive: str = "-1"
    connections: int = 3
    connect_timeout_s: float = 5.0
    first_token_timeout_s: float = 300.0
    idle_timeout_s: float = 60.0
    total_timeout_s: float = 600.0
    url_setting: str = ANY[0]
    key_setting: str = ANY[1]


class Wake(NamedTuple):
    """A machine that sleeps: 12 hexadecimal digits of its MAC address, and where the magic packet goes (UDP)."""

    mac: str
    address: str


class Place(NamedTuple):
    """One provider of PROVIDER or of an agent, and what its table says beyond `config`, None where it says nothing."""

    config: ProviderConfig
    model: str | None = None
    context_tokens: int | None = None
    wake: Wake | None = None


def place(name: str, settings: Settings, beside: Collection[str] = ()) -> Place:
    """Return what is known of a provider: its table [providers.<name>], and the plain settings of its kind.

    PROVIDER_URL and PROVIDER_KEY belong to the one of PROVIDER that takes them, else to whoever has no key of its own;
    OLLAMA_API_KEY to Ollama's cloud where that is used: no key goes to somebody else's address. `beside` are providers
    that PROVIDER does not name and that are used as well. Raises ConfigError where one setting would go to two of it.
    """
    table = settings.providers.get(name)
    kind = table.kind if table else name
    plain = _plain(name, kind, settings, beside)
    used = {_kind(one, settings) for one in (*settings.provider.split(","), *beside)}
    if kind == "ollama" and "ollama-cloud" in used:
        plain = replace(plain, key=None)
    if table is None:
        return Place(plain)
    config = plain
    if table.url is not None:
        config = replace(config, url=table.url, url_setting=f"[providers.{name}] url")
    if table.url is not None or table.key is not None:
        config = replace(config, key_setting=f"[providers.{name}] key")
    if table.key is not None:
        config = replace(config, key=table.key.get_secret_value())
    if table.model is not None:
        config = replace(config, model=table.model)
    if table.context_tokens is not None:
        config = replace(config, context_tokens=table.context_tokens)
    wake = Wake(table.wake, table.wake_address) if table.wake else None
    return Place(config, table.model, table.context_tokens, wake)


def _plain(name: str, kind: str, settings: Settings, beside: Collection[str]) -> ProviderConfig:
    """Return what the plain settings say for a provider of that kind."""
    url_setting, key_setting = PLAIN.get(kind, ANY)
    url = getattr(settings, url_setting.lower()) if _takes(name, 0, settings, beside) else None
    key = getattr(settings, key_setting.lower()) if _takes(name, 1, settings, beside) else None
    return ProviderConfig(
        name=name,
        kind=kind,
        url=url or "",
        key=key.get_secret_value() if key else None,
        model=settings.ollama_model_general,
        context_tokens=settings.ctx_tokens,
        keep_alive=settings.ollama_keep_alive,
        connections=settings.max_concurrent + 2,
        connect_timeout_s=settings.connect_timeout_s,
        first_token_timeout_s=settings.first_token_timeout_s,
        idle_timeout_s=settings.idle_timeout_s,
        total_timeout_s=settings.total_timeout_s,
        url_setting=url_setting or ANY[0],
        key_setting=key_setting,
    )


def _takes(name: str, place: int, settings: Settings, beside: Collection[str]) -> bool:
    """Tell whether a provider takes the setting at that place (0: address, 1: key) of its kind's line in PLAIN."""
    setting = PLAIN.get(_kind(name, settings), ANY)[place]
    if not (setting and _wants(name, place, setting, settings)):
        return False
    if setting not in ANY or not getattr(settings, setting.lower()):
        return True
    owners = [one for one in settings.provider.split(",") if _wants(one, place, setting, settings)]
    if not owners and _kind(name, settings) not in PLAIN:
        keyless = [one for one in {name, *beside} if _kind(one, settings) not in PLAIN]
        owners = sorted(one for one in keyless if _wants(one, place, setting, settings))
    if len(owners) > 1:
        raise ConfigError(
            f"{setting}: {' and '.join(owners)} would take it; give each its own in a table [providers.<name>]"
        )
    return name in owners


def _wants(name: str, place: int, setting: str, settings: Settings) -> bool:
    """Tell whether that setting is the one for a provider, and its table has none of its own."""
    kind, table = _kind(name, settings), settings.providers.get(name)
    if table and place == 0 and table.url is not None:
        return False
    if table and place == 1 and (table.key is not None or not _at_home(kind, table.url)):
        return False
    return PLAIN.get(kind, ANY)[place] == setting


def _at_home(kind: str, url: str | None) -> bool:
    """Tell whether a key of the plain settings may go to an address."""
    return url is None or urlsplit(url).netloc == OWN.get(kind)


def _kind(name: str, settings: Settings) -> str:
    return settings.providers[name].kind if name in settings.providers else name
