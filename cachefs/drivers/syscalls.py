"""mount(2) and umount2(2), which Python doesn't have, and whether this process may call them."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT = 1, 2, 4, 32
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8

_CAP_SYS_ADMIN = 21
_libc = ctypes.CDLL(None, use_errno=True)


def may_mount() -> bool:
    """Whether this process has CAP_SYS_ADMIN, as root has unless it was taken away."""
    status = Path("/proc/self/status").read_text()
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return effective is not None and bool(int(effective[1], 16) >> _CAP_SYS_ADMIN & 1)


def mount(kind: str, source: str, directory: Path, options: str, flags: int = 0) -> None:
    """Mount a file system of this kind, always without set-user-ID programs and devices. OSError."""
    parts = source.encode(), os.fsencode(directory), kind.encode(), ctypes.c_ulong(MS_NOSUID | MS_NODEV | flags)
    _checked(_libc.mount(*parts, os.fsencode(options)))


def umount(directory: Path, flags: int = 0) -> None:
    """Take the topmost mount away from a directory that isn't a link. OSError."""
    _checked(_libc.umount2(os.fsencode(directory), UMOUNT_NOFOLLOW | flags))


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
