"""What the door's self-test concludes from what it saw."""

import pytest

from piagent_daemon.doors.mqtt_selftest import Findings, is_complete, judge

PUBLISH, SUBSCRIBE = frozenset({"acl_publish"}), frozenset({"acl_subscribe"})
NONE: frozenset[str] = frozenset()


@pytest.mark.parametrize(
    ("found", "reasons"),
    [
        (Findings(in_code=0, out_code=0x10, in_back=True), NONE),
        (Findings(in_code=0, out_code=0x87, in_back=True), PUBLISH),
        (Findings(in_code=0, out_code=0x10), SUBSCRIBE),
        (Findings(in_code=0x10, out_code=0x10), SUBSCRIBE),
        (Findings(in_code=0, out_code=0, heard=True), NONE),
        (Findings(in_code=0x87, out_code=0x87), PUBLISH),
        (Findings(in_code=0x87, out_code=0), NONE),
        (Findings(), NONE),
    ],
)
def test_mqtt_5_learns_from_pubacks(found: Findings, reasons: frozenset[str]) -> None:
    assert judge(found, "5") == reasons


@pytest.mark.parametrize(
    ("found", "reasons"),
    [
        (Findings(in_code=0, out_code=0, in_back=True, out_back=True), NONE),
        (Findings(in_code=0, out_code=0, in_back=True), PUBLISH),
        (Findings(in_code=0, out_code=0, out_back=True), SUBSCRIBE),
        (Findings(in_code=0, out_code=0), PUBLISH | SUBSCRIBE),
        (Findings(in_code=0, out_code=0, heard=True), PUBLISH),
        (Findings(), NONE),
    ],
)
def test_mqtt_3_1_1_learns_from_what_comes_back(found: Findings, reasons: frozenset[str]) -> None:
    assert judge(found, "3.1.1") == reasons


def test_a_test_ends_early_when_all_is_well() -> None:
    assert is_complete(Findings(in_back=True, out_code=0), "5")
    assert not is_complete(Findings(in_back=True), "5")
    assert is_complete(Findings(in_back=True, out_back=True), "3.1.1")
    assert not is_complete(Findings(in_back=True, out_code=0), "3.1.1")
