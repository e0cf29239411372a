"""What a start loads, and what it leaves on the disk: every module costs time and memory on a Pi."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from piagent_daemon.cli import VERBS
from piagent_daemon.settings import Settings
from tests.fakes.broker import free_port

ROOT = Path(__file__).parents[2]
MODULES = {
    "anthropic": {"anthropic"},
    "custom": {"openai"},
    "echo": {"echo"},
    "llamacpp": {"openai"},
    "ollama": {"ollama"},
    "ollama-cloud": {"ollama"},
    "openai": {"openai"},
}


def test_a_verb_loads_no_other_verb() -> None:
    program = (
        "import json, sys\n"
        "from piagent_daemon.cli import main\n"
        "main(['asyncapi', '--help'])\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd=ROOT)
    loaded = set(json.loads(done.stderr))
    assert "piagent_daemon.cli.asyncapi" in loaded
    others = {module for module, _ in VERBS.values()} - {"piagent_daemon.cli.asyncapi"}
    assert not loaded & others
    assert not loaded & {"paho", "httpx", "tqdm", "amqtt", "yaml", "sqlite3", "asyncio"}


def test_run_loads_nothing_of_the_other_verbs(tmp_path: Path) -> None:
    """The daemon's own process: it starts, finds no broker, and is asked what it loaded before it would serve."""
    program = (
        "import json, sys\n"
        "from piagent_daemon import app\n"
        "app.run = lambda loaded: print(json.dumps(sorted(sys.modules))) or 0\n"
        "from piagent_daemon.cli import main\n"
        "sys.exit(main([], default='run'))"
    )
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd=tmp_path, env=env)
    loaded = set(json.loads(done.stdout))
    verbs = {name for name in loaded if name.startswith("piagent_daemon.cli.")}
    assert verbs == {"piagent_daemon.cli.run"}
    assert "piagent_daemon.doors.mqtt_client" not in loaded
    assert not loaded & {"tqdm", "amqtt", "readline", "http.server"}


@pytest.mark.parametrize(("kind", "modules"), sorted(MODULES.items()))
def test_only_the_chosen_provider_is_imported(kind: str, modules: set[str]) -> None:
    code = (
        "import sys\nfrom piagent_daemon.providers import ProviderConfig, make\n"
        f"make(ProviderConfig({kind!r}, {kind!r}, url='http://127.0.0.1:1'))\n"
        "print(*(name.rpartition('.')[2] for name in sys.modules if name.startswith('piagent_daemon.providers.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {name.partition("_")[0] for name in loaded} & {"ollama", "openai", "anthropic", "echo"} == modules


def test_the_echo_needs_no_http() -> None:
    code = "import sys; from piagent_daemon.providers import load; load('echo'); print('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_asking_a_model_server_needs_no_second_event_loop_nor_a_pool() -> None:
    code = (
        "import asyncio, sys\n"
        "from piagent_daemon.errors import ProviderError\n"
        "from piagent_daemon.providers import ProviderConfig, make\n"
        "async def ask():\n"
        "    try: await make(ProviderConfig('ollama', 'ollama', url='http://127.0.0.1:1')).models()\n"
        "    except ProviderError: print(*{'anyio', 'h11', 'httpcore', 'httpx', 'trio'} & sys.modules.keys())\n"
        "asyncio.run(ask())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert sorted(done.stdout.split()) == ["h11", "httpx"]


@pytest.mark.parametrize("library", ["jinja2", "yaml"])
def test_the_packaged_agents_need_neither_template_engine_nor_yaml(library: str) -> None:
    code = (
        "import sys; from piagent_daemon.agents import load_agents; load_agents(None); "
        f"print({library!r} in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert shown.stdout.strip() == "False"


def loaded_by_a_daemon_of(folder: Path, **environ: str) -> set[str]:
    """Return the modules that are there when a daemon is put together in a folder without settings."""
    program = (
        "import sys\n"
        "from piagent_daemon import app\n"
        "from piagent_daemon.settings import load_settings\n"
        "app.build(load_settings())\n"
        "print(*sys.modules)"
    )
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=folder, env=env
    )
    return set(done.stdout.split())


def test_the_http_client_does_not_keep_the_daemon_from_being_ready(tmp_path: Path) -> None:
    assert "httpx" not in loaded_by_a_daemon_of(tmp_path)


def test_a_memory_without_a_file_needs_no_database(tmp_path: Path) -> None:
    assert "sqlite3" not in loaded_by_a_daemon_of(tmp_path)
    assert "sqlite3" in loaded_by_a_daemon_of(tmp_path, MEMORY_URL=f"sqlite://{tmp_path}/memory.db")


def test_the_package_itself_is_the_daemon(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "MQTT_PORT": "no number"}
    done = subprocess.run(
        [sys.executable, "-m", "piagent_daemon"], capture_output=True, text=True, check=False, cwd=tmp_path, env=env
    )
    assert (done.returncode, done.stdout) == (78, "")
    assert "MQTT_PORT" in done.stderr


def test_the_client_id_is_the_same_in_every_process() -> None:
    code = "from piagent_daemon.settings import Settings; print(Settings().mqtt_client_id)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout == f"{Settings().mqtt_client_id}\n"


def test_the_collector_sleeps_until_the_daemon_is_ready_and_then_spares_what_is_there(tmp_path: Path) -> None:
    program = (
        "import gc, os, signal, sys\n"
        "from piagent_daemon import app, cli, daemon\n"
        "daemon.DOORS_PATIENCE_S = 0.0\n"
        "tidy = app.tidy\n"
        "def told():\n"
        "    print(gc.isenabled())\n"
        "    tidy()\n"
        "    print(gc.isenabled(), gc.get_freeze_count() > 20_000, gc.get_count()[0] < 700)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "app.tidy = told\n"
        "sys.exit(cli.main([], default='run'))"
    )
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "MQTT_PORT": str(free_port()), "PROVIDER": "echo"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path, env=env, timeout=30
    )
    assert done.stdout.split("\n")[:2] == ["False", "True True True"]


def test_what_a_verb_loads_is_kept_from_the_collector(tmp_path: Path) -> None:
    program = (
        "import gc\n"
        "from piagent_daemon import app, cli\n"
        "app.run = lambda loaded: print(gc.isenabled(), gc.get_freeze_count() > 20_000) or 0\n"
        "cli.main([], default='run')"
    )
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path, env=env
    )
    assert done.stdout == "True True\n"
