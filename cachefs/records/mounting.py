"""The records' parts of a mount, made together: how they are fetched, and their shelf.

How it works: the mount has a torrent session and a fetcher for snapshots already. Records add the fetcher of ranges, a
router that hands records with a swarm over between peers and URLs, and the choice between all of them; the shelf
stands on the cache, which stands on that choice, so it is made last.
"""

from __future__ import annotations

from collections.abc import Mapping

import trio

from cachefs.cache import Cache
from cachefs.catalog.records import Record
from cachefs.config import Config
from cachefs.fetch.ranges.fetcher import RangeFetcher
from cachefs.fetch.routing.kinds import ByKind
from cachefs.fetch.routing.router import Router
from cachefs.fetch.sources import Ledger
from cachefs.fetch.torrent.whole import WholeTorrents
from cachefs.fetch.whole.torrent_provider import TorrentProvider
from cachefs.records.last_copies import LastCopies
from cachefs.records.music_cache import MusicCache
from cachefs.records.shelf import RecordShelf
from cachefs.store.room import Room


class RecordParts:
    """Make it, give the cache its `fetcher`, then make the `shelf`; use all of it inside `run`."""

    def __init__(self, config: Config, music: MusicCache, ledger: Ledger, snapshots: Router, room: Room) -> None:
        self._config = config
        self._music = music
        self._room = music.room = room
        self._torrent = snapshots.torrent
        self._ranges = RangeFetcher(music.web, ledger)
        self._swarms = Router(config.fetch, self._torrent, self._ranges, snapshots.hedging, lambda _: False)
        self.fetcher = ByKind(snapshots, self._ranges, self._swarms)
        music.add_provider(TorrentProvider(WholeTorrents(self._torrent, config.records.stall_timeout)))

    def shelf(self, records: Mapping[str, Record], cache: Cache) -> RecordShelf:
        """The shelf of these records, which reads and seeds through `cache`; what may be evicted first is watched."""
        shelf = RecordShelf(
            self._music,
            records,
            deadline=self._config.read.deadline,
            swarm=self._torrent.metainfo,
            seed=cache.seed if self._config.torrent.seed else None,
        )
        self._last_copies = LastCopies(self._music.web, self._room.next_records, lambda: shelf.records)
        return shelf

    def last_copies(self) -> Mapping[str, str]:
        """For the status: the records that may be evicted soon and can't be had again, and why."""
        return self._last_copies.report()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve both fetchers for ever."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._ranges.run)
            await nursery.start(self._swarms.run)
            nursery.start_soon(self._last_copies.run)
            task_status.started()
