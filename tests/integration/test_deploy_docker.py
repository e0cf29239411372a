"""What runs inside the containers of deploy/docker, run here: the password maker and the health check."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.integration.test_deploy_mosquitto import Broker, Peer, broker, pytestmark

__all__ = ["broker", "pytestmark"]  # a fixture and a mark, found by their names

DOCKER = Path(__file__).parents[2] / "deploy/docker"


def make_passwords(folder: Path) -> None:
    subprocess.run(["sh", DOCKER / "passwords.sh", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to the users of the containers")
def test_passwords_are_made_once_and_each_belongs_to_its_reader(tmp_path: Path) -> None:
    make_passwords(tmp_path)
    first = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(first) == {"piagent", "homeassistant", "passwords"}
    assert len({first["piagent"], first["homeassistant"]}) == 2
    assert len(first["piagent"]) == 48
    assert [line.split(":")[0] for line in first["passwords"].splitlines()] == ["piagent", "homeassistant"]
    assert first["piagent"] not in first["passwords"]
    owners = {path.name: (path.stat().st_uid, oct(path.stat().st_mode & 0o777)) for path in tmp_path.iterdir()}
    assert owners == {"piagent": (10001, "0o600"), "homeassistant": (0, "0o600"), "passwords": (1883, "0o600")}
    make_passwords(tmp_path)
    assert (tmp_path / "piagent").read_text() == first["piagent"]
    assert (tmp_path / "homeassistant").read_text() == first["homeassistant"]


def check(broker: Broker, tmp_path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "MQTT_PORT": str(broker.port),
        "MQTT_USERNAME": "piagent",
        "MQTT_PASSWORD": "secret of piagent",
        **more,
    }
    return subprocess.run(
        [sys.executable, DOCKER / "healthcheck.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("health", "complaint"),
    [
        ({"status": "ok"}, ""),
        ({"status": "degraded", "reasons": ["provider_unavailable"]}, ""),
        ({"status": "offline"}, "the daemon is offline\n"),
    ],
)
def test_the_health_check_reads_the_retained_health(
    broker: Broker, tmp_path: Path, health: dict[str, object], complaint: str
) -> None:
    publish_health(broker, datetime.now(UTC), **health)
    result = check(broker, tmp_path)
    assert result.returncode == (1 if complaint else 0), result.stderr
    assert result.stderr == complaint


def test_the_health_check_complains_of_an_old_health(broker: Broker, tmp_path: Path) -> None:
    publish_health(broker, datetime.now(UTC) - timedelta(hours=1), status="ok")
    result = check(broker, tmp_path)
    assert result.returncode == 1
    age_s = re.fullmatch(r"the last health is (\d+) s old\n", result.stderr)
    assert age_s, result.stderr
    assert 3600 <= int(age_s[1]) < 3630


def publish_health(broker: Broker, ts: datetime, **health: object) -> None:
    with Peer(broker, "piagent") as daemon:
        daemon.publish("piagent/health", json.dumps({"ts": ts.isoformat()} | health).encode(), retain=True)


def test_the_health_check_says_when_the_broker_is_away_or_refuses(broker: Broker, tmp_path: Path) -> None:
    assert "refused" in check(broker, tmp_path, MQTT_PORT="1").stderr
    assert "no health" in check(broker, tmp_path, MQTT_PASSWORD="wrong").stderr
