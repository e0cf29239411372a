"""The model server: reachable, has the models, and one of them answers."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from piagent_daemon import providers
from piagent_daemon.cli.checks import Finding
from piagent_daemon.cli.showing import REMEDIES
from piagent_daemon.errors import ConfigError, PiagentError
from piagent_daemon.ports import Provider
from piagent_daemon.settings import Settings
from piagent_daemon.values import ChatRequest, Message


async def check_models(settings: Settings, wanted: set[str], *, ask: bool) -> AsyncGenerator[Finding, None]:
    """Look at each model server of PROVIDER and the models `wanted` there; `ask` lets the general model answer."""
    for name in (part.strip() for part in settings.provider.split(",")):
        try:
            provider = providers.create(name, settings)
        except ConfigError as error:
            yield Finding(f"server {name}", "fail", str(error), "Correct PROVIDER.")
            continue
        try:
            async with aclosing(_server(provider, settings, wanted, ask=ask)) as findings:
                async for finding in findings:
                    yield finding
        finally:
            await provider.aclose()


async def _server(
    provider: Provider, settings: Settings, wanted: set[str], *, ask: bool
) -> AsyncGenerator[Finding, None]:
    general = settings.ollama_model_general
    state = await provider.probe(general)
    label = f"server {provider.name}"
    if not state.reachable:
        detail = state.error or "it does not answer"
        yield Finding(label, "fail", detail, "Start it (`sudo systemctl start ollama`), or set OLLAMA_HOST.")
        return
    yield Finding(label, "ok", "answers")
    for model in sorted({general, *wanted}):
        found = state if model == general else await provider.probe(model)
        if found.model_found is False:
            remedy = f"Bring it: `piagent models pull {model}` (or `ollama pull {model}`)."
            yield Finding("model", "fail", f"{model} is not there", remedy)
        else:
            yield Finding("model", "ok", f"{model} is there{', loaded' if found.model_loaded else ''}")
    if ask and state.model_found is not False:
        yield await _answer(provider, settings)


async def _answer(provider: Provider, settings: Settings) -> Finding:
    """Let the general model say a word, with the daemon's own window: another one would reload the model."""
    request = ChatRequest(
        model=settings.ollama_model_general,
        messages=(Message("user", "Say: ok"),),
        options={"num_predict": 8, "temperature": 0.0},
        context_tokens=settings.ctx_tokens,
    )
    began = time.monotonic()
    try:
        async with aclosing(provider.chat(request)) as deltas:
            async for _ in deltas:
                pass
    except PiagentError as error:
        return Finding("answer", "fail", str(error), REMEDIES.get(error.code, "Look at the model server's log."))
    return Finding("answer", "ok", f"the model answered after {time.monotonic() - began:.1f} s")
