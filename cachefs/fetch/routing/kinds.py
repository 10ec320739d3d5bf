"""Which fetcher an item is for: the one rule, in one place.

How it works: an item without URLs of its own has a torrent, its web seeds and remotes. One that only has URLs goes to
the fetcher that asks for ranges. One with both, a record that has a swarm, is fetched from its peers first
and by its URLs when there are none, by the same table. The cache sees a single fetcher.
"""

from __future__ import annotations

from cachefs.fetch.base import Download, Fetcher, Job, Taker, Transfer
from cachefs.layout import SNAPSHOTS


class ByKind:
    """The `Fetcher` that hands each job on."""

    def __init__(self, snapshots: Fetcher, ranges: Fetcher, swarms: Fetcher) -> None:
        self._snapshots = snapshots
        self._ranges = ranges
        self._swarms = swarms

    def download(self, job: Job, sink: Taker) -> Download:
        item = job.item
        if item.urls and item.metainfo is not None:
            return self._swarms.download(job, sink)
        # What isn't a snapshot must not be looked for under its name at the snapshots' web seeds.
        by_urls = item.urls or item.catalogue != SNAPSHOTS
        return (self._ranges if by_urls else self._snapshots).download(job, sink)

    def transfers(self) -> list[Transfer]:
        joined = {transfer.content: transfer for transfer in [*self._ranges.transfers(), *self._swarms.transfers()]}
        return [*self._snapshots.transfers(), *joined.values()]
