"""Makes the README's settings table and deploy/piagent.toml from the settings: `python -m tests.generated` writes both."""

import json
from pathlib import Path
from typing import Final

from piagent_daemon.settings import Row, Settings, table

ROOT: Final = Path(__file__).parents[1]
README: Final = ROOT / "README.md"
TOML: Final = ROOT / "deploy/piagent.toml"
BEGIN: Final = "<!-- settings: made by `python -m tests.generated`, do not edit by hand -->\n"
END: Final = "<!-- end of settings -->\n"
TOML_HEAD: Final = """\
# All settings of piagent with their defaults; take the # away where you want another value.
# Read from `--config PATH`, $PIAGENT_CONFIG, ./piagent.toml or /etc/piagent/piagent.toml. The environment wins over it.
# Those marked (reload) change with `sudo systemctl reload piagent`, the others with a restart.
# An empty value counts as not set. A password is better kept in a file of its own: mqtt_password_file = "PATH".
"""


def settings_table() -> str:
    """Return the table of the README, between its two marks."""
    lines = ["| setting | default | values | what it does |", "|---|---|---|---|"]
    lines += [
        f"| `{row.name}`{' *' if row.reloadable else ''} | {_cell(row.default)} | {_cell(row.values)} "
        f"| {_cell(row.description)}{' (secret)' if row.secret else ''} |"
        for row in table()
    ]
    return BEGIN + "\n" + "\n".join(lines) + "\n\n" + END


def settings_toml() -> str:
    """Return an example file with every setting, each commented out."""
    return TOML_HEAD + "".join(
        f"\n# {row.description}{f' [{row.values}]' if row.values else ''}{' (reload)' if row.reloadable else ''}\n"
        f"#{row.name.lower()} = {_toml_value(row)}\n"
        for row in table()
    )


def with_table(readme: str) -> str:
    """Return the text of the README with the table as it should be."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, "the README has lost the mark before its settings table"
    assert end, "the README has lost the mark after its settings table"
    return before + settings_table() + after


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _toml_value(row: Row) -> str:
    info = Settings.model_fields[row.name.lower()]
    if info.default_factory is not None and not info.default_factory_takes_validated_data:
        return json.dumps(row.default)  # it depends on the machine
    value = getattr(Settings(), row.name.lower())
    return json.dumps("" if value is None else value)


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
    TOML.write_text(settings_toml())
