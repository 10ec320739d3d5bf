"""An object's data file while it is open: a descriptor that may come to be of another file.

How it works: who mends an object may have to put another file in the place of this one: a copy of its own, where the
file is somebody else's too (`places`), or a new one, where somebody took it away. `renew` makes that, and `use` has the
descriptor be of it from then on, under the same number: whoever reads in a thread meanwhile goes on with one file or
the other. Blocks that were written to the former file and haven't landed are not in the other one: these are void.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cachefs.content import Bitmap, Manifest
from cachefs.descriptors import set_apart
from cachefs.diskerrors import named
from cachefs.store import disk, places, recovery
from cachefs.store.guard import Guard
from cachefs.store.recovery import Found
from cachefs.store.state import Seal


@dataclass(frozen=True, slots=True)
class Renewal:
    """A file to be used from now on; `gone` are the blocks that aren't in it, None for all of them."""

    fd: int
    same: bool
    gone: list[int] | None
    shared: bool = False


class DataFile:
    """The file at `path`, open. What is verified in it, its owner knows."""

    def __init__(self, path: Path, manifest: Manifest, found: Found) -> None:
        self.path = path
        self.fd = found.fd = set_apart(found.fd)
        self.shared = found.shared
        self._manifest = manifest
        self._guard = Guard(path, manifest)
        self._turn = threading.Lock()  # the kernel writes to a file for one at a time; the others would spin
        self._written: set[int] = set()
        self._void: set[int] = set()

    @property
    def is_closed(self) -> bool:
        return self.fd < 0

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1

    def looks(self) -> Seal:
        """How the file looks now. OSError."""
        return disk.seal_of(self.fd)

    def is_still(self) -> bool:
        """Whether it is the one that has the name."""
        return disk.is_still(self.path, self.fd)

    # Blocks on their way in

    def write(self, index: int, data: bytes | bytearray | memoryview) -> None:
        """Write a block that was verified. Blocking. StoreFull, StoreFailed."""
        with named(self.path), self._turn:
            disk.write_all(self.fd, data, self._manifest.span(index).offset)
            self._void.discard(index)
            self._written.add(index)

    def wrote(self, index: int) -> None:
        """Take a block for written that is here already, so that `void` counts for it."""
        self._written.add(index)

    def lands(self, index: int) -> bool:
        """Whether a block that comes to land is in this file."""
        self._written.discard(index)
        if index in self._void:
            self._void.discard(index)
            return False
        return True

    def void(self, blocks: Iterable[int]) -> None:
        """Let none of these land that was written up to now."""
        self._void.update(index for index in blocks if index in self._written)

    # Reading

    def read_now(self, view: memoryview, offset: int, seal: Seal | None) -> bool:
        """Fill `view` from memory; False if that takes longer. `seal`: how the file looked when all was verified."""
        try:
            count = os.preadv(self.fd, (view,), offset, os.RWF_NOWAIT)
        except OSError:  # not in the page cache, or the file system can't tell; a real error shows in read()
            return False
        return count == len(view) and (not self.shared or disk.seal_of(self.fd) == seal)

    def read(self, offset: int, size: int, seal: Seal | None) -> bytes:
        """`size` bytes from the disk. Blocking. StoreFailed rather than fewer, or than others."""
        if self.shared:
            return self._guard.read(self.fd, seal, offset, size)
        return disk.read_exactly(self.path, self.fd, offset, size)

    @property
    def renewed_seal(self) -> Seal | None:
        """How a shared file looks since it was touched, if all of it was found right since; None otherwise."""
        return self._guard.renewed if self.shared else None

    def wrong(self, blocks: Iterable[int], *, from_disk: bool) -> list[int]:
        """Those of `blocks` whose bytes aren't what they should be. Blocking, in a thread of trio's."""
        if not self.is_still():
            return list(blocks)
        return recovery.wrong(self.fd, self._manifest, blocks, from_disk=from_disk)

    # Another file

    def renew(self, verified: Bitmap) -> Renewal:
        """A file of the object's own at `path` that can be written to. Blocking, in a thread of trio's.

        Of a copy, what is `verified` is hashed: its owner may have been at work on what was copied. StoreFull,
        StoreFailed: then this file stays as it is.
        """
        with named(self.path):
            copied = places.take_own(self.path)
            fd = disk.open_writable(self.path)
            try:
                now, length = os.fstat(fd), self._manifest.length
                if now.st_size != length:
                    os.ftruncate(fd, length)
                same = os.path.samestat(now, os.fstat(self.fd))
                gone: list[int] | None = []
                if copied or (same and now.st_size != length):
                    gone = recovery.wrong(fd, self._manifest, verified)
                elif not same:
                    gone = None
            except BaseException:
                os.close(fd)
                raise
        return Renewal(fd, same, gone)

    def use(self, renewal: Renewal) -> None:
        """Be of another file from now on; its own descriptor stays the caller's. Blocking, short."""
        with self._turn:
            os.dup2(renewal.fd, self.fd, inheritable=False)
            self.shared = renewal.shared
            if not renewal.same:
                self._void |= self._written
                self._written.clear()

    def replace(self, found: Found) -> None:
        """Take what recovery has found in the place of this one, which nobody has seen yet."""
        self.fd = found.fd = set_apart(found.fd)
        self.shared = found.shared
