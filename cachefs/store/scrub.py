"""Reading again what the store holds, to find what the disk has forgotten.

How it works: the blocks that are here are hashed, several at a time, each in a thread, and those whose digest is
another are doubted: served no more, and missing from then on. What an object's row says is here, and its open
didn't find, counts as wrong too: that is how an emptied file shows.

There are two kinds. A *verification* reads as a reader would, as fast as the cores hash. A *scrub* asks the disk
itself, past what memory has of a block, and keeps to a rate, so that readers don't notice. Both use the digests of
the manifest. A second, faster one kept beside it would save nothing: a core hashes 2 GB/s, which is what disks give,
and at a scrub's rate it is a few per cent of one core.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import trio

from cachefs.content import Bitmap, Manifest
from cachefs.errors import CachefsError
from cachefs.store.objects import ObjectStore
from cachefs.store.stored import StoredObject

_BATCH = 32 * 2**20
"""Bytes that a thread hashes at a time: switching threads costs a tenth of hashing one block."""

_THREADS_A_CORE = 2
"""While one waits for the disk another hashes: a sixth faster from the disk than one, and no slower from memory."""

Hashed = Callable[[int], None]
"""Told how many bytes more were hashed."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of one object: how many of its blocks were thought to be here, and which of them weren't.

    `lost`: those that were found wrong earlier, and haven't come again; `trouble`: what kept it from being recorded
    what is wrong, or from being made ready for what comes in its place.
    """

    held: int
    wrong: tuple[int, ...]
    lost: tuple[int, ...] = ()
    trouble: str = ""


class Checker:
    """Hashes blocks: with all cores, or at `rate` bytes per second (0: no limit) from the disk itself."""

    def __init__(self, *, from_disk: bool = False, rate: float = 0.0) -> None:
        self.threads = 1 if rate else _THREADS_A_CORE * (os.cpu_count() or 1)
        self._from_disk = from_disk
        self._rate = rate
        self._due = float("-inf")
        self._limiter = trio.CapacityLimiter(self.threads)

    async def check(self, store: ObjectStore, manifest: Manifest, hashed: Hashed = lambda size: None) -> Checked:
        """Hash what is held of an object, and doubt what is wrong of it. StoreFull, StoreFailed."""
        recorded, earlier = store.recorded(manifest), store.lost(manifest)
        stored = await store.open(manifest)
        try:
            here, wrong, trouble = stored.verified.copy(), set[int](), ""
            try:
                await self._find(stored, here, hashed, wrong)
            finally:
                with trio.CancelScope(shield=True):  # what was found must come to its caller's ears
                    try:
                        wrong.intersection_update(await stored.doubt(wrong))
                    except CachefsError as error:
                        trouble = str(error)
        finally:
            await stored.release()
        lost = {index for index in recorded if index not in here}
        still = tuple(index for index in earlier if index not in here)
        return Checked(len(here) + len(lost), tuple(sorted(wrong | lost)), still, trouble)

    async def _find(self, stored: StoredObject, blocks: Bitmap, hashed: Hashed, found: set[int]) -> None:
        """Add to `found` those of the blocks that are wrong."""
        batches = self._batches(stored.manifest, blocks)

        async def work() -> None:
            for batch in batches:
                found.update(await trio.to_thread.run_sync(self._hash, stored, batch, limiter=self._limiter))
                size = sum(stored.manifest.span(index).length for index in batch)
                hashed(size)
                await self._pause(size)

        async with trio.open_nursery() as nursery:
            for _ in range(self.threads):
                nursery.start_soon(work)

    def _hash(self, stored: StoredObject, batch: list[int]) -> list[int]:
        return stored.wrong(batch, from_disk=self._from_disk)

    def _batches(self, manifest: Manifest, blocks: Bitmap) -> Iterator[list[int]]:
        most = 1 if self._rate else max(1, min(_BATCH // manifest.block_length, len(blocks) // self.threads))
        batch: list[int] = []
        for index in blocks:
            batch.append(index)
            if len(batch) >= most:
                yield batch
                batch = []
        if batch:
            yield batch

    async def _pause(self, size: int) -> None:
        if self._rate:
            self._due = max(self._due, trio.current_time()) + size / self._rate
            await trio.sleep_until(self._due)
