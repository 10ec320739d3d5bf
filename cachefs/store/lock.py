"""One daemon for each data directory.

How it works: an exclusive flock on `<data-dir>/lock`, and on the directory itself, so that nobody gets in by
deleting the file. The kernel drops both when the last holder dies, however it dies, so there is no stale lock to
clean up; what is written into the file only tells people who holds it. The descriptors are closed on exec, so a child
such as rclone doesn't keep the lock alive. On a read-only file system nothing can be written by two daemons: there the
lock is shared, and keeps out of the way of one that was begun before. A file system that has no locks on directories,
such as NFS, leaves it at the file.

A directory that other users may read, they can lock as well, and nothing would start any more. So theirs don't count.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from pathlib import Path
from types import TracebackType

from cachefs.errors import DataDirBusy, StoreFailed

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_LOOKING = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_log = logging.getLogger(__name__)


class DataDirLock:
    """The writer's lock on the data directory `path`; a context manager, or `acquire()` and `release()`."""

    def __init__(self, path: Path, mountpoint: Path | None = None) -> None:
        self.path = path
        self._mountpoint = mountpoint
        self._fd: int | None = None
        self._held: list[int] = []

    def acquire(self) -> None:
        """Take the lock, making the directory (0700) if need be.

        DataDirBusy tells who has it; StoreFailed that the directory can't be used.
        """
        try:
            self._take()
        except BlockingIOError:
            self.release()
            raise DataDirBusy(self.path, _signature(self.path)) from None
        except OSError as error:
            self.release()
            raise StoreFailed(f"{self.path}: can't be used as data directory: {error.strerror}") from error
        self.sign()

    def _take(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, how = _open(self.path / "lock")
        if fd is not None:
            self._held.append(fd)
            fcntl.flock(fd, how | fcntl.LOCK_NB)
            self._fd = fd
        directory = os.open(self.path, _DIRECTORY)
        self._held.append(directory)
        try:
            fcntl.flock(directory, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if not is_strangers(directory):
                raise
            _log.warning("%s: locked by another user, which keeps nobody out; chmod go-rx it", self.path)
        except OSError as error:
            _log.debug("%s: no lock on the directory itself: %s", self.path, error)

    def sign(self) -> None:
        """Write this process's id and the mountpoint into the lock; again after a fork, which keeps the lock."""
        if self._fd is None:
            return
        at = f" (mounted at {self._mountpoint})" if self._mountpoint else ""
        with contextlib.suppress(OSError):  # on a full disk it is held all the same, by nobody known
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"pid {os.getpid()}{at}\n".encode("utf-8", "surrogateescape"), 0)

    def release(self) -> None:
        """Let the lock go; harmless when it isn't held."""
        held, self._held, self._fd = self._held, [], None
        for fd in held:
            os.close(fd)

    def __enter__(self) -> DataDirLock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def _open(path: Path) -> tuple[int | None, int]:
    """The lock's file, and how it is to be locked; None where there is none and none can be made."""
    try:
        return os.open(path, _FLAGS, 0o600), fcntl.LOCK_EX
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
    try:
        return os.open(path, _LOOKING), fcntl.LOCK_SH
    except FileNotFoundError:
        return None, fcntl.LOCK_SH


def holder(path: Path) -> str:
    """Who works on the data directory `path`, "" if nobody does."""
    for locked, flags in ((path / "lock", _LOOKING), (path, _DIRECTORY)):
        with contextlib.suppress(OSError):
            if _is_taken(locked, flags):
                return _signature(path)
    return ""


def _is_taken(path: Path, flags: int) -> bool:
    fd = os.open(path, flags)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return not is_strangers(fd)
    finally:
        os.close(fd)
    return False


def is_strangers(fd: int) -> bool:
    """Whether an open file is locked by other users alone, by none that is root or this one (proc_locks(5))."""
    inode = str(os.fstat(fd).st_ino)
    with contextlib.suppress(OSError):
        rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        # By the inode's number alone: what stat tells for the device isn't what stands here on every file system.
        who = [row[4] for row in rows if row[1] == "FLOCK" and row[5].rpartition(":")[2] == inode]
        return bool(who) and not any(map(_is_ours, who))
    return False


def _is_ours(pid: str) -> bool:
    """Whether it is a process of root's or this user's, whoever it has become by a setuid bit."""
    with contextlib.suppress(OSError):
        for line in Path("/proc", pid, "status").read_text().splitlines():
            if line.startswith("Uid:"):
                return int(line.split()[1]) in (0, os.getuid())
    return False


def _signature(path: Path) -> str:
    """Who signed the lock; it may be taken but not signed yet, or its file is gone."""
    with contextlib.suppress(OSError):
        fd = os.open(path / "lock", _LOOKING)
        with os.fdopen(fd, "rb") as file:
            return file.read(4096).decode("utf-8", "replace").strip() or "another process"
    return "another process"
