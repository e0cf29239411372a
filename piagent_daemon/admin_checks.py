"""Admin requests about what is wrong: the model server as it answers now, and all that `piagent doctor` would look at.

What the doctor sees from outside (may we log in at the broker, does somebody hear us) is proven here by the answer.
"""

import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

from piagent_daemon import __version__, checks
from piagent_daemon.admin import Parts
from piagent_daemon.admin_method import Long, NoParams, takes
from piagent_daemon.alone import Errand
from piagent_daemon.checks import Finding
from piagent_daemon.contract import Options, Request
from piagent_daemon.errors import PiagentError
from piagent_daemon.values import Message


class Diagnose(Long):
    """`ask` lets the model say a word, which may take as long as loading it."""

    ask: bool = False


@takes(NoParams)
async def provider_health(parts: Parts, _: NoParams) -> Any:
    """Look at the model server now; `look_s` is how long that took in seconds, `reason` the health reason or None."""
    began = time.monotonic()
    await parts.watch.look(everyone=True)
    return {
        **parts.watch.health.model_dump(),
        "reason": parts.watch.reason,
        "look_s": round(time.monotonic() - began, 4),
        "models": list(parts.config.models),
        "providers": [use.model_dump() for use in parts.watch.report],
    }


@takes(Diagnose)
async def diagnose(parts: Parts, params: Diagnose) -> Any:
    """Check everything an answer needs; `checks` as in `piagent doctor --json`."""
    findings, there = [*_here(parts)], True
    for rung in parts.ladder.known.values():
        models = parts.ladder.models(rung, parts.config.agents.values())
        async with aclosing(checks.server(rung.provider, models)) as found:
            async for finding in found:
                there = there and finding.state == "ok"
                findings.append(finding)
    if params.ask and there:
        findings.append(await _answer(parts))
    return {"ok": all(each.state == "ok" for each in findings), "checks": [asdict(each) for each in findings]}


def _here(parts: Parts) -> Iterator[Finding]:
    settings, agents, health = parts.config.settings, parts.config.agents, parts.reporting.health()
    yield checks.clock(parts.clock.now(), Path("/"))
    yield checks.prompts(settings, agents)
    yield checks.context(settings, agents)
    yield _memory(parts)
    yield Finding("protocol", "ok", f"MQTT {health.protocol}")
    log = "Look at its log: `journalctl -u piagent`."
    if health.status == "ok":
        yield Finding("daemon", "ok", f"version {__version__} answers")
    else:
        yield Finding("daemon", "fail", f"degraded: {', '.join(health.reasons)}", health.provider.error or log)


def _memory(parts: Parts) -> Finding:
    if not parts.config.settings.enable_memory:
        return Finding("memory", "ok", "switched off (ENABLE_MEMORY)")
    if parts.store.problem:
        remedy = "Is the disk full, or the folder of MEMORY_URL not writable? The log says more."
        return Finding("memory", "fail", parts.store.problem, remedy)
    return Finding("memory", "ok", f"{parts.store.count()} conversations ({parts.store.name})")


async def _answer(parts: Parts) -> Finding:
    """Let the general model say a word, when it is its turn."""
    request = Request(message="Say: ok", stream=False, options=Options(num_predict=8, temperature=0.0))
    model = parts.config.settings.ollama_model_general
    errand = Errand(parts.scheduler, parts.clock, name=str(uuid4()), model=model, request=request)
    began = time.monotonic()
    try:
        async with aclosing(errand.ask((Message("user", request.message),))) as events:
            async for _ in events:
                pass
    except PiagentError as error:
        return Finding("answer", "fail", str(error), checks.REMEDIES.get(error.code, "Look at the model server's log."))
    return Finding("answer", "ok", f"the model answered after {time.monotonic() - began:.1f} s")
