"""One object while it is open: reading what is verified, landing what was fetched, making it durable.

How it works: `verified` has a bit for every block whose bytes are in the file and were checked; such a block
is served at once. Its bit reaches the state only with a commit: copy the bits, fdatasync, save the copy. A
block that lands during the sync is not in the copy and waits for the next one, so no bit is ever saved before
its data. The commit that has the last block also makes the file read-only and records its seal.

If a sync fails, the kernel has forgotten the pages that it couldn't write and the next sync would report
success. So nothing is committed any more until the object is opened again and what is on disk is hashed.

A block whose bytes turn out wrong later, because a disk forgets, is doubted: its bit goes at once, and the
recorded one before `doubt` returns; the seal is broken and the block is missing like any other. A read that was
waiting for the disk in that moment may have got the wrong bytes, and reads again.

Reads that the page cache can answer are made with RWF_NOWAIT on the event loop: a thread would cost ten times
the read. They share one buffer, for a reply is copied into the kernel before the next read is looked at.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import trio

from cachefs.content import Bitmap, Manifest
from cachefs.diskerrors import named
from cachefs.errors import CachefsError, RecordInconsistent, StoreFailed
from cachefs.store import disk, losses, places, recovery, space
from cachefs.store.guard import Guard
from cachefs.store.recovery import Found
from cachefs.store.state import ObjectRow, Seal, State
from cachefs.store.wholeness import condemn_unless_whole

READ_NOW_LIMIT = 2**20
"""The most bytes that `read_now` gives: the largest read the kernel sends."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What every object of a store shares; `clock` gives Unix seconds, `sync` is fdatasync (tests count it)."""

    state: State
    clock: Callable[[], float]
    sync: Callable[[int], None]
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(READ_NOW_LIMIT)))


class Owner(Protocol):
    """What an object tells its store."""

    def landed(self, stored: StoredObject, size: int) -> None:
        """Block bytes became servable and wait for a commit."""

    async def released(self, stored: StoredObject) -> None:
        """One user is done with the object."""


class StoredObject:
    """An object's bytes. From `ObjectStore.open`; the last `release` closes it."""

    def __init__(
        self,
        manifest: Manifest,
        path: Path,
        found: Found,
        completed: float | None,
        tools: Tools,
        last_used: float | None = None,
    ) -> None:
        self.manifest = manifest
        self.path = path
        self.directory = path.parent
        self.verified = found.bits
        self.complete = found.bits.complete
        self._length = manifest.length
        self._block_length = manifest.block_length
        self._fd = found.fd
        self._shared, self._guard = found.shared, Guard(path, manifest)
        # A partial object's seal ends here: it may be written to from now on.
        self._seal = found.seal if self.complete else None
        self._completed = completed
        self.condemned: RecordInconsistent | None = None
        self._last_used = tools.clock() if last_used is None else last_used
        self._tools = tools
        self._owner: Owner | None = None
        self._committing = trio.Lock()
        self._turn = threading.Lock()  # the kernel writes to a file for one at a time; the others would spin
        self._dirty = False
        self._frozen = False
        self._doubts = 0

    def attach(self, owner: Owner) -> None:
        """Tell `owner` from now on; the store's own call."""
        self._owner = owner

    @property
    def bytes_path(self) -> Path:
        """The file that has the bytes: `path`, or the user's own where it was taken over in place."""
        return self.path.readlink() if self.path.is_symlink() else self.path

    @property
    def allocated(self) -> int:
        """The bytes the file takes on disk, whole sectors; 0 once it is closed, or if somebody else has it, too."""
        with named(self.path):
            return space.taken(self.path) if self._fd >= 0 else 0

    def to_write(self, index: int) -> int:
        """The bytes that the file grows by, at most, when all of a block is written. StoreFailed."""
        span = self.manifest.span(index)
        with named(self.path):
            return max(0, space.cost(span) - space.written(self._fd, span))

    @property
    def closed(self) -> bool:
        """Whether the store is done with it: nothing is written to it any more."""
        return self._fd < 0

    @property
    def last_used(self) -> float:
        """When somebody last opened or closed it to read it, in Unix seconds."""
        return self._last_used

    def use(self) -> None:
        """Take note that it is being used: what was used last is evicted last. Recorded when it is closed."""
        self._last_used = self._tools.clock()

    @property
    def sealed(self) -> bool:
        """Whether it is complete, durable and recorded as such."""
        return self._seal is not None

    @property
    def descriptor(self) -> int | None:
        """The file, for others to read from, if it has all of it and nobody writes to it; None otherwise."""
        # A doubted block is missing at once; the seal is broken a moment later.
        return self._fd if self.complete and self.sealed and not self._shared else None

    @property
    def frozen(self) -> bool:
        """Whether a sync failed, so that nothing more is committed until it is opened again."""
        return self._frozen

    @property
    def held(self) -> int:
        """The bytes in verified blocks."""
        return self.manifest.held(self.verified)

    def land(self, index: int) -> bool:
        """A verified block's bytes are in the file: serve it from now on. True if it wasn't there before.

        Durable at the next commit. No I/O. IndexError if there is no such block.
        """
        if not self.verified.add(index):
            return False
        self.complete = self.verified.complete
        self._dirty = True
        if self._owner is not None:
            self._owner.landed(self, self.manifest.span(index).length)
        return True

    async def write(self, index: int, data: bytes | bytearray | memoryview) -> None:
        """Verify a block, write it and land it. BlockInvalid if it is another; StoreFull, StoreFailed."""
        await trio.to_thread.run_sync(self.put, index, data)
        self.land(index)

    def put(self, index: int, data: bytes | bytearray | memoryview) -> None:
        """Verify a block and write it, unless it is here: `write` for a thread, which has it landed then."""
        if index in self.verified:
            return
        self.manifest.verify(index, data)
        with named(self.path), self._turn:
            disk.write_all(self._fd, data, self.manifest.span(index).offset)

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
        view = self._tools.buffer[:size]
        try:
            count = os.preadv(self._fd, (view,), offset, os.RWF_NOWAIT)
        except OSError:  # not in the page cache, or the file system can't tell; a real error shows in read()
            return None
        unchanged = not self._shared or disk.seal_of(self._fd) == self._seal
        return view if count == size and unchanged else None

    async def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`, less only what lies past the end, from the disk; StoreFailed rather than fewer."""
        size = min(size, self._length - offset)
        while size > 0:
            self._require(offset, size)
            doubts = self._doubts
            data = await trio.to_thread.run_sync(self._read, offset, size)
            if doubts == self._doubts:
                self._renew_seal()
                return data
        return b""

    def _read(self, offset: int, size: int) -> bytes:
        if self._shared:
            return self._guard.read(self._fd, self._seal, offset, size)
        return disk.read_exactly(self.path, self._fd, offset, size)

    def _renew_seal(self) -> None:
        """Take the look of a shared file for its seal, if all of it was found right since it was touched."""
        renewed = self._guard.renewed if self._shared else None
        if renewed and renewed != self._seal:
            self._seal = renewed
            with contextlib.suppress(CachefsError):  # then the next start verifies it once more
                self._save(self.verified.copy())

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
        if not disk.is_still(self.path, self._fd):
            return list(blocks)
        return recovery.wrong(self._fd, self.manifest, blocks, from_disk=from_disk)

    async def doubt(self, blocks: Iterable[int]) -> list[int]:
        """Serve these blocks no more: their bytes are wrong. They are missing from now on, also after a power cut.

        Returns those that were there. StoreFull or StoreFailed if that can't be recorded: they are not served all the
        same, and the next commit tries to record it again.
        """
        bad = [index for index in blocks if index in self.verified]
        for index in bad:
            self.verified.discard(index)
        if bad:
            self.complete = False
            self._doubts += 1
            with trio.CancelScope(shield=True):
                async with self._committing:
                    await self._take_back(bad)
        return bad

    async def _take_back(self, bad: list[int]) -> None:
        self._seal = self._completed = None
        try:
            await trio.to_thread.run_sync(self._reopen)
            losses.take_back(self._tools.state, self.manifest, bad)
        except BaseException:
            self._dirty = True
            if self._owner is not None:
                self._owner.landed(self, 0)
            raise

    def _reopen(self) -> None:
        """Have a file that may be written to, of the right length, whatever became of it."""
        with named(self.path):
            places.take_own(self.path)
            disk.reopen(self.path, self._fd, self._length)
            self._shared = False

    async def commit(self) -> None:
        """Make everything that has landed durable; seal the file if that is all of it. StoreFull, StoreFailed."""
        async with self._committing:
            if not self._dirty or self._frozen:
                return
            self._dirty = False
            try:
                bits = self.verified.copy()
                if bits.complete:
                    self.condemned = await condemn_unless_whole(self.path, self._fd, self.manifest, self.verified)
                    bits, self.complete = self.verified.copy(), self.verified.complete
                if bits.complete:
                    self._seal = await trio.to_thread.run_sync(self._sync, True)
                    self._completed = self._tools.clock()
                else:
                    await trio.to_thread.run_sync(self._sync, False)
                self._save(bits)
            except BaseException:
                self._dirty = True
                raise

    def _sync(self, read_only: bool) -> Seal:
        """Sync the file, then tell how it looks."""
        with named(self.path):
            try:
                self._tools.sync(self._fd)
            except OSError:
                self._frozen = True
                raise
            if read_only and not self._shared:
                os.fchmod(self._fd, 0o444)
            return disk.seal_of(self._fd)

    def save_unsealed(self) -> None:
        """Record what recovery has found, and that the file may be written from here on; the store's own call."""
        self.complete = self.verified.complete
        self._dirty = True
        self._save(self.verified)
        self._dirty = self.complete

    def reopened(self, found: Found) -> None:
        """Take note that recovery has given the object another file; the store's own call."""
        self._fd, self._shared = found.fd, found.shared

    def abandon(self) -> None:
        """Close the file of an object that nobody got to see; the store's own call."""
        os.close(self._fd)
        self._fd = -1

    def _save(self, bits: Bitmap) -> None:
        manifest, tools = self.manifest, self._tools
        row = ObjectRow(
            block_length=manifest.block_length,
            length=manifest.length,
            bitmap=bytes(bits),
            held=manifest.held(bits),
            seal=self._seal,
            completed=self._completed if self._seal and bits.complete else None,
            last_used=self._last_used,
        )
        tools.state.save_object(manifest.content, row)

    async def release(self) -> None:
        """Be done with the object; the last to be done commits and closes it."""
        if self._owner is not None:
            await self._owner.released(self)

    async def close(self) -> None:
        """Commit, record the clean end and close the file, come what may; the store's own call."""
        with trio.CancelScope(shield=True):
            try:
                await self.commit()
                await self._finish()
            finally:
                self.abandon()

    async def _finish(self) -> None:
        if self._seal is not None:
            self._tools.state.touch_object(self.manifest.content, self._last_used)
        elif not self._frozen:
            bits = self.verified.copy()
            self._seal = await trio.to_thread.run_sync(self._sync, False)
            self._save(bits)
