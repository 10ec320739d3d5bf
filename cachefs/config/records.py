"""[records]: what may be fetched for the record catalogue, and how."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cachefs.config.values import Wrong, as_choice, as_flag, as_list, as_seconds, as_whole, show

_LARGEST = 2**50
_HOUR = 3600.0
_REMOTE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,62})=([^\s=:-][^=]*|:[A-Za-z0-9]+[^=]*)")


def _remote(text: str) -> str:
    if not _REMOTE.fullmatch(text):
        raise Wrong(f'expected "LABEL=REMOTE:PATH", as rclone writes remotes, got {show(text)}')
    return text


@dataclass(frozen=True, slots=True)
class Records:
    """[records]: the record catalogue.

    allow_http: whether plain http is asked; allow_private: whether hosts with private addresses are, loopback among
    them; allow_file: whether file:/// URLs are read; max_size: the largest record that is taken, in bytes; verify:
    "pieces" to play a record from its first verified piece on where it has a piece list, "whole" never to serve a byte
    before all of it was verified; strategy: "mirrors" for the URL and then its mirrors, "first" for the URL alone,
    "fastest" for whoever delivers first; connect_timeout and stall_timeout: seconds until a connection has to be there,
    and until the next bytes have to come; remotes: "LABEL=REMOTE:PATH", the rclone remotes that rclone://LABEL/… names.
    """

    allow_http: bool = field(default=False, metadata={"read": as_flag})
    allow_private: bool = field(default=False, metadata={"read": as_flag})
    allow_file: bool = field(default=False, metadata={"read": as_flag})
    max_size: int = field(default=16 * 2**30, metadata={"read": as_whole(1, _LARGEST, "bytes")})
    verify: str = field(default="pieces", metadata={"read": as_choice("pieces", "whole")})
    strategy: str = field(default="mirrors", metadata={"read": as_choice("mirrors", "first", "fastest")})
    connect_timeout: float = field(default=10.0, metadata={"read": as_seconds(0.1, _HOUR)})
    stall_timeout: float = field(default=30.0, metadata={"read": as_seconds(0.1, _HOUR)})
    remotes: tuple[str, ...] = field(default=(), metadata={"read": as_list(_remote, '"LABEL=REMOTE:PATH"')})

    def remote_map(self) -> Mapping[str, str]:
        """The rclone remotes by label."""
        return {label: remote for label, _, remote in (text.partition("=") for text in self.remotes)}
