"""Two limits of the kernel that are too small for us, raised where we are allowed to.

How it works: the kernel serves readahead as background requests, and by default 12 of them: a dozen
reads that wait for peers would hold up every cached read of the mount. And it reads ahead 128 KiB, where four to
eight times that lets a sequential read run at memory's speed; more would make a page fault in a mapped
file fetch blocks that nobody asked for. Both are files in /sys that root may write (a connection's also
the user who mounted it). Where that isn't possible, the mount works with the kernel's defaults, and says so.
"""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

from cachefs.mountinfo import MountEntry

log = logging.getLogger(__name__)

READ_AHEAD_KIB = 1024
RECORDS_READ_AHEAD_KIB = 128
"""For a mount of records alone. A request is answered whole or not at all: a larger one would keep a piece that is here
from a player until those that follow are, which on a slow link is longer than what a player holds."""

BACKGROUND = 1024

_CONNECTIONS = Path("/sys/fs/fuse/connections")


def tune(entry: MountEntry, read_ahead_kib: int = READ_AHEAD_KIB) -> None:
    """Raise the limits of this mount; what can't be raised is logged and left. Blocks shortly."""
    _mount_fusectl()
    _write(Path(f"/sys/class/bdi/{entry.device}/read_ahead_kb"), read_ahead_kib)
    connection = _CONNECTIONS / entry.connection
    _write(connection / "max_background", BACKGROUND)
    _write(connection / "congestion_threshold", BACKGROUND * 3 // 4)


def _mount_fusectl() -> None:
    # systemd mounts it on every machine that it boots; a container or a minimal machine may lack it.
    if os.geteuid() == 0 and _CONNECTIONS.is_dir() and not any(_CONNECTIONS.iterdir()):
        subprocess.run(["mount", "-t", "fusectl", "fusectl", str(_CONNECTIONS)], capture_output=True, check=False)


def _write(path: Path, value: int) -> None:
    try:
        path.write_text(f"{value}\n")
    except OSError as error:
        log.info("%s stays as it is: %s", path, error.strerror)
