"""Defaults that somebody chose while the daemon runs, in Home Assistant or by `defaults/set`: they cover the settings.

A choice stands until it is taken back (null), or until the setting that it covers is changed itself: the newest word
counts. Where the store keeps conversations on disk, it keeps the choices, too.
"""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from piagent_daemon.agents import Agent
from piagent_daemon.contract import Defaults, SetDefaults
from piagent_daemon.errors import InvalidRequest, PiagentError, UnknownAgent
from piagent_daemon.ports import ConversationStore
from piagent_daemon.setting_types import allows
from piagent_daemon.settings import Settings
from piagent_daemon.turn import Config

log = logging.getLogger("piagent.defaults")

SETTINGS: Final = {"agent": "default_agent", "model": "ollama_model_general", "temperature": "temperature"}
"""Which setting each of them covers."""
NOTE: Final = "defaults"
"""The store's name for the choices."""


class Choice(NamedTuple):
    """`value` stands in place of the setting, as long as that is `instead_of`."""

    value: Any
    instead_of: Any


class Chooser:
    """Lays the choices over the settings in `config`; `on_change` is called when they have changed."""

    def __init__(self, config: Config, store: ConversationStore) -> None:
        self.on_change: Callable[[], None] | None = None
        self._config = config
        self._store = store
        self._configured = config.settings
        self._choices: dict[str, Choice] = {}

    @property
    def defaults(self) -> Defaults:
        """Return the defaults in force."""
        settings = self._config.settings
        return Defaults(**{name: getattr(settings, setting) for name, setting in SETTINGS.items()})

    async def restore(self) -> None:
        """Take the choices of an earlier process from the store, which must be open."""
        self._choices = _decode(self._store.noted(NOTE))
        self._config.settings = await self.over(self._config.settings, self._config.agents)

    async def over(self, configured: Settings, agents: Mapping[str, Agent]) -> Settings:
        """Return the settings with the choices laid over them; those that do not fit any more are dropped."""
        self._configured = configured
        before = self._choices
        self._choices = {
            name: choice for name, choice in before.items() if self._stands(name, choice, configured, agents)
        }
        if self._choices != before:
            await self._store.note(NOTE, _encode(self._choices))
        return self._laid()

    def _laid(self) -> Settings:
        chosen = {SETTINGS[name]: choice.value for name, choice in self._choices.items()}
        return self._configured.model_copy(update=chosen)

    def _stands(self, name: str, choice: Choice, configured: Settings, agents: Mapping[str, Agent]) -> bool:
        if choice.instead_of != getattr(configured, SETTINGS[name]):
            log.info("the chosen %s is dropped: %s was changed", name, SETTINGS[name].upper())
            return False
        try:
            _check(SetDefaults.model_validate({name: choice.value}, strict=True), configured, agents)
        except (PiagentError, ValidationError) as error:
            log.warning("the chosen %s is dropped: %s", name, error)
            return False
        return True

    async def set(self, wanted: SetDefaults) -> Defaults:
        """Take over what is named in `wanted`; return the defaults then in force.

        Raises UnknownAgent, and InvalidRequest for a model outside MODELS_ALLOWED.
        """
        _check(wanted, self._configured, self._config.agents)
        before = self._choices
        self._choices = dict(before)
        for name in wanted.model_fields_set:
            value, configured = getattr(wanted, name), getattr(self._configured, SETTINGS[name])
            if value is None or value == configured:
                self._choices.pop(name, None)
            else:
                self._choices[name] = Choice(value, configured)
        if self._choices != before:
            self._config.settings = self._laid()
            await self._store.note(NOTE, _encode(self._choices))
            if self.on_change:
                self.on_change()
        return self.defaults


def _check(wanted: SetDefaults, settings: Settings, agents: Mapping[str, Agent]) -> None:
    if wanted.agent is not None and wanted.agent not in agents:
        raise UnknownAgent(f'There is no agent "{wanted.agent[:64]}". Known: {", ".join(sorted(agents))}.')
    if wanted.model is not None and not allows(settings.models_allowed, wanted.model):
        raise InvalidRequest(f'The model "{wanted.model[:128]}" is not in MODELS_ALLOWED.')


def _encode(choices: Mapping[str, Choice]) -> bytes:
    return json.dumps({name: [choice.value, choice.instead_of] for name, choice in choices.items()}).encode()


def _decode(note: bytes) -> dict[str, Choice]:
    """Read what `_encode` made; anything else is no choice."""
    try:
        found = json.loads(note or b"{}")
        return {name: Choice(*pair) for name, pair in found.items() if name in SETTINGS}
    except (ValueError, TypeError, AttributeError):
        return {}
