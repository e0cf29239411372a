"""List, pull and remove models, directly at the model server."""

import argparse
import json
import shutil
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

from piagent_daemon import providers
from piagent_daemon.cli import FAILED, FINE, USAGE
from piagent_daemon.cli.checks.local import prompts
from piagent_daemon.cli.terminal import neutral, stderr, stdout
from piagent_daemon.errors import ModelNotFound, ProviderError
from piagent_daemon.ports import Provider
from piagent_daemon.settings import load_settings
from piagent_daemon.values import ModelInfo, PullProgress
from piagent_daemon.waiting import in_loop


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="list|pull|rm", required=True)
    listing = verbs.add_parser("list", help="list the models that the server has")
    listing.set_defaults(action=_list)
    pull = verbs.add_parser("pull", help="download a model; an earlier, broken-off download goes on")
    pull.add_argument("model", help="for instance qwen2.5:3b-instruct")
    pull.set_defaults(action=_pull)
    remove = verbs.add_parser("rm", help="remove models from the server")
    remove.add_argument("model", nargs="+")
    remove.set_defaults(action=_remove)
    for verb in (listing, pull, remove):
        verb.add_argument("--json", action="store_true", help="print JSON; progress as one object a line")
        verb.add_argument(
            "--provider", metavar="NAME", help="the model server, as PROVIDER names it (default: the first of PROVIDER)"
        )


def run(args: argparse.Namespace) -> int:
    settings = load_settings(args.config).settings
    name = args.provider or settings.provider.split(",")[0]
    if name not in (known := sorted({*settings.providers, *providers.PROVIDERS})):
        stderr().line(f'piagent models: there is no provider "{name}"; choose from {", ".join(known)}')
        return USAGE
    agents, _ = prompts(settings)
    beside = [agent.provider for agent in agents.values() if agent.provider]
    action: Callable[[Provider, argparse.Namespace], Coroutine[Any, Any, int]] = args.action

    async def act() -> int:
        provider: Provider = providers.create(name, settings, beside)
        try:
            return await action(provider, args)
        finally:
            await provider.aclose()

    try:
        return in_loop(act())
    except KeyboardInterrupt:
        if args.action is _pull:
            stderr().line(f"Stopped. `piagent models pull {args.model}` goes on where it was.")
        return FAILED


async def _list(provider: Provider, args: argparse.Namespace) -> int:
    models = await provider.models()
    out = stdout()
    if args.json:
        rows = [
            {
                "name": model.name,
                "size": model.size,
                "parameters": model.parameters,
                "quantization": model.quantization,
                "capabilities": list(model.capabilities),
            }
            for model in models
        ]
        out.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    elif not models:
        stderr().line("The model server has no model yet. `piagent models pull qwen2.5:3b-instruct` brings one.")
    else:
        width = max(len(model.name) for model in models)
        for model in models:
            out.line(f"{model.name:<{width}}  {_size(model):>8}  {model.parameters:>6}  {model.quantization}".rstrip())
    return FINE


def _size(model: ModelInfo) -> str:
    return f"{model.size / 1e9:.1f} GB" if model.size >= 1e8 else f"{model.size / 1e6:.1f} MB" if model.size else ""


async def _remove(provider: Provider, args: argparse.Namespace) -> int:
    failed = []
    for model in args.model:
        try:
            await _remove_one(provider, model)
        except ProviderError as error:
            failed.append({"model": model, "code": error.code, "message": str(error)})
            stderr().line(str(error), "red")
        else:
            if not args.json:
                stdout().line(f"Removed {model}.")
    if args.json:
        removed = [model for model in args.model if model not in [row["model"] for row in failed]]
        stdout().write(json.dumps({"removed": removed, "failed": failed}, ensure_ascii=False) + "\n")
    return FAILED if failed else FINE


async def _remove_one(provider: Provider, model: str) -> None:
    try:
        await provider.delete(model)
    except ModelNotFound:  # its own remedy is to pull it
        known = "`piagent models list` shows what is there"
        raise ModelNotFound(f'There is no model "{model}" to remove; {known}.') from None


async def _pull(provider: Provider, args: argparse.Namespace) -> int:
    progress = _JsonProgress() if args.json else _Bars() if stderr().interactive else _Lines()
    try:
        async with aclosing(provider.pull(args.model)) as steps:
            async for step in steps:
                progress.take(step)
    except ProviderError as error:
        if args.json:
            stdout().write(json.dumps({"status": "error", "code": error.code, "message": str(error)}) + "\n")
            return FAILED
        raise
    finally:
        progress.close()
    if not args.json:
        stdout().line(f"{args.model} is there.")
    return FINE


class _Lines:
    """Progress for logs: each new stage once."""

    def __init__(self) -> None:
        self._stage = ""

    def take(self, step: PullProgress) -> None:
        if step.status != self._stage:
            self._stage = step.status
            stderr().line(step.status)

    def close(self) -> None:
        """There is nothing to tidy."""


class _JsonProgress(_Lines):
    """Progress for programs: every step as one line."""

    def take(self, step: PullProgress) -> None:
        row = {"status": step.status, "digest": step.digest, "completed": step.completed, "total": step.total}
        stdout().write(json.dumps(row) + "\n")


class _Bars(_Lines):
    """Progress for people: one bar a layer, beginning where an earlier download stopped."""

    def __init__(self) -> None:
        super().__init__()
        from tqdm import tqdm  # noqa: PLC0415  listing and removing need no bar

        self._tqdm = tqdm
        self._bar: tqdm[Any] | None = None
        self._digest = ""

    def take(self, step: PullProgress) -> None:
        if not step.total:
            self.close()
            super().take(step)
            return
        if self._bar is None or step.digest != self._digest:
            self.close()
            self._digest = step.digest
            name = neutral(step.digest.removeprefix("sha256:")[:12] or step.status)
            columns, lines = shutil.get_terminal_size()  # unlike tqdm's own reading never 0, as on a serial console
            self._bar = self._tqdm(
                desc=name,
                total=step.total,
                initial=step.completed,
                unit="B",
                unit_scale=True,
                ncols=columns,
                nrows=lines,
            )
        self._bar.update(max(0, step.completed - self._bar.n))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            self._stage = ""
