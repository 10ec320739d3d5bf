"""What may be believed of an object at its next open, and the hashing of the rest.

How it works: a row of the state either carries a seal or it doesn't.

| row                                   | believed               | hashed                                      |
|---------------------------------------|------------------------|---------------------------------------------|
| sealed, and the file still looks so   | its bits               | nothing                                     |
| not sealed: the daemon died           | bits of blocks in data | other data on disk, and bits in a hole      |
| none, or another file, or too long    | nothing                | all data on disk                            |
| complete, in a shared file (`places`) | its bits, if sealed    | all of it, if it looks otherwise            |

A bit is only ever written after its data was synced, so an unsealed row's bits hold after a power cut too;
data without a bit was being written when the end came, and hashing it is cheaper than fetching it. A block
that fails is merely absent. A hole under a bit means that somebody emptied the file: it is hashed as well.
Everything is synced before the hashing starts, hence each block found good is durable at once: an open that
is cancelled halfway has not worked in vain, and the next one goes on from there.

A shared file is somebody else's as well: it is hashed without opening it for writing, and if all of it is right, it is
served as before. If not, or if it was touched meanwhile, the object gets a copy of its own, which is hashed in its
turn, and only what is wrong in that is fetched.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from cachefs.content import Bitmap, ContentId, Manifest, Span
from cachefs.diskerrors import named
from cachefs.errors import BlockInvalid, StoreFailed
from cachefs.store import disk, places
from cachefs.store.reading import Reading
from cachefs.store.state import ObjectRow, Seal


@dataclass(slots=True)
class Found:
    """An open data file, the blocks believed of it, those still to hash, and the seal if it holds."""

    fd: int
    bits: Bitmap
    suspects: list[int]
    seal: Seal | None = None
    shared: bool = False


def find(path: Path, manifest: Manifest, row: ObjectRow | None) -> Found:
    """Open the data file, made at full length if need be, and decide what to believe. Blocking; no hashing.

    StoreFull or StoreFailed if the file can't be opened or given its length.
    """
    bits = recorded_bits(manifest, row)
    with named(path):
        if row is not None and bits is not None and bits.complete and row.seal is not None:
            fd = disk.open_sealed(path)
            if fd is not None and _matches(fd, row.seal):
                return Found(fd, bits, [], row.seal, places.is_shared(path))
        partial = bits is not None and not bits.complete and row is not None and row.seal is not None
        if not partial and (shared := _shared(path, manifest)) is not None:
            return shared
        disk.make_directory(path.parent)
        places.take_own(path)
        fd = disk.open_writable(path)
        try:
            return _look(fd, manifest, bits, row.seal if row else None)
        except BaseException:
            os.close(fd)
            raise


def is_whole(path: Path, manifest: Manifest, row: ObjectRow | None) -> bool:
    """Whether all of the object is there by its row, and the file looks as sealed. Blocking, short. StoreFailed."""
    bits = recorded_bits(manifest, row)
    if row is None or row.seal is None or bits is None or not bits.complete:
        return False
    return looks(path) == row.seal


def looks(path: Path) -> Seal | None:
    """How the data file looks now; None if there is none. StoreFailed."""
    with named(path):
        fd = disk.open_sealed(path)
        if fd is None:
            return None
        try:
            return disk.seal_of(fd)
        finally:
            os.close(fd)


def whole(manifest: Manifest, seal: Seal, now: float) -> ObjectRow:
    """The row of an object that is complete."""
    bits = bytes(Bitmap.full(manifest.blocks))
    return ObjectRow(manifest.block_length, manifest.length, bits, manifest.length, seal, now, now)


def doubtful(root: Path, seals: Mapping[ContentId, Seal | None]) -> list[ContentId]:
    """Of the objects with these seals, those whose file looks otherwise; and those that have a file and no row."""
    found = [content for content, seal in seals.items() if _differs(disk.directory_of(root, content) / "data", seal)]
    for path in root.glob("*/??/*/data"):
        with contextlib.suppress(ValueError):
            content = ContentId.parse(f"{path.parts[-4]}:{path.parts[-2]}")
            if content not in seals:
                found.append(content)
    return found


def _differs(path: Path, seal: Seal | None) -> bool:
    try:
        return seal is None or looks(path) != seal
    except StoreFailed:  # whoever opens it will say so
        return True


def _matches(fd: int, seal: Seal) -> bool:
    """Whether the file looks as sealed; if not, the descriptor is closed."""
    if disk.seal_of(fd) == seal:
        return True
    os.close(fd)
    return False


def _shared(path: Path, manifest: Manifest) -> Found | None:
    """A shared file of the right length: all of it is to be hashed. None if it isn't one."""
    fd = disk.open_sealed(path) if places.is_shared(path) else None
    if fd is None:
        return None
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_size == manifest.length:
        return Found(fd, Bitmap(manifest.blocks), list(range(manifest.blocks)), shared=True)
    os.close(fd)
    if path.is_symlink():  # to something else by now
        path.unlink()
    return None


def recorded_bits(manifest: Manifest, row: ObjectRow | None) -> Bitmap | None:
    """The row's bits, believed or not; None if there are none that fit this manifest."""
    if row is None or (row.length, row.block_length) != (manifest.length, manifest.block_length):
        return None
    try:
        return Bitmap.from_bytes(manifest.blocks, row.bitmap)
    except ValueError:
        return None


def _look(fd: int, manifest: Manifest, bits: Bitmap | None, seal: Seal | None) -> Found:
    now = disk.seal_of(fd)
    if bits is not None and seal == now:
        return Found(fd, bits, [], seal)
    # Before it is given its length: what lies beyond the end is a hole too.
    gaps = disk.holes(fd, min(now.size, manifest.length))
    gaps.append(Span(now.size, max(0, manifest.length - now.size)))
    if bits is not None and bits.complete and seal is not None and now.size == manifest.length:
        gaps = []  # it was whole: a hole in it may well be content that is zeros
    if now.size != manifest.length:
        os.ftruncate(fd, manifest.length)
    if bits is None or seal is not None or now.size > manifest.length:
        bits = Bitmap(manifest.blocks)
    return Found(fd, *judge(manifest, bits, gaps))


def judge(manifest: Manifest, bits: Bitmap, gaps: Iterable[Span]) -> tuple[Bitmap, list[int]]:
    """Of `bits`, those to believe; and the blocks to hash, given the holes in the file. Pure."""
    believed = bits.copy()
    suspects = set[int]()
    empty = bytearray(manifest.blocks)
    for gap in gaps:
        for index in manifest.covering(gap.offset, gap.length):
            span = manifest.span(index)
            if index in bits:
                believed.discard(index)
                suspects.add(index)
            elif gap.offset <= span.offset and span.end <= gap.end:
                empty[index] = 1
    suspects.update(i for i in range(manifest.blocks) if not empty[i] and i not in believed)
    return believed, sorted(suspects)


def rehash(found: Found, manifest: Manifest, path: Path, sync: Callable[[int], None]) -> None:
    """Hash the suspects and set the bits of the good ones in `found`, in a file of its own if a shared one isn't right.

    Blocking, in a thread of trio's. Cancelled between two blocks when the caller is; `found` then has what was done.
    OSError if the sync or the copy fails.
    """
    _hash(found, manifest, sync)
    if found.shared and not found.bits.complete:
        _part(found, path)
        _hash(found, manifest, sync)


def _hash(found: Found, manifest: Manifest, sync: Callable[[int], None]) -> None:
    before = disk.seal_of(found.fd)
    sync(found.fd)
    # Pages that a failed write-back left in memory must not pass for bytes on disk.
    os.posix_fadvise(found.fd, 0, 0, os.POSIX_FADV_DONTNEED)
    with _blocks(found.fd, manifest) as reading:
        for index in found.suspects:
            trio.from_thread.check_cancelled()
            if _is_good(reading, manifest, index):
                found.bits.add(index)
    if found.shared and disk.seal_of(found.fd) != before:  # its owner is at work on it: nothing is worth believing
        _doubt(found)


def _part(found: Found, path: Path) -> None:
    """Give the object a copy of its own."""
    places.take_own(path)
    fd = disk.open_writable(path)
    os.close(found.fd)
    found.fd, found.shared = fd, False
    _doubt(found)  # what was hashed may have changed before it was copied


def _doubt(found: Found) -> None:
    for index in found.suspects:
        found.bits.discard(index)


def wrong(fd: int, manifest: Manifest, blocks: Iterable[int], *, from_disk: bool = False) -> list[int]:
    """Those of `blocks` that aren't good; with `from_disk`, as the disk has them. Blocking, in a thread of trio's."""
    found: list[int] = []
    with _blocks(fd, manifest, past_memory=from_disk) as reading:
        for index in blocks:
            trio.from_thread.check_cancelled()
            if not _is_good(reading, manifest, index):
                found.append(index)
    return found


def _blocks(fd: int, manifest: Manifest, *, past_memory: bool = False) -> contextlib.closing[Reading]:
    return contextlib.closing(Reading(fd, min(manifest.block_length, manifest.length), past_memory=past_memory))


def _is_good(reading: Reading, manifest: Manifest, index: int) -> bool:
    """Whether a block's bytes on disk have its digest; one that can't be read is not good."""
    try:
        data = reading.read(manifest.span(index))
        if data is None:
            return False
        manifest.verify(index, data)
    except (OSError, BlockInvalid):
        return False
    return True
