"""What a mount reads through: the store, the sources, and the cache between them. It knows nothing of the kernel.

How it works: the parts are made in the order in which they stand on each other, and started in the same order; they
end together, and then the store writes down what it has. Whoever reads comes by a shelf, one for each catalogue, to
an item, and with that to the cache. All parts are there to be looked at, by the status and by whoever keeps order.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Set
from pathlib import Path

import trio

from cachefs.cache import Cache
from cachefs.catalog.records import Record
from cachefs.config import Config
from cachefs.content import ContentId
from cachefs.fetch.outage import Outage
from cachefs.layout import RECORDS, SNAPSHOTS, STORE
from cachefs.manifests import Manifests
from cachefs.records import MusicCache
from cachefs.records.mounting import RecordParts
from cachefs.shelf import Shelf, SnapshotShelf, mtimes
from cachefs.sourcing import Sourcing
from cachefs.store.eviction import Limits, catalogue_of
from cachefs.store.objects import ObjectStore
from cachefs.store.room import Room
from cachefs.store.state import State
from cachefs.waits import Waiting


class Engine:
    """All of it, for the snapshots `names` and these `records`; what is shown may change later, see reload.py."""

    def __init__(
        self,
        config: Config,
        data_dir: Path,
        state: State,
        music: MusicCache,
        names: Mapping[str, ContentId],
        records: Mapping[str, Record],
    ) -> None:
        self.state = state
        self.store = ObjectStore(data_dir / STORE, state)
        self.room = Room(self.store, state, Limits.of_settings(config.limits), catalogue_of=catalogue_of)
        self.manifests = Manifests(self.store, state, names)
        self.sources = Sourcing(config, data_dir, self.store, self.room, self.manifests.found)
        self.metadata = self.sources.metadata
        self._record_parts = RecordParts(config, music, self.sources.ledger, self.sources.router, self.room)
        self.fetcher = self._record_parts.fetcher
        self.cache = Cache(self.store, self.fetcher, config.read, self.sources.evidence, self.room)
        self.snapshots = SnapshotShelf(self.manifests, self.metadata, mtimes(state))
        self.records = self._record_parts.shelf(records, self.cache)
        self.shelves: Mapping[str, Shelf] = {SNAPSHOTS: self.snapshots, RECORDS: self.records}
        self.outage = Outage(self._waited_for, self._progress, self.sources.evidence)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything works meanwhile, and in the end all has been written down."""
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(self.store.run)
                await self.sources.start(nursery)
                await nursery.start(self._record_parts.run)
                await nursery.start(self.records.run)
                await nursery.start(self.cache.run)
                await nursery.start(self.room.run, self.cache)
                await nursery.start(self.metadata.run)
                await nursery.start(self.manifests.run, self.metadata)
                yield
            finally:
                nursery.cancel_scope.cancel()
        self.manifests.save()
        await self.store.aclose()

    async def stop(self) -> None:
        """Let everybody go who waits for a size or for bytes, and have nobody wait from now on."""
        await self.metadata.stop()
        await self.cache.stop()

    def last_copies(self) -> Mapping[str, str]:
        """The records that may be evicted soon and can't be had again, and why."""
        return self._record_parts.last_copies()

    def without_room(self) -> Set[Waiting]:
        """The reads that wait for room."""
        return without_room(self.cache, self.room)

    def _waited_for(self) -> list[str]:
        without = self.without_room()
        reads = [wait.name for wait in self.cache.waiting() if wait not in without]
        return [*reads, *self.metadata.waiting()]

    def _progress(self) -> int:
        return sum(report.received for report in self.sources.ledger.report()) + self.manifests.known()


def without_room(cache: Cache, room: Room) -> Set[Waiting]:
    """The reads that wait for room: nothing that they miss is being fetched, so no source is to blame."""
    waiting, lacking = cache.waiting(), room.lacking()
    flows = [flow for flow in (cache.flow(content) for content in lacking if waiting) if flow is not None]
    return {
        wait
        for wait in waiting
        for flow in flows
        if wait.name == flow.item.name and lacking[flow.item.content] >= {*flow.stored.verified.missing(wait.blocks)}
    }
