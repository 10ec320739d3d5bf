"""Which fetcher an item is for: the one rule, in one place.

How it works: an item with a torrent goes to the torrent fetcher, one that only has URLs to the one that asks for
ranges. The cache sees a single fetcher.
"""

from __future__ import annotations

from cachefs.fetch.base import Download, Fetcher, Job, Sink, Transfer


class Router:
    """The `Fetcher` that hands each job on."""

    def __init__(self, torrent: Fetcher, ranges: Fetcher) -> None:
        self._torrent = torrent
        self._ranges = ranges

    def download(self, job: Job, sink: Sink) -> Download:
        by_ranges = job.item.metainfo is None and bool(job.item.urls)
        return (self._ranges if by_ranges else self._torrent).download(job, sink)

    def transfers(self) -> list[Transfer]:
        return [*self._torrent.transfers(), *self._ranges.transfers()]
