"""One object while it is open: landing what was fetched, making it durable, mending what went bad.

How it works: a block that has landed is served at once (`served.py`). Its bit reaches the state only with a commit:
copy the bits, fdatasync, save the copy. A block that lands during the sync is not in the copy and waits for the next
one, so no bit is ever saved before its data. The commit that has the last block also makes the file read-only and
records its seal.

If a sync fails, the kernel has forgotten the pages that it couldn't write and the next sync would report
success. So nothing is committed any more until the object is opened again and what is on disk is hashed.

A block whose bytes turn out wrong later, because a disk forgets, is doubted: its bit goes at once, and the
recorded one before `doubt` returns; the seal is broken and the block is missing like any other. A read that was
waiting for the disk in that moment may have got the wrong bytes, and is told to look again. Then the file is mended:
made one that may be written to, which may be another (`datafile.py`). Until it is, nothing may be asked for that would
be written to it: `fit` waits for that.

Another process may put the whole content in the place of a file of which we have a part, as an etch does. It is used as
soon as that is noticed, and nothing that we know of the part is recorded any more.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import trio

from cachefs.content import Bitmap, Manifest
from cachefs.diskerrors import named
from cachefs.errors import CachefsError, RecordInconsistent, StoreFailed
from cachefs.store import disk, losses, places, recovery
from cachefs.store.datafile import Renewal
from cachefs.store.mending import Mending, Watcher
from cachefs.store.recovery import Found
from cachefs.store.served import READ_NOW_LIMIT, ServedBytes
from cachefs.store.state import ObjectRow, Seal, State
from cachefs.store.wholeness import condemn_unless_whole

_log = logging.getLogger(__name__)


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


class StoredObject(ServedBytes):
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
        super().__init__(manifest, path, found, tools.buffer)
        self._completed = completed
        self.condemned: RecordInconsistent | None = None
        self._last_used = tools.clock() if last_used is None else last_used
        self._tools = tools
        self._owner: Owner | None = None
        self._committing = trio.Lock()
        self._mending: Mending | None = None
        self._unrecorded: set[int] = set()
        self._dirty = False
        self._frozen = False
        self.watcher: Watcher | None = None

    def attach(self, owner: Owner) -> None:
        """Tell `owner` from now on; the store's own call."""
        self._owner = owner

    @property
    def last_used(self) -> float:
        """When somebody last opened or closed it to read it, in Unix seconds."""
        return self._last_used

    def use(self) -> None:
        """Take note that it is being used: what was used last is evicted last. Recorded when it is closed."""
        self._last_used = self._tools.clock()

    @property
    def frozen(self) -> bool:
        """Whether a sync failed, so that nothing more is committed until it is opened again."""
        return self._frozen

    def land(self, index: int) -> bool:
        """A verified block's bytes are in the file: serve it from now on. True if it wasn't there before.

        Nor is it then if it was written to a file that isn't ours any more, or was doubted since. Durable at the next
        commit. No I/O. IndexError if there is no such block.
        """
        if not self._file.lands(index) or not self.verified.add(index):
            return False
        self.complete = self.verified.complete
        self._dirty = True
        if self._owner is not None:
            self._owner.landed(self, self.manifest.span(index).length)
        return True

    async def read(self, offset: int, size: int) -> bytes | None:
        data = await super().read(offset, size)
        if data is not None:
            self._renew_seal()
        return data

    def _renew_seal(self) -> None:
        """Take the look of a shared file for its seal, if all of it was found right since it was touched."""
        renewed = self._file.renewed_seal
        if renewed and renewed != self._seal:
            self._seal = renewed
            with contextlib.suppress(CachefsError):  # then the next start verifies it once more
                self._save(self.verified.copy())

    async def look(self) -> None:
        """Take note if somebody took the file away, or put all of it in its place. StoreFull, StoreFailed."""
        if not self._file.is_still():
            await self._distrust(list(self.verified))

    async def doubt(self, blocks: Iterable[int]) -> list[int]:
        """Serve these blocks no more: their bytes are wrong. They are missing from now on, also after a power cut.

        Returns those that were there. StoreFull or StoreFailed if that can't be recorded, or the file not be made one
        to write to: they are not served all the same, and each commit tries again.
        """
        bad = [index for index in blocks if index in self.verified]
        return await self._distrust(bad) if bad else bad

    async def _distrust(self, bad: list[int]) -> list[int]:
        self._mending = self._mending or Mending()
        self._forget(bad)
        with trio.CancelScope(shield=True):
            async with self._committing:
                if self._superseded():
                    return []
                self._seal = self._completed = None
                self._mark()
                try:
                    self._record_losses()
                finally:
                    await self._mend()
        return bad

    def _forget(self, blocks: Iterable[int]) -> None:
        """Serve none of these from now on."""
        bad = list(blocks)
        for index in bad:
            self.verified.discard(index)
        self._file.void(bad)
        self._unrecorded.update(bad)
        self._doubts += 1
        self.complete = self.verified.complete

    def _mark(self) -> None:
        """Have the next commit come soon."""
        self._dirty = True
        if self._owner is not None:
            self._owner.landed(self, 0)

    @property
    def unrecorded(self) -> frozenset[int]:
        """The blocks that aren't here any more, and that the state may still tell of as if they were."""
        return frozenset(index for index in self._unrecorded if index not in self.verified)

    def _record_losses(self) -> None:
        losses.take_back(self._tools.state, self.manifest, sorted(self._unrecorded))
        self._unrecorded.clear()

    @property
    def unfit(self) -> bool:
        """Whether nothing may be written to the file just now."""
        return self._mending is not None

    async def fit(self) -> None:
        """Return when what is missing may be written, as a rule at once. StoreFull, StoreFailed: it can't be."""
        while (mending := self._mending) is not None:
            await mending.ended.wait()
            if mending.error is not None and self._mending is mending:
                raise mending.error

    async def _mend(self) -> None:
        """Have a file that may be written to, and let those go on who wait for it. StoreFull, StoreFailed."""
        if self._mending is None or self._mending.ended.is_set():
            self._mending = Mending()
        try:
            renewal = await trio.to_thread.run_sync(self._file.renew, self.verified.copy())
            with contextlib.ExitStack() as unused:
                unused.callback(os.close, renewal.fd)
                if gone := self.verified.copy() if renewal.gone is None else renewal.gone:
                    self._forget(gone)
                if self.watcher is not None:  # before anything can land by way of the former file
                    self.watcher.doubted()
                await trio.to_thread.run_sync(self._file.use, renewal)
        except CachefsError as error:
            self._mending.end(error)
            raise
        except BaseException:
            self._mending.end(StoreFailed(f"{self.path}: can't be written to yet"))
            raise
        self._is_fit()
        if self._unrecorded:
            self._record_losses()

    def _is_fit(self) -> None:
        mending, self._mending = self._mending, None
        if mending is not None:
            mending.end()
        if self.watcher is not None:
            self.watcher.mended()

    def _superseded(self) -> bool:
        """Whether the whole content was put in the place of the file, and is recorded: it is used from now on."""
        if self._file.is_still():
            return False
        row = self._tools.state.load_object(self.manifest.content)
        if row is None or not recovery.is_whole(self.path, self.manifest, row):
            return False
        fd = disk.open_sealed(self.path)
        if fd is None:
            return False
        try:
            self._file.use(Renewal(fd, same=False, gone=[], shared=places.is_shared(self.path)))
        finally:
            os.close(fd)
        for index in range(self.manifest.blocks):
            self.verified.add(index)
        self.complete, self._seal, self._completed = True, row.seal, row.completed
        self._dirty = self._frozen = False
        self._unrecorded.clear()
        self._doubts += 1
        self._is_fit()
        if self.watcher is not None:
            self.watcher.doubted()
        _log.info("%s: all of it was put there by somebody else meanwhile", self.path)
        return True

    async def commit(self) -> None:
        """Make everything that has landed durable; seal the file if that is all of it. StoreFull, StoreFailed."""
        async with self._committing:
            # A file that is closed may be dirty: closing it on a full disk can't record anything either.
            if self._file.is_closed or not self._dirty or self._frozen or self._superseded():
                return
            self._dirty = False
            try:
                await self._commit()
                if self._mending is not None:
                    await self._mend()
            except BaseException:
                self._dirty = True
                raise

    async def _commit(self) -> None:
        bits = self.verified.copy()
        if bits.complete:
            try:
                self.condemned = await condemn_unless_whole(self.path, self._file.fd, self.manifest, self.verified)
            finally:
                bits, self.complete = self.verified.copy(), self.verified.complete
        if bits.complete:
            self._seal = await trio.to_thread.run_sync(self._sync, True)
            self._completed = self._tools.clock()
        else:
            await trio.to_thread.run_sync(self._sync, False)
        self._save(bits)
        if self._unrecorded:
            losses.note(self._tools.state, self.manifest, self._unrecorded)
            self._unrecorded.clear()

    def _sync(self, read_only: bool) -> Seal:
        """Sync the file, then tell how it looks."""
        with named(self.path):
            try:
                self._tools.sync(self._file.fd)
            except OSError:
                self._frozen = True
                raise
            if read_only and not self._file.shared:
                os.fchmod(self._file.fd, 0o444)
            return self._file.looks()

    def save_unsealed(self) -> None:
        """Record what recovery has found, and that the file may be written from here on; the store's own call."""
        self.complete = self.verified.complete
        self._dirty = True
        self._save(self.verified)
        self._dirty = self.complete

    def reopened(self, found: Found) -> None:
        """Take note that recovery has given the object another file; the store's own call."""
        self._file.replace(found)

    def abandon(self) -> None:
        """Close the file of an object that nobody got to see; the store's own call."""
        self._file.close()

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
            # As a rule the last commit has synced all of it; a node that ends closes thousands of files.
            self._seal = await trio.to_thread.run_sync(self._sync, False) if self._dirty else self._looks()
            self._save(bits)

    def _looks(self) -> Seal:
        with named(self.path):
            return self._file.looks()
