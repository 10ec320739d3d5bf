"""What both drivers show alike: whose a file is, what may be done with it, and for how long the kernel may remember it.

How it works: attributes never change while a name keeps its inode number, so the kernel may keep them for ever, and
pages too: a second read costs the kernel alone. The exception is a size that isn't known: it is given out for
listings and look-ups with a lifetime of zero, so that a `stat` comes back and asks. So does every open: the kernel
checks who may, and wants attributes for that (`default_permissions`).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from cachefs.drivers.overlay import Owner
from cachefs.filesystem import Attributes

LASTING = 86_400
"""For how long, in seconds, the kernel may keep what doesn't change."""

UNKNOWN_SIZE = 2**62
"""What stands for a size that isn't known. overlayfs takes a look-up's size over, and copies up to it: a copy must end
at the end of the file, not before its first byte."""

PREFERRED_READ = 2**20
"""What a program is told to read at a time, in bytes."""


@dataclass(frozen=True, slots=True)
class Look:
    """Modes and owner of everything in a mount."""

    uid: int
    gid: int
    directory_mode: int

    @classmethod
    def of(cls, owner: Owner | None) -> Look:
        """With an `owner` all is that owner's, and directories look writable: an overlayfs takes their modes over."""
        if owner is None:
            return cls(os.getuid(), os.getgid(), stat.S_IFDIR | 0o555)
        return cls(owner.uid, owner.gid, stat.S_IFDIR | 0o755)

    def mode(self, attributes: Attributes) -> int:
        return self.directory_mode if attributes.is_directory else stat.S_IFREG | 0o444


def links(attributes: Attributes) -> int:
    return 2 if attributes.is_directory else 1


def size(attributes: Attributes) -> int:
    return UNKNOWN_SIZE if attributes.size is None else attributes.size


def sectors(attributes: Attributes) -> int:
    """The size in units of 512 bytes, as `stat` has it: what is shown is all there, whether fetched or not."""
    return -(-(attributes.size or 0) // 512)


def lifetime(attributes: Attributes) -> int:
    """For how many seconds the kernel may keep these."""
    return 0 if attributes.size is None else LASTING
