"""Torrents and the web joined to one fetcher, with what they have in common.

How it works: each download is one of both (download.py). Here is what is known beyond one file: how much came by
which way, whether peers were looked for in vain lately, and the clock by which downloads look again at who fetches.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from cachefs.content import ContentId
from cachefs.errors import MetainfoError
from cachefs.fetch.base import Job, Sink, Taker, Transfer
from cachefs.fetch.policy import Choice, Hedging
from cachefs.fetch.ranges.fetcher import RangeFetcher
from cachefs.fetch.remote.fetcher import RemoteFetcher
from cachefs.fetch.routing.download import RoutedDownload
from cachefs.fetch.torrent.download import TorrentDownload
from cachefs.fetch.torrent.fetcher import TorrentFetcher

if TYPE_CHECKING:
    from cachefs.config import Fetch

log = logging.getLogger(__name__)

_REVIEW_EVERY = 0.1
_BEHIND = 10
"""What nobody waits for is looked at again so many times more seldom."""
_DROUGHT = 60.0
"""Seconds for which a file without peers spares the next files the wait for theirs."""


class Router:
    """The `Fetcher` that joins the two: a torrent, and web seeds and remotes or a record's own URLs."""

    def __init__(
        self,
        settings: Fetch,
        torrent: TorrentFetcher,
        web: RemoteFetcher | RangeFetcher,
        hedging: Hedging,
        from_web: Callable[[ContentId], bool],
    ) -> None:
        self.settings = settings
        self.torrent = torrent
        self.web = web
        self.hedging = hedging
        self.from_web = from_web
        self.fetched = dict.fromkeys(Choice, 0)
        """The bytes of verified blocks that each back end fetched."""
        self.handed_over: dict[str, int] = {}
        """The bytes that came from the web, by the row of the table that let it."""
        self.wanting: set[RoutedDownload] = set()
        """The downloads of which something may be wanted: a node has thousands open, and reads a few."""
        self._downloads: set[RoutedDownload] = set()
        self._refused: set[ContentId] = set()
        """What libtorrent can't take."""
        self._no_peers_at = float("-inf")

    @property
    def drought(self) -> bool:
        """Whether peers were looked for in vain a moment ago, and none has been met since."""
        return trio.current_time() - self._no_peers_at < _DROUGHT

    def count(self, by: Choice, size: int, why: str) -> None:
        """A verified block came by this back end."""
        self.fetched[by] += size
        if by is Choice.WEB:
            self.handed_over[why] = self.handed_over.get(why, 0) + size

    def found_no_peers(self) -> None:
        self._no_peers_at = trio.current_time()

    def found_peers(self) -> None:
        self._no_peers_at = float("-inf")

    def download(self, job: Job, sink: Taker) -> RoutedDownload:
        download = RoutedDownload(self, job, sink)
        self._downloads.add(download)
        return download

    def join(self, job: Job, sink: Sink) -> TorrentDownload | None:
        """Have the job's torrent in the session; None if it has none, or one that libtorrent can't take."""
        if job.item.metainfo is None or job.item.content in self._refused:
            return None
        try:
            return self.torrent.download(job, sink)
        except MetainfoError as error:
            log.warning("%s is had from the web alone: %s", job.item.name, error)
            self._refused.add(job.item.content)
            return None

    def forget(self, download: RoutedDownload) -> None:
        """The download has ended."""
        self._downloads.discard(download)
        self.wanting.discard(download)

    def transfers(self) -> list[Transfer]:
        transfers = [download.transfer() for download in self._downloads if not download.at_rest]
        return [transfer for transfer in transfers if transfer.wanted or transfer.rate > 0]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look again at what is wanted, for ever."""
        if isinstance(self.web, RemoteFetcher):
            self.torrent.leave_web_seeds_to(self.web.serves)
        task_status.started()
        for tick in itertools.count():
            await trio.sleep(_REVIEW_EVERY)
            self.wanting = {download for download in self.wanting if download.busy}
            for download in tuple(self.wanting):
                if download.waited_for or tick % _BEHIND == 0:
                    download.review()
