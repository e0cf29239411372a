"""Where settings come from: each place read into raw values that remember their origin; nothing is judged here.

Source: contract section 7; systemd.exec(5), "Credentials".
"""

import os
import re
import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from piagent_daemon.problems import bare, line_of, nearest

PREFIX: Final = "PIAGENT_"
CONFIG_VARIABLE: Final = "PIAGENT_CONFIG"
"""It names the file of settings, and is none itself."""
CONFIG_PATHS: Final = (Path("piagent.toml"), Path("/etc/piagent/piagent.toml"))
DOTENV_PATH: Final = Path(".env")
MAX_FILE_BYTES: Final = 256 * 1024


class Found(NamedTuple):
    """One value as it stands somewhere, and where a person finds it."""

    value: Any
    origin: str


def may_be_file(path: Path) -> bool:
    """Tell whether there is a file, or may be one in a folder that we may not look into: reading it tells the rest."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False


def read_text(path: Path) -> str:
    """Return the UTF-8 text of a file of at most 256 KiB; raises ValueError with a sentence that names no content."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError("is no path") from None
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"is larger than {MAX_FILE_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None


def within_reach(path: Path, credentials: str | None) -> Path:
    """Return the file that a setting names, or the systemd credential of its name where the file cannot be read.

    The user that systemd makes for the service cannot read what belongs to root alone.
    """
    if not credentials or _may_read(path):
        return path
    credential = Path(credentials, path.name)
    return credential if _may_read(credential) else path


def _may_read(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except (OSError, ValueError):
        return False


class Tables(NamedTuple):
    """What a TOML file has as `providers`; its `text` is bare, and `credentials` is systemd's folder of them."""

    path: Path
    text: str
    value: Any
    credentials: str | None = None


@dataclass(slots=True)
class Reader:
    """Reads every place; `problems` has a line for each thing that cannot be used.

    `names` are the settings in lower case, `secrets` those that also come from files, `aliases` other names of
    settings (alias -> name). `tables` are what was found of `providers`, `credentials` is systemd's folder of them.
    """

    names: Collection[str]
    secrets: Collection[str]
    aliases: Mapping[str, str]
    problems: list[str] = field(default_factory=list)
    tables: Tables | None = None
    credentials: str | None = None

    def read(self, config: Path | None, environ: Mapping[str, str]) -> dict[str, Found]:
        """Return what is set anywhere. The first place that has a setting wins, in this order:

        environment with the prefix, environment, `.env` with the prefix, `.env`, the TOML file, systemd credentials.
        `<NAME>_FILE` counts as the place in which it is written. An empty value counts as not set.
        """
        self.credentials = environ.get("CREDENTIALS_DIRECTORY")
        dotenv, lines = self._dotenv()
        chosen = config or environ.get(CONFIG_VARIABLE) or dotenv.get(CONFIG_VARIABLE)
        layers = [
            *self._variables(environ, lambda key: f"environment {key}"),
            *self._variables(dotenv, lambda key: f"{DOTENV_PATH}:{lines[key]}"),
            self._toml(Path(chosen) if chosen else None),
            self._credentials(self.credentials),
        ]
        merged: dict[str, Found] = {}
        for layer in reversed(layers):
            merged |= layer
        broken = {name: found for name, found in merged.items() if _is_broken(found.value)}
        self.problems += [f"{name.upper()}: should be UTF-8 text ({found.origin})" for name, found in broken.items()]
        return {name: self._within_reach(name, found) for name, found in merged.items() if name not in broken}

    def _within_reach(self, name: str, found: Found) -> Found:
        """Return the value; of a setting that is itself the name of a file, the file that can be read."""
        if name.endswith("_file") and isinstance(found.value, str):
            return found._replace(value=str(within_reach(Path(found.value), self.credentials)))
        return found

    @property
    def _spellings(self) -> set[str]:
        spelled = {*self.names, *self.aliases}
        return spelled | {f"{name}_file" for name in spelled if self.aliases.get(name, name) in self.secrets}

    # ---------------------------------------------------------------------------------------------------- the places

    def _dotenv(self) -> tuple[dict[str, str], dict[str, int]]:
        """Return the variables in `.env`, and the line on which each is set."""
        if not may_be_file(DOTENV_PATH):
            return {}, {}
        from io import StringIO  # noqa: PLC0415 (as the next two: only where there is a .env file)

        from dotenv import dotenv_values  # noqa: PLC0415
        from dotenv.parser import parse_stream  # noqa: PLC0415

        try:
            text = read_text(DOTENV_PATH)
        except ValueError as error:
            self.problems.append(f"{DOTENV_PATH} {error}")
            return {}, {}
        bindings = list(parse_stream(StringIO(text)))
        lines = {
            one.key: one.original.line + _blank_lines(one.original.string) for one in bindings if one.key is not None
        }
        broken = [one.original.line + _blank_lines(one.original.string) for one in bindings if one.error]
        if broken:
            self.problems += [f"{DOTENV_PATH}:{line}: this is not NAME=value" for line in broken]
            return {}, {}
        # Not interpolated: a password may have a ${ in it.
        found = dotenv_values(stream=StringIO(text), interpolate=False)
        for key in found:
            if key != key.upper() and key.lower().removeprefix(PREFIX.lower()) in self._spellings:
                self.problems.append(f"{DOTENV_PATH}:{lines[key]}: {key} should be in capitals")
        return {key: value for key, value in found.items() if value is not None}, lines

    def _variables(
        self, variables: Mapping[str, str], origin: Callable[[str], str]
    ) -> tuple[dict[str, Found], dict[str, Found]]:
        """Return two layers: the variables with the prefix, which win, and those without."""
        prefixed: dict[str, Found] = {}
        bare: dict[str, Found] = {}
        spellings = self._spellings
        for key, value in variables.items():
            name = key.removeprefix(PREFIX).lower()
            if key in {name.upper(), PREFIX + name.upper()} and name in spellings:
                layer = prefixed if key.startswith(PREFIX) else bare
                layer[name] = Found(value if self._is_secret(name) else value.strip(), origin(key))
            elif key.startswith(PREFIX) and key != CONFIG_VARIABLE:
                hint = nearest(name.upper(), [known.upper() for known in spellings])
                self.problems.append(f"{key}: there is no such setting{hint} ({origin(key)})")
        return self._settle(prefixed), self._settle(bare)

    def _toml(self, path: Path | None) -> dict[str, Found]:
        if path is None:
            # A folder counts, and cannot be read: Docker makes one where the file that it is to mount is missing.
            path = next((place for place in CONFIG_PATHS if may_be_file(place) or place.is_dir()), None)
            if path is None:
                return {}
        import tomllib  # noqa: PLC0415 (only where there is a file)

        try:
            text = read_text(path)
        except ValueError as error:
            self.problems.append(f"{path} {error}")
            return {}
        try:
            content = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            found = re.search(r" \(at line (\d+), column \d+\)$", str(error))
            where = f"{path}:{found[1]}" if found else f"{path}"
            self.problems.append(f"{where}: {str(error).removesuffix(found[0]) if found else 'this is not TOML'}")
            return {}
        spellings, text = self._spellings, bare(text)
        layer: dict[str, Found] = {}
        for key, value in content.items():
            origin = f"{path}:{line_of(text, key)}"
            if key == "providers":
                self.tables = Tables(path, text, value, self.credentials)
            elif key in spellings:
                layer[key] = Found(value, origin)
            else:
                self.problems.append(f"{origin}: {key}: there is no such setting{nearest(key.lower(), spellings)}")
        return self._settle(layer)

    def _credentials(self, directory: str | None) -> dict[str, Found]:
        layer: dict[str, Found] = {}
        if not directory:
            return layer
        if os.access(directory, os.F_OK) and not os.access(directory, os.X_OK):
            self.problems.append(f"CREDENTIALS_DIRECTORY: {directory} cannot be read")
            return layer
        for name in (*self.aliases, *self.secrets):
            for spelled in (name.replace("_", "-"), name):
                path = Path(directory, spelled)
                if self.aliases.get(name, name) in self.secrets and may_be_file(path):
                    self._add_file(layer, name, path, f"credential {spelled}")
        return {name: found for name, found in layer.items() if found.value}

    # --------------------------------------------------------------------------------------- aliases and secret files

    def _is_secret(self, spelled: str) -> bool:
        return self.aliases.get(spelled, spelled) in self.secrets

    def _settle(self, layer: dict[str, Found]) -> dict[str, Found]:
        """Resolve aliases, `_file` twins and empty values in one place's values."""
        layer = {name: found for name, found in layer.items() if found.value != ""}
        settled: dict[str, Found] = {}
        for name in (*self.aliases, *self.names):
            found = layer.get(name)
            twin = layer.get(f"{name}_file") if self._is_secret(name) else None
            if found and twin:
                self.problems.append(
                    f"{name.upper()} and {name.upper()}_FILE are both set, keep one ({found.origin}, {twin.origin})"
                )
            elif found:
                settled[self.aliases.get(name, name)] = found
            elif twin and not isinstance(twin.value, str):
                self.problems.append(f"{name.upper()}_FILE should be a path ({twin.origin})")
            elif twin:
                path = within_reach(at_home(twin.value), self.credentials)
                self._add_file(settled, name, path, f"{name.upper()}_FILE in {twin.origin}")
                if settled.get(self.aliases.get(name, name), twin).value == "":
                    self.problems.append(f"{name.upper()}_FILE: {twin.value} is empty ({twin.origin})")
        return settled

    def _add_file(self, layer: dict[str, Found], name: str, path: Path, origin: str) -> None:
        try:
            layer[self.aliases.get(name, name)] = Found(read_text(path).rstrip("\r\n"), origin)
        except ValueError as error:
            self.problems.append(f"{name.upper()}: {path} {error} ({origin})")


def _is_broken(value: Any) -> bool:
    """Tell whether this is a text out of bytes that are not UTF-8: Python reads those in the environment as halves."""
    return isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value)


def _blank_lines(text: str) -> int:
    """Return how many lines of `text` are above the first that says something."""
    return text[: len(text) - len(text.lstrip())].count("\n")


def at_home(path: str) -> Path:
    """Return the path, with `~` as the home folder that it stands for."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody has that name; reading it says that there is no such file
        return Path(path)
