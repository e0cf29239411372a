"""`[providers.<name>]` tables of piagent.toml: providers that have a name, an address and a model of their own.

Loaded only where there are such tables.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from piagent_daemon import setting_types as types
from piagent_daemon.problems import explain, line_of, nearest
from piagent_daemon.sources import Tables, at_home, read_text, within_reach

NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")
_MAC: Final = re.compile(r"[0-9a-f]{2}([:-]?)[0-9a-f]{2}(\1[0-9a-f]{2}){4}", re.IGNORECASE)
_UDP: Final = re.compile(r"([0-9.]+)(?::([0-9]{1,5}))?")


def _mac(value: str) -> str:
    if not _MAC.fullmatch(value):
        raise ValueError("should be a MAC address, such as 00:11:22:aa:bb:cc")
    return re.sub("[:-]", "", value).lower()


def _udp(value: str) -> str:
    found = _UDP.fullmatch(value)
    try:
        good = found and IPv4Address(found[1]) and int(found[2] or 9) in range(1, 65_536)
    except ValueError:
        good = False
    if not good:  # a name would have to be looked up, which takes its time
        raise ValueError("should be a broadcast address, such as 192.168.1.255, with a port where it is not 9")
    return value


class ProviderTable(BaseModel):
    """One table. What is None comes from the plain settings, the address and key only together."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    kind: types.AgentName
    url: types.ServerUrl | None = None
    key: SecretStr | None = None
    model: types.Model | None = None
    context_tokens: Annotated[int, Field(ge=256, le=4_194_304)] | None = None
    wake: Annotated[str, AfterValidator(_mac)] | None = None
    wake_address: Annotated[str, AfterValidator(_udp)] = "255.255.255.255:9"

    def masked(self) -> dict[str, Any]:
        """Return what is set as it may be shown to anybody."""
        shown = self.model_dump(exclude_unset=True)
        if self.key is not None:
            shown["key"] = types.MASK
        return {name: types.mask_userinfo(value) if name == "url" else value for name, value in shown.items()}


KEYS: Final = (*ProviderTable.model_fields, "host", "key_file")
"""`host` is another word for `url`; `key_file` names a file with the key."""


@dataclass(frozen=True, slots=True)
class Read:
    """The tables that can be used, by name, where each begins, and a line for each thing that cannot be used."""

    tables: Mapping[str, ProviderTable]
    origins: Mapping[str, str]
    problems: tuple[str, ...]


def read(found: Tables) -> Read:
    """Read the value of `providers` in a TOML file."""
    tables: dict[str, ProviderTable] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    if not isinstance(found.value, dict):
        where = f"{found.path}:{line_of(found.text, 'providers')}"
        return Read({}, {}, (f"{where}: providers: should be tables, such as [providers.office]",))
    for name, content in found.value.items():
        place = _Place(found.path, found.text, name)
        origins[name] = place.of()
        if not NAME.fullmatch(name):
            problems.append(f"{place.of()}: [providers.{name}]: a name has 1 to 64 of a-z, 0-9, _ and -")
        elif not isinstance(content, dict):
            problems.append(f"{place.of()}: providers.{name}: should be a table, [providers.{name}]")
        else:
            said = list(_read_one(name, content, place, tables, found.credentials))
            problems += said
    return Read(tables, origins, tuple(problems))


@dataclass(frozen=True, slots=True)
class _Place:
    """Finds the lines of one table."""

    path: Path
    text: str
    name: str

    def of(self, key: str | None = None) -> str:
        header = re.search(
            rf"""^[ \t]*\[[ \t]*providers[ \t]*\.[ \t]*["']?{re.escape(self.name)}["']?""", self.text, re.MULTILINE
        )
        if not header:
            return f"{self.path}:{line_of(self.text, 'providers')}"
        first = self.text.count("\n", 0, header.start()) + 1
        if key is None:
            return f"{self.path}:{first}"
        body = self.text[header.end() :].partition("\n[")[0]
        return f"{self.path}:{first + line_of(body, key) - 1}"


def _read_one(
    name: str, content: Mapping[str, Any], place: _Place, tables: dict[str, ProviderTable], credentials: str | None
) -> Iterator[str]:
    label = f"[providers.{name}]"
    unknown = [key for key in content if key not in KEYS]
    for key in unknown:
        yield f"{place.of(key)}: {label} {key}: there is no such key{nearest(key, KEYS)}"
    values = {key: value for key, value in content.items() if key not in unknown and value != ""}
    for one, other in (("host", "url"), ("key_file", "key")):
        if one in values and other in values:
            yield f"{place.of(one)}: {label} {one} and {other} are both set, keep one"
            return
    if "host" in values:
        values["url"] = values.pop("host")
    if "key_file" in values:
        try:
            values["key"] = _key(values.pop("key_file"), credentials)
        except ValueError as error:
            yield f"{place.of('key_file')}: {label} key_file: {error}"
    try:
        table = ProviderTable.model_validate({"kind": name, **values})
    except ValidationError as error:
        for finding in explain(error):
            key, value = finding.key, finding.value
            plain = key != "key" and isinstance(value, str | int | float)
            but = f", but is {types.mask_userinfo(repr(value))[:80]}" if plain else ""
            yield f"{place.of(key)}: {label} {key}: {finding.message}{but}"
    else:
        tables[name] = table


def _key(written: Any, credentials: str | None) -> str:
    if not isinstance(written, str):
        raise ValueError("should be a path")  # noqa: TRY004 - it is told like the others
    path = within_reach(at_home(written), credentials)
    try:
        key = read_text(path).rstrip("\r\n")
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    if not key:
        raise ValueError(f"{path} is empty")
    return key
