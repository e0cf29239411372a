"""Try piagent without installing anything: an embedded broker, the real daemon and a chat, all in this process.

A real Ollama answers when one runs at OLLAMA_HOST and has a model; else a stand-in does, which says so. With a text,
one answer is printed and that is all.
"""

import argparse
import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Final

from piagent_daemon import app, providers
from piagent_daemon.cli.chat import Chat
from piagent_daemon.cli.embedded import broker, in_background
from piagent_daemon.cli.standin import MODEL, standin
from piagent_daemon.cli.terminal import Terminal, stderr
from piagent_daemon.errors import ProviderError
from piagent_daemon.settings import Loaded, Settings, load_settings
from piagent_daemon.waiting import in_loop

_LOOK_S: Final = 1.5
_DAEMON_WAIT_S: Final = 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="*", help="ask this, print the answer and leave (default: a chat)")


def run(args: argparse.Namespace) -> int:
    loaded = load_settings(args.config)
    loaded = loaded._replace(settings=plain(loaded.settings))
    logging.getLogger("piagent").setLevel(logging.ERROR)
    notes = stderr()
    with _surroundings(loaded, notes) as settings, Chat(settings, "demo", wait_s=_DAEMON_WAIT_S) as chat:
        if args.text:
            return chat.ask(" ".join(args.text))
        return chat.run()


@contextmanager
def _surroundings(loaded: Loaded, notes: Terminal) -> Iterator[Settings]:
    """Start model server, broker and daemon, saying so; yields the settings that lead to them."""
    with ExitStack() as stack:
        host, model = loaded.settings.ollama_host, in_loop(real_model(loaded.settings))
        if model is None:
            host, model = stack.enter_context(standin()), MODEL
            notes.line(f"model   a stand-in at {host} (no Ollama with a model at {loaded.settings.ollama_host})", "dim")
        else:
            notes.line(f"model   {model} of the Ollama at {host}", "dim")
        settings = stack.enter_context(in_background(lambda: _daemon(loaded, host, model)))
        notes.line(f"broker  embedded, at {settings.mqtt_host}:{settings.mqtt_port}", "dim")
        notes.line(f"daemon  in this process, on {settings.mqtt_base_topic}/#", "dim")
        yield settings


@asynccontextmanager
async def _daemon(loaded: Loaded, host: str, model: str) -> AsyncGenerator[Settings, None]:
    async with broker() as port:
        settings = demo_settings(loaded.settings, port, host, model)
        async with app.running(Loaded(settings, loaded.origins)):
            yield settings


def plain(settings: Settings) -> Settings:
    """Return the settings without a table of `ollama`, so that OLLAMA_HOST alone says where the model server is."""
    return settings.with_providers({name: table for name, table in settings.providers.items() if name != "ollama"})


def demo_settings(settings: Settings, port: int, host: str, model: str) -> Settings:
    """Return the person's own settings, except that nothing outside this process is touched but the model server."""
    return settings.model_copy(
        update={
            "mqtt_host": "127.0.0.1",
            "mqtt_port": port,
            "mqtt_username": None,
            "mqtt_password": None,
            "mqtt_tls": False,
            "mqtt_client_id": "piagent-demo",
            "mqtt_protocol": "311",
            "memory_url": "memory:",
            "ha_discovery": False,
            "hermes": False,
            "wyoming_uri": None,
            "provider": "ollama",
            "ollama_host": host,
            "ollama_model_general": model,
            "pull_missing": False,
            "shutdown_grace_s": 1.0,
        }
    )


async def real_model(settings: Settings) -> str | None:
    """Return a model that a real Ollama at OLLAMA_HOST has, the configured one if it can, or None."""
    provider = providers.create("ollama", settings.model_copy(update={"connect_timeout_s": _LOOK_S}))
    try:
        async with asyncio.timeout(_LOOK_S):
            models = await provider.models()
    except (ProviderError, TimeoutError):
        return None
    finally:
        await provider.aclose()
    names = [model.name for model in models if "embedding" not in model.capabilities]
    wanted = settings.ollama_model_general
    return next((name for name in names if name in {wanted, f"{wanted}:latest"}), names[0] if names else None)
