"""Fetching from web seeds and remotes: the sources that all files of a mount share, and the ways to ask them.

How it works: web seeds are asked directly (direct.py), and the operator's remotes through the one rclone child, which
is started when there is anything to ask it. Each file is a download of its own (download.py). They share the
sources, so a request that ends lets all of them look for something to ask, those with readers first. Many times a
second downloads that are waited for look whether a block is late. Thousands may be open of which nothing is wanted:
these are passed over, in a set of those that want something.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Set
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from cachefs.content import ContentId, Span
from cachefs.errors import CachefsError
from cachefs.fetch.base import Item, Job, Taker, Transfer
from cachefs.fetch.http.reception import Buffers
from cachefs.fetch.http.wire import Body
from cachefs.fetch.policy import Hedging, rank
from cachefs.fetch.rclone.child import RcloneChild
from cachefs.fetch.remote.direct import Direct
from cachefs.fetch.remote.download import RemoteDownload
from cachefs.fetch.remote.remotes import Remotes, RemoteSource
from cachefs.fetch.sources import Ledger

if TYPE_CHECKING:
    from cachefs.config import Fetch, Rclone

log = logging.getLogger(__name__)

_LOOK_EVERY = 0.05
_MEASURE_EVERY = 1.0


class RemoteFetcher:
    """The `Fetcher` by ranges of web seeds and remotes; use it inside `run`."""

    def __init__(
        self, settings: Fetch, rclone: Rclone, ledger: Ledger, remotes: Remotes, directory: Path, *, memory: float
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.hedging = Hedging(settings)
        self.memory = memory
        self.child = RcloneChild(rclone, directory, remotes.environment)
        self._with_rclone = rclone.enabled
        self._remotes = remotes
        self.buffers = Buffers()
        self._direct = Direct()
        self._downloads: dict[ContentId, RemoteDownload] = {}
        self.asking: set[RemoteDownload] = set()
        """The downloads for which requests are under way: no more than the sources have places."""
        self._wanting: dict[RemoteDownload, None] = {}
        self._moving: dict[RemoteDownload, None] = {}
        self._nursery: trio.Nursery | None = None
        self._work = trio.Event()
        self._received: dict[RemoteSource, int] = {}
        self._by_rclone = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after requests, and after rclone once there is anything to ask it, for ever."""
        try:
            async with trio.open_nursery() as self._nursery:
                if self._with_rclone:
                    self._nursery.start_soon(self._keep_child)
                self._nursery.start_soon(self._look)
                self._nursery.start_soon(self._measure)
                task_status.started()
        finally:
            self._direct.close()

    async def _keep_child(self) -> None:
        await self._remotes.wait_for_rclone()
        await self.child.run()

    # What the cache and the downloads ask

    def download(self, job: Job, sink: Taker) -> RemoteDownload:
        download = RemoteDownload(self, job, sink)
        self.remember(download)
        if job.item.metainfo is not None and job.item.metainfo.web_seeds:
            self.start(self._learn, job.item)
        return download

    async def _learn(self, item: Item) -> None:
        if await self._remotes.learn(item):
            self.child.describe(self._remotes.environment)

    def remember(self, download: RemoteDownload) -> None:
        """The download may want something from here on."""
        self._downloads[download.job.item.content] = download

    def forget(self, download: RemoteDownload) -> None:
        """The download is over: nothing more is written to its file."""
        self._downloads.pop(download.job.item.content, None)
        self._wanting.pop(download, None)
        self._moving.pop(download, None)

    def want(self, download: RemoteDownload) -> None:
        """The download wants something: let it look for something to ask. The others have, when they could."""
        self._wanting[download] = None
        self._work.set()
        for urgent in (True, False):
            download.start(urgent=urgent)

    def moved(self, download: RemoteDownload) -> None:
        """The download landed a block: its speed is to be measured."""
        self._moving[download] = None

    def _busy(self) -> list[RemoteDownload]:
        """The downloads that want something, or for which a request is under way."""
        self._wanting = {download: None for download in self._wanting if download.busy}
        return list(self._wanting)

    def transfers(self) -> list[Transfer]:
        return [download.transfer() for download in {**self._wanting, **self._moving} if download.busy or download.rate]

    def sources(self, item: Item) -> list[RemoteSource]:
        """All sources that may have `item`."""
        return self._remotes.of(item)

    def configured(self) -> list[RemoteSource]:
        """The sources that may have any name."""
        return self._remotes.sources

    def usable(self, item: Item, but: Set[RemoteSource] = frozenset()) -> list[RemoteSource]:
        """The sources other than `but` that may be asked for `item` now, best first; rclone's while it is there."""
        sources = [source for source in self._remotes.of(item) if source not in but and self.reaches(source)]
        return rank(sources, item.content)

    async def until_reached(self) -> None:
        """Return when all configured sources can be asked, or never can be: at once, if none needs rclone."""
        if self._with_rclone and not all(source.direct for source in self._remotes.sources):
            await self.child.until_known()

    def reaches(self, source: RemoteSource) -> bool:
        """Whether it can be asked at all."""
        return source.direct or (self.child.ready and self.child.knows(source.variables))

    def open(self, source: RemoteSource, path: str, span: Span | None) -> AbstractAsyncContextManager[Body]:
        """A file's bytes, or those of a span; SourceFailed in all its kinds, RcloneGone."""
        if source.direct:
            assert source.seed is not None
            return self._direct.open(source.seed.base + path, span, public=source.public)
        return self.child.open(source.remote, path, span)

    def serves(self) -> bool:
        """Whether web seeds are asked here: directly, or through an rclone that answers or is about to."""
        return not self._remotes.for_rclone(web_seeds=True) or (self._with_rclone and self.child.expected)

    def is_free(self, source: RemoteSource) -> bool:
        """Whether it may be sent one request more."""
        return source.busy < self.settings.requests

    def make_place(self, sources: Collection[RemoteSource]) -> None:
        """Break off a request to one of these that nobody waits for: the one of whose block the least has come."""
        runs = [run for download in self.asking for run in download.spare() if run.source in sources]
        if runs and not any(run.dropped for run in runs):  # else there will be a place in a moment
            min(runs, key=lambda run: run.received).drop()

    def start(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Have a request made, or looked into."""
        assert self._nursery is not None
        self._nursery.start_soon(self._guarded, task, *arguments)

    async def _guarded(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None:
        try:
            await task(*arguments)
        except Exception:  # a fault of ours costs a request, not the mount
            log.exception("fetching from web seeds and remotes")

    def received(self, source: RemoteSource, size: int) -> None:
        """Count bytes of a source."""
        self._by_rclone += 0 if source.direct else size
        self.ledger.received(source.name, size)
        self._received[source] = self._received.get(source, 0) + size

    def schedule(self) -> None:
        """Something is wanted, or a source became free: let all downloads look, those with readers first."""
        self._work.set()
        busy = self._busy()
        for urgent in (True, False):
            for download in busy:
                if not self._has_place():
                    return
                download.start(urgent=urgent)

    def _has_place(self) -> bool:
        """Whether there is a source that may be asked for anything now."""
        return any(
            self.is_free(source) and self.reaches(source) and not source.health.breaker.pause()
            for source in self._remotes.every()
        )

    # Looking after what does not come

    async def _look(self) -> None:
        while True:
            await self._work.wait()
            await trio.sleep(_LOOK_EVERY)
            busy = self._busy()
            if not busy:
                self._work = trio.Event()
                continue
            late_after = self.hedging.late_after()
            for download in busy:
                download.hurry(late_after)
            self.schedule()  # a source that was left alone may be asked again

    async def _measure(self) -> None:
        while True:
            await trio.sleep(_MEASURE_EVERY)
            self._direct.tidy()
            received, self._received = self._received, {}
            self.ledger.set_rates("web", {s.name: size / _MEASURE_EVERY for s, size in received.items()})
            for download in self._moving:
                download.measure(_MEASURE_EVERY)
            self._moving = {download: None for download in self._moving if download.rate}

    def _trouble(self) -> str:
        if not self._with_rclone:
            return "turned off ([rclone] enabled)"
        return self.child.trouble if self._remotes.for_rclone() else "not needed: web seeds are asked directly"

    async def report(self) -> dict[str, Any]:
        """rclone's own account: which binary, whether it answers, and what it is transferring."""
        child = self.child
        told: dict[str, Any] = {
            "version": child.binary.version if child.binary else "",
            "binary": str(child.binary.path) if child.binary else "",
            "pid": child.pid,
            "restarts": child.restarts,
            "trouble": self._trouble(),
            "received": self._by_rclone,
            "transferring": [],
        }
        if child.control is not None:
            try:
                with trio.fail_after(1.0):
                    stats = await child.control.call("core/stats", {})
                told["transferring"] = stats.get("transferring") or []
            except (CachefsError, trio.TooSlowError) as error:
                told["trouble"] = str(error) or "rclone doesn't tell its statistics"
        return told
