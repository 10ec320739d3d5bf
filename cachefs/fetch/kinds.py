"""Which fetcher an item is for: the one rule, in one place.

How it works: an item without URLs of its own has a torrent, its web seeds and rclone. One that only has URLs goes to
the fetcher that asks for ranges. One with both, a record that has a swarm, is fetched from its peers first
and by its URLs when there are none, by the same table. The cache sees a single fetcher.
"""

from __future__ import annotations

from dataclasses import replace

from cachefs.fetch.base import Download, Fetcher, Job, Sink, Transfer


class ByKind:
    """The `Fetcher` that hands each job on."""

    def __init__(self, snapshots: Fetcher, ranges: Fetcher, swarms: Fetcher) -> None:
        self._snapshots = snapshots
        self._ranges = ranges
        self._swarms = swarms

    def download(self, job: Job, sink: Sink) -> Download:
        if not job.item.urls:
            return self._snapshots.download(job, sink)
        return (self._swarms if job.item.metainfo else self._ranges).download(job, sink)

    def transfers(self) -> list[Transfer]:
        swarms = map(_of_urls, self._swarms.transfers())
        joined = {transfer.content: transfer for transfer in [*self._ranges.transfers(), *swarms]}
        return [*self._snapshots.transfers(), *joined.values()]


def _of_urls(transfer: Transfer) -> Transfer:
    """The table speaks of rclone, in whose place the URLs are."""
    by = transfer.by.replace("rclone", "urls")
    return replace(transfer, by=by, because=transfer.because.replace("rclone has no source", "no URL may be asked"))
