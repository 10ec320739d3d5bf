"""What a single setting may be: a reader for each kind, and the small types that readers make.

How it works: a reader takes what TOML or the command line gave, and the folder that relative paths start from.
It returns the value or raises Wrong, which says what was expected and what came; the caller knows file and key.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

Reader: TypeAlias = Callable[[object, Path], object]
"""Makes a setting's value of what was given; the path is the folder that relative paths start from."""

UNAVAILABLE_MODES = ("wait", "deadline", "fail-fast")

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
CHAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OWNER = re.compile(r"[^\s:]+(:[^\s:]+)?")
_VERSION = re.compile(r"v?([0-9]{1,4})(?:\.([0-9]{1,4}))?")
# A password with a / in it ends the host for urlsplit: what stands for the port then is no number.
_LOGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?:[^/?#]*|[^/?#\[:]*:[0-9]*[^0-9/?#].*)@")


class Wrong(ValueError):
    """What a reader expected. The caller, who knows file and key, turns it into a ConfigError."""


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A snapshot's format version, as in `v1.1`."""

    major: int
    minor: int = 0

    @classmethod
    def parse(cls, text: str) -> Version:
        """The version that `v1.1`, `1.1` or `v2` stands for; ValueError for anything else."""
        match = _VERSION.fullmatch(text)
        if match is None:
            raise Wrong(f'expected a version like "v1.1", got {show(text)}')
        return cls(int(match[1]), int(match[2] or 0))

    def __str__(self) -> str:
        return f"v{self.major}.{self.minor}"


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """A host (a name, or an address without brackets) and a TCP and UDP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, any_port: bool = False) -> Peer:
        """What `HOST:PORT` or `[IPv6]:PORT` stands for; ValueError for anything else.

        Port 0, which lets the kernel choose, is for listening: only with `any_port`.
        """
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+)):([0-9]{1,5})", text)
        if match is None or not (_is_ipv6(match[1]) if match[1] else _is_host(match[2])):
            raise Wrong(f'expected "HOST:PORT", an IPv6 address in brackets, got {show(text)}')
        port = int(match[3])
        if port > 65535 or (port == 0 and not any_port):
            raise Wrong(f"expected a port from 1 to 65535, got {show(text)}")
        return cls(match[1] or match[2], port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_host(text: str) -> bool:
    return len(text) <= 253 and all(map(_LABEL.fullmatch, text.split(".")))


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def show(value: object) -> str:
    """A value as a message shows it: as JSON, at most 80 characters."""
    try:
        shown = json.dumps(value, default=str)
    except (ValueError, RecursionError):  # a number of thousands of digits, or a table as deep
        return f"{type(value).__name__} that is too large to show"
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def as_flag(value: object, base: Path) -> bool:
    if not isinstance(value, bool):
        raise Wrong(f"expected true or false, got {show(value)}")
    return value


def as_seconds(low: float, high: float) -> Reader:
    def read(value: object, base: Path) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Wrong(f"expected a number of seconds, got {show(value)}")
        if not low <= value <= high:
            raise Wrong(f"expected {low:g} to {high:g} seconds, got {show(value)}")
        return float(value)

    return read


def as_number(low: float, high: float, unit: str) -> Reader:
    def read(value: object, base: Path) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Wrong(f"expected a {unit}, got {show(value)}")
        if not low <= value <= high:
            raise Wrong(f"expected a {unit} from {low:g} to {high:g}, got {show(value)}")
        return float(value)

    return read


def as_whole(low: int, high: int, unit: str) -> Reader:
    def read(value: object, base: Path) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Wrong(f"expected a whole number of {unit}, got {show(value)}")
        if not low <= value <= high:
            raise Wrong(f"expected {low} to {high} {unit}, got {show(value)}")
        return value

    return read


_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kKMGTP]?)(i?)B")
_AGE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([smhdw])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


def as_size(value: object, base: Path) -> int:
    """Bytes: a whole number, or text such as "500GB" (powers of 1000) or "1.5 TiB" (of 1024); "" or 0 for no limit."""
    wanted = f'expected a size like "500GB" or "1.5 TiB", or bytes, got {show(value)}'
    if isinstance(value, str):
        match = _SIZE.fullmatch(value or "0B")
        if match is None:
            raise Wrong(wanted)
        power = " kMGTP".index(match[2].replace("K", "k") or " ")
        value = int(min(float(match[1]) * (1024 if match[3] else 1000) ** power, 2**60))
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**60:
        raise Wrong(wanted)
    return value


def as_age(value: object, base: Path) -> float:
    """Seconds: a number, or text such as "90d", "12h" (s, m, h, d, w); "" or 0 for no limit."""
    wanted = f'expected a time like "90d" or "12h", or seconds, got {show(value)}'
    if isinstance(value, str):
        match = _AGE.fullmatch(value or "0s")
        if match is None:
            raise Wrong(wanted)
        value = float(match[1]) * _SECONDS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**40:
        raise Wrong(wanted)
    return float(value)


def as_text(value: object) -> str:
    if not isinstance(value, str):
        raise Wrong(f"expected a string, got {show(value)}")
    return value


def as_path(value: object, base: Path) -> Path | None:
    given = str(value) if isinstance(value, Path) else as_text(value)
    if not given:
        return None
    if not given.isprintable():
        raise Wrong(f"expected a path, got {show(given)}")
    try:
        return base / Path(given).expanduser()
    except RuntimeError:
        raise Wrong(f"expected a path, got {show(given)}, whose home directory isn't known") from None


def as_chain_file(value: object, base: Path) -> str:
    if isinstance(value, str) and "://" in value:
        return checked_url(value, ("http", "https"))
    return str(as_path(value, base) or "")


def as_chain_name(value: object, base: Path) -> str:
    name = as_text(value)
    if name and not CHAIN_NAME.fullmatch(name):
        raise Wrong(f'expected a chain\'s name like "mainnet", got {show(name)}')
    return name


def as_version(value: object, base: Path) -> Version | None:
    if isinstance(value, Version):
        return value
    given = as_text(value)
    return Version.parse(given) if given else None


def as_owner(value: object, base: Path) -> str:
    given = as_text(value)
    if given and not _OWNER.fullmatch(given):
        raise Wrong(f'expected "USER" or "USER:GROUP", got {show(given)}')
    return given


def as_choice(*choices: str) -> Reader:
    def read(value: object, base: Path) -> str:
        if value not in choices:
            raise Wrong(f"expected {' or '.join(map(show, choices))}, got {show(value)}")
        return str(value)

    return read


def as_unavailable(value: object, base: Path) -> tuple[tuple[str, str], ...]:
    """What a reader gets when nobody has the bytes: one of the modes, or a table of patterns and modes."""
    given = value if isinstance(value, dict) else {"*": value}
    for mode in given.values():
        if mode not in UNAVAILABLE_MODES:
            raise Wrong(f"expected {' or '.join(map(show, UNAVAILABLE_MODES))}, got {show(mode)}")
    return tuple((str(pattern), str(mode)) for pattern, mode in given.items())


def as_listen(value: object, base: Path) -> Peer:
    return value if isinstance(value, Peer) else Peer.parse(as_text(value), any_port=True)


def as_maybe_listen(value: object, base: Path) -> Peer | None:
    return None if value in ("", None) else as_listen(value, base)


def as_list(read_one: Callable[[str], object], what: str) -> Reader:
    def read(value: object, base: Path) -> tuple[object, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise Wrong(f"expected a list of {what}, got {show(value)}")
        return tuple(dict.fromkeys(map(read_one, value)))

    return read


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def has_login(url: str) -> bool:
    """Whether the URL has a name or a password before its host."""
    return _LOGIN.match(url) is not None


def without_login(url: str) -> str:
    """The URL as it may be printed and logged: with *** for its login, if it has one."""
    return _LOGIN.sub(r"\1***@", url, count=1) if has_login(url) else url


def lower_scheme(url: str) -> str:
    """The URL with its scheme in lower case, so that it can be compared (RFC 3986, 6.2.2.1)."""
    scheme, colon, rest = url.partition(":")
    return f"{scheme.lower()}{colon}{rest}" if colon else url


def checked_url(url: str, schemes: tuple[str, ...]) -> str:
    """`url` if it has one of the schemes and a host; ValueError otherwise."""
    begins = " or ".join(f"{scheme}://" for scheme in schemes)
    expected = f"expected a URL that begins with {begins}, got {show(without_login(url))}"
    # Before urlsplit, which silently drops tabs and newlines.
    if not re.fullmatch(r"[!-~]+", url) or "\\" in url:
        raise Wrong(f"{expected}: no spaces, control characters, backslashes or letters beyond ASCII")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Wrong(f"{expected}: {error}") from None
    if parts.scheme not in schemes or not host or port == 0:
        raise Wrong(expected)
    if parts.scheme == "udp" and port is None:
        raise Wrong(f"{expected}: a udp tracker needs a port")
    return url


def web_seed(url: str) -> str:
    """The base URL of a web seed, without a slash at its end; ValueError if names can't be appended to it."""
    base = checked_url(url, ("http", "https"))
    if "?" in base or "#" in base:
        raise Wrong(f"expected a URL to which names can be appended, without ? and #, got {show(base)}")
    return base.rstrip("/")


def rclone_remote(text: str) -> str:
    """A remote in rclone's words, `r2:bucket/snapshots`; ValueError if rclone's address syntax can't hold it."""
    if not re.fullmatch(r"[^\x00-\x1f\x7f\[\]]+", text) or ":" not in text or text.startswith(("-", ":")):
        raise Wrong(f'expected a remote of your rclone.conf, like "r2:bucket/snapshots", got {show(text)}')
    return text


def tracker(url: str) -> str:
    """The URL of a tracker; ValueError if it isn't one."""
    return checked_url(url, ("http", "https", "udp"))
