"""The bytes of an object that may be served: those of its verified blocks, and no others.

How it works: `verified` has a bit for every block whose bytes are in the file and were checked. Reads that the page
cache can answer are made with RWF_NOWAIT on the event loop: a thread would cost ten times the read. They share one
buffer, for a reply is copied into the kernel before the next read is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio

from cachefs.content import Manifest
from cachefs.diskerrors import named
from cachefs.errors import StoreFailed
from cachefs.store import space
from cachefs.store.datafile import DataFile
from cachefs.store.recovery import Found
from cachefs.store.state import Seal

READ_NOW_LIMIT = 2**20
"""The most bytes that `read_now` gives: the largest read the kernel sends."""


class ServedBytes:
    """An object's file and what is verified of it; `buffer` is for reads from memory, and shared."""

    def __init__(self, manifest: Manifest, path: Path, found: Found, buffer: memoryview) -> None:
        self.manifest = manifest
        self.path = path
        self.directory = path.parent
        self.verified = found.bits
        self.complete = found.bits.complete
        self._length = manifest.length
        self._block_length = manifest.block_length
        self._file = DataFile(path, manifest, found)
        # A partial object's seal ends here: it may be written to from now on.
        self._seal: Seal | None = found.seal if self.complete else None
        self._doubts = 0
        self._buffer = buffer

    @property
    def bytes_path(self) -> Path:
        """The file that has the bytes: `path`, or the user's own where it was taken over in place."""
        return self.path.readlink() if self.path.is_symlink() else self.path

    @property
    def allocated(self) -> int:
        """The bytes the file takes on disk, whole sectors; 0 once it is closed, or if somebody else has it, too."""
        with named(self.path):
            return 0 if self.closed else space.taken(self.path)

    def to_write(self, index: int) -> int:
        """The bytes that the file grows by, at most, when all of a block is written. StoreFailed."""
        span = self.manifest.span(index)
        with named(self.path):
            return max(0, space.cost(span) - space.written(self._file.fd, span))

    @property
    def closed(self) -> bool:
        """Whether the store is done with it: nothing is written to it any more."""
        return self._file.is_closed

    @property
    def sealed(self) -> bool:
        """Whether it is complete, durable and recorded as such."""
        return self._seal is not None

    @property
    def descriptor(self) -> int | None:
        """The file, for others to read from, if it has all of it and nobody writes to it; None otherwise."""
        # A doubted block is missing at once; the seal is broken a moment later.
        return self._file.fd if self.complete and self.sealed and not self._file.shared else None

    @property
    def held(self) -> int:
        """The bytes in verified blocks."""
        return self.manifest.held(self.verified)

    def put(self, index: int, data: bytes | bytearray | memoryview) -> None:
        """Verify a block and write it, unless it is here: for a thread, which has it landed then.

        BlockInvalid if it is another; StoreFull, StoreFailed.
        """
        if index in self.verified:
            self._file.wrote(index)
            return
        self.manifest.verify(index, data)
        self._file.write(index, data)

    def read_now(self, offset: int, size: int) -> memoryview | None:
        """`size` bytes at `offset`, less only what lies past the end; None if that would block or is over 1 MiB.

        The view is of a buffer that all objects share: valid until the next call, so reply, or copy, before
        the next await. StoreFailed if a block in the span isn't verified.
        """
        if offset + size > self._length:
            size = max(0, self._length - offset)
        self._require(offset, size)
        if size > READ_NOW_LIMIT:
            return None
        view = self._buffer[:size]
        return view if self._file.read_now(view, offset, self._seal) else None

    async def read(self, offset: int, size: int) -> bytes | None:
        """`size` bytes at `offset`, less only what lies past the end, from the disk; StoreFailed rather than fewer.

        None if a block was doubted meanwhile: look again whether all of them are here.
        """
        size = min(size, self._length - offset)
        if size <= 0:
            return b""
        self._require(offset, size)
        doubts = self._doubts
        data = await trio.to_thread.run_sync(self._file.read, offset, size, self._seal)
        return data if doubts == self._doubts else None

    def _require(self, offset: int, size: int) -> None:
        if self.complete or not size:
            return
        for index in range(offset // self._block_length, -(-(offset + size) // self._block_length)):
            if index not in self.verified:
                raise StoreFailed(f"{self.path}: block {index} was read before it was there")

    def wrong(self, blocks: Sequence[int], *, from_disk: bool = False) -> list[int]:
        """Those of `blocks` whose bytes in the file are not what they should be. Blocking, in a thread of trio's.

        `from_disk`: what the disk has, not what memory remembers of it.
        """
        return self._file.wrong(blocks, from_disk=from_disk)
