"""OLLAMA_HOST in the forms of Ollama's own tests, and what must be refused."""

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from piagent_daemon.errors import ConfigError
from piagent_daemon.providers.address import parse_address


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (":1234", "http://127.0.0.1:1234"),
        ("1.2.3.4:1234", "http://1.2.3.4:1234"),
        ("example.com", "http://example.com:11434"),
        ("example.com:1234", "http://example.com:1234"),
        ("raspberrypi.local", "http://raspberrypi.local:11434"),
        ("my_box", "http://my_box:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("[::]", "http://[::1]:11434"),
        ("::1", "http://[::1]:11434"),
        ("::", "http://[::1]:11434"),
        ("[::1]:1337", "http://[::1]:1337"),
        ("fe80::1%eth0", "http://[fe80::1%eth0]:11434"),
        ("[fe80::1%enP8p1s0.20]:1234", "http://[fe80::1%enP8p1s0.20]:1234"),
        ("http://[FE80::1%2]", "http://[fe80::1%2]:80"),
        (" 1.2.3.4 ", "http://1.2.3.4:11434"),
        ('"1.2.3.4"', "http://1.2.3.4:11434"),
        ("' 1.2.3.4 '", "http://1.2.3.4:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),  # noqa: S104
        ("http://0.0.0.0:11434/", "http://127.0.0.1:11434"),
        ("http://1.2.3.4", "http://1.2.3.4:80"),
        ("HTTP://Example.COM:11434", "http://example.com:11434"),
        ("https://1.2.3.4", "https://1.2.3.4:443"),
        ("https://1.2.3.4:4321", "https://1.2.3.4:4321"),
        ("https://example.com/ollama", "https://example.com:443/ollama"),
        ("https://example.com/a/b/", "https://example.com:443/a/b"),
        ("example.com:1234/x", "http://example.com:1234/x"),
        ("ollama.com", "https://ollama.com:443"),
        ("https://ollama.com", "https://ollama.com:443"),
        ("müller.example", "http://xn--mller-kva.example:11434"),
    ],
)
def test_forms(text: str, url: str) -> None:
    assert parse_address(text).url == url


def test_userinfo_is_kept_apart_and_hidden() -> None:
    address = parse_address("https://ann:p%40ss@example.com/x")
    assert address.userinfo == "ann:p@ss"
    assert address.url == "https://example.com:443/x"
    assert "p@ss" not in repr(address)


@pytest.mark.parametrize(
    "text",
    [
        "ftp://example.com",
        "example.com:port",
        "example.com:0",
        "example.com:65536",
        "example.com:-1",
        "example.com:١٢",
        "[::1",
        "[::1]x",
        "[x]",
        "[fe80::1%]",
        "[fe80::1%a b]",
        "»",
        "xn--a",
        "1:2:3",
        "a b",
        "-x",
        "a..b",
        "x" * 64 + ".example",
        ".".join(["x" * 60] * 5),
        "http://example.com/?key=1",
        "http://example.com/#x",
        "http://example.com/ä",
        "http://exam\nple.com",
    ],
)
def test_refused_naming_the_setting(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^OLLAMA_HOST: "):
        parse_address(text)


@pytest.mark.parametrize("text", ["http://ann:secret@a b", "ann:secret@host:99999", "https://secret@[x]"])
def test_a_refusal_hides_the_userinfo(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert "secret" not in str(caught.value)


@given(st.text() | st.from_regex(r"(https?://)?([a-z:]*@)?[\w.:\[\]%-]{0,30}(:\d{1,6})?(/\S*)?"))
@example("http://a%zz")
@example("[fe80::1%25eth0]:1")
def test_anything_is_an_address_that_httpx_takes_or_a_config_error(text: str) -> None:
    try:
        address = parse_address(text)
    except ConfigError:
        return
    url = httpx.URL(address.url)
    assert url.host == address.host or "xn--" in address.host
    assert (url.port or {"http": 80, "https": 443}[url.scheme]) == address.port
