"""[playhead]: where play time is decided, and who may follow it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cachefs.config.values import Peer, Wrong, as_maybe_listen, as_text, checked_url, is_loopback
from cachefs.errors import ConfigError

_SHORTEST_TOKEN = 16


def _as_follow(value: object, base: Path) -> str:
    given = as_text(value)
    return checked_url(given, ("http", "https")).rstrip("/") if given else ""


def _as_token(value: object, base: Path) -> str:
    given = as_text(value)
    if given and (len(given) < _SHORTEST_TOKEN or not given.isascii() or not given.isprintable() or " " in given):
        raise Wrong(f"expected at least {_SHORTEST_TOKEN} printable ASCII characters without blanks")
    return given


@dataclass(frozen=True, slots=True)
class Playheads:
    """[playhead]: play time in sync.

    serve: the address at which other daemons may follow and change this one's playheads, None for no address, port 0
    for any free one; follow: the URL of the daemon that decides, "" if this one does; token: the secret that all of
    them share, needed to serve on an address that isn't a loopback one.
    """

    serve: Peer | None = field(default=None, metadata={"read": as_maybe_listen})
    follow: str = field(default="", metadata={"read": _as_follow})
    token: str = field(default="", metadata={"read": _as_token})

    def __post_init__(self) -> None:
        if self.serve is not None and not self.token and not is_loopback(self.serve.host):
            raise ConfigError("token", f"needed, because {self.serve} can be reached from other machines")
