"""Which cachefs mounts there are, as the kernel tells: /proc/self/mountinfo.

How it works: a mount carries its data directory as its source, so that a mount point is all a
command needs to find the daemon, and a daemon that is dead can be told from one that is busy. The kernel
signals every change of the table as an exceptional condition on the open file, which is how a mount that was
taken away lazily is noticed while somebody still has a file open in it. The table is also where an overlayfs
over one of our directories is found: it is a mount of its own, and nothing else remembers it.

Any user can mount something that calls itself ours, with any data directory. The kernel tells who did; whoever doesn't
name a mount means one of his own, or of root's.

Format: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias
from urllib.parse import quote, unquote_to_bytes

import trio

from cachefs.errors import CachefsError

TYPE = "fuse.cachefs"
_TABLE = Path("/proc/self/mountinfo")
_PART = 65_536
_MOST_LINKS = 40  # the kernel's own limit


_Identity: TypeAlias = tuple[int, str, str, str]
"""Number, device, type and source: what stays when a mount is moved. Its numbers are given again when it is gone."""


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One cachefs mount: where, on which data directory, the kernel's numbers for its device and for itself, and the
    user who mounted it."""

    mountpoint: Path
    data_dir: Path
    device: str
    number: int
    user: int

    @property
    def connection(self) -> str:
        """Its name under /sys/fs/fuse/connections."""
        return self.device.partition(":")[2]

    @property
    def identity(self) -> _Identity:
        return self.number, self.device, TYPE, source_of(self.data_dir)


class _Row(NamedTuple):
    """One mount of any kind."""

    number: int
    parent: int
    device: str
    mountpoint: Path
    kind: str
    source: str
    options: str

    @property
    def identity(self) -> _Identity:
        return self.number, self.device, self.kind, self.source

    @property
    def user(self) -> int:
        """Who mounted a FUSE file system; -1 if it doesn't say."""
        told = re.search(r"\buser_id=([0-9]+)", self.options)
        return int(told[1]) if told else -1


class Table:
    """The kernel's table, held open: it can be read also when the process is out of descriptors. Close it."""

    def __init__(self) -> None:
        self._fd = os.open(_TABLE, os.O_RDONLY | os.O_CLOEXEC)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def mounts(self) -> list[MountEntry]:
        """Every cachefs mount that this process can see, oldest first."""
        return [_entry(row) for row in self.rows() if row.kind == TYPE]

    def again(self, entry: MountEntry) -> MountEntry | None:
        """The same mount as it is now, for a directory above it may have been renamed; None when it is gone."""
        return next((one for one in self.mounts() if one.identity == entry.identity), None)

    def cover(self, entry: MountEntry) -> str:
        """The type of the file system that lies over a mount, at the same place; "" if none does."""
        over = (row.kind for row in self.rows() if row.parent == entry.number and row.mountpoint == entry.mountpoint)
        return next(over, "")

    def rows(self) -> list[_Row]:
        """Every mount, oldest first. From any thread."""
        parts: list[bytes] = []
        while part := os.pread(self._fd, _PART, sum(map(len, parts))):
            parts.append(part)
        return list(_rows(b"".join(parts)))


def _entry(row: _Row) -> MountEntry:
    return MountEntry(row.mountpoint, _data_dir(row.source), row.device, row.number, row.user)


def mounts() -> list[MountEntry]:
    """Every cachefs mount that this process can see, oldest first."""
    with contextlib.closing(Table()) as table:
        return table.mounts()


def own_mounts() -> list[MountEntry]:
    """Those of them that this user or root has mounted, oldest first."""
    return [entry for entry in mounts() if entry.user in (0, os.geteuid())]


def _rows(table: bytes) -> Iterator[_Row]:
    """Every mount, oldest first."""
    # Not by splitlines() and split(): other white space than a blank stands in a path as it is.
    for line in table.split(b"\n")[:-1]:
        before, _, after = line.partition(b" - ")
        fields, (kind, source, options) = before.split(b" "), after.split(b" ")[:3]
        number, parent, device = int(fields[0]), int(fields[1]), fields[2].decode()
        yield _Row(number, parent, device, Path(_plain(fields[4])), kind.decode(), _plain(source), _plain(options))


def source_of(data_dir: Path) -> str:
    """A data directory as a mount's source, written as in a URL: an option is ASCII and ends at a comma."""
    return quote(os.fsencode(data_dir))


def _data_dir(source: str) -> Path:
    return Path(os.fsdecode(unquote_to_bytes(os.fsencode(source))))


def mount_at(mountpoint: Path) -> MountEntry | None:
    """The topmost cachefs mount at exactly this path. Never touches the mount itself, which may be dead."""
    wanted = located(mountpoint)
    return next((entry for entry in reversed(mounts()) if entry.mountpoint == wanted), None)


def again(entry: MountEntry) -> MountEntry | None:
    """`Table.again`, of the table as it is now."""
    with contextlib.closing(Table()) as table:
        return table.again(entry)


def cover(entry: MountEntry) -> str:
    """`Table.cover`, of the table as it is now."""
    with contextlib.closing(Table()) as table:
        return table.cover(entry)


def showing(path: Path) -> MountEntry | None:
    """The cachefs mount that shows what is at this path; None for a file of a disk."""
    wanted = Path(os.path.realpath(path))
    return next((entry for entry in mounts() if wanted.is_relative_to(entry.mountpoint)), None)


def overlays_in(mountpoint: Path) -> list[Path]:
    """The directories right below this path over which an overlayfs is mounted, oldest first."""
    wanted = located(mountpoint)
    with contextlib.closing(Table()) as table:
        return [row.mountpoint for row in table.rows() if row.kind == "overlay" and row.mountpoint.parent == wanted]


def located(path: Path) -> Path:
    """Where a path leads, as the kernel's table writes it: absolute and without links.

    What is mounted there isn't asked, for it may be dead or hang: of the last part only a link's text is read.
    """
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100  as the shell's pwd
        path = Path(os.path.realpath(folder), name)
        try:
            path = path.parent / os.readlink(path)  # noqa: PTH115  the text of a link
        except OSError:
            break  # not a link
    return path


def is_dead(mountpoint: Path) -> bool:
    """Whether a mount is there whose daemon is gone. Asks the mount, so it waits for a daemon that hangs."""
    try:
        # Not stat(): the kernel answers that from what it remembers, also when the daemon is dead.
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def unmount_lazily(mountpoint: Path) -> None:
    """Take a mount out of the tree at once, whoever still uses it; CachefsError with fusermount3's words."""
    command = ["fusermount3", "-u", "-z", "--", str(mountpoint)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CachefsError("fusermount3 is not installed; Debian's package is fuse3") from None
    if done.returncode != 0:
        raise CachefsError(f"{mountpoint}: can't be unmounted: {done.stderr.strip()}")


async def wait_gone(what: MountEntry | Path, find: Callable[[Path], Iterable[Path]] = overlays_in) -> None:
    """Return when a mount of ours is gone; or, given a path, all those at the places that `find` finds for it now.

    They may be moved meanwhile, and the process may be out of descriptors: the table is read through the one it has.
    """
    with contextlib.closing(await trio.to_thread.run_sync(Table)) as table, select.epoll() as changes:
        # The file is always readable; only the exceptional condition means a change. A poll of a poll sees just that.
        changes.register(table, select.EPOLLPRI)
        if isinstance(what, MountEntry):
            watched = {what.identity}
        else:
            places = frozenset(await trio.to_thread.run_sync(find, what))
            topmost = {row.mountpoint: row.identity for row in await trio.to_thread.run_sync(table.rows)}
            watched = {identity for place, identity in topmost.items() if place in places}
        while any(row.identity in watched for row in await trio.to_thread.run_sync(table.rows)):
            await trio.lowlevel.wait_readable(changes.fileno())
            changes.poll(0)


def _plain(field: bytes) -> str:
    # Spaces, tabs, newlines and backslashes are written as three octal digits.
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field))
