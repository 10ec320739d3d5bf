"""Where the bytes of one download go: a file, a hash and limits, whoever sends them.

How it works: a provider first announces what it is told of the whole, which is refused here at once if it can't
be what is expected; then it writes. Bytes are counted before they are kept: one more than expected ends the
download, so a server that never ends costs nothing. Room is asked for before anything is written: for the whole if
its length is known, otherwise for somewhat more than has come. Writing and hashing are done together, a mebibyte at a
time and in a thread. `finish` says what came, and raises if that isn't what was expected: there is no other way to
a `Fetched`, so holding one means that the bytes were checked.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from cachefs.content import ContentId
from cachefs.diskerrors import named
from cachefs.errors import RecordMismatch, SourceLied, SourceTooLarge, UrlFailed
from cachefs.fetch.http.digests import Declared

_CHUNK = 2**20
_HEAD = 512

Progress = Callable[[int, int | None], None]
"""Told how many bytes have come, and of how many in all if that is known."""

Cover = Callable[[int], Awaitable[None]]
"""Has room for so many bytes in all when it returns. StoreFull."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the bytes must be, as far as that is known; `most` is the largest size that is taken, in bytes."""

    content: ContentId | None = None
    size: int | None = None
    md5: bytes = b""
    most: int = 2**50


@dataclass(frozen=True, slots=True)
class Fetched:
    """Bytes that came whole and are what was expected: the file, its SHA-256 and size, the URL they came from.

    `media` is the type that the source gave ("" for none), `head` the first bytes, up to 512.
    """

    path: Path
    content: ContentId
    size: int
    url: str
    media: str
    head: bytes


@dataclass(slots=True)
class _Sums:
    """The running digests of what was written."""

    sha256: hashlib._Hash = field(default_factory=hashlib.sha256)
    md5: hashlib._Hash = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))


class Receiver:
    """Takes the bytes of one download into the empty file `path`; close it."""

    def __init__(
        self,
        path: Path,
        expected: Expected,
        progress: Progress | None = None,
        started: trio.Event | None = None,
        cover: Cover | None = None,
    ) -> None:
        self.path = path
        self.expected = expected
        self.size = 0
        self.started = trio.Event() if started is None else started
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._progress = progress
        self._cover = cover
        self._covered = 0
        self._total: int | None = None
        self._media = ""
        self._declared = Declared()
        self._sums = _Sums()
        self._pending = bytearray()
        self._written = 0
        self._head = b""

    def close(self) -> None:
        """Give the file up; what is in it is the owner's to remove or keep."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def announce(self, url: str, size: int | None, told: Declared, media: str = "") -> None:
        """Take note of what a source says of the whole. RecordMismatch, SourceTooLarge: it can't be what is wanted."""
        wanted = self.expected
        if size is not None:
            if wanted.size is not None and size != wanted.size:
                self._mismatch(url, size, f"is {size} bytes long, the record says {wanted.size}")
            self._limit(url, size)
        if wanted.content is not None and told.sha256 and told.sha256 != wanted.content.digest:
            self._mismatch(url, size or 0, f"declares sha256:{told.sha256.hex()} ({told.header}), not {wanted.content}")
        self._total = size if size is not None else wanted.size
        self._declared, self._media = told, media

    def _mismatch(self, url: str, size: int, why: str) -> None:
        expected = str(self.expected.content) if self.expected.content else f"{self.expected.size} bytes"
        raise RecordMismatch(url, expected, "", size, why)

    def _limit(self, url: str, size: int) -> None:
        if size > self.expected.most:
            limit = self.expected.most
            raise SourceTooLarge(url, f"more than {limit} bytes, the largest that is taken ([records] max_size)")

    async def write(self, url: str, data: bytes | memoryview) -> None:
        """Take the next bytes. RecordMismatch or SourceTooLarge at the first byte too many; StoreFull, StoreFailed."""
        self.size += len(data)
        if self.expected.size is not None and self.size > self.expected.size:
            self._mismatch(url, self.size, f"gives more than the {self.expected.size} bytes of the record")
        self._limit(url, self.size)
        self._head += data[: _HEAD - len(self._head)] if len(self._head) < _HEAD else b""
        self._pending += data
        self.started.set()
        if self.size > self._covered:
            await self.reserve()
        if len(self._pending) >= _CHUNK:
            await self._flush()
        if self._progress is not None:
            self._progress(self.size, self._total)

    async def reserve(self) -> None:
        """Have room for what is to come, as far as that is known. StoreFull.

        `write` sees to it; a provider that has the bytes in another file first calls it before that.
        """
        total = self.expected.size if self._total is None else self._total
        self._covered = max(total or 0, self.size if total else self.size + max(_CHUNK, self.size // 4))
        if self._cover is not None:
            await self._cover(self._covered)

    async def _flush(self) -> None:
        pending, self._pending = self._pending, bytearray()
        await trio.to_thread.run_sync(self._keep, pending)

    def _keep(self, data: bytearray) -> None:
        self._sums.sha256.update(data)
        if self.expected.md5 or self._declared.md5:
            self._sums.md5.update(data)
        view = memoryview(data)
        with named(self.path):
            while view:
                count = os.pwrite(self._fd, view, self._written)
                view, self._written = view[count:], self._written + count

    def restart(self) -> None:
        """Forget what came: the source begins anew."""
        os.ftruncate(self._fd, 0)
        self.size = self._written = 0
        self._sums, self._pending, self._head = _Sums(), bytearray(), b""

    async def finish(self, url: str) -> Fetched:
        """What came, once it is durable; RecordMismatch or SourceLied if it isn't what was expected or declared."""
        await self._flush()
        got = self._sums.sha256.digest()
        self._compare(url, got)
        await trio.to_thread.run_sync(self._sync)
        return Fetched(self.path, ContentId("sha256", got), self.size, url, self._media, self._head)

    def _compare(self, url: str, got: bytes) -> None:
        wanted = self.expected
        if wanted.content is not None and (got != wanted.content.digest or self.size != (wanted.size or self.size)):
            raise RecordMismatch(url, str(wanted.content), f"sha256:{got.hex()}", self.size)
        md5 = self._sums.md5.digest()
        if wanted.md5 and md5 != wanted.md5:
            raise RecordMismatch(url, f"md5:{wanted.md5.hex()}", f"md5:{md5.hex()}", self.size)
        told = self._declared
        if (told.sha256 and told.sha256 != got) or (told.md5 and told.md5 != md5):
            says = f"sha256:{told.sha256.hex()}" if told.sha256 else f"md5:{told.md5.hex()}"
            came = f"sha256:{got.hex()}" if told.sha256 else f"md5:{md5.hex()}"
            raise SourceLied(url, f"declares {says} ({told.header}) and gave {came} of {self.size} bytes")
        if self.size == 0:
            raise UrlFailed(url, "gave no bytes at all")

    def _sync(self) -> None:
        with named(self.path):  # what was taken without complaint may have no room only now
            os.fdatasync(self._fd)
