"""Every setting, declared once."""

from typing import Annotated, Literal

from pydantic import SecretStr
from pydantic_settings import BaseSettings, NoDecode


class Settings(BaseSettings):
    mqtt_host: str = "127.0.0.1"
    mqtt_port: int = 1883
    mqtt_username: str | None = None
    mqtt_password: SecretStr | None = None
    mqtt_tls: bool = False
    mqtt_ca_file: str | None = None
    mqtt_cert_file: str | None = None
    mqtt_key_file: str | None = None
    mqtt_client_id: str = "piagent"
    mqtt_base_topic: str = "piagent"
    mqtt_protocol: Literal["auto", "5", "311"] = "auto"
    mqtt_session_expiry_s: int = 86400
    response_topic_prefixes: Annotated[tuple[str, ...], NoDecode] = ("piagent/",)
    provider: str = "ollama"
    ollama_host: str = "http://127.0.0.1:11434"
    ollama_model_general: str = "qwen2.5:3b-instruct"
    ollama_keep_alive: str = "-1"
    ollama_api_key: SecretStr | None = None
    ctx_tokens: int = 4096
    max_tokens: int = 1024
    temperature: float = 0.7
    prompt_style: Literal["chat", "xml"] = "chat"
    think: bool = False
    prompts_dir: str | None = None
    default_agent: str = "general"
    enable_memory: bool = True
    memory_max_turns: int = 8
    memory_ttl_min: float = 60
    memory_max_conversations: int = 500
    memory_url: str = "memory:"
    max_concurrent: int = 1
    max_waiting: int = 100
    max_message_chars: int = 4000
    max_payload_bytes: int = 8388608
    max_image_bytes: int = 5242880
    connect_timeout_s: float = 5
    first_token_timeout_s: float = 300
    idle_timeout_s: float = 60
    total_timeout_s: float = 600
    max_retries: int = 3
    backoff_factor_s: float = 0.5
    chunk_interval_ms: int = 25
    dedupe_window_s: float = 600
    health_interval_s: float = 30
    shutdown_grace_s: float = 20
    ha_discovery: bool = True
    ha_discovery_prefix: str = "homeassistant"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "journal", "terminal"] = "auto"
    log_messages: bool = False
    models_allowed: Annotated[tuple[str, ...], NoDecode] = ()
    models_admin: bool = False
    files_dir: str | None = None
