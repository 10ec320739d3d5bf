"""Which parts of a sparse file have been written, asked of the file system itself.

How it works: SEEK_DATA and SEEK_HOLE walk a file's extents, dirty pages included. A file system that
knows no holes reports one extent, so that everything counts as written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cachefs.content import Bitmap, Manifest, Span
from cachefs.descriptors import set_apart
from cachefs.errors import StoreFailed


class Extents:
    """An open file and its written parts; close it when done. StoreFailed if it can't be opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = self._open()

    def _open(self) -> int:
        try:
            return set_apart(os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
        except OSError as error:
            raise StoreFailed(f"{self._path}: {error.strerror}") from error

    def reopen(self, path: Path) -> None:
        """Look at the file that has this path now: another may have been put there, or the path is another."""
        self._path = path
        fd = self._open()
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)

    def close(self) -> None:
        os.close(self._fd)

    def written(self, span: Span) -> bool:
        """Whether the whole span has been written."""
        return os.lseek(self._fd, span.offset, os.SEEK_HOLE) >= span.end

    def read(self, span: Span) -> bytes:
        """The span's bytes; StoreFailed if they can't be read. Blocks."""
        try:
            return os.pread(self._fd, span.length, span.offset)
        except OSError as error:
            raise StoreFailed(f"{self._path}: {error.strerror}") from error

    def blocks_touched(self, manifest: Manifest) -> Iterator[int]:
        """The blocks in which anything has been written, in order."""
        at, next_block = 0, 0
        while at < manifest.length:
            try:
                at = os.lseek(self._fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: no data from here on
                return
            end = os.lseek(self._fd, at, os.SEEK_HOLE)
            touched = manifest.covering(at, end - at)
            yield from range(max(touched.start, next_block), touched.stop)
            at, next_block = end, touched.stop

    def touched_without(self, manifest: Manifest, have: Bitmap) -> set[int]:
        """The blocks that hold some data, but are not among those we have."""
        return set() if have.complete else {i for i in self.blocks_touched(manifest) if i not in have}
