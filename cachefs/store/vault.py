"""Whole objects in and out of the store, without opening them: what a download admits, and whether one is here.

How it works: a file that was downloaded and hashed elsewhere on the same file system is renamed to its place, and
its row is written as that of a sealed object. So whoever opens it next hashes nothing. That may be another
process, with the object open and half fetched: it goes on with the file it has, finds at its next open that
the sealed file is another one, and hashes it. An object counts as here when its row is sealed and the file still
looks so, or when hashing says so.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import time
from pathlib import Path

import trio

from cachefs.content import ContentId, Manifest
from cachefs.diskerrors import named
from cachefs.errors import CachefsError
from cachefs.store import disk, recovery
from cachefs.store.state import State

_log = logging.getLogger(__name__)
_CHUNK = 2**20
_NUMBERS = struct.Struct(">QQ")


class Vault:
    """The complete objects below `root`, a store's root. Calls belong to the thread that opened `state`."""

    def __init__(self, root: Path, state: State) -> None:
        self._root = root
        self._state = state

    def path(self, content: ContentId) -> Path:
        """Where the object's bytes are, or would be."""
        return disk.directory_of(self._root, content) / "data"

    def sealed(self, content: ContentId) -> int | None:
        """The object's size in bytes if it is here, recorded as complete and unchanged since; None otherwise.

        StoreFailed.
        """
        row = self._state.load_object(content)
        if row is None or row.seal is None or row.completed is None:
            return None
        return row.length if recovery.looks(self.path(content)) == row.seal else None

    async def holds(self, manifest: Manifest) -> bool:
        """Whether all of the content is here, by its seal or else by hashing the file. StoreFailed."""
        content = manifest.content
        if self.sealed(content) == manifest.length:
            return True
        path = self.path(content)
        with named(path):
            if not await trio.to_thread.run_sync(_is_whole, path, manifest):
                return False
        self._record(manifest)
        return True

    async def admit(self, temporary: Path, manifest: Manifest) -> bool:
        """Keep the file `temporary`, which holds exactly this content, durable; False if it was here already.

        Either way the temporary file is gone afterwards. StoreFull, StoreFailed.
        """
        if await self.holds(manifest):
            await trio.Path(temporary).unlink(missing_ok=True)
            return False
        path = self.path(manifest.content)
        with named(path):
            await trio.to_thread.run_sync(_move, temporary, path)
        self._record(manifest)
        return True

    def manifest(self, content: ContentId) -> Manifest | None:
        """What `save_manifest` kept, if it is there and whole. StoreFailed."""
        path = self.path(content).with_name("manifest")
        with named(path):
            return unpacked(content, disk.read_file(path) or b"")

    def save_manifest(self, manifest: Manifest) -> None:
        """Keep the manifest of content whose id says nothing of its blocks. StoreFull, StoreFailed."""
        disk.save_manifest(self._root, manifest.content, packed(manifest))

    def _record(self, manifest: Manifest) -> None:
        """Write the row of a sealed object. Failing that, the next open hashes the file: nothing is lost."""
        path = self.path(manifest.content)
        try:
            with named(path):
                fd = disk.open_sealed(path)
                if fd is None:
                    return
                try:
                    os.fchmod(fd, 0o444)
                    seal = disk.seal_of(fd)
                finally:
                    os.close(fd)
            self._state.save_object(manifest.content, recovery.whole(manifest, seal, time.time()))
        except CachefsError as error:
            _log.warning("%s is not recorded as complete, and will be hashed when it is opened: %s", path, error)


def packed(manifest: Manifest) -> bytes:
    """A manifest as bytes that tell whether they are whole: a SHA-256 of the rest; length and block length in bytes, as
    64-bit big-endian numbers; the digests."""
    body = _NUMBERS.pack(manifest.length, manifest.block_length) + manifest.digests
    return hashlib.sha256(body).digest() + body


def unpacked(content: ContentId, raw: bytes) -> Manifest | None:
    """The manifest that `packed` wrote for this content; None if that is torn or another's."""
    digest, body = raw[:32], raw[32:]
    if len(body) < _NUMBERS.size or hashlib.sha256(body).digest() != digest:
        return None
    length, block_length = _NUMBERS.unpack(body[: _NUMBERS.size])
    try:
        return Manifest(content, length, block_length, body[_NUMBERS.size :])
    except ValueError:
        return None


def _is_whole(path: Path, manifest: Manifest) -> bool:
    """Whether the file is the content, by its SHA-256. A file of another size, or with holes, isn't read."""
    fd = disk.open_sealed(path)
    if fd is None:
        return False
    try:
        if os.fstat(fd).st_size != manifest.length or disk.holes(fd, manifest.length):
            return False
        if sha256_of(fd, manifest.length) != manifest.content.digest:
            return False
        os.fsync(fd)
        return True
    finally:
        os.close(fd)


def sha256_of(fd: int, length: int) -> bytes:
    """The SHA-256 of the first `length` bytes of an open file. Blocking, and can be cancelled in a thread of trio's."""
    digest = hashlib.sha256()
    for offset in range(0, length, _CHUNK):
        trio.from_thread.check_cancelled()
        digest.update(os.pread(fd, min(_CHUNK, length - offset), offset))
    return digest.digest()


def _move(temporary: Path, path: Path) -> None:
    """Rename the file to its place: its bytes first, then its name, durable each."""
    disk.make_directory(path.parent)
    fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fchmod(fd, 0o444)
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
