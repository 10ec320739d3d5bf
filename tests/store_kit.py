"""Small contents for the store's tests, and a child process that dies at a chosen step of a commit.

Run as a program it opens the content of seed 1 in the directory given, writes or lands blocks, and kills itself
with SIGKILL at the step named: the parent then opens what is left.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import trio

from cachefs.content import Bitmap, ContentId, Manifest
from cachefs.store import ObjectStore, State, StoredObject
from cachefs.store.state import ObjectRow

BLOCK = 8192
LENGTH = 5 * BLOCK + 1000
BLOCKS = 6


def content_of(seed: int, length: int = LENGTH, block: int = BLOCK) -> tuple[Manifest, bytes]:
    """Bytes that only `seed` decides, and their manifest."""
    data = random.Random(seed).randbytes(length)
    blocks = [data[at : at + block] for at in range(0, length, block)]
    digests = b"".join(hashlib.sha1(piece, usedforsecurity=False).digest() for piece in blocks)
    content = ContentId("btih", hashlib.sha1(digests, usedforsecurity=False).digest())
    return Manifest(content, length, block, digests), data


def piece(manifest: Manifest, data: bytes, index: int) -> bytes:
    """The bytes of one block."""
    span = manifest.span(index)
    return data[span.offset : span.end]


def put(stored: StoredObject, data: bytes, index: int) -> None:
    """Write a block behind the store's back, as libtorrent does, without landing it."""
    with stored.path.open("r+b") as file:
        file.seek(stored.manifest.span(index).offset)
        file.write(piece(stored.manifest, data, index))


async def write(stored: StoredObject, index: int, data: bytes) -> None:
    """Bring a block as a fetcher does that has its bytes: verified and written in a thread, then landed."""
    await trio.to_thread.run_sync(stored.put, index, data)
    stored.land(index)


class DyingState(State):
    """A state that calls `before` ahead of saving an object and `after` behind it."""

    before: Callable[[ObjectRow], None]
    after: Callable[[ObjectRow], None]

    def save_object(self, content: ContentId, row: ObjectRow) -> None:
        self.before(row)
        super().save_object(content, row)
        self.after(row)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_when(step: str, named: str, landed: list[int]) -> Callable[[ObjectRow], None]:
    def act(row: ObjectRow) -> None:
        if step == named and not Bitmap.from_bytes(BLOCKS, row.bitmap).missing(landed):
            _die()

    return act


async def _child(root: Path, step: str, blocks: list[int]) -> None:
    manifest, data = content_of(1)

    def sync(fd: int) -> None:
        if step == "before-sync":
            _die()
        os.fdatasync(fd)
        if step == "after-sync":
            _die()

    state = DyingState.open(root / "state.db")
    assert isinstance(state, DyingState)
    state.before = _die_when(step, "before-bits", blocks)
    state.after = _die_when(step, "after-bits", blocks)
    store = ObjectStore(root / "store", state, sync=sync)
    stored = await store.open(manifest)
    for index in blocks:
        put(stored, data, index)
    if step == "before-land":
        _die()
    for index in blocks:
        stored.land(index)
    if step == "after-land":
        _die()
    await stored.commit()
    if step == "after-commit":
        _die()
    await stored.release()
    if step == "after-close":
        _die()


if __name__ == "__main__":
    trio.run(_child, Path(sys.argv[1]), sys.argv[2], [int(number) for number in sys.argv[3:]])
