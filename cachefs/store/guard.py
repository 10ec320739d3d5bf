"""Serving from a file that somebody else may change at any moment (see `places`).

How it works: a shared file looked in a certain way when it was verified: size, mtime and inode number, its seal.
While it looks so, it is served like any other, and that is asked again after the bytes were read. When it looks
otherwise, it may have been changed or merely touched: from then on each block is hashed before it is served for the
first time, and only what is right is. Once all of them were, the new look is the seal. A change that is noticed
between hashing and serving is an error, for its owner is at work on it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from cachefs.content import Bitmap, Manifest
from cachefs.diskerrors import named
from cachefs.errors import StoreFailed
from cachefs.store import disk, places, recovery
from cachefs.store.state import Seal


class Guard:
    """Watches over one shared file, `path`, while it is open. Its methods may be called in several threads."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._path = path
        self._manifest = manifest
        self._lock = threading.Lock()
        self._look: Seal | None = None
        self._right = Bitmap(manifest.blocks)

    def read(self, fd: int, seal: Seal | None, offset: int, size: int) -> bytes:
        """`size` right bytes from `offset` on; StoreFailed if they can't be had. Blocking."""
        with named(self._path):
            look = self.require(fd, seal, self._manifest.covering(offset, size))
            data = disk.read_exactly(self._path, fd, offset, size)
            self.require_still(fd, look)
        return data

    def require(self, fd: int, seal: Seal | None, blocks: Iterable[int]) -> Seal:
        """How the file looks now, once these blocks are known to be right in it; StoreFailed if one is wrong. Blocking.

        `seal` is how it looked when all of it was verified.
        """
        now = disk.seal_of(fd)
        if now == seal:
            return now
        if now != self._look:
            places.settle(fd)
            now = disk.seal_of(fd)
        with self._lock:
            if now != self._look:
                self._look, self._right = now, Bitmap(self._manifest.blocks)
            unknown = self._right.missing(blocks)
        if unknown and recovery.wrong(fd, self._manifest, unknown):
            raise StoreFailed(
                f"{self._path}: was changed under another name, and isn't right any more; `cachefs verify --repair`, "
                "or the next start, mends it in a copy of the store's own"
            )
        with self._lock:
            if now == self._look:
                for index in unknown:
                    self._right.add(index)
        return now

    def require_still(self, fd: int, look: Seal) -> None:
        """Return if the file looks as it did when `require` was asked; else StoreFailed."""
        if disk.seal_of(fd) != look:
            raise StoreFailed(f"{self._path}: is being changed under another name")

    @property
    def renewed(self) -> Seal | None:
        """How the file looks since it was last touched, if all of it was found right since; None otherwise."""
        with self._lock:
            return self._look if self._right.complete else None
