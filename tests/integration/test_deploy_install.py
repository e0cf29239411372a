"""deploy/install.sh on a folder of its own: twice, changed by hand, removed, purged."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "deploy/install.sh"
PROGRAM = "opt/piagent"

pytestmark = pytest.mark.skipif(shutil.which("mosquitto_passwd") is None, reason="mosquitto is not installed")


def call(*arguments: str | Path, fails: bool = False, cwd: Path = ROOT) -> str:
    result = subprocess.run(
        ["bash", INSTALL, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
    )
    assert (result.returncode != 0) is fails, result.stdout + result.stderr
    return result.stdout + result.stderr


def tree(root: Path) -> dict[str, tuple[str, str]]:
    """All files below `root` but compiled ones and those of the virtual environment: mode and content or target."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            inside = str(path.relative_to(root))
            if inside.startswith(f"{PROGRAM}/") and "piagent_daemon" not in inside:
                continue
            if not inside.endswith((".pyc", "/RECORD", "/direct_url.json")):
                content = (
                    f"-> {path.readlink()}" if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
                )
                found[inside] = (oct(path.lstat().st_mode & 0o777), content)
    return found


class Pip:
    """Stands in the place of the virtual environment below `root` and writes down what it is told to install."""

    def __init__(self, root: Path) -> None:
        self.log = root / "pip.log"
        programs = root / PROGRAM / "bin"
        programs.mkdir(parents=True)
        for name, does in (("python", "true"), ("pip", f'echo "$*" >>{self.log}')):
            (programs / name).write_text(f"#!/bin/sh\n{does}\n")
            (programs / name).chmod(0o755)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def pip(tmp_path: Path) -> Pip:
    return Pip(tmp_path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as people get it, so that the installer's two runs need not build it."""
    folder = tmp_path_factory.mktemp("wheel")
    command: list[str | Path] = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if "No matching distribution found for hatchling" in result.stderr:
        pytest.skip("the package index cannot be reached")
    assert result.returncode == 0, result.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_installing_twice_changes_nothing_and_uninstalling_leaves_only_data(tmp_path: Path, wheel: Path) -> None:
    root = tmp_path / "root"
    call("install", "--with-mosquitto", "--source", wheel, "--root", root)
    first = tree(root)
    outside = {path: mode for path, (mode, _) in first.items() if not path.startswith(PROGRAM)}
    assert outside == {
        "etc/mosquitto/conf.d/piagent.conf": "0o644",
        "etc/mosquitto/piagent.acl": "0o644",
        "etc/mosquitto/piagent.passwd": "0o600",
        "etc/piagent/homeassistant_password": "0o600",
        "etc/piagent/mqtt_password": "0o600",
        "etc/piagent/piagent.env": "0o644",
        "etc/systemd/system/multi-user.target.wants/piagent.service": "0o777",
        "etc/systemd/system/piagent.service": "0o644",
        "usr/local/bin/piagent": "0o755",
    }
    version = subprocess.run([root / PROGRAM / "bin/piagent", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("piagent ")

    call("install", "--with-mosquitto", "--source", wheel, "--root", root)
    assert tree(root) == first

    settings = root / "etc/piagent/piagent.env"
    assert "\nMQTT_USERNAME=piagent\n" in settings.read_text()
    settings.write_text(settings.read_text() + "MAX_TOKENS=99\n")
    rules = root / "etc/mosquitto/piagent.acl"
    rules.write_text("user piagent\ntopic readwrite #\n")
    call("--with-mosquitto", "--source", wheel, "--root", root)
    assert settings.read_text().endswith("MAX_TOKENS=99\n"), "the owner's settings are kept"
    assert rules.read_text() == "user piagent\ntopic readwrite #\n", "and the owner's rules"

    logins = root / "etc/mosquitto/piagent.passwd"
    before = logins.read_text().splitlines()
    secret = root / "etc/piagent/mqtt_password"
    old = secret.read_text()
    secret.unlink()
    call("--with-mosquitto", "--source", wheel, "--root", root)
    assert secret.read_text() != old
    after = {line.partition(":")[0]: line for line in logins.read_text().splitlines()}
    assert len(logins.read_text().splitlines()) == len(after) == 2
    assert after["homeassistant"] in before
    assert after["piagent"] not in before, "the broker knows the new password"

    memory = root / "var/lib/piagent/memory.db"
    memory.parent.mkdir(parents=True)
    memory.write_text("conversations")
    own = root / "etc/systemd/system/piagent.service.d/override.conf"  # `systemctl edit piagent`
    own.parent.mkdir()
    own.write_text("[Service]\nIPAddressAllow=any\n")
    call("uninstall", "--root", root)
    assert {path.split("/")[1] for path in tree(root)} == {"mosquitto", "piagent", "lib", "systemd"}
    assert own.exists()
    assert not (root / PROGRAM).exists()
    assert memory.exists()

    call("uninstall", "--purge", "--root", root)
    assert tree(root) == {}
    assert not own.parent.exists()
    call("uninstall", "--purge", "--root", root)  # once more is fine


def logins(root: Path) -> dict[str, str]:
    lines = (root / "etc/mosquitto/piagent.passwd").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    assert len(found) == len(lines)
    return found


def takes(login: str, password: str) -> bool:
    """Tell whether mosquitto lets one in with that password."""
    _, kind, rounds, salt, digest = login.split("$")
    assert kind == "7", "PBKDF2 with SHA-512"
    made = hashlib.pbkdf2_hmac("sha512", password.encode(), base64.b64decode(salt), int(rounds))
    return made == base64.b64decode(digest)


@pytest.mark.usefixtures("pip")
def test_the_broker_knows_the_name_that_is_in_force(tmp_path: Path) -> None:
    settings = tmp_path / "etc/piagent/piagent.env"
    settings.parent.mkdir(parents=True)
    settings.write_text('MQTT_USERNAME=alice\n MQTT_USERNAME = "bob" \n#MQTT_USERNAME=carol\n')
    call("--with-mosquitto", "--root", tmp_path)
    assert settings.read_text().endswith("#MQTT_USERNAME=carol\n"), "nothing is added"
    made = logins(tmp_path)
    assert made.keys() == {"bob", "homeassistant"}
    assert takes(made["bob"], (tmp_path / "etc/piagent/mqtt_password").read_text())
    rules = (tmp_path / "etc/mosquitto/piagent.acl").read_text()
    assert "\nuser bob\ntopic readwrite piagent/#\n" in rules
    assert "\nuser piagent\n" not in rules

    settings.write_text("MQTT_USERNAME=dora\n")
    assert "piagent.acl has no rules for dora" in call("--with-mosquitto", "--root", tmp_path)
    assert logins(tmp_path).keys() == {"bob", "homeassistant", "dora"}


@pytest.mark.usefixtures("pip")
@pytest.mark.parametrize("text", ["", "MAX_TOKENS=99", "#MQTT_USERNAME=carol\nMQTT_USERNAME=\n"])
def test_without_a_name_in_force_it_is_piagent(tmp_path: Path, text: str) -> None:
    settings = tmp_path / "etc/piagent/piagent.env"
    settings.parent.mkdir(parents=True)
    settings.write_text(text)
    call("--with-mosquitto", "--root", tmp_path)
    assert settings.read_text().splitlines()[-1] == "MQTT_USERNAME=piagent"
    assert ("MAX_TOKENS=99" in settings.read_text().splitlines()) is ("MAX_TOKENS=99" in text)
    assert logins(tmp_path).keys() == {"piagent", "homeassistant"}


@pytest.mark.usefixtures("pip")
def test_a_changed_password_reaches_the_broker_and_other_users_stay(tmp_path: Path) -> None:
    call("--with-mosquitto", "--root", tmp_path)
    file = tmp_path / "etc/mosquitto/piagent.passwd"
    file.write_text(f"{file.read_text()}kitchen:$7$own\n")
    before = logins(tmp_path)
    for name in ("mqtt_password", "homeassistant_password"):
        (tmp_path / "etc/piagent" / name).write_text(f"new {name}\n")
        os.utime(tmp_path / "etc/piagent" / name, (now := file.stat().st_mtime + 1, now))
    call("--with-mosquitto", "--root", tmp_path)
    after = logins(tmp_path)
    assert takes(after["piagent"], "new mqtt_password")
    assert takes(after["homeassistant"], "new homeassistant_password")
    assert after["kitchen"] == before["kitchen"]
    assert [path.name for path in (tmp_path / "etc/piagent").iterdir() if path.name.startswith(".")] == []


@pytest.mark.usefixtures("pip")
@pytest.mark.parametrize("password", ["pass:word", "two\nlines", " before", "after "])
def test_a_password_that_mosquitto_would_cut_is_refused_before_anything_is_done(tmp_path: Path, password: str) -> None:
    secret = tmp_path / "etc/piagent/mqtt_password"
    secret.parent.mkdir(parents=True)
    secret.write_text(password)
    before = tree(tmp_path)
    said = call("--with-mosquitto", "--root", tmp_path, fails=True)
    assert f"{secret} should be one line" in said
    assert password not in said
    assert tree(tmp_path) == before


@pytest.mark.usefixtures("pip")
@pytest.mark.parametrize("name", ["homeassistant", "a:b", "a b", "a/b"])
def test_a_name_that_the_broker_cannot_give_the_daemon_is_refused(tmp_path: Path, name: str) -> None:
    settings = tmp_path / "etc/piagent/piagent.env"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"MQTT_USERNAME={name}\n")
    assert "MQTT_USERNAME" in call("--with-mosquitto", "--root", tmp_path, fails=True)
    assert not (tmp_path / "etc/mosquitto").exists()


def test_a_program_that_cannot_be_installed_leaves_no_half_of_a_service(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    call("--with-mosquitto", "--source", source, "--root", tmp_path / "root", fails=True)
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["opt"]


def test_a_source_that_is_not_there_is_not_looked_for_on_the_internet(tmp_path: Path, pip: Pip) -> None:
    said = call("--source", "piagent-of-somebody", "--root", tmp_path, fails=True)
    assert "there is no file or folder piagent-of-somebody" in said
    assert pip.calls() == []


def test_a_source_without_a_slash_is_a_folder_here(tmp_path: Path, pip: Pip) -> None:
    (tmp_path / "checkout").mkdir()
    call("--source", "checkout", "--root", tmp_path, cwd=tmp_path)
    (installed,) = pip.calls()
    assert installed.endswith(f" {tmp_path}/checkout[wyoming]")


def test_a_broker_that_is_configured_already_is_left_as_it_is(tmp_path: Path) -> None:
    own = tmp_path / "etc/mosquitto/conf.d/home.conf"
    own.parent.mkdir(parents=True)
    own.write_text("listener 1883\nallow_anonymous true\n")
    said = call("--with-mosquitto", "--root", tmp_path, fails=True)
    assert "home.conf" in said
    assert set(tree(tmp_path)) == {"etc/mosquitto/conf.d/home.conf"}


@pytest.mark.parametrize("wrong", ["--purge", "--colour", "update", "--root", "--source"])
def test_wrong_usage_does_nothing(wrong: str, tmp_path: Path) -> None:
    call("--root", tmp_path, wrong, fails=True)
    assert list(tmp_path.iterdir()) == []
