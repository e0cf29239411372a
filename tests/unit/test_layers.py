"""Imports point one way; libraries live where they belong."""

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "piagent_daemon"
LAYERS = (
    {"", "errors", "contract", "topics", "values", "ports", "model_names"},
    {
        "settings",
        "settings_table",
        "provider_tables",
        "setting_types",
        "sources",
        "problems",
        "templates",
        "sandbox",
        "agents",
        "abbreviations",
        "apologies",
        "boundaries",
        "markup",
        "wire",
        "files",
        "images",
        "tries",
        "prompt",
        "window",
        "sentences",
        "speech",
        "stops",
        "backoff",
        "tls",
        "waiting",
        "discovery",
        "checks",
        "systemd",
        "log",
    },
    {
        "job",
        "voice",
        "ending",
        "spoken",
        "admission",
        "pace",
        "recent",
        "rung",
        "routing",
        "failures",
        "ladder",
        "loops",
        "cache",
        "fitting",
        "turn",
        "defaults",
        "scheduler",
        "alone",
        "catalogue",
        "downloads",
        "admin",
        "admin_daemon",
        "admin_checks",
        "admin_llm",
        "admin_memory",
        "admin_method",
        "admin_models",
        "health",
        "watch",
        "warmup",
        "reporting",
        "announcer",
    },
    {"providers", "stores", "doors"},
    {"daemon"},
    {"app"},
    {"cli", "__main__"},
)
ENGINE, ADAPTERS = LAYERS[2], LAYERS[3]
HOMES = {
    "h11": {"providers"},
    "httpx": {"providers"},
    "httpx_sse": {"providers"},
    "paho": {"doors"},
    "wyoming": {"doors"},
    "sqlite3": {"stores"},
    "amqtt": {"cli"},
    "tqdm": {"cli"},
}


def _family(module: str) -> str:
    return module.removeprefix("piagent_daemon").strip(".").split(".")[0]


def _level(family: str) -> int:
    for level, names in enumerate(LAYERS):
        if family in names:
            return level
    pytest.fail(f"piagent_daemon.{family} has no place in the layers")


@functools.cache
def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module == "piagent_daemon"
                else {node.module}
            )
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    family = path.relative_to(PACKAGE).with_suffix("").parts[0].replace("__init__", "")
    for module in _imports(path):
        top = module.split(".")[0]
        assert top not in HOMES or family in HOMES[top], f"{top} is imported outside {HOMES[top]}"
        if top != "piagent_daemon":
            continue
        other = _family(module)
        if other in {"__version__", "CONTRACT_VERSION"} or other == family:
            continue
        assert _level(other) <= _level(family), f"{family} imports {other}"
        if family in ADAPTERS:
            assert other not in ADAPTERS | ENGINE, f"{family} imports {other}"


def test_no_module_outgrows_one_word_of_the_domain() -> None:
    assert not [path.name for path in MODULES if len(path.read_text().splitlines()) > 350]


def test_no_import_cycles() -> None:
    graph = {
        ".".join(("piagent_daemon", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): {
            name for name in _imports(path) if name.startswith("piagent_daemon")
        }
        for path in MODULES
    }
    done: set[str] = set()

    def walk(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        if name not in done:
            for other in graph.get(name, ()):
                walk(other, (*above, name))
            done.add(name)

    for name in graph:
        walk(name, ())
