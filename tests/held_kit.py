"""Data directories that hold a whole library already, and what a failing disk does to them."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from cachefs import metainfo
from cachefs.catalog.snapshots import LOCK_NAME, UNKNOWN_CHAIN, SnapshotLock
from cachefs.store import ObjectStore, State
from tests.mount_kit import Library, part
from tests.store_kit import write


def stocked(library: Library, place: Path) -> dict[str, Path]:
    """A data directory that holds all of the library, as a mount leaves it; the data files by name."""

    async def fill() -> None:
        store = ObjectStore(place / "data" / "store", state)
        for name, path in library.files.items():
            info = metainfo.parse(library.torrent(name).read_bytes())
            store.save_manifest(info.content, info.raw)
            stored = await store.open(info.manifest)
            paths[name] = stored.path
            for index in range(info.manifest.blocks):
                span = info.manifest.span(index)
                await write(stored, index, part(path, span.offset, span.length))
        await store.aclose()

    paths: dict[str, Path] = {}
    (place / "data" / "snapshots").mkdir(parents=True)
    lock = SnapshotLock(UNKNOWN_CHAIN, {name: library.content(name) for name in library.files})
    lock.save(place / "data" / "snapshots" / LOCK_NAME)
    state = State.open(place / "data" / "state.db")
    trio.run(fill)
    state.close()
    return paths


def rot(path: Path, offset: int, *, zeros: int = 0) -> None:
    """Change bytes on disk as a failing disk does: nothing of it shows in the file's size or times."""
    state = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        was = file.read(zeros or 1)
        file.seek(offset)
        file.write(bytes(zeros) if zeros else bytes([was[0] ^ 1]))
        os.fsync(file.fileno())
    path.chmod(state.st_mode)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
