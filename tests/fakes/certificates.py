"""Certificates made on the spot with openssl, as homes make them."""

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from piagent_daemon.tls import take_home_made


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


def client_context(ca: Path | str) -> ssl.SSLContext:
    """Return what a test's own client trusts."""
    context = ssl.create_default_context(cafile=str(ca))
    take_home_made(context)
    return context


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return what a server of the tests shows."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


def as_strict_as_3_13(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every context of this process as Python 3.13 does."""
    plain = ssl.create_default_context

    def strict(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        context = plain(*args, **kwargs)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
