"""Files that the store takes over without copying them, and the care that files need which aren't ours alone.

How it works: a file whose bytes were verified becomes an object's data by a reflink, where the file system has that
(a copy that shares the blocks until one side is written to); else by a hard link; else, from another file system,
in place, by a symbolic link in the store. The user's file is never moved, written to or given another mode.

A reflink is ours alone. A hard link or a file in place is *shared*: its owner may change it at any time, in the
very file that we serve. So it is served only while it looks as it did when it was verified (`Seal`), and
before anything is ever written to it, the object gets a file of its own. A data file that has another hard link,
whoever made it, is treated like that as well; and so is one that belongs to somebody else than its directory, for he
may have kept it open when he deleted its other name.

A page that its owner has mapped and written to can be written to again with no new time on the file, until it is on the
disk. So it is synced before what it looks like is taken for a sign (`settle`). In tmpfs there is no such sign.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from cachefs.content import Span
from cachefs.diskerrors import named
from cachefs.errors import StoreFailed
from cachefs.store import disk
from cachefs.store.state import Seal

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_ANOTHER_WAY = {
    errno.EOPNOTSUPP, errno.EXDEV, errno.ENOTTY, errno.EINVAL, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS,
}  # fmt: skip
_CHUNK = 2**30
_NEVER: set[tuple[int, int]] = set()
"""File systems, from and to, between which there are no reflinks. To find that out takes a file, made and deleted,
and ext4 is slow to make the next one after many of those."""


class How(enum.Enum):
    """By which means a file was taken over; HELD: its bytes were here already."""

    REFLINK = "reflink"
    HARD_LINK = "hard link"
    IN_PLACE = "in place"
    HELD = "held already"


Way = tuple[How, Callable[[Path, Path], None]]
"""A means, and the function that makes a new file (its second argument) of the user's by it."""


def take(source: Path, data: Path, seal: Seal, ways: Iterable[Way] | None = None) -> tuple[How, Seal]:
    """Make `source` the data file `data`; how, and how the data file looks now. Blocking.

    The first of `ways` that the file systems allow is taken (None: reflink, hard link, in place). `seal` is how the
    source looked when its bytes were verified. StoreFailed if it looks otherwise now, StoreFull.
    """
    with named(data):
        disk.make_directory(data.parent)
        for how, make in ways or WAYS:
            made = data.with_name(f"{data.name}.{secrets.token_hex(4)}")
            try:
                before = _unchanged(source, seal)
                if not _made(make, source, made):
                    continue
                if how is How.REFLINK:
                    _finish(made)
                    _unchanged(source, seal)
                    before = made.stat()
                _require_same(made, before)
                made.replace(data)
                return how, _require_same(data, before)
            finally:
                made.unlink(missing_ok=True)  # a rename onto another link of the same file leaves it (rename(2))
    raise StoreFailed(f"{source}: can't be taken over")


def _made(make: Callable[[Path, Path], None], source: Path, made: Path) -> bool:
    try:
        make(source, made)
    except OSError as error:
        if error.errno in _ANOTHER_WAY:
            return False
        raise
    return True


def _status(path: Path) -> os.stat_result | None:
    """That of the file, or of the one in place to which a link leads; None if there is none. OSError."""
    fd = disk.open_sealed(path)
    if fd is None:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _unchanged(source: Path, seal: Seal) -> os.stat_result:
    """The status of a file that looks as it did when it was verified; StoreFailed if it doesn't."""
    status = _status(source)
    if status is None or Seal.of(status) != seal:
        raise StoreFailed(f"{source}: was changed while it was being taken over")
    return status


def _finish(made: Path) -> None:
    """Make a reflink's file one that nobody writes to, durable."""
    fd = os.open(made, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fchmod(fd, 0o444)
        os.fsync(fd)
    finally:
        os.close(fd)


def _require_same(path: Path, before: os.stat_result) -> Seal:
    """How a new file looks, if it is the file that was verified: to link and to rename it give it another ctime."""
    now = _status(path)
    if now is None or _told(now) != _told(before):
        raise StoreFailed(f"{path}: was changed while it was being taken over")
    return Seal.of(now)


def _told(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _clone(source: Path, made: Path) -> None:
    original = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        between = os.fstat(original).st_dev, made.parent.stat().st_dev
        if between in _NEVER:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        copy = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.ioctl(copy, _FICLONE, original)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV):
                _NEVER.add(between)
            raise
        finally:
            os.close(copy)
    finally:
        os.close(original)


def _link(source: Path, made: Path) -> None:
    os.link(source, made, follow_symlinks=False)


def _point(source: Path, made: Path) -> None:
    made.symlink_to(source.absolute())


WAYS: tuple[Way, ...] = (
    (How.REFLINK, _clone),
    (How.HARD_LINK, _link),
    (How.IN_PLACE, _point),
)


def is_shared(data: Path) -> bool:
    """Whether the data file is somebody else's as well; False if there is none. OSError."""
    try:
        status = data.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISLNK(status.st_mode) or status.st_nlink > 1 or status.st_uid != data.parent.stat().st_uid


def settle(fd: int) -> None:
    """Have every change of another user's file show on it from now on. Blocking. OSError."""
    if os.fstat(fd).st_uid != os.geteuid():
        os.fdatasync(fd)


def settle_file(path: Path) -> None:
    """The same, of the file `path`."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        settle(fd)
    finally:
        os.close(fd)


def take_own(data: Path) -> bool:
    """Give an object whose data file is shared a copy of its own; if the file is gone, none. Blocking. OSError.

    Whether it has a copy now.
    """
    if not is_shared(data):
        return False
    fd = disk.open_sealed(data)
    if fd is None:
        data.unlink()
        return False
    made = data.with_name(f"{data.name}.{secrets.token_hex(4)}")
    try:
        _copy(fd, made)
        made.replace(data)
        return True
    finally:
        made.unlink(missing_ok=True)
        os.close(fd)


def _copy(fd: int, made: Path) -> None:
    """Copy what is data, leave holes holes, and sync."""
    copy = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if not _reflinked(fd, copy):
            _require_room(fd, copy)
            _copy_data(fd, copy)
        os.fsync(copy)
    finally:
        os.close(copy)


def _reflinked(fd: int, copy: int) -> bool:
    try:
        fcntl.ioctl(copy, _FICLONE, fd)
    except OSError as error:
        if error.errno not in _ANOTHER_WAY:
            raise
        return False
    return True


def _require_room(fd: int, copy: int) -> None:
    """OSError at once, not at the end, if the file system of the copy has no room for it."""
    room = os.fstatvfs(copy)
    if room.f_bavail * room.f_frsize < os.fstat(fd).st_blocks * 512:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _copy_data(fd: int, copy: int) -> None:
    size, at = os.fstat(fd).st_size, 0
    for hole in [*disk.holes(fd, size), Span(size, 0)]:
        while at < hole.offset:
            at += _copy_some(fd, copy, at, min(hole.offset - at, _CHUNK))
        at = hole.end
    os.ftruncate(copy, size)


def _copy_some(fd: int, copy: int, at: int, most: int) -> int:
    try:
        count = os.copy_file_range(fd, copy, most, at, at)
    except OSError as error:
        if error.errno not in _ANOTHER_WAY:
            raise
        data = os.pread(fd, min(most, 2**20), at)
        count = len(data)
        disk.write_all(copy, data, at)
    if count == 0:
        raise OSError(errno.EIO, "the file got shorter while it was copied")
    return count
