"""The invariants can fail: logs of brokers whose client acknowledges too early."""

import pytest

from tests.fault.house import check_acknowledgements

QUESTION = "1: Sending PUBLISH to d (d0, q1, r0, m7, 'base/k/in', ... (9 bytes))"
ACCEPTED = [
    "1: Received PUBLISH from d (d0, q1, r0, m1, 'base/k/out', ... (9 bytes))",
    "1: Sending PUBACK to d (m1, rc0)",
]
CHUNK = "1: Received PUBLISH from d (d0, q0, r0, m0, 'base/k/out', ... (9 bytes))"
FINAL = "1: Received PUBLISH from d (d0, q1, r0, m2, 'base/k/out', ... (9 bytes))"
TAKEN = "1: Sending PUBACK to d (m2, rc0)"
ACKNOWLEDGED = "1: Received PUBACK from d (Mid: 7, RC:0)"


def judge(*lines: str) -> set[str]:
    return check_acknowledgements("\n".join(lines), "d", "base", {"request": "k"})


def test_an_acknowledgement_after_the_answer_is_right() -> None:
    assert judge(QUESTION, *ACCEPTED, CHUNK, FINAL, TAKEN, ACKNOWLEDGED) == {"k"}
    assert judge(QUESTION, *ACCEPTED, CHUNK) == set()


@pytest.mark.parametrize(
    "lines",
    [
        [QUESTION, ACKNOWLEDGED],
        [QUESTION, *ACCEPTED, CHUNK, FINAL, ACKNOWLEDGED, TAKEN],
        [QUESTION, *ACCEPTED, ACKNOWLEDGED, CHUNK, FINAL, TAKEN],
    ],
    ids=["without an answer", "before the broker has it", "before it is given"],
)
def test_a_hasty_acknowledgement_is_seen(lines: list[str]) -> None:
    with pytest.raises(AssertionError, match="acknowledge"):
        judge(*lines)
