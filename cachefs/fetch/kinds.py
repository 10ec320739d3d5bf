"""Which fetcher an item is for: the one rule, in one place.

How it works: an item that only has URLs goes to the fetcher that asks for ranges, every other to the one for
torrents and their web seeds. The cache sees a single fetcher.
"""

from __future__ import annotations

from cachefs.fetch.base import Download, Fetcher, Job, Sink, Transfer


class ByKind:
    """The `Fetcher` that hands each job on."""

    def __init__(self, torrents: Fetcher, ranges: Fetcher) -> None:
        self._torrents = torrents
        self._ranges = ranges

    def download(self, job: Job, sink: Sink) -> Download:
        by_ranges = job.item.metainfo is None and bool(job.item.urls)
        return (self._ranges if by_ranges else self._torrents).download(job, sink)

    def transfers(self) -> list[Transfer]:
        return [*self._torrents.transfers(), *self._ranges.transfers()]
