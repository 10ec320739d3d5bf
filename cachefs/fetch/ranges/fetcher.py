"""Fetching records block by block: what all downloads share of their URLs' standing.

How it works: each record is a download of its own (`download.py`), which says what stretch it wants next. Here a
stretch is asked of one URL after the other, in the record's order. A source that gives nothing is tried a few times,
then left alone for a while that grows (`Breaker`); one whose bytes or declared checksum are wrong, at once. Then the
next URL has its turn, and when none is left, those who wait are told why. Asking again within the while gets the same
answer at once. A host that asked to come back soon is waited for once, when none of the others has given anything. One
that is slow with a block is left as long as another one may be asked, and when these fail it may take its time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio

from cachefs.errors import SourceLied, SourceSilent, SourceSlow, UrlFailed, together
from cachefs.fetch.base import Job, Taker, Transfer
from cachefs.fetch.health import Breaker
from cachefs.fetch.http.busy import Busy, soon
from cachefs.fetch.http.client import Interrupted, WebClient
from cachefs.fetch.http.reception import Buffers
from cachefs.fetch.ranges.download import RangeDownload
from cachefs.fetch.ranges.request import RangeRequest, Stream, origin_of
from cachefs.fetch.sources import Ledger

_TRIES = 3
_FIRST_PAUSE = 0.25
_TIDY_EVERY = 10.0
_SLOW_FOR = 60.0
"""Seconds for which one that was slow is left alone: each look at whether it still is costs a reader much."""


class RangeFetcher:
    """The `Fetcher` of items that have URLs; use it inside `run`."""

    def __init__(self, client: WebClient, ledger: Ledger) -> None:
        self._client = client
        self._buffers = Buffers()
        self.ledger = ledger
        self._breakers: dict[str, Breaker] = {}
        self._errors: dict[str, UrlFailed] = {}
        self._downloads: list[RangeDownload] = []
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve downloads for ever."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                await trio.sleep(_TIDY_EVERY)
                self._client.tidy()

    def download(self, job: Job, sink: Taker) -> RangeDownload:
        download = RangeDownload(self, job, sink)
        self.remember(download)
        return download

    def remember(self, download: RangeDownload) -> None:
        """The download goes on."""
        if download not in self._downloads:
            self._downloads.append(download)

    def forget(self, download: RangeDownload) -> None:
        """The download has ended."""
        if download in self._downloads:
            self._downloads.remove(download)

    def start(self, fetch: Callable[[Stream], Awaitable[None]], stream: Stream) -> None:
        """Run a stretch in the background."""
        assert self._nursery is not None
        self._nursery.start_soon(fetch, stream)

    def usable(self, urls: tuple[str, ...]) -> list[str]:
        """Those that are not left alone just now."""
        return [url for url in urls if url not in self._breakers or not self._breakers[url].pause()]

    def transfers(self) -> list[Transfer]:
        return [download.transfer() for download in self._downloads if download.busy]

    # What the downloads share: the servers' standing, kept across them

    async def ask(self, download: RangeDownload, stream: Stream) -> None:
        """Fetch a stretch from one URL after the other; UrlFailed when all have failed."""
        try:
            await self._ask(download, stream)
        except UrlFailed:
            failed = {url: self._errors[url] for url in download.job.item.urls}
            waited_for = soon(failed, self._client.rules.stall)
            slow = [url for url, error in failed.items() if isinstance(error, SourceSlow)]
            if waited_for:
                await trio.sleep_until(min(waited_for.values()))
            elif not slow:
                raise
            self.restart(tuple(waited_for or slow))
            await self._ask(download, stream, patient=not waited_for)

    async def _ask(self, download: RangeDownload, stream: Stream, *, patient: bool = False) -> None:
        errors: list[UrlFailed] = []
        for url in download.job.item.urls:
            breaker = self._breakers.setdefault(url, Breaker(tolerance=1, first=1.0))
            if breaker.pause():
                errors.append(self._errors[url])
                continue
            others = partial(self._others, download, url, patient)
            try:
                await self._persist(RangeRequest(self._client, self._buffers, url, download, stream, others))
            except UrlFailed as error:
                errors.append(error)
                self._errors[url] = error
                self.ledger.failed(origin_of(url), str(error), lied=isinstance(error, SourceLied))
                breaker.failed(str(error), retry_after=_wish(error))
            else:
                breaker.succeeded()
                return
        raise together(errors)

    def _others(self, download: RangeDownload, url: str, patient: bool) -> bool:
        """Whether another URL may be asked for what this one is slow with."""
        return not patient and self.usable(download.job.item.urls) not in ([], [url])

    async def _persist(self, request: RangeRequest) -> None:
        """Ask a few times, as long as nothing but the way to the bytes is wrong."""
        for attempt in range(_TRIES):
            try:
                await request.run()
            except (Interrupted, SourceSilent) as error:
                if request.landed:  # the rest is still wanted, and asked for as such
                    return
                if attempt == _TRIES - 1 or isinstance(error, SourceSilent):
                    raise
                await trio.sleep(_FIRST_PAUSE * 2**attempt)
            else:
                return

    def restart(self, urls: tuple[str, ...]) -> None:
        """Forget how these sources failed."""
        for url in urls:
            self._breakers.pop(url, None)


def _wish(error: UrlFailed) -> float:
    """For how many seconds a source is to be left alone at least."""
    if isinstance(error, SourceSlow):
        return _SLOW_FOR
    return error.until - trio.current_time() if isinstance(error, Busy) else 0.0
