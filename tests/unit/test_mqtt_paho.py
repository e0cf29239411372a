"""What the daemon tells the broker of itself at CONNECT (contract sections 6 and 7)."""

from piagent_daemon.doors.mqtt_paho import connect_properties
from piagent_daemon.settings import Settings


def test_the_session_lives_as_long_as_is_set() -> None:
    assert vars(connect_properties(Settings(mqtt_session_expiry_s=777)))["SessionExpiryInterval"] == 777


def test_the_window_is_a_little_above_what_may_be_answered_and_wait() -> None:
    said = vars(connect_properties(Settings(max_concurrent=3, max_waiting=40)))
    assert 43 < said["ReceiveMaximum"] <= 43 + 16
