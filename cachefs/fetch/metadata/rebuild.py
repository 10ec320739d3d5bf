"""Metadata of last resort: .torrent files of the operator's remotes, and metadata made anew from the bytes.

How it works: an info-hash is decided by a file's name, length, piece length and bytes. When nobody has a
.torrent but somebody has the file, the file is fetched whole and hashed on the way for each of the piece lengths
that Erigon has used. Only if one of them gives the lock's info-hash are the bytes what the lock means: then
both metadata and bytes are kept, and otherwise neither. The bytes go to the store as unverified data, which it
hashes once more before it serves them.

A whole file is a high price for its size, which a mere `ls -l` asks for. So it is paid only for names that are looked
up, and for no more than `rebuild_limit` bytes an hour.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import trio

from cachefs import metainfo
from cachefs.content import ContentId
from cachefs.diskerrors import named
from cachefs.errors import (
    CachefsError,
    ContentMismatch,
    MetadataUnavailable,
    MetainfoError,
    NoAnswer,
    NoMetadata,
    NotAtSource,
    NotReached,
    SourceFailed,
    StoreFailed,
    StoreFull,
)
from cachefs.fetch.health import Silence
from cachefs.fetch.http.wire import Body
from cachefs.fetch.policy import rank
from cachefs.fetch.remote.fetcher import RemoteFetcher
from cachefs.fetch.remote.remotes import RemoteSource
from cachefs.metainfo import MAX_METAINFO, Metainfo

log = logging.getLogger(__name__)

PIECE_LENGTHS = (metainfo.ERIGON_PIECE_LENGTH, metainfo.LARGE_PIECE_LENGTH)
"""What a file may be cut into, in bytes; the latter a multiple of the former."""

_HOUR = 3600.0
_AT_ONCE = 2
_START_WITHIN = 5.0

_HAS_NONE = (NotAtSource, ContentMismatch, MetainfoError)
"""What says that a source has no right .torrent; after all else it may have one."""

Keep = Callable[[Metainfo, Path], Awaitable[None]]
Hold = Callable[[int], AbstractAsyncContextManager[object]]


class Hasher:
    """The piece hashes of a stream for several piece lengths at once; feed it the smallest length at a time."""

    def __init__(self) -> None:
        self._digests = [bytearray() for _ in PIECE_LENGTHS]
        self._open = [(hashlib.sha1(usedforsecurity=False), 0) for _ in PIECE_LENGTHS]
        self._length = 0

    def update(self, data: memoryview) -> None:
        """Add bytes: as many as the smallest piece length, fewer only at the end."""
        self._length += len(data)
        for at, length in enumerate(PIECE_LENGTHS):
            sha1, held = self._open[at]
            sha1.update(data)
            held += len(data)
            if held == length:
                self._digests[at] += sha1.digest()
                sha1, held = hashlib.sha1(usedforsecurity=False), 0
            self._open[at] = sha1, held

    def metainfos(self, name: str) -> list[Metainfo]:
        """The torrents that the bytes so far could be of, under this name."""
        found = []
        for at, length in enumerate(PIECE_LENGTHS):
            sha1, held = self._open[at]
            pieces = bytes(self._digests[at]) + (sha1.digest() if held else b"")
            found.append(metainfo.build(name, self._length, pieces, length))
        return found


class RemoteMetadata:
    """Metadata for names of which nobody else knows any.

    `keep` takes over a whole file's bytes; `hold` gives room for so many while they come, or raises StoreFull.
    """

    def __init__(self, fetcher: RemoteFetcher, directory: Path, keep: Keep, hold: Hold) -> None:
        self._fetcher = fetcher
        self._directory = directory
        self._keep = keep
        self._hold = hold
        self._places = trio.Semaphore(_AT_ONCE)
        self._spent: deque[tuple[float, int]] = deque()
        self._silences: defaultdict[str, Silence] = defaultdict(Silence)

    def clear(self) -> None:
        """Remove what an earlier run left unfinished. Blocking, short."""
        for left in self._directory.glob("*.rebuild"):
            left.unlink(missing_ok=True)

    async def torrent(self, name: str, content: ContentId) -> Metainfo:
        """The .torrent that one of the operator's remotes has; MetadataUnavailable, NoMetadata if they have none."""
        said, sure = [], True
        for source in await self._sources(content, name):
            if source.seed is None:
                try:
                    info = await self._torrent(source, f"{name}.torrent", content)
                    self._answered(source)
                    return info
                except CachefsError as error:
                    said.append(f"{source}: {error}")
                    sure = self._has_none(source, error) and sure
        raise (NoMetadata if sure else MetadataUnavailable)(name, "; ".join(said) or "no remote of the operator's")

    async def _torrent(self, source: RemoteSource, path: str, content: ContentId) -> Metainfo:
        raw = bytearray()
        with self._patience() as patience:
            async with self._fetcher.open(source, path, None) as body:
                if not 0 < body.length <= MAX_METAINFO:
                    raise SourceFailed(f"{path} has {body.length} bytes")
                raw = bytearray(body.length)
                await _fill(body, memoryview(raw))
        if patience.cancelled_caught:
            raise SourceFailed(f"{path}: did not come in time")
        info = metainfo.parse(bytes(raw))
        if info.content != content:
            raise ContentMismatch(content, info.content, path)
        return info

    def _answered(self, source: RemoteSource) -> None:
        self._silences[source.name].answered()
        self._fetcher.ledger.answered()

    def _has_none(self, source: RemoteSource, error: CachefsError) -> bool:
        """Whether a remote has no right .torrent: it has said so, or been silent for so long that it counts as gone."""
        if isinstance(error, _HAS_NONE):
            self._answered(source)
            return True
        self._silences[source.name].failed(self._fetcher.ledger.answers)
        return self._silences[source.name].is_long

    async def rebuild(self, name: str, content: ContentId) -> Metainfo:
        """Metadata made from the bytes that a web seed or remote has under `name`; MetadataUnavailable."""
        said = []
        async with self._places:
            for source in await self._sources(content, name):
                try:
                    return await self._rebuild(source, name, content)
                except NotAtSource:
                    said.append(f"{source}: does not have it")
                except (StoreFull, StoreFailed):  # ours, not the source's: another one wouldn't help
                    raise
                except CachefsError as error:
                    if isinstance(error, NoAnswer | NotReached):
                        source.health.breaker.failed(str(error))
                    self._fetcher.ledger.failed(source.name, str(error))
                    said.append(f"{source}: {error}")
        raise MetadataUnavailable(name, "; ".join(said) or "nobody may be asked for the whole file just now")

    async def _sources(self, content: ContentId, name: str) -> list[RemoteSource]:
        with trio.move_on_after(_START_WITHIN):
            await self._fetcher.until_reached()
        reached = [source for source in self._fetcher.configured() if self._fetcher.reaches(source)]
        if not reached:
            raise MetadataUnavailable(name, self._fetcher.child.trouble)
        return rank(reached, content)

    async def _rebuild(self, source: RemoteSource, name: str, content: ContentId) -> Metainfo:
        failure: CachefsError = NotAtSource(name)
        for path in source.paths(name):
            try:
                return await self._rebuild_from(source, path, name, content)
            except NotAtSource as error:
                failure = error
        raise failure

    async def _rebuild_from(self, source: RemoteSource, path: str, name: str, content: ContentId) -> Metainfo:
        with self._patience() as patience:
            async with self._fetcher.open(source, path, None) as body:
                patience.deadline = float("inf")  # it answers: from here on there is a time for each part
                self._pay(body.total)
                async with self._hold(body.total):
                    return await self._fetch(source, body, name, content)
        raise NoAnswer(f"silent for {self._fetcher.settings.stall * 2:g} s")

    def _pay(self, size: int) -> None:
        """Take `size` bytes from what may be fetched this hour."""
        now, limit = trio.current_time(), self._fetcher.settings.rebuild_limit
        while self._spent and self._spent[0][0] < now - _HOUR:
            self._spent.popleft()
        left = limit - sum(spent for _, spent in self._spent)
        if size <= 0:
            raise SourceFailed("does not tell how long the file is")
        if size > left:
            raise SourceFailed(
                f"there is no .torrent, and {size:,} bytes to make one from are more than the {left:,} that "
                f"[fetch] rebuild_limit leaves for this hour"
            )
        self._spent.append((now, size))

    async def _fetch(self, source: RemoteSource, body: Body, name: str, content: ContentId) -> Metainfo:
        log.info("%s: nobody has a .torrent; fetching %d bytes from %s to make it", name, body.total, source)
        path = self._directory / f"{content.hex}.rebuild"
        try:
            info = await self._hashed(source, body, path, name)
            for candidate in info:
                if candidate.content == content:
                    await self._keep(candidate, path)
                    return candidate
        finally:
            path.unlink(missing_ok=True)
        source.health.refuse(content, "has other bytes", float("inf"))
        raise ContentMismatch(content, info[0].content, "its whole file")

    def _patience(self) -> trio.CancelScope:
        return trio.move_on_after(self._fetcher.settings.stall * 2)

    async def _hashed(self, source: RemoteSource, body: Body, path: Path, name: str) -> list[Metainfo]:
        """Write the file while hashing it; the torrents it may be."""
        hasher, left = Hasher(), body.total
        buffer = memoryview(bytearray(PIECE_LENGTHS[0]))
        with named(path):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with named(path), os.fdopen(descriptor, "wb") as file:
            while left:
                part = buffer[: min(left, len(buffer))]
                with self._patience() as patience:
                    await _fill(body, part)
                if patience.cancelled_caught:
                    raise SourceFailed(f"less than {len(part)} bytes in {self._fetcher.settings.stall * 2:g} s")
                self._fetcher.received(source, len(part))
                await trio.to_thread.run_sync(file.write, part)
                await trio.to_thread.run_sync(hasher.update, part)
                left -= len(part)
        return hasher.metainfos(name)


async def _fill(body: Body, view: memoryview) -> None:
    while view:
        count = await body.read_some(view)
        if not count:
            raise SourceFailed("cut short")
        view = view[count:]
