"""Log lines: where they go, what they hide, and that nobody waits for them."""

import logging
import os
import re
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from piagent_daemon import log


class Reader:
    """The other end of standard error."""

    def __init__(self, kind: str) -> None:
        if kind == "pipe":
            self._read, self.fd = os.pipe()
        else:
            ends = socket.socketpair()
            self._read, self.fd = (end.detach() for end in ends)
        os.set_blocking(self._read, False)

    def read(self) -> str:
        data = b""
        while True:
            try:
                more = os.read(self._read, 1 << 20)
            except BlockingIOError:
                return data.decode()
            if not more:
                return data.decode()
            data += more

    def close(self) -> None:
        for end in (self._read, self.fd):
            os.close(end)


@pytest.fixture(params=["pipe", "socket"])
def reader(request: pytest.FixtureRequest) -> Iterator[Reader]:
    """Return a reader; the logging of the whole process is put back afterwards."""
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    levels = {name: logging.getLogger(name).level for name in log.NOISY}
    reader = Reader(request.param)
    yield reader
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    reader.close()


logger = logging.getLogger("piagent.test")


def handler() -> log.LineHandler:
    (found,) = (one for one in logging.getLogger().handlers if isinstance(one, log.LineHandler))
    return found


def fail() -> None:
    raise ValueError("first line\nsecond line with hunter22")


def test_lines_for_people(reader: Reader) -> None:
    log.configure("info", "auto", fd=reader.fd)
    logger.info("connected to %s", "a broker")
    logger.debug("not shown")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO    piagent.test: connected to a broker\n", reader.read()
    )


def test_lines_for_the_journal(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.fstat(reader.fd)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    log.configure("debug", "auto", fd=reader.fd)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logger.log(level, "text")
    assert reader.read().splitlines() == [f"<{number}>piagent.test: text" for number in (7, 6, 4, 3, 2)]


def test_the_journal_is_told_from_another_stream(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    assert not log.is_journal(reader.fd)
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not log.is_journal(reader.fd)
    assert not log.is_journal(987_654)


@pytest.mark.parametrize("log_format", ["journal", "terminal"])
def test_no_line_can_be_forged(reader: Reader, log_format: str) -> None:
    log.configure("info", log_format, fd=reader.fd)
    logger.info("a\n<0>piagent: b\r\x1b[2Jc\x85\ud800")
    first, second = reader.read().splitlines()
    assert "<0>" not in first
    assert second.startswith("<6><0>" if log_format == "journal" else "    <0>")
    assert second.endswith(r"b\x0d\x1b[2Jc\x85\ud800")


def test_a_traceback_keeps_its_lines_and_no_secret(reader: Reader) -> None:
    log.configure("info", "journal", ["hunter22", "x"], fd=reader.fd)
    try:
        fail()
    except ValueError:
        logger.exception("it failed at mqtt://me:hunter22@host/x, %s", {"password": "hunter22"})
    text = reader.read()
    assert "ValueError: first line" in text
    assert all(line.startswith("<3>") for line in text.splitlines())
    assert "hunter22" not in text
    assert "mqtt://***@host/x" in text


@pytest.mark.parametrize("secret", ["pa ss/wörd", 'quo"te\\d', "plain-secret", "a\nb\tc"])
def test_a_secret_in_disguise(secret: str) -> None:
    import json  # noqa: PLC0415
    import urllib.parse  # noqa: PLC0415

    mask = log.Mask([secret, secret[:4]])
    for text in (
        secret,
        json.dumps(secret),
        repr(secret),
        urllib.parse.quote(secret),
        urllib.parse.quote_plus("x" + secret),
    ):
        assert secret not in mask(text)
    assert mask(f"<{json.dumps(secret)}>") == '<"***">'


def test_secrets_are_found_in_settings() -> None:
    class Some(BaseModel):
        name: str = "n"
        password: SecretStr | None = SecretStr("hunter22")
        key: SecretStr | None = None
        ollama_host: str = "ann:s3cr3t@box:11434"
        url: str | None = None

    assert log.secrets_in(Some()) == ["hunter22", "ann:s3cr3t", "s3cr3t"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://u:p@h:1/x", "http://***@h:1/x"),
        ("http://u:p@ss@h", "http://***@h"),
        ("http://h/a@b c@d", "http://h/a@b c@d"),
        ("a@b", "a@b"),
    ],
)
def test_the_user_part_of_a_url(text: str, shown: str) -> None:
    assert log.Mask()(text) == shown


def test_masking_is_quick() -> None:
    start = time.process_time()
    log.Mask(["secret"])("://" * 50_000 + "@")
    log.Mask()("://" + "a" * 100_000 + "@")
    assert time.process_time() - start < 0.5


def test_a_reader_that_stalls_holds_nobody(reader: Reader) -> None:
    log.configure("info", "journal", fd=reader.fd)
    start = time.monotonic()
    for number in range(5000):
        logger.info("line %d %s", number, "x" * 100)
    assert time.monotonic() - start < 5
    dropped = handler().dropped
    assert 0 < dropped < 5000
    kept = reader.read().splitlines()
    assert kept == [f"<6>piagent.test: line {number} {'x' * 100}" for number in range(5000 - dropped)]
    logger.info("again")
    logger.info("and again")
    assert reader.read().splitlines() == [
        "<6>piagent.test: again",
        f"<4>piagent.log: {dropped} log lines before this one were dropped: nobody read them",
        "<6>piagent.test: and again",
    ]


def test_a_line_that_was_torn_is_ended(reader: Reader) -> None:
    log.configure("info", "journal", fd=reader.fd)
    while not handler().dropped:
        logger.info("x" * 50_000)
    reader.read()
    logger.info("whole")
    assert "<6>piagent.test: whole" in reader.read().splitlines()


def test_nobody_there(reader: Reader) -> None:
    log.configure("info", "journal", fd=reader.fd)
    os.close(reader._read)
    logger.info("to nobody")
    assert handler().dropped == 1
    reader._read = os.open(os.devnull, os.O_RDONLY)


def test_a_defective_log_call_is_told_of(reader: Reader) -> None:
    log.configure("info", "journal", fd=reader.fd)
    for message, arguments in (("%d", ("no number",)), ("%s %s", ("one",))):
        # Not by the logger: the test runner listens there as well, and is strict.
        handler().handle(logging.LogRecord("piagent.test", logging.INFO, "here.py", 1, message, arguments, None))
    lines = reader.read().splitlines()
    assert len(lines) == 2
    assert all("unreadable log record from piagent.test, here.py" in line for line in lines)


def test_configured_twice_is_configured_once(reader: Reader) -> None:
    log.configure("info", "terminal", fd=reader.fd)
    log.configure("debug", "journal", fd=reader.fd)
    logger.debug("once")
    assert reader.read() == "<7>piagent.test: once\n"


def test_libraries_are_quiet_except_at_debug(reader: Reader) -> None:
    log.configure("info", "journal", fd=reader.fd)
    logging.getLogger("httpx").info("HTTP Request: POST")
    assert reader.read() == ""
    log.configure("debug", "journal", fd=reader.fd)
    logging.getLogger("httpx").info("HTTP Request: POST")
    assert reader.read() == "<6>httpx: HTTP Request: POST\n"


@given(st.text(st.characters(codec=None)), st.booleans())
def test_any_message_is_one_record(message: str, journal: bool) -> None:
    record = logging.LogRecord("piagent", logging.INFO, __file__, 1, "%s", (message,), None)
    text = log.Lines(journal=journal).format(record)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
    start = "<6>" if journal else "    "
    assert all(line.startswith(start) for line in text.split("\n")[1:])
