"""What an installation takes on the disk: a fresh virtual environment with the project from this folder."""

import subprocess
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

from tests.bench.client import BenchError
from tests.bench.harness import PIAGENT, Figure, figure
from tests.bench.process import ROOT

TOOLS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")


def run(sides: Sequence[str], rounds: int | None = None) -> list[Figure]:
    """Measure site-packages without the installer itself; the bound counts the byte code that pip compiles, too."""
    del rounds
    if PIAGENT not in sides:
        return []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        venv.create(folder, with_pip=True)
        done = subprocess.run(
            [f"{folder}/bin/pip", "install", "--quiet", ROOT], capture_output=True, text=True, check=False, timeout=300
        )
        if done.returncode:
            raise BenchError(f"the installation failed:\n{done.stderr}")
        (packages,) = Path(folder).glob("lib/python*/site-packages")
        files = {
            path: path.stat().st_size
            for path in packages.rglob("*")
            if path.is_file() and not path.relative_to(packages).parts[0].startswith(TOOLS)
        }
    compiled = sum(size for path, size in files.items() if path.suffix == ".pyc")
    per_package: dict[str, int] = {}
    for path, size in files.items():
        top = path.relative_to(packages).parts[0]
        per_package[top] = per_package.get(top, 0) + size
    largest = sorted(per_package.items(), key=lambda item: -item[1])[:6]
    return [
        figure("installed size with byte code", "MB", {PIAGENT: sum(files.values()) / 1e6}, at_most=30),
        figure("of it byte code (.pyc)", "MB", {PIAGENT: compiled / 1e6}),
        *(figure(f"of it {name}", "MB", {PIAGENT: size / 1e6}) for name, size in largest),
    ]
