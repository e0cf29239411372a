"""prompts/*.md -> Agent. Source: contract section 9."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from piagent_daemon import templates
from piagent_daemon.contract import Options, Sentences
from piagent_daemon.errors import ConfigError
from piagent_daemon.problems import Finding, explain, nearest, one_line
from piagent_daemon.sources import read_text

if TYPE_CHECKING:
    import yaml

FRONT_MATTERS: Final = Path(__file__).with_name("front_matter.json")
_NAME: Final = re.compile(r"[a-z0-9_-]{1,64}")
_FENCE: Final = re.compile(r"^---[ \t]*$", re.MULTILINE)
_OPENING: Final = re.compile(r"(?:[ \t\ufeff]*\n)*\ufeff?---[ \t]*$", re.MULTILINE)
"""The first fence, and what an editor left before it: blank lines, byte order marks."""


@dataclass(frozen=True, slots=True)
class Agent:
    """One prompt file. None means that the daemon's own setting applies; `system` is rendered once, so byte-stable."""

    name: str
    system: str
    description: str = ""
    provider: str | None = None
    model: str | None = None
    options: Options = field(default_factory=Options)
    stream: bool | Sentences | None = None
    interrupt: bool = False
    think: bool | str | None = None
    format: Literal["json"] | Mapping[str, Any] | None = None
    tools: tuple[str, ...] = ()
    filler: Mapping[str, Any] | None = None
    """`text` (what to say) and `seconds` (when no word came before)."""
    stop_phrases: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    context: str | None = None
    """Source of the Jinja2 template for the facts of one turn."""
    provider_place: str = field(default="", compare=False)
    """File and line that name the provider, for messages."""


Word = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=256)]


class Filler(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    text: Word
    seconds: float = Field(gt=0, le=600)


class FrontMatter(BaseModel):
    """What may stand between the two `---` lines."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    description: Annotated[str, StringConstraints(strip_whitespace=True, max_length=1000)] = ""
    provider: Word | None = None
    model: Word | None = None
    options: Options = Field(default_factory=Options)
    stream: bool | Sentences | None = None
    interrupt: bool = False
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    format: Literal["json"] | dict[str, JsonValue] | None = None
    tools: tuple[Word, ...] = ()
    filler: Filler | None = None
    stop_phrases: tuple[Word, ...] = ()
    languages: tuple[Word, ...] = ()
    context: str | None = None


class Lines(NamedTuple):
    """Where a front matter begins, and where it sets each of its keys."""

    first: int
    keys: Mapping[str, int]

    def of(self, key: str) -> int:
        """Return the line of `key`, or of the key that it is in."""
        return self.keys.get(key) or self.keys.get(key.partition(".")[0], self.first)


def packaged_prompts() -> Path:
    """Return the folder of the prompts that come with piagent: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "prompts"
    return inside if inside.is_dir() else package.parent / "prompts"


def load_agents(prompts_dir: Path | None) -> dict[str, Agent]:
    """Read the packaged agents, and those in `prompts_dir`, which override and add; by name, in alphabetical order.

    Raises ConfigError with a line per problem, naming file and key.
    """
    agents: dict[str, Agent] = {}
    problems: list[str] = []
    for folder in (packaged_prompts(), prompts_dir):
        if folder is None:
            continue
        try:
            paths = sorted(path for path in folder.iterdir() if path.suffix == ".md" and path.name[0] != ".")
            files = [path for path in paths if path.is_file()]
        except (OSError, ValueError) as error:
            problems.append(f"PROMPTS_DIR: {folder} cannot be read: {getattr(error, 'strerror', error)}")
            continue
        for path in files:
            try:
                # The packaged templates are compiled by our own tests; doing it at each start would import Jinja2.
                agent = read_agent(path, check=folder is prompts_dir)
            except ConfigError as error:
                problems += error.problems
            else:
                agents[agent.name] = agent
    if problems:
        raise ConfigError(*map(one_line, problems))
    return dict(sorted(agents.items()))


def read_agent(path: Path, *, check: bool = True) -> Agent:
    """Read one prompt file; raises ConfigError. `check`: compile its `context` template, to find its mistakes now."""
    if not _NAME.fullmatch(path.stem):
        raise ConfigError(f"{path}: the name of a prompt file is 1 to 64 of a-z, 0-9, _ and -, then .md")
    try:
        text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    except ValueError as error:
        raise ConfigError(f"{path} {error}") from None
    front, first, body, body_line = split(path, text)
    meta, lines = _front_matter(path, front, first) if front.strip() else (FrontMatter(), Lines(first, {}))
    system = _system(path, body, body_line)
    if check and meta.context is not None:
        try:
            templates.check(meta.context)
        except templates.TemplateProblem as problem:
            raise ConfigError(f"{path}:{lines.of('context')}: context: {problem}") from None
    return Agent(
        name=path.stem,
        system=system,
        **{key: getattr(meta, key) for key in FrontMatter.model_fields if key != "filler"},
        filler=meta.filler.model_dump() if meta.filler else None,
        provider_place=one_line(f"{path}:{lines.of('provider')}"),
    )


def misplaced(agent: Agent, error: ConfigError) -> ConfigError:
    """Return what is wrong with an agent's provider, with the place where the agent names it."""
    problems = (problem.removeprefix("PROVIDER: ") for problem in error.problems)
    return ConfigError(*(f"{agent.provider_place}: provider: {problem}" for problem in problems))


def split(path: Path, text: str) -> tuple[str, int, str, int]:
    """Return front matter, as many lines down as in the file, and system prompt, each with the line it begins on."""
    first = _OPENING.match(text)
    if not first:
        return "", 1, text, 1
    second = _FENCE.search(text, first.end())
    line = first[0].count("\n") + 1
    if not second:
        raise ConfigError(f"{path}:{line}: the front matter is not closed by a second line ---")
    front = "\n" * (line - 1) + text[first.end() : second.start()]
    return front, line, text[second.end() :], text.count("\n", 0, second.end()) + 1


def _front_matter(path: Path, front: str, first: int) -> tuple[FrontMatter, Lines]:
    """Read a front matter that begins on the line `first`."""
    known = _packaged_front_matters().get(front)
    content, lines = (known, Lines(first, {})) if known else read_yaml(path, front, first)
    try:
        meta = FrontMatter.model_validate(content)
    except ValidationError as error:
        found = explain(error, nested=("options", "filler"))
        raise ConfigError(*(f"{path}:{lines.of(finding.key)}: {_told(finding)}" for finding in found)) from None
    return meta, lines


@cache
def _packaged_front_matters() -> dict[str, dict[str, Any]]:
    """Return what the front matters of the packaged prompts say, by their text.

    They are read beforehand (`python -m tests.generated`): loading YAML would be a twentieth of each start.
    """
    found: dict[str, dict[str, Any]] = json.loads(FRONT_MATTERS.read_text("utf-8"))
    return found


def read_yaml(path: Path, front: str, first: int) -> tuple[dict[str, Any], Lines]:
    """Return the keys and values of a front matter that begins on the line `first`. Raises ConfigError."""
    import yaml  # noqa: PLC0415 (only for prompts of the user's own)

    try:
        loader = _loader()(front)
        node = loader.get_single_node()
        content = loader.construct_document(node) if node else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else first
        raise ConfigError(f"{path}:{line}: {getattr(error, 'problem', None) or 'this is not YAML'}") from None
    # PyYAML lets these out for tagged scalars that it cannot convert (`!!int x`, `!!timestamp x`) and deep nesting.
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        raise ConfigError(f"{path}:{first}: this is not YAML that can be used") from None
    if content is None:
        return {}, Lines(first, {})
    if not isinstance(content, dict):
        raise ConfigError(f"{path}:{first}: the front matter should be lines of key: value")
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    lines = Lines(first, {str(key.value): key.start_mark.line + 1 for key, _ in pairs})
    return {str(key): value for key, value in content.items()}, lines


def _told(finding: Finding) -> str:
    top, _, inner = finding.key.partition(".")
    model: type[BaseModel] = FrontMatter if not inner else Options if top == "options" else Filler
    name = inner or top
    if name in model.model_fields:
        return f"{finding.key}: {finding.message}"
    return f"there is no key {finding.key}{nearest(name, model.model_fields)}"


@cache
def _loader() -> "type[yaml.SafeLoader]":
    """Return a loader for which on, off, yes, no and dates are words: they are names of devices and languages here."""
    import yaml  # noqa: PLC0415 (see above)

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$", re.IGNORECASE), list("tTfF"))
    return Loader


def _system(path: Path, body: str, body_line: int) -> str:
    try:
        rendered = templates.render_once(body, {"agent": path.stem})
    except templates.TemplateProblem as problem:
        where = f"{path}:{body_line + problem.line - 1}" if problem.line else f"{path}"
        raise ConfigError(f"{where}: {problem}") from None
    system = "\n".join(line.rstrip() for line in rendered.split("\n")).strip()
    if not system:
        raise ConfigError(f"{path}: there is no system prompt in it")
    return system
