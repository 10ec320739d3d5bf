"""TCP_NODELAY for libtorrent's connections, which sets it on none of them.

Why: a reader that asks for one piece at a time makes libtorrent send small messages one after the other: have,
interested, request. With Nagle's algorithm the second waits until the first is acknowledged, and a peer that has
nothing to send delays that by 40 ms: each such read took 45 ms instead of 7 on a connection with no latency.

How it works: the sockets are in our process, so those that are new are found among our descriptors when libtorrent
tells of a new connection. Only the low numbers are looked at, for above them are files (descriptors.py). A descriptor
that is closed meanwhile is passed over; a socket of somebody else's gets an option that does it no harm.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress

from cachefs.descriptors import FIRST_FILE

_OVER_IP = (socket.AF_INET, socket.AF_INET6)


class NoDelay:
    """Sets it on the TCP sockets of this process; `known` are those that were looked at, by their inode numbers."""

    def __init__(self) -> None:
        self.known: frozenset[int] = frozenset()

    def set(self) -> None:
        """Set TCP_NODELAY on those that have come since the last time."""
        sockets = dict(_sockets())
        for inode in sockets.keys() - self.known:
            with suppress(OSError):
                _set(sockets[inode])
        self.known = frozenset(sockets)


def _sockets() -> list[tuple[int, int]]:
    """The inode numbers of our sockets, each with its descriptor."""
    found = []
    for descriptor in range(FIRST_FILE):
        try:
            status = os.fstat(descriptor)
        except OSError:  # there is none of this number
            continue
        if stat.S_ISSOCK(status.st_mode):
            found.append((status.st_ino, descriptor))
    return found


def _set(descriptor: int) -> None:
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.type == socket.SOCK_STREAM and connection.family in _OVER_IP:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
