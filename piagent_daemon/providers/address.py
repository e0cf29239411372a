"""OLLAMA_HOST in every form that Ollama itself accepts, and nothing that it would quietly misread.

Source: ollama/ollama, envconfig/config.go, `Host`.
"""

import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import unquote

from piagent_daemon.errors import ConfigError

DEFAULT_PORT = 11434
_SCHEME_PORTS = {"http": 80, "https": 443}
_HERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - "listen everywhere" asked as a client: here
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_ZONE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@/-]*")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is. `path` is empty or starts with a slash; `userinfo` is a secret and never part of `url`."""

    scheme: str
    host: str
    port: int
    path: str = ""
    userinfo: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """The address without userinfo, fit for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def parse_address(text: str, setting: str = "OLLAMA_HOST", default_port: int = DEFAULT_PORT) -> Address:
    """Read `host`, `host:port`, `:port`, `http(s)://…`, IPv6 with or without brackets, a path, surrounding quotes.

    Without a scheme the port is `default_port`, with one it is the scheme's (80, 443), as in Ollama. `0.0.0.0`, `::`
    and an empty host mean this machine. Raises ConfigError, which never repeats the userinfo.
    """
    text = text.strip().strip("\"'").strip()
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = "http", text
        if rest == "ollama.com":
            scheme, rest = "https", "ollama.com:443"
    scheme = scheme.lower()
    if scheme not in _SCHEME_PORTS:
        raise ConfigError(f"{setting}: the scheme must be http or https")
    authority, _, path = rest.partition("/")
    userinfo, _, hostport = authority.rpartition("@")
    host, port = _split(hostport, setting)
    path = path.strip("/")
    if not _PATH.fullmatch(path):
        raise ConfigError(f"{setting}: the path may only have plain characters, without a query")
    address = Address(
        scheme=scheme,
        host=_host(_HERE.get(host, host), setting),
        port=_port(port, setting) if port else (_SCHEME_PORTS[scheme] if mark or scheme == "https" else default_port),
        path=f"/{path}" if path else "",
        userinfo=unquote(userinfo),
    )
    if "xn--" in address.host and not _is_international(address.url):
        raise ConfigError(f"{setting}: {host[:64]!r} is not a host name")
    return address


def _is_international(url: str) -> bool:
    """Tell whether httpx can decode the name of a host, or whether it only looks like an international one."""
    import httpx  # noqa: PLC0415 (few have such a name, and the daemon starts without httpx)

    try:
        _ = httpx.URL(url).host
    except (httpx.InvalidURL, ValueError):
        return False
    return True


def _split(hostport: str, setting: str) -> tuple[str, str]:
    if hostport.startswith("["):
        host, bracket, rest = hostport[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            raise ConfigError(f"{setting}: an IPv6 address is written [address]:port")
        return host, rest[1:]
    if hostport.count(":") > 1:
        return hostport, ""
    host, _, port = hostport.partition(":")
    return host, port


def _host(host: str, setting: str) -> str:
    if ":" in host:
        try:
            found = ipaddress.IPv6Address(host)
        except ValueError:
            raise ConfigError(f"{setting}: {host[:64]!r} is not an IPv6 address") from None
        if found.scope_id and not _ZONE.fullmatch(found.scope_id):
            raise ConfigError(f"{setting}: {found.scope_id[:64]!r} is not the name of a network interface")
        return str(found)
    try:
        name = host.encode("idna").decode()
    except UnicodeError:
        raise ConfigError(f"{setting}: {host[:64]!r} is not a host name") from None
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.removesuffix(".").split(".")):
        raise ConfigError(f"{setting}: {host[:64]!r} is not a host name")
    return name.lower()


def _port(port: str, setting: str) -> int:
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ConfigError(f"{setting}: the port must be a number from 1 to 65535")
    return int(port)
