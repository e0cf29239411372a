"""Everything in deploy/ that can be checked without running it: syntax, hardening, agreement with the settings."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from piagent_daemon.daemon import DOORS_PATIENCE_S
from piagent_daemon.provider_tables import ProviderTable
from piagent_daemon.providers.config import place
from piagent_daemon.settings import Settings, load_settings, secrets

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd/piagent.service"
SCRIPTS = ["deploy/install.sh", "deploy/systemd/piagent.sh", "deploy/docker/passwords.sh", ".ci/run"]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


# --------------------------------------------------------------------------------------------------------- systemd


def unit_settings(section: str) -> dict[str, list[str]]:
    """The keys of one section of the unit file with their values, in order."""
    values: dict[str, list[str]] = {}
    current = ""
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif line and not line.startswith("#") and current == section:
            key, _, value = line.partition("=")
            values.setdefault(key, []).append(value)
    return values


def seconds(text: str) -> float:
    assert text.endswith("s"), text
    return float(text[:-1])


@needs("systemd-analyze")
def test_systemd_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    """The program itself is not installed here; the two keys are new in systemd 254 and optional."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("ExecStart=/opt/piagent/bin/piagent", "ExecStart=/bin/true"))
    result = run("systemd-analyze", "verify", unit)
    known = ("Unknown key 'RestartSteps'", "Unknown key 'RestartMaxDelaySec'", "Unknown key name")
    complaints = [line for line in result.stderr.splitlines() if not any(text in line for text in known)]
    assert (result.returncode, complaints) == (0, [])


@needs("systemd-analyze")
def test_the_unit_is_hardened_to_1_5_or_better() -> None:
    result = run("systemd-analyze", "security", "--offline=true", "--threshold=15", UNIT)
    assert result.returncode == 0, result.stdout[-300:]


def test_every_group_of_lines_in_the_unit_says_why() -> None:
    service = UNIT.read_text().partition("[Service]\n")[2].partition("[Install]")[0].strip()
    assert [group for group in service.split("\n\n") if not group.startswith("#")] == []


def test_a_stop_leaves_time_for_the_drain_and_the_last_word() -> None:
    stop_s = seconds(unit_settings("Service")["TimeoutStopSec"][0])
    assert stop_s >= Settings.model_fields["shutdown_grace_s"].default + 5


def test_the_unit_starts_the_installed_program_and_obeys_exit_code_78() -> None:
    service = unit_settings("Service")
    assert service["Type"] == ["notify"]
    assert service["ExecStart"] == ["/opt/piagent/bin/piagent run"]
    assert service["RestartPreventExitStatus"] == ["78"]
    assert service["EnvironmentFile"] == ["-/etc/piagent/piagent.env"]
    assert set(unit_settings("Unit")) == {"Description", "Wants", "After", "StartLimitIntervalSec"}, "requires nothing"


def test_the_unit_comes_back_for_ever_reloads_by_signal_and_is_watched_with_patience() -> None:
    service = unit_settings("Service")
    assert service["Restart"] == ["on-failure"]
    assert unit_settings("Unit")["StartLimitIntervalSec"] == ["0"], "no number of restarts is too many"
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert seconds(service["WatchdogSec"][0]) >= 10
    assert seconds(service["TimeoutStartSec"][0]) >= DOORS_PATIENCE_S + 20


def test_every_secret_is_a_credential_whose_absence_does_not_stop_the_start() -> None:
    service = unit_settings("Service")
    assert secrets
    names = {*secrets, "mqtt_key"}
    assert set(service["LoadCredential"]) == {f"{name}:/etc/piagent/{name}" for name in names}
    assert set(service["SetCredential"]) == {f"{name}:\\n" for name in names}


def test_a_magic_packet_may_leave_the_unit() -> None:
    allowed = " ".join(unit_settings("Service")["IPAddressAllow"]).split()
    address, _, _ = str(ProviderTable.model_fields["wake_address"].default).partition(":")
    assert address in allowed


# ----------------------------------------------------------------------------------------------------- environment


def environment(text: str) -> dict[str, str]:
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)


def test_the_environment_file_is_the_profile_of_a_pi() -> None:
    assert environment((DEPLOY / "systemd/piagent.env").read_text()) == {
        "CTX_TOKENS": "2048",
        "MAX_TOKENS": "200",
        "MEMORY_URL": "sqlite:///var/lib/piagent/memory.db",
    }


def test_what_the_environment_file_suggests_is_valid() -> None:
    text = (DEPLOY / "systemd/piagent.env").read_text()
    lines = (line.removeprefix("#") for line in text.splitlines() if not line.startswith("# "))
    suggested = {name.lower(): value for name, value in environment("\n".join(lines)).items()}
    assert len(suggested) > 10
    assert suggested.keys().isdisjoint(secrets)
    given = Settings.model_validate(suggested)
    for name in suggested:
        assert getattr(given, name) is not None


def test_the_examples_name_no_secret_file_that_the_service_could_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the unit: only credentials, and nothing of root's below /etc/piagent."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for line in unit_settings("Service")["LoadCredential"]:
        (credentials / line.partition(":")[0]).write_text(f"the {line.partition(':')[0]}\n")
    for name in ("ca.crt", "mqtt_cert"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    example = (DEPLOY / "piagent.toml").read_text().partition("\n# provider = ")[2]
    Path("piagent.toml").write_text("provider = " + example.replace("\n# ", "\n"))
    suggested = (DEPLOY / "systemd/piagent.env").read_text().replace("\n#MQTT_", "\nMQTT_")
    environ = environment(suggested.replace("/etc/piagent/ca", "ca").replace("/etc/piagent/mqtt_cert", "mqtt_cert"))
    settings = load_settings(environ=environ | {"CREDENTIALS_DIRECTORY": str(credentials), "CTX_TOKENS": ""}).settings
    assert settings.providers.keys() == {"office", "ollama-cloud"}
    assert place("ollama-cloud", settings).config.key == "the ollama_api_key"
    assert settings.mqtt_key_file == str(credentials / "mqtt_key")


# --------------------------------------------------------------------------------------------------------- scripts


@needs("shellcheck")
@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script: str) -> None:
    result = run("shellcheck", ROOT / script)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", ["deploy/install.sh", ".ci/run"])
def test_scripts_that_people_call_can_be_called(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)


def command_line(tmp_path: Path, settings: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`piagent.sh ask "a b"`, with its two folders moved and a program that prints its environment."""
    etc, opt = tmp_path / "etc", tmp_path / "opt"
    for folder in (etc, opt / "bin"):
        folder.mkdir(parents=True, exist_ok=True)
    (etc / "piagent.env").write_text(settings)
    program = opt / "bin/piagent"
    program.write_text('#!/bin/sh\nenv\necho "ARGUMENTS=$*"\n')
    program.chmod(0o755)
    script = (DEPLOY / "systemd/piagent.sh").read_text()
    script = script.replace("/etc/piagent", str(etc)).replace("/opt/piagent", str(opt))
    return subprocess.run(
        ["sh", "-c", script, "piagent", "ask", "a b"],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def seen_by_the_program(tmp_path: Path, settings: str, **environ: str) -> dict[str, str]:
    result = command_line(tmp_path, settings, **environ)
    assert (result.returncode, result.stderr) == (0, "")
    return dict(line.split("=", 1) for line in result.stdout.splitlines())


def test_the_command_line_takes_the_settings_of_the_service(tmp_path: Path) -> None:
    """What each line means was seen in systemd 252."""
    seen = seen_by_the_program(
        tmp_path,
        "# a comment = no setting\n; another = none\n\nCTX_TOKENS=2048\nLOG_LEVEL='debug'\nX=a b=\"c\" $HOME # d\n"
        "MQTT_USERNAME=c2VjcmV0MQ=\nOLLAMA_HOST='http://a/?b=='\nNOTHING\nEMPTY=\nMQTT_HOST=first\n"
        '\t MQTT_HOST = "the last"  \nBACKSLASH=\'a\\b\'\n1X=no name\nexport Y=no name\nRETURN=a\r\nQUOTED=""\n',
        LOG_LEVEL="error",
    )
    assert seen["CTX_TOKENS"] == "2048"
    assert seen["LOG_LEVEL"] == "error", "what the environment has, wins"
    assert seen["X"] == 'a b="c" $HOME # d', "a value is text, never run"
    assert seen["MQTT_USERNAME"] == "c2VjcmV0MQ="
    assert seen["OLLAMA_HOST"] == "http://a/?b=="
    assert seen["MQTT_HOST"] == "the last"
    assert seen["BACKSLASH"] == "a\\b"
    assert seen["RETURN"] == "a"
    assert seen["EMPTY"] == seen["QUOTED"] == ""
    assert seen.keys().isdisjoint({"NOTHING", "1X", "Y", "export Y"})
    assert seen["ARGUMENTS"] == "ask a b"


@pytest.mark.parametrize(
    "line", ["X=a\\", "X=a\\b", 'X="a\\"b"', 'X="a', "X='a'b", 'X="a" "b"', "# goes on \\"], ids=lambda line: line
)
def test_the_command_line_does_not_guess_what_a_line_means(tmp_path: Path, line: str) -> None:
    result = command_line(tmp_path, f"# first\n{line}\nMQTT_HOST=elsewhere\n")
    assert (result.returncode, result.stdout) == (78, "")
    assert f"{tmp_path}/etc/piagent.env:2: only systemd can read this" in result.stderr


def test_the_command_line_gets_the_secrets_as_the_service_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As credentials, which come after piagent.toml."""
    monkeypatch.chdir(tmp_path)
    seen = seen_by_the_program(tmp_path, "MQTT_USERNAME=piagent\n")
    assert seen["CREDENTIALS_DIRECTORY"] == str(tmp_path / "etc")
    assert [name for name in seen if name.endswith("_FILE")] == []
    (tmp_path / "etc/mqtt_password").write_text("credential\n")
    password = load_settings(environ=seen).settings.mqtt_password
    assert password is not None
    assert password.get_secret_value() == "credential"
    Path("piagent.toml").write_text('mqtt_password = "toml"\n')
    password = load_settings(environ=seen).settings.mqtt_password
    assert password is not None
    assert password.get_secret_value() == "toml"
    assert seen_by_the_program(tmp_path, "", CREDENTIALS_DIRECTORY="/own")["CREDENTIALS_DIRECTORY"] == "/own"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", sorted(secrets))
def test_the_command_line_goes_without_secrets_that_it_may_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / name).touch(mode=0)
    assert "CREDENTIALS_DIRECTORY" not in seen_by_the_program(tmp_path, "")


# ---------------------------------------------------------------------------------------------------------- docker


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())
    return loaded


def test_compose_brings_broker_model_server_and_daemon() -> None:
    services = compose()["services"]
    assert {"mosquitto", "ollama", "piagent"} <= set(services)
    for name, service in services.items():
        assert "image" in service or "build" in service, name
        assert set(service.get("depends_on", ())) <= set(services), name


def test_compose_publishes_nothing_beyond_this_machine() -> None:
    ports = [port for service in compose()["services"].values() for port in service.get("ports", ())]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_every_volume_in_compose_is_declared_or_a_file_that_exists() -> None:
    project = compose()
    used = set()
    for service in project["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / "docker" / source).is_file(), source
            else:
                used.add(source)
    assert used == set(project["volumes"])


def test_the_daemon_in_compose_is_configured_by_known_settings_and_has_time_to_stop() -> None:
    service = compose()["services"]["piagent"]
    secret_files = {f"{name.upper()}_FILE" for name in Settings.model_fields}
    assert set(service["environment"]) <= {name.upper() for name in Settings.model_fields} | secret_files
    assert seconds(service["stop_grace_period"]) >= Settings.model_fields["shutdown_grace_s"].default + 5
    assert (DEPLOY / "docker" / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_the_two_broker_configurations_keep_the_same_bounds() -> None:
    def options(path: str) -> dict[str, str]:
        lines = (line for line in (DEPLOY / path).read_text().splitlines() if line and not line.startswith("#"))
        return dict(line.split(" ", 1) for line in lines)

    native, docker = options("mosquitto/piagent.conf"), options("docker/mosquitto.conf")
    places = {"password_file", "acl_file", "persistence_location", "log_dest"}
    assert {k: v for k, v in native.items() if k not in places} == {k: v for k, v in docker.items() if k not in places}
    assert int(native["max_packet_size"]) > Settings.model_fields["max_payload_bytes"].default


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "docker/Dockerfile").read_text().replace("\\\n", " ")
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def test_the_image_is_pinned_unprivileged_and_watched() -> None:
    found = instructions()
    assert [value for key, value in found if key == "FROM" and (":" not in value or ":latest" in value)] == []
    last_stage = found[max(i for i, (key, _) in enumerate(found) if key == "FROM") :]
    keys = dict(last_stage)
    assert keys["USER"].split(":")[0].isdigit()
    assert keys["USER"] != "0"
    assert "HEALTHCHECK" in keys
    assert keys["ENTRYPOINT"].startswith("["), "as a list, so that SIGTERM reaches the daemon and not a shell"
    assert all("--no-cache-dir" in value for key, value in found if key == "RUN" and "pip install" in value)


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    allowed = (DEPLOY / "docker/Dockerfile.dockerignore").read_text().splitlines()
    for key, value in instructions():
        if key == "COPY" and not value.startswith("--from"):
            for source in shlex.split(value)[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source.removeprefix('./')}" in allowed


@needs("docker")
def test_docker_itself_understands_the_compose_file() -> None:
    if run("docker", "compose", "version").returncode != 0:
        pytest.skip("this docker has no compose plugin")
    result = run("docker", "compose", "-f", DEPLOY / "docker/compose.yaml", "config", "-q")
    assert (result.returncode, result.stderr) == (0, "")
