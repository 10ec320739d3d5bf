"""Reading a data file block by block, to hash it: as memory has it, or as the disk has it.

How it works: one buffer takes a block after the other. Past memory, O_DIRECT asks the disk, whatever the kernel keeps
of the file: to have it drop what it keeps isn't enough, for pages that somebody has mapped stay, and the readers of a
file that is passed through map the file itself. What is read so takes the place of nothing in memory. Such reads begin
and end at whole sectors, in the file and in memory, so the buffer is of whole pages. Where a file system has none of
them, the pages are dropped and read again.

Conditions: open(2), under O_DIRECT.
"""

from __future__ import annotations

import errno
import mmap
import os

from cachefs.content import Span
from cachefs.store import disk

_NO_SUCH_READS = (errno.EINVAL, errno.EOPNOTSUPP)


class Reading:
    """Reads of the open file `fd`, of at most `most` bytes each; `past_memory` asks the disk. Close it."""

    def __init__(self, fd: int, most: int, *, past_memory: bool = False) -> None:
        self._fd = fd
        self._buffer = memoryview(mmap.mmap(-1, _whole_pages(most)))
        self._past_memory = past_memory
        self._direct = _direct(fd) if past_memory else None

    def read(self, span: Span) -> memoryview | None:
        """The bytes of a span, until the next call; None if the file ends before. Blocking. OSError."""
        if self._direct is not None and self._read_direct(self._direct, span):
            return self._buffer[: span.length]
        if self._past_memory:
            disk.forget_pages(self._fd, span)
        view = self._buffer[: span.length]
        return view if disk.read_into(self._fd, view, span.offset) else None

    def _read_direct(self, direct: int, span: Span) -> bool:
        """Whether the disk gave all of it; False, too, where it can't be asked so. OSError."""
        try:
            return os.preadv(direct, [self._buffer[: _whole_pages(span.length)]], span.offset) >= span.length
        except OSError as error:
            if error.errno not in _NO_SUCH_READS:
                raise
            return False

    def close(self) -> None:
        if self._direct is not None:
            os.close(self._direct)


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _direct(fd: int) -> int | None:
    """Another descriptor of the same file, for reads past memory; None where there are none."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return None
