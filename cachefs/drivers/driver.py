"""What a driver does for a mount, and which of the two a mount gets.

How it works: pyfuse3 serves everybody. The driver that speaks to /dev/fuse itself is for those who may have the kernel
read files of the store, and asked for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cachefs.content import Span
from cachefs.drivers import devfuse
from cachefs.drivers.overlay import Owner
from cachefs.drivers.pyfuse3 import Pyfuse3Driver
from cachefs.filesystem import Filesystem

if TYPE_CHECKING:
    from cachefs.config import Mount


class Driver(Protocol):
    """The kernel's side of one mount."""

    @property
    def passed_through(self) -> int | None:
        """How many files the kernel reads by itself now; None if it never does."""

    def mount(self) -> None:
        """Mount; what the kernel asks waits for `serve`. CachefsError if it is refused."""

    async def serve(self) -> None:
        """Answer the kernel until the mount is gone or this is cancelled."""

    async def forget_pages(self, inode: int, spans: Iterable[Span]) -> None:
        """Have the kernel drop what it has read of an inode in `spans`, mapped pages too."""

    def forget(self, entries: Iterable[tuple[int, str]]) -> None:
        """Have the kernel look these names (directory inode, name) up anew. Blocking."""

    def close(self) -> None:
        """Cut the connection to the kernel. The mount itself is for others to take away, before or after."""


def require_rights(settings: Mount) -> None:
    """ConfigError if this process may not mount in the way that is asked for."""
    if settings.passthrough:
        devfuse.require_rights()


def driver_of(
    settings: Mount, filesystem: Filesystem, mountpoint: Path, data_dir: Path, *, allow_other: bool, owner: Owner | None
) -> Driver:
    """The driver that these settings ask for; with an `owner` everything shown is that owner's."""
    if settings.passthrough:
        return devfuse.DevFuseDriver(filesystem, mountpoint, data_dir, allow_other=allow_other, owner=owner)
    return Pyfuse3Driver(filesystem, mountpoint, data_dir, allow_other=allow_other, owner=owner)
