"""One daemon for each data directory.

How it works: an exclusive flock on `<data-dir>/lock`. The kernel drops it when the last holder dies, however
it dies, so there is no stale lock to clean up; what is written into the file only tells people who holds
it. The descriptor is closed on exec, so a child such as rclone doesn't keep the lock alive. On a read-only
file system nothing can be written by two daemons, and the lock is not needed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType

from cachefs.errors import DataDirBusy, StoreFailed

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class DataDirLock:
    """The writer's lock on the data directory `path`; a context manager, or `acquire()` and `release()`."""

    def __init__(self, path: Path, mountpoint: Path | None = None) -> None:
        self.path = path
        self._mountpoint = mountpoint
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock, making the directory (0700) if need be.

        DataDirBusy tells who has it; StoreFailed that the directory can't be used.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path / "lock", _FLAGS, 0o600)
        except OSError as error:
            if error.errno == errno.EROFS:
                return
            raise StoreFailed(f"{self.path}: can't be used as data directory: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataDirBusy(self.path, _holder(fd)) from None
        else:
            self._fd, fd = fd, -1
        finally:
            if fd >= 0:
                os.close(fd)
        self.sign()

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
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> DataDirLock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def holder(path: Path) -> str:
    """Who works on the data directory `path`, "" if nobody does."""
    try:
        fd = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return ""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(fd)
    finally:
        os.close(fd)
    return ""


def _holder(fd: int) -> str:
    """Who signed the lock; it may be taken but not signed yet."""
    return os.pread(fd, 4096, 0).decode("utf-8", "replace").strip() or "another process"
