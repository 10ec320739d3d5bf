"""Which numbers descriptors have: the store's files, of which a node has thousands open, get large ones.

How it works: the kernel gives out the lowest number that is free. Sockets of libtorrent's have to be looked for among
all our descriptors (fetch/torrent/nodelay.py), and to look at every open file as well, with each new connection, took
most of a core. So files that stay open move up, and what is looked for is found among the few that are left below.
"""

from __future__ import annotations

import fcntl
import os

FIRST_FILE = 1024
"""The lowest number of a file that was set apart; below are sockets, as long as there are no more than that."""


def set_apart(fd: int) -> int:
    """The same open file, under a number from `FIRST_FILE` on; under its own where the limit leaves no such number."""
    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FILE)
    except OSError:
        return fd
    os.close(fd)
    return moved
