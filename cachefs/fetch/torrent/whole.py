"""A torrent of one file, fetched whole: the torrent fetcher as a source of bytes for the downloader.

How it works: the info dictionary comes from peers, the file is made at its full length, sparse, and all of its pieces
are demanded at once. A piece that lands was checked against the info-hash. Nothing for a while means that there is
nobody who has it.
"""

from __future__ import annotations

from pathlib import Path

import trio

from cachefs import metainfo
from cachefs.content import Bitmap, ContentId
from cachefs.diskerrors import named
from cachefs.errors import MetadataUnavailable, MetainfoError, SourceSilent, UrlFailed
from cachefs.fetch.base import Item, Job
from cachefs.fetch.torrent.fetcher import TorrentFetcher
from cachefs.metainfo import Metainfo


class _Landing:
    """The sink of one download: what has landed, when that was, and how it ended."""

    def __init__(self, blocks: int) -> None:
        self.have = Bitmap(blocks)
        self.news = trio.Event()
        self.over = trio.Event()
        self.error: Exception | None = None

    def landed(self, index: int) -> None:
        self.have.add(index)
        self.news.set()

    def failed(self, error: Exception) -> None:
        self.error = error
        self.news.set()

    def ended(self) -> None:
        self.over.set()
        self.news.set()


class WholeTorrents:
    """What `TorrentProvider` needs, by a torrent fetcher that is running; `stall` in seconds."""

    def __init__(self, fetcher: TorrentFetcher, stall: float = 30.0) -> None:
        self._fetcher = fetcher
        self._stall = stall

    async def metainfo(self, content: ContentId, url: str) -> Metainfo:
        """The torrent with this info-hash; SourceSilent if no peer sends it, UrlFailed if it isn't of one file."""
        try:
            with trio.fail_after(self._stall):
                return metainfo.parse(await self._fetcher.metainfo(content, url))
        except trio.TooSlowError:
            raise SourceSilent(url, f"no peer sent the torrent within {self._stall:g} s") from None
        except (MetainfoError, MetadataUnavailable) as error:
            raise UrlFailed(url, str(error)) from None

    async def download(self, info: Metainfo, url: str, path: Path) -> None:
        """Fetch all of it into the new file `path`. SourceSilent, StoreFull, StoreFailed."""
        if self._fetcher.has(info.content):
            raise UrlFailed(url, "is being fetched or seeded in its swarm already")
        with named(path), path.open("xb") as file:
            file.truncate(info.manifest.length)
        landing = _Landing(info.manifest.blocks)
        job = Job(Item(info.name, info.manifest, info, catalogue=""), lambda: path, landing.have)
        download = self._fetcher.download(job, landing)
        try:
            download.demand(frozenset(range(info.manifest.blocks)), frozenset())
            await self._complete(landing, url)
        finally:
            download.leave()
            with trio.move_on_after(self._stall, shield=True):
                await landing.over.wait()

    async def _complete(self, landing: _Landing, url: str) -> None:
        while not landing.have.complete:
            landing.news = trio.Event()
            try:
                with trio.fail_after(self._stall):
                    await landing.news.wait()
            except trio.TooSlowError:
                missing = landing.have.size - len(landing.have)
                raise SourceSilent(url, f"{missing} pieces missing, and none came for {self._stall:g} s") from None
            if landing.error is not None:
                raise landing.error
