"""The records as the mount shows them: length and age from the lock, and what to open.

How it works: everything but the bytes is in the lock, so nothing waits but an open. A record whose pieces are known
plays from its first one on: it is opened as an item of many blocks, with its URLs. Any other record, and with
`verify = "whole"` every one, is downloaded whole first, by the same cache that a program uses; the open waits for
that, as long as a read would, and the download goes on when the wait is over. What is here whole is opened
at once either way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import trio

from cachefs import metainfo
from cachefs.catalog.records import Record
from cachefs.catalog.tree import File
from cachefs.content import ContentId, Manifest
from cachefs.errors import CachefsError, MetadataUnavailable, SourceSilent, SourceTooLarge
from cachefs.fetch.base import Item
from cachefs.layout import RECORDS
from cachefs.metainfo import Metainfo
from cachefs.records.music_cache import MusicCache, Play

_MOST_TROUBLES = 1000
_PEERS_HAVE = 5.0
"""Seconds in which peers may send a record's torrent at its first open."""


class RecordShelf:
    """The ready records of a lock; use it inside `run`. `records` is replaced when the lock changes."""

    def __init__(
        self,
        cache: MusicCache,
        records: Mapping[str, Record],
        *,
        deadline: float,
        swarm: Callable[[ContentId, str], Awaitable[bytes]],
        seed: Callable[[Item], Awaitable[None]] | None,
    ) -> None:
        self.records = records
        self._cache = cache
        self._deadline = deadline
        self._swarm = swarm
        self._seed = seed
        self._plays: dict[ContentId, Play] = {}
        self._troubles: dict[ContentId, str] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after whole downloads, for ever."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def length(self, file: File) -> int | None:
        return self._record(file).size

    async def require_length(self, file: File) -> int:
        size = self._record(file).size
        assert size is not None
        return size

    def mtime(self, file: File) -> float:
        return self._record(file).mtime

    def trouble(self, file: File) -> str:
        return self._troubles.get(file.content, "")

    def total(self) -> int:
        return sum(record.size or 0 for record in self.records.values())

    async def item(self, file: File) -> Item:
        """What to open, once it can be read from its beginning on; what keeps it from that is raised."""
        record = self._record(file)
        try:
            item = await self._ready(record)
        except CachefsError as error:
            self._remember(file.content, str(error))
            raise
        self._troubles.pop(file.content, None)
        return item

    async def _ready(self, record: Record) -> Item:
        self._refuse_too_large(record)
        manifest = self._cache.pieces.manifest(record)
        if self._cache.settings.verify == "whole" or manifest is None or not _web(record):
            await self._whole(record)
            manifest = self._cache.pieces.manifest(record)
        if manifest is None:
            raise MetadataUnavailable(record.name, "its piece list came and went")
        self._cache.pieces.remember(manifest)
        return self._item(record, manifest, await self._torrent(record, manifest))

    def _refuse_too_large(self, record: Record) -> None:
        most = self._cache.settings.max_size
        assert record.content is not None
        if (record.size or 0) > most and self._cache.vault.sealed(record.content) is None:
            raise SourceTooLarge(record.url, f"{record.size} bytes, more than {most} ([records] max_size)")

    def _item(self, record: Record, manifest: Manifest, info: Metainfo | None) -> Item:
        return Item(record.name, manifest, info, _web(record), RECORDS, fails_early=True, frugal=True)

    async def _torrent(self, record: Record, manifest: Manifest) -> Metainfo | None:
        """The record's torrent, from here or from peers, if it has one of the same pieces."""
        if record.swarm is None or not _web(record):
            return None
        info = self._cache.pieces.torrent(record.swarm)
        if info is None and self._cache.vault.sealed(manifest.content) is None:
            info = await self._torrent_from_peers(record.swarm, record.name)
        same = info is not None and info.manifest.length == manifest.length
        return info if info and same and info.manifest.block_length == manifest.block_length else None

    async def _torrent_from_peers(self, swarm: ContentId, name: str) -> Metainfo | None:
        """Peers have a moment to send it; without it the URLs will do."""
        with trio.move_on_after(_PEERS_HAVE), suppress(CachefsError):
            info = metainfo.parse(await self._swarm(swarm, name))
            self._cache.pieces.save_torrent(info)
            return info
        return None

    async def seed_complete(self) -> None:
        """Offer to others what is here whole and has a swarm."""
        for record in [record for record in self.records.values() if record.swarm is not None]:
            manifest = self._cache.pieces.manifest(record)
            if self._seed is None or manifest is None or self._cache.vault.sealed(manifest.content) is None:
                continue
            info = await self._torrent(record, manifest)
            if info is not None:
                with suppress(CachefsError):
                    await self._seed(self._item(record, manifest, info))

    def _record(self, file: File) -> Record:
        record = self.records.get(file.path)
        if record is None or record.content != file.content:
            raise MetadataUnavailable(file.path, "the records have changed meanwhile")
        return record

    async def _whole(self, record: Record) -> None:
        """Have all of it in the store."""
        assert record.content is not None
        if await self._cache.has(record.content, record.size):
            return
        play = self._plays.get(record.content)
        if play is None:
            assert self._nursery is not None
            play = self._plays[record.content] = self._cache.play(record, self._nursery)
            self._nursery.start_soon(self._forget, play, record.content)
        with trio.move_on_after(self._deadline) as waiting:
            await play.wait()
        if waiting.cancelled_caught:
            raise SourceSilent(record.url, f"not all of it was here after {self._deadline:g} s; the download goes on")

    async def _forget(self, play: Play, content: ContentId) -> None:
        await play.ended.wait()
        del self._plays[content]

    def _remember(self, content: ContentId, why: str) -> None:
        self._troubles.pop(content, None)
        self._troubles[content] = why
        if len(self._troubles) > _MOST_TROUBLES:
            del self._troubles[next(iter(self._troubles))]


def _web(record: Record) -> tuple[str, ...]:
    """Those of its URLs that can be asked for a part."""
    return tuple(url for url in record.urls if url.startswith(("https://", "http://")))
