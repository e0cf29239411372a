"""Every setting, declared once.

A field has its default, its bounds, a description, and whether it is a secret and may change at a reload. The README's
table, the example files and `piagent config` are made from it. Source: contract section 7.

A plain pydantic model: the sources are read by `sources`, which can say where each value stands, so the sources of
pydantic-settings would only cost the daemon a megabyte and 30 ms at start.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo

from piagent_daemon import setting_types as kind
from piagent_daemon.errors import ConfigError
from piagent_daemon.problems import explain, one_line
from piagent_daemon.sources import Found, Reader

if TYPE_CHECKING:
    from piagent_daemon.provider_tables import ProviderTable

ALIASES: Final = {"ollama_cloud_api_key": "ollama_api_key"}
PROMPT_ROOM_TOKENS: Final = 128
"""What CTX_TOKENS must leave for the prompt beside MAX_TOKENS."""
MAX_INFLIGHT: Final = 60_000
"""MQTT counts messages in flight in 16 bits; some room is left for cancel, reset and admin requests."""
_DAY_S: Final = 86_400
_ADDRESSES: Final = ("_host", "_url", "_uri")
"""How settings end that may hold a user and a password."""


def _set(default: Any, description: str, *, reload: bool = False, shown: str | None = None, **bounds: Any) -> Any:
    """Declare a setting. `reload`: SIGHUP may change it; `shown`: the default in words, where it depends on others."""
    source = {"default_factory": default} if callable(default) else {"default": default}
    return Field(**source, description=description, json_schema_extra={"reload": reload, "shown": shown}, **bounds)


class Settings(BaseModel):
    """The settings in force. The constructor takes keyword arguments alone; `load_settings` reads the surroundings.

    repr and str show neither secrets nor the user and password of a URL.
    """

    model_config = ConfigDict(validate_default=True, frozen=True, extra="forbid", protected_namespaces=())

    mqtt_host: kind.Host = _set("127.0.0.1", "host name or address of the broker")
    mqtt_tls: bool = _set(False, "speak TLS to the broker; host names are verified, and nothing turns that off")
    mqtt_port: int = _set(
        lambda data: 8883 if data.get("mqtt_tls") else 1883, "its port", shown="1883 (8883 with TLS)", ge=1, le=65535
    )
    mqtt_username: str | None = _set(None, "user name at the broker")
    mqtt_password: SecretStr | None = _set(None, "password at the broker")
    mqtt_ca_file: str | None = _set(None, "certificate authority to trust, PEM; the system's when unset")
    mqtt_cert_file: str | None = _set(None, "client certificate, PEM")
    mqtt_key_file: str | None = _set(None, "key of the client certificate, PEM")
    mqtt_client_id: kind.ClientId = _set(
        lambda: f"piagent-{os.uname().nodename}",
        "must stay the same over restarts: the session at the broker hangs on it",
        shown="piagent-<hostname>",
    )
    mqtt_base_topic: kind.Topic = _set("piagent", "topic above all others; may have several levels")
    mqtt_protocol: Annotated[Literal["auto", "5", "311"], kind.Word] = _set(
        "auto", "MQTT version; auto tries 5, then 3.1.1"
    )
    mqtt_session_expiry_s: int = _set(
        _DAY_S, "how many seconds the broker keeps messages for a stopped daemon", ge=1, le=0xFFFF_FFFF
    )
    response_topic_prefixes: kind.Prefixes = _set(
        lambda data: (f"{data.get('mqtt_base_topic', 'piagent')}/",),
        "MQTT 5 response topics must start with one of these; comma-separated",
        shown="piagent/ (the base topic)",
    )
    provider: kind.Ladder = _set(
        "ollama", "a provider's name, or a comma-separated ladder: the first that works answers", max_length=256
    )
    ollama_host: kind.ServerUrl = _set("http://127.0.0.1:11434", "where Ollama listens: URL, host or host:port")
    ollama_model_general: kind.Model = _set("qwen2.5:3b-instruct", "the model of agents that name none", reload=True)
    ollama_keep_alive: kind.KeepAlive = _set("-1", "how long Ollama keeps the model loaded; -1 is for ever")
    ollama_api_key: SecretStr | None = _set(None, "bearer key, for Ollama's cloud (also as OLLAMA_CLOUD_API_KEY)")
    provider_url: kind.ServerUrl | None = _set(None, "base URL of any other provider; unset is its own address")
    provider_key: SecretStr | None = _set(None, "its key, where none of the following is meant")
    openai_api_key: SecretStr | None = _set(None, "key for PROVIDER=openai")
    anthropic_api_key: SecretStr | None = _set(None, "key for PROVIDER=anthropic")
    hf_token: SecretStr | None = _set(None, "key for PROVIDER=huggingface")
    ctx_tokens: int = _set(
        4096, "size of the model's window in tokens; a change reloads the model", reload=True, ge=256, le=4_194_304
    )
    max_tokens: int = _set(1024, "longest answer in tokens", reload=True, ge=1, le=1_048_576)
    temperature: float = _set(0.7, "how freely the model words its answers", reload=True, ge=0, le=5)
    prompt_style: Annotated[Literal["chat", "xml"], kind.Word] = _set(
        "chat", "chat sends roles to /api/chat, xml one text with tags to /api/generate", reload=True
    )
    think: bool | Annotated[Literal["low", "medium", "high", "max"], kind.Word] = _set(
        False, "let models think that can; not all know levels", reload=True
    )
    cache_ttl_s: float = _set(
        0, "seconds that answers without history and chance are given again; 0 = never", reload=True, ge=0, le=_DAY_S
    )
    prompts_dir: str | None = _set(
        None, "prompt files here override and add agents", reload=True, shown="the packaged prompts"
    )
    default_agent: kind.AgentName = _set("general", "who answers when a request names no agent", reload=True)
    enable_memory: bool = _set(True, "remember conversations", reload=True)
    memory_max_turns: int = _set(8, "most messages of a conversation that are remembered", reload=True, ge=0, le=10_000)
    memory_ttl_min: float = _set(
        60, "minutes after which an unused conversation is forgotten; 0 = never", ge=0, le=5_256_000
    )
    memory_max_conversations: int = _set(
        500, "most conversations remembered; the least recently used goes", ge=1, le=1_000_000
    )
    memory_url: kind.MemoryUrl = _set(
        "memory:", "sqlite:///var/lib/piagent/memory.db keeps conversations, and what became of requests, over restarts"
    )
    max_concurrent: int = _set(1, "conversations answered side by side", ge=1, le=1000)
    max_waiting: int = _set(100, "requests that may wait; one more is told busy", ge=0, le=MAX_INFLIGHT)
    max_message_chars: int = _set(4000, "longest message in characters", ge=1, le=10_000_000)
    max_payload_bytes: int = _set(8_388_608, "largest MQTT payload in bytes", ge=256, le=268_435_455)
    max_image_bytes: int = _set(5_242_880, "largest image in bytes, before base64", ge=0, le=268_435_455)
    connect_timeout_s: float = _set(5, "seconds until the model server takes a connection", gt=0, le=_DAY_S)
    first_token_timeout_s: float = _set(
        300, "seconds until the first token; loading a model on a Pi takes minutes", gt=0, le=_DAY_S
    )
    idle_timeout_s: float = _set(60, "seconds between two tokens", gt=0, le=_DAY_S)
    total_timeout_s: float = _set(600, "seconds for a whole answer", gt=0, le=_DAY_S)
    max_retries: int = _set(
        3, "further tries at the model server, only before the first text", reload=True, ge=0, le=100
    )
    backoff_factor_s: float = _set(
        0.5, "longest wait in seconds before the first further try; doubles with each", reload=True, ge=0, le=60
    )
    chunk_interval_ms: int = _set(
        25, "later chunks are joined to at most one per interval; 0 = one per token", ge=0, le=10_000
    )
    dedupe_window_s: float = _set(600, "for so many seconds the same request id is not run twice", ge=0, le=30 * _DAY_S)
    health_interval_s: float = _set(30, "seconds between two health messages", reload=True, ge=0.05, le=_DAY_S)
    shutdown_grace_s: float = _set(
        20, "seconds that running answers get at a stop; below TimeoutStopSec of the unit", reload=True, ge=0, le=3600
    )
    ha_discovery: bool = _set(True, "announce the daemon to Home Assistant", reload=True)
    ha_discovery_prefix: kind.Topic = _set("homeassistant", "Home Assistant's discovery prefix")
    voice_agent: kind.AgentName = _set("voice", "who answers what comes in by Hermes or Wyoming")
    hermes: bool = _set(False, "answer over Hermes, the MQTT messages of Rhasspy")
    hermes_listen: kind.HermesKinds = _set(
        ("textCaptured",),
        "what is a question: textCaptured, intentNotRecognized, query; comma-separated",
        shown="textCaptured",
    )
    hermes_sites: kind.Names = _set((), "sites that are answered, comma-separated; unset answers all")
    wyoming_uri: kind.TcpUri | None = _set(
        None, "where Home Assistant's Assist finds piagent by the Wyoming protocol, such as tcp://0.0.0.0:10500"
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], kind.Word] = _set(
        "info", "least important level that is logged", reload=True
    )
    log_format: Annotated[Literal["auto", "journal", "terminal"], kind.Word] = _set(
        "auto", "journal under systemd, else terminal"
    )
    log_messages: bool = _set(False, "log what people say, at debug level", reload=True)
    models_allowed: kind.Names = _set(
        (), "models that a request may name, comma-separated; unset allows all", reload=True
    )
    models_admin: bool = _set(False, "allow models/pull and models/delete over MQTT", reload=True)
    pull_missing: bool = _set(False, "download a missing model at start, where the model server can")
    files_dir: str | None = _set(None, "folder below which a request may name files", reload=True)

    _providers: "Mapping[str, ProviderTable]" = PrivateAttr(default_factory=dict)

    @property
    def providers(self) -> "Mapping[str, ProviderTable]":
        """The providers that have a table of their own, by name."""
        return self._providers

    def with_providers(self, tables: "Mapping[str, ProviderTable]") -> Self:
        """Return these settings with other tables of providers."""
        made = self.model_copy()
        made._providers = dict(tables)  # noqa: SLF001 - of the same class
        return made

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        conflicts = "\n".join(_conflicts(self))
        if conflicts:
            raise ValueError(conflicts)
        return self

    def shown(self, name: str) -> Any:
        """Return a setting as it may be shown to anybody, ready for JSON: secrets masked."""
        value = getattr(self, name)
        if isinstance(value, SecretStr):
            return kind.MASK
        if isinstance(value, tuple):
            return list(value)
        return kind.mask_userinfo(value) if isinstance(value, str) and name.endswith(_ADDRESSES) else value

    def masked(self) -> dict[str, Any]:
        """Return all settings as they may be shown to anybody, ready for JSON."""
        shown = {name: self.shown(name) for name in type(self).model_fields}
        if self.providers:
            shown["providers"] = {name: table.masked() for name, table in self.providers.items()}
        return shown

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        yield from self.masked().items()


def _extra(info: FieldInfo, key: str) -> Any:
    return info.json_schema_extra[key] if isinstance(info.json_schema_extra, dict) else None


reloadable: Final = frozenset(name for name, info in Settings.model_fields.items() if _extra(info, "reload"))
"""Names of the settings that SIGHUP may change."""
secrets: Final = frozenset(
    name for name, info in Settings.model_fields.items() if SecretStr in (info.annotation, *get_args(info.annotation))
)
"""Names of the settings that are never shown."""


def reloaded(current: Settings, new: Settings) -> Settings:
    """Return `current` with everything from `new` that may change while the daemon runs."""
    return current.model_copy(update={name: getattr(new, name) for name in reloadable})


def restart_needed(current: Settings, new: Settings) -> tuple[str, ...]:
    """Return the names of settings that differ in `new` and want a restart, in capitals."""
    return tuple(
        name.upper()
        for name in Settings.model_fields
        if name not in reloadable and getattr(current, name) != getattr(new, name)
    ) + (("PROVIDERS",) if current.providers != new.providers else ())


def _conflicts(settings: Settings) -> Iterator[str]:
    """Yield a line for each pair of settings that cannot stand together."""
    room = settings.ctx_tokens - settings.max_tokens
    if room < PROMPT_ROOM_TOKENS:
        yield (
            f"MAX_TOKENS ({settings.max_tokens}) leaves too little of CTX_TOKENS ({settings.ctx_tokens}): "
            f"at least {PROMPT_ROOM_TOKENS} tokens are needed for the prompt"
        )
    if (settings.mqtt_cert_file is None) != (settings.mqtt_key_file is None):
        yield "MQTT_CERT_FILE and MQTT_KEY_FILE need each other"
    for name in ("mqtt_ca_file", "mqtt_cert_file", "mqtt_key_file"):
        if getattr(settings, name) is not None and not settings.mqtt_tls:
            yield f"{name.upper()} needs MQTT_TLS=true"
    if settings.mqtt_password is not None and settings.mqtt_username is None:
        yield "MQTT_PASSWORD needs MQTT_USERNAME"
    if settings.max_concurrent + settings.max_waiting > MAX_INFLIGHT:
        yield f"MAX_WAITING and MAX_CONCURRENT together may not exceed {MAX_INFLIGHT}"


class Loaded(NamedTuple):
    """Settings, and where each of them was found: a place, or `default`.

    `path` is the file that was asked for, to be read again at a reload; None looks for it anew.
    """

    settings: Settings
    origins: Mapping[str, str]
    path: Path | None = None


def load_settings(config: Path | None = None, *, environ: Mapping[str, str] | None = None) -> Loaded:
    """Read the settings from all places (their order: `sources.Reader.read`).

    `config` is a TOML file that must exist. Raises ConfigError with a line per problem, naming the setting and never
    showing a secret.
    """
    reader = Reader(Settings.model_fields, secrets, ALIASES)
    found = reader.read(config, os.environ if environ is None else environ)
    problems = reader.problems
    tables = _tables(reader, found, problems)
    origins = {name: found[name].origin if name in found else "default" for name in Settings.model_fields}
    if reader.tables is not None:
        origins["providers"] = str(reader.tables.path)
    problems += [
        f"{name.upper()}: should be a number, but is {str(value).lower()} ({origin})"
        for name, (value, origin) in found.items()
        if isinstance(value, bool) and Settings.model_fields[name].annotation in {int, float}  # pydantic takes 1 and 0
    ]
    settings = None
    try:
        settings = Settings(**{name: value.value for name, value in found.items()}).with_providers(tables)
    except ValidationError as error:
        problems += _explain(error, origins)
    if settings is not None:
        problems += _unreadable(settings, origins)
    if settings is None or problems:
        raise ConfigError(*map(one_line, problems))
    return Loaded(settings, origins, config)


def _tables(reader: Reader, found: dict[str, Found], problems: list[str]) -> "Mapping[str, ProviderTable]":
    """Return the tables of providers; the first rung's model and window become those of the settings."""
    if reader.tables is None:
        return {}
    from piagent_daemon import provider_tables  # noqa: PLC0415 (only where there are any)

    made = provider_tables.read(reader.tables)
    problems += made.problems
    name = str(found["provider"].value).partition(",")[0].strip() if "provider" in found else "ollama"
    first = made.tables.get(name)
    for setting, own in (("ollama_model_general", "model"), ("ctx_tokens", "context_tokens")):
        value = getattr(first, own, None)
        if value is None:
            continue
        given = found.setdefault(setting, Found(value, f"{made.origins[name]} [providers.{name}] {own}"))
        if str(given.value) != str(value):
            problems.append(
                f"{setting.upper()} ({given.origin}) is for providers without {own}, and the first one has its own: "
                f"[providers.{name}] {own} ({made.origins[name]}). Keep one; give the others a table, too"
            )
    return made.tables


def _explain(error: ValidationError, origins: Mapping[str, str]) -> Iterator[str]:
    """Yield one line per setting, with its value unless that could be a secret."""
    for finding in explain(error):
        name, value = finding.key, finding.value
        if not name:
            yield from finding.message.split("\n")
            continue
        plain = name not in secrets and isinstance(value, str | int | float)
        but = f", but is {kind.mask_userinfo(repr(value))[:80]}" if plain else ""
        yield f"{name.upper()}: {finding.message}{but} ({origins.get(name, 'keyword')})"


def _unreadable(settings: Settings, origins: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each file or folder that a setting names and that cannot be read."""
    checks: dict[str, Callable[[Path], bool]] = dict.fromkeys(
        ("mqtt_ca_file", "mqtt_cert_file", "mqtt_key_file"), Path.is_file
    )
    checks |= dict.fromkeys(("prompts_dir", "files_dir"), Path.is_dir)
    for name, is_there in checks.items():
        value = getattr(settings, name)
        if value is None:
            continue
        what = "file" if is_there is Path.is_file else "folder"
        try:
            fine = is_there(Path(value)) and os.access(value, os.R_OK)
        except (OSError, ValueError):
            fine = False
        if not fine:
            yield f"{name.upper()}: {value} is not a {what} that can be read ({origins[name]})"
