"""Opening what is published, and nothing else: who owns its directories may put a link in a file's place.

How it works: a path was without links when it was published. From then on it is walked part by part, and a part that
has become a link since leads nowhere: otherwise whoever may write there could have the world read what he himself
may not. Nobody can hard-link another user's file (fs.protected_hardlinks), so what is found is his own to give away.
"""

from __future__ import annotations

import os
from pathlib import Path

_STEP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_plainly(path: Path, flags: int) -> int:
    """The file at an absolute path, no part of which is a link. OSError: ENOTDIR or ELOOP if one is."""
    at = os.open("/", _STEP | os.O_DIRECTORY)
    try:
        for part in path.parts[1:-1]:
            below = os.open(part, _STEP | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        return os.open(path.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)


def hold(path: Path) -> int:
    """A descriptor that stands for this very file, whatever becomes of its name; it isn't one to read from. OSError."""
    return open_plainly(path, os.O_PATH)
