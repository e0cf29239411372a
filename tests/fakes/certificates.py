"""Certificates made on the spot with openssl."""

import shutil
import subprocess
from pathlib import Path

import pytest


def make_certificates(folder: Path, name: str = "IP:127.0.0.1") -> tuple[Path, Path, Path]:
    """Make a CA of our own and a certificate for `name`, both good for two days: (CA file, certificate, key)."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    ca, ca_key, key, request, certificate = (folder / file for file in ("ca.pem", "ca.key", "key", "csr", "cert.pem"))
    extra = folder / "extra"
    extra.write_text(f"subjectAltName={name}\n", "utf-8")
    new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj"]
    commands: list[list[str | Path]] = [
        [*new, "/CN=test CA", "-x509", "-days", "2", "-keyout", ca_key, "-out", ca],
        [*new, "/CN=broker", "-keyout", key, "-out", request],
        [
            *("openssl", "x509", "-req", "-days", "2", "-in", request, "-CA", ca, "-CAkey", ca_key),
            *("-CAcreateserial", "-extfile", extra, "-out", certificate),
        ],
    ]
    for command in commands:
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    return ca, certificate, key
