"""Makes what would else be written twice (`python -m tests.generated`): parts of the README, deploy/piagent.toml, and
the front matter of the packaged prompts as the daemon reads it without YAML.
"""

import ast
import json
import re
from pathlib import Path
from typing import Final

from piagent_daemon import agents
from piagent_daemon.settings import Settings
from piagent_daemon.settings_table import Row, table
from tests.unit.test_layers import LAYERS

ROOT: Final = Path(__file__).parents[1]
README: Final = ROOT / "README.md"
TOML: Final = ROOT / "deploy/piagent.toml"
PACKAGE: Final = ROOT / "piagent_daemon"
LAYER_NAMES: Final = ("vocabulary", "pure", "engine", "adapters", "life", "wiring", "command line")
TOML_HEAD: Final = """\
# All settings of piagent with their defaults; take the # away where you want another value.
# Read from `--config PATH`, $PIAGENT_CONFIG, ./piagent.toml or /etc/piagent/piagent.toml. The environment wins over it.
# Those marked (reload) change with `sudo systemctl reload piagent`, the others with a restart.
# An empty value counts as not set. Passwords and keys are better kept in files of their own: the service takes
# /etc/piagent/mqtt_password, ollama_api_key and the like by itself; elsewhere name one: mqtt_password_file = "PATH".
"""
TOML_TAIL: Final = """
# Providers with a name, an address and a model of their own, in any number; `provider` names the ladder of them.
# The first one's model and window stand in place of ollama_model_general and ctx_tokens.
# provider = "office,ollama-cloud"
# [providers.office]
# kind = "ollama"
# url = "http://192.168.1.20:11434"
# model = "qwen2.5:14b-instruct"
# context_tokens = 16384
# wake = "00:11:22:33:44:55"
# wake_address = "192.168.1.255"
# [providers.ollama-cloud]
# model = "gpt-oss:120b"
# # Its key is that of its kind, in /etc/piagent/ollama_api_key. With a key of its own: key_file = "PATH".
"""


def settings_table() -> str:
    """Return the README's table of settings."""
    lines = ["| setting | default | values | what it does |", "|---|---|---|---|"]
    lines += [
        f"| `{row.name}`{' *' if row.reloadable else ''} | {_cell(row.default)} | {_cell(row.values)} "
        f"| {_cell(row.description)}{' (secret)' if row.secret else ''} |"
        for row in table()
    ]
    return "\n".join(lines)


def picture() -> str:
    """Return the README's picture of the package: layer by layer, each module with its own first sentence."""
    lines = ["```", "piagent_daemon/"]
    for layer, title in zip(LAYERS, LAYER_NAMES, strict=True):
        lines.append(f"  # {title}")
        for name in sorted(layer - {"", "__main__"}):
            folder = PACKAGE / name
            if folder.is_dir():
                lines.append(f"  {name + '/':<17}{_first_sentence(folder / '__init__.py')}")
                modules = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
                modules += [f"{path.parent.name}/" for path in folder.glob("*/__init__.py")]
                lines.append(f"  {'':<17}({', '.join(sorted(modules))})")
            elif (module := folder.with_suffix(".py")).is_file():
                lines.append(f"  {name + '.py':<17}{_first_sentence(module)}")
    return "\n".join([*lines, "```"])


PARTS: Final = {"settings": settings_table, "picture": picture}


def settings_toml() -> str:
    """Return an example file with every setting, each commented out."""
    return (
        TOML_HEAD
        + "".join(
            f"\n# {row.description}{f' [{row.values}]' if row.values else ''}{' (reload)' if row.reloadable else ''}\n"
            f"#{row.name.lower()} = {_toml_value(row)}\n"
            for row in table()
        )
        + TOML_TAIL
    )


def front_matters() -> str:
    """Return what the front matters of the packaged prompts say, as JSON by their text."""
    found = {}
    for path in sorted(agents.packaged_prompts().glob("*.md")):
        front, first, _, _ = agents.split(path, path.read_text())
        found[front], _ = agents.read_yaml(path, front, first)
    return json.dumps(found, ensure_ascii=False, indent=1) + "\n"


def readme(text: str) -> str:
    """Return the text of the README with its made parts as they should be."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name}: made by `python -m tests.generated` -->", f"<!-- end of {name} -->"
        assert text.count(begin) == text.count(end) == 1, f"the README has lost the marks around its {name}"
        before, after = text.partition(begin)[0], text.partition(end)[2]
        text = f"{before}{begin}\n\n{make()}\n\n{end}{after}"
    return text


def _first_sentence(module: Path) -> str:
    text = ast.get_docstring(ast.parse(module.read_text())) or ""
    sentence = re.split(r"\.\s|\.$|\n\n", text)[0].replace("\n", " ")
    return re.sub(r" \([^)]*section [^)]*\)", "", sentence)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def _toml_value(row: Row) -> str:
    info = Settings.model_fields[row.name.lower()]
    if info.default_factory is not None and not info.default_factory_takes_validated_data:
        return json.dumps(row.default)  # it depends on the machine
    value = getattr(Settings(), row.name.lower())
    return json.dumps("" if value is None else value)


if __name__ == "__main__":
    README.write_text(readme(README.read_text()))
    TOML.write_text(settings_toml())
    agents.FRONT_MATTERS.write_text(front_matters())
