"""Models in the memory of the fake model server: loading, slots, caches, expiry."""

import asyncio
import contextlib
import hashlib
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.fakes.ollama_context import NUM_KEEP
from tests.fakes.ollama_faults import BUSY
from tests.fakes.ollama_rules import FOR_EVER, LOAD_TIME, Refusal, full_name
from tests.fakes.ollama_script import Record
from tests.fakes.tokens import Slots, tokenise

KEEP_S = 300.0


@dataclass
class Model:
    """A model on disk. `path` is how its prompt is made: "rendered" (Go template) or "native" (Jinja template)."""

    capabilities: frozenset[str] = frozenset({"completion", "tools"})
    path: str = "rendered"
    num_ctx: int = 4096
    train_ctx: int = 32_768
    size: int = 1_929_912_432
    parameter_size: str = "3.1B"
    quantization: str = "Q4_K_M"
    family: str = "qwen2"
    name: str = ""
    """Filled in by the server."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()

    def details(self) -> dict[str, Any]:
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.family,
            "families": [self.family],
            "parameter_size": self.parameter_size,
            "quantization_level": self.quantization,
        }


class Models(dict[str, Model]):
    """The models on disk by full name. Each is stored as a copy that knows its name."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        super().__init__()
        for name, model in models.items():
            self[name] = model

    def __setitem__(self, name: str, model: Model) -> None:
        super().__setitem__(full_name(name), replace(model, name=full_name(name)))


@dataclass(eq=False)
class Runner:
    """A loaded model. `key` holds the load-time options it was loaded with."""

    model: Model
    key: tuple[Any, ...]
    num_ctx: int
    slots: Slots
    users: int = 0
    expires_at: float = field(default=math.inf)
    """Monotonic seconds."""

    def as_json(self) -> dict[str, Any]:
        """Return this runner as /api/ps shows it; a model kept for ever expires in 2319."""
        left_s = min(self.expires_at - time.monotonic(), 9_223_372_036.0)
        return {
            "name": self.model.name,
            "model": self.model.name,
            "size": self.model.size,
            "digest": self.model.digest,
            "details": self.model.details(),
            "expires_at": (datetime.now(UTC) + timedelta(seconds=left_s)).isoformat(),
            "size_vram": 0,
            "context_length": self.num_ctx,
        }


class Runners:
    """Loads models, loads them again when a load-time option changes, unloads them when their time is over."""

    def __init__(self, *, parallel: int, load_s: float, ram_cache: bool, max_queue: int) -> None:
        self.parallel = parallel
        self.load_s = load_s
        self.ram_cache = ram_cache
        self.max_queue = max_queue
        self.keep_s = KEEP_S
        self.loads = 0
        self.reloads = 0
        self._loaded: dict[str, Runner] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._pending = 0

    def loaded(self) -> list[Runner]:
        now = time.monotonic()
        self._loaded = {name: one for name, one in self._loaded.items() if one.users or one.expires_at > now}
        return list(self._loaded.values())

    def unload(self, name: str) -> None:
        self._loaded.pop(name, None)

    def clear(self) -> None:
        self._loaded.clear()
        self._locks.clear()

    async def get(
        self, model: Model, options: Mapping[str, Any], shift: bool | None, keep_s: float
    ) -> tuple[Runner, float]:
        """Return the loaded model and the seconds its load took; while a load is on, at most `max_queue` wait."""
        num_ctx = min(options.get("num_ctx", model.num_ctx), model.train_ctx)
        others = tuple(options.get(name) for name in LOAD_TIME if name != "num_ctx")
        key = (num_ctx, *others, shift is not False)
        lock = self._locks.setdefault(model.name, asyncio.Lock())
        if lock.locked() and self._pending >= self.max_queue:
            raise Refusal(503, BUSY)
        self._pending += 1
        try:
            async with lock:
                return await self._load(model, key, num_ctx, keep_s)
        finally:
            self._pending -= 1

    async def _load(self, model: Model, key: tuple[Any, ...], num_ctx: int, keep_s: float) -> tuple[Runner, float]:
        self.loaded()
        runner = self._loaded.get(model.name)
        if runner and runner.key == key:
            runner.expires_at = _expiry(keep_s)
            return runner, 0.0
        if runner:
            await runner.slots.drained()
            self.unload(model.name)
            self.reloads += 1
        self.loads += 1
        started = time.monotonic()
        if self.load_s:
            await asyncio.sleep(self.load_s)
        slots = Slots(self.parallel, ram_cache=self.ram_cache)
        runner = self._loaded[model.name] = Runner(model, key, num_ctx, slots, expires_at=_expiry(keep_s))
        return runner, max(1e-6, time.monotonic() - started)

    @contextlib.asynccontextmanager
    async def use(self, runner: Runner, record: Record, written: Sequence[str], keep_s: float) -> AsyncIterator[None]:
        """Hold a slot for the time of an answer, whose tokens are then in its cache."""
        runner.users += 1
        try:
            slot, record.evaluated = await runner.slots.take(record.prompt)
            try:
                yield
            finally:
                runner.slots.give(slot, _cached(record, written, runner.num_ctx))
        finally:
            runner.users -= 1
            runner.expires_at = _expiry(keep_s)
            if keep_s == 0 and not runner.users and self._loaded.get(runner.model.name) is runner:
                self.unload(runner.model.name)


def _cached(record: Record, written: Sequence[str], num_ctx: int) -> list[str]:
    if len(record.prompt) + len(written) > num_ctx:  # a context shift threw the middle away
        return record.prompt[:NUM_KEEP]
    return record.prompt + tokenise("".join(written))


def _expiry(keep_s: float) -> float:
    return math.inf if keep_s == FOR_EVER else time.monotonic() + keep_s
