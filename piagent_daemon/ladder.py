"""The providers as a ladder: the first that works answers, and a conversation stays where its cache is warm."""

import logging
from asyncio import gather, sleep
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from math import inf
from typing import Final

from piagent_daemon.agents import Agent
from piagent_daemon.contract import ProviderUse, Stage
from piagent_daemon.errors import (
    ContextOverflow,
    InvalidRequest,
    ModelNotFound,
    ProviderError,
    ProviderUnavailable,
    RequestRefused,
)
from piagent_daemon.failures import Failures
from piagent_daemon.ports import Clock, Provider
from piagent_daemon.routing import capable, embedder
from piagent_daemon.rung import WAKE_LOOK_S, WAKES_S, Rung
from piagent_daemon.settings import Settings
from piagent_daemon.tries import Tries
from piagent_daemon.values import ChatRequest, Delta

log = logging.getLogger("piagent.ladder")

STAYS_S: Final = 600.0
"""So long after an answer a conversation's cache counts as warm on its rung."""
MAX_STAYING: Final = 1000


class Narrower(ContextOverflow):
    """The prompt was made for a larger window than the rung has whose turn it is; make it anew for that one."""


@dataclass(slots=True)
class Call:
    """One request on its way up the ladder.

    `conversation_id` is empty outside the conversations. `home` is the provider that its agent names, None for the
    first; `model` the one that was asked for. `estimate` is the size of the prompt in tokens. `told` hears of stages.
    `rung` and `served` are the rung and the model that were asked last: after the end, those that answered.
    """

    conversation_id: str
    home: str | None
    model: str
    estimate: int = 0
    told: Callable[[Stage, str], None] = lambda _stage, _detail: None
    rung: Rung | None = None
    served: str = ""
    spoke: bool = False
    tries: Tries | None = None
    too_narrow: set[Rung] = field(default_factory=set)
    """Rungs whose window the message does not fit."""


class Ladder:
    """Asks the rungs in order; `settings` returns those in force."""

    def __init__(self, rungs: Sequence[Rung], settings: Callable[[], Settings], clock: Clock) -> None:
        self.rungs = tuple(rungs)
        self.on_failure: Callable[[Rung, ProviderError], None] | None = None
        """Hears of a failure that is the rung's own: of each where there are several, of the last of a single one."""
        self._settings = settings
        self._clock = clock
        self._known = {rung.name: rung for rung in rungs}
        self._staying: OrderedDict[tuple[str, str], tuple[Rung, float]] = OrderedDict()

    # ---------------------------------------------------------------------------------------------------------- rungs

    @property
    def known(self) -> dict[str, Rung]:
        """Return all rungs by name: those of PROVIDER first, then those that only agents name."""
        return self._known

    @property
    def several(self) -> bool:
        return len(self._known) > 1

    @property
    def first(self) -> Provider:
        """Return the provider that is home to whoever names none."""
        return self.rungs[0].provider

    @property
    def serving(self) -> Rung:
        """Return the rung that a new conversation would be answered on."""
        return self._ranked(self.rungs)[0]

    @property
    def trial_in_s(self) -> float:
        """Return after how many seconds the next rest is over."""
        now = self._clock.monotonic()
        return min((rung.rest_until - now for rung in self._known.values() if rung.rest_until > now), default=inf)

    def add(self, rung: Rung) -> None:
        """Take in a rung that is only for agents that name it."""
        self._known[rung.name] = rung

    def home(self, name: str | None) -> Rung:
        """Return the rung that is home to an agent which names this one, or none."""
        return self._known.get(name or "", self.rungs[0])

    def window(self, rung: Rung) -> int:
        """Return how many tokens of context a rung is asked for."""
        own = None if rung is self.rungs[0] else rung.context_tokens
        return own or self._settings().ctx_tokens

    def general(self, name: str | None = None) -> str:
        """Return the model of a provider (the first without a name) for those who name none."""
        rung = self.home(name)
        own = None if rung is self.rungs[0] else rung.model
        return own or self._settings().ollama_model_general

    def named(self, name: str | None) -> Rung:
        """Return the rung of that name, the first without one. Raises InvalidRequest for an unknown name."""
        if name is not None and name not in self._known:
            raise InvalidRequest(f'There is no provider "{name[:64]}". Known: {", ".join(self._known)}.')
        return self.home(name)

    def models(self, rung: Rung, agents: Iterable[Agent]) -> list[str]:
        """Return the models that a provider is asked for: the general one, then those that its agents name."""
        general = self.general(rung.name)
        named = {agent.model for agent in agents if agent.model and self.home(agent.provider) is rung}
        return [general, *sorted(named - {general})]

    def report(self) -> list[ProviderUse]:
        """Return how each provider stands and what it has done, for health and `provider/health`."""
        return [rung.use(self.general(name)) for name, rung in self._known.items()]

    def choice(self, call: Call) -> tuple[str, int]:
        """Return the model that would be asked first, and its window in tokens."""
        rung = call.rung or self._order(call)[0]
        return self._model(rung, call), self.window(rung)

    async def embed(self, texts: Sequence[str], model: str | None = None) -> tuple[list[list[float]], str, str]:
        """Return a vector for each text, the model that made them and its provider's name. Raises ProviderError."""
        rung, chosen = await embedder(self.rungs, model, self.general, self._settings().models_allowed)
        rung.begin()
        try:
            return await rung.provider.embed(texts, chosen), chosen, rung.name
        except ProviderError as error:
            rung.failed(error)
            raise
        finally:
            rung.end()

    async def aclose(self) -> None:
        """Close every connection of every provider."""
        await gather(*(rung.provider.aclose() for rung in self._known.values()), return_exceptions=True)

    # --------------------------------------------------------------------------------------------------------- answers

    async def answer(self, request: ChatRequest, call: Call) -> AsyncGenerator[Delta, None]:
        """Stream one answer, asking further rungs, and all of them again, while there was no text.

        One rung alone is asked again as long as its failure may pass. Raises the ProviderError that says most, or
        Narrower, after which the request is to be made anew and asked with the same `call`.
        """
        settings = self._settings()
        tries = call.tries = call.tries or Tries(settings.max_retries, settings.backoff_factor_s)
        rungs = self._order(call)
        self._wake_before(rungs[0], call)
        waits_until, failures = self._clock.monotonic() + WAKES_S, Failures()
        while True:
            for rung, following in zip(rungs, (*rungs[1:], None), strict=True):
                try:
                    async with aclosing(self._ask(rung, request, call)) as deltas:
                        async for delta in deltas:
                            yield delta
                except ProviderError as error:
                    if call.spoke:
                        self._report(rung, error, call)
                        raise
                    failures.note(rung, error)
                    if following:
                        log.info("%s: %s; asking %s", rung.name, error, following.name)
                        call.told("fallback", f"{rung.name}: {error} Asking {following.name}.")
                else:
                    return
            rungs = await self._wait(failures, tries, call, waits_until)

    async def _wait(self, failures: Failures, tries: Tries, call: Call, waits_until: float) -> list[Rung]:
        """Return whom to ask again, after a while; raise why nobody can be. A machine may wake up until then."""
        waking = [rung for rung in failures.passing if rung.waking and self._clock.monotonic() < waits_until]
        if not failures.passing or not (tries.left or waking):
            for rung, error in failures.said.items():
                self._report(rung, error, call)
            raise failures.why()
        error, left_s = failures.next(last=tries.last)
        call.told("retrying", f"{waking[0].name} wakes up." if waking else str(error))
        if waking and not tries.left:
            await sleep(WAKE_LOOK_S)
            again = waking
        else:
            again = failures.due(await tries.after(error, left_s))
        for rung in again:
            rung.retries += 1
        return again

    async def _ask(self, rung: Rung, request: ChatRequest, call: Call) -> AsyncGenerator[Delta, None]:
        settings, model = self._settings(), self._model(rung, call)
        sees = any(message.images for message in request.messages)
        call.rung = rung
        began, first, said = self._clock.monotonic(), None, False
        rung.begin()
        try:
            call.served = "" if sees else model
            if sees:
                model = await capable(rung.provider, "vision", model, settings.models_allowed)
            call.served = model
            asked = self._fitted(request, call, model, self.window(rung))
            async with aclosing(rung.cache.chat(asked, settings.cache_ttl_s)) as deltas:
                async for delta in deltas:
                    now = self._clock.monotonic()
                    first = now if first is None else first
                    call.spoke = call.spoke or bool(delta.text)
                    said = said or bool(delta.text.strip())
                    if delta.finish:
                        _check_said(said)
                        rung.answered(delta.finish, first - began, now - first)
                        self._stay(rung, call)
                    yield delta
        except ProviderError as error:
            rung.failed(error)
            if not self._innocent(rung, error, call):
                self.rest(rung, error)
                if self.several:
                    self._tell(rung, error)
            if isinstance(error, ProviderUnavailable):
                self._wake(rung)
            raise
        finally:
            rung.end()

    def _fitted(self, request: ChatRequest, call: Call, model: str, window: int) -> ChatRequest:
        if window < request.context_tokens and call.estimate + int(request.options["num_predict"]) > window:
            raise Narrower("The next provider's window is smaller.")
        if (model, window) == (request.model, request.context_tokens):
            return request
        return request._replace(model=model, context_tokens=window)

    def pass_over(self, call: Call) -> bool:
        """Leave out the rung whose turn it is: the message does not fit its window. Tell whether another is left."""
        rungs = self._order(call)
        call.too_narrow.add(rungs[0])
        call.rung = None
        return len(rungs) > 1

    def overdue(self, call: Call, error: ProviderError) -> None:
        """Learn that an answer was given up, since it was not complete in time."""
        if call.rung:
            call.rung.failed(error)
            self.rest(call.rung, error)
            self._tell(call.rung, error)

    def _innocent(self, rung: Rung, error: ProviderError, call: Call) -> bool:
        """Tell whether a failure says nothing of the rung: the request was a bad one, or named a model of its own."""
        return isinstance(error, RequestRefused) or (
            isinstance(error, ModelNotFound) and call.served != self.general(rung.name)
        )

    def _report(self, rung: Rung, error: ProviderError, call: Call) -> None:
        """Tell of the failure of the only rung once nothing makes it good; of several, each is told at once."""
        if not self.several and not self._innocent(rung, error, call):
            self._tell(rung, error)

    def _tell(self, rung: Rung, error: ProviderError) -> None:
        if self.on_failure:
            self.on_failure(rung, error)

    def rest(self, rung: Rung, error: ProviderError) -> None:
        """Pass over a rung for a while; the only one there is has no rest."""
        if self.several:
            rung.rest(error, self._settings().backoff_factor_s)

    # ---------------------------------------------------------------------------------------------------------- order

    def _model(self, rung: Rung, call: Call) -> str:
        """Return the model to ask a rung for: one that was named counts at home, and where there is no other."""
        home = self.home(call.home)
        named = call.model != self.general(home.name)
        return call.model if rung is home or (named and rung.model is None) else self.general(rung.name)

    def _order(self, call: Call) -> list[Rung]:
        home = self.home(call.home)
        rungs = self._ranked([home, *(rung for rung in self.rungs if rung is not home)])
        own = call.rung or self._own(home, call)
        if own and (own is call.rung or not own.resting):
            rungs = [own, *(rung for rung in rungs if rung is not own)]
        return [rung for rung in rungs if rung not in call.too_narrow] or rungs

    def _ranked(self, rungs: Collection[Rung]) -> list[Rung]:
        """Return those that are well in their order, then those that rest: who wakes first comes first."""
        return sorted(rungs, key=lambda rung: (True, rung.rest_until) if rung.resting else (False, 0.0))

    def _own(self, home: Rung, call: Call) -> Rung | None:
        rung, until = self._staying.get((call.conversation_id, home.name), (None, 0.0))
        return rung if until > self._clock.monotonic() else None

    def _stay(self, rung: Rung, call: Call) -> None:
        home = self.home(call.home)
        key = call.conversation_id, home.name
        self._staying.pop(key, None)
        if rung is not home and call.conversation_id:
            self._staying[key] = rung, self._clock.monotonic() + STAYS_S
            while len(self._staying) > MAX_STAYING:
                self._staying.popitem(last=False)

    # ----------------------------------------------------------------------------------------------------------- wake

    def _wake_before(self, chosen: Rung, call: Call) -> None:
        """Wake the machines that would rather have answered than the chosen one."""
        home = self.home(call.home)
        for rung in (home, *self.rungs):
            if rung is chosen:
                return
            if rung.reason == ProviderUnavailable.code:
                self._wake(rung)

    def _wake(self, rung: Rung) -> None:
        if rung.wake():
            log.info("%s: its machine is told to wake up", rung.name)
            self._tell(rung, ProviderUnavailable(f"{rung.name} wakes up."))


def _check_said(said: bool) -> None:
    if not said:
        raise ProviderError("The model returned nothing.")
