"""The commands, where the streams that they write to are full, closed or left by their reader."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    program = "import sys; from piagent_daemon.cli import main; sys.exit(main(['asyncapi']))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.wait(20) == 1
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("verb", "redirection", "code", "said"),
    [
        ("asyncapi", ">/dev/full", 1, b"piagent: stdout cannot be written: No space left on device\n"),
        ("ask --help", ">/dev/full", 1, b"piagent: stdout cannot be written: No space left on device\n"),
        ("ask hello", ">&-", 1, b"piagent: stdout is closed: there is nowhere to write to\n"),
        ("asyncapi", ">/dev/full 2>&-", 1, b""),
        ("config --config none.toml", "2>/dev/full", 78, b""),
        ("ask -", "<&-", 2, b"piagent ask: the question is empty\n"),
    ],
)
def test_streams_that_are_full_or_closed(verb: str, redirection: str, code: int, said: bytes) -> None:
    command = f"exec {sys.executable} -m piagent_daemon {verb} {redirection}"
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["/bin/sh", "-c", command], cwd=ROOT, env=plain, capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stderr) == (code, said)
