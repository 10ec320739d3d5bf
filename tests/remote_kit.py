"""What the tests of fetching from web seeds share: a fetcher that asks some, and a taker that keeps what comes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from cachefs.config import Fetch, Rclone
from cachefs.content import Bitmap
from cachefs.fetch.base import Claim, Job
from cachefs.fetch.remote.fetcher import RemoteFetcher
from cachefs.fetch.remote.remotes import Remotes
from cachefs.fetch.sources import Ledger, WebSeed
from tests.fakes import Content


class Kept:
    """A taker that notes what it was given, after a look at whether it is right; `job` is for all of `item`."""

    def __init__(self, item: Content) -> None:
        self.item = item
        self.have = Bitmap(item.blocks)
        self.job = Job(item.item, lambda: Path("nowhere"), self.have)
        self.written: list[int] = []
        self.errors: list[Exception] = []
        self.claims = True
        """Whether nobody else may be writing to its blocks."""
        self.has_ended = False

    def write(self, index: int, data: memoryview) -> None:
        self.item.info.manifest.verify(index, data)
        self.written.append(index)

    async def deliver(self, index: int, data: memoryview) -> None:
        self.write(index, data)
        self.landed(index)

    def claim(self, blocks: range) -> Claim | None:
        return Claim(blocks) if self.claims else None

    def has_room(self, index: int) -> bool:
        return True

    def release(self, claim: Claim) -> None: ...

    def landed(self, index: int) -> None:
        assert index in self.written
        self.have.add(index)

    def failed(self, error: Exception) -> None:
        self.errors.append(error)

    def ended(self) -> None:
        self.has_ended = True


class KeptAlone(Kept):
    """One whose download is told what has landed, as the router tells it."""

    def __init__(self, item: Content, fetcher: RemoteFetcher) -> None:
        super().__init__(item)
        self.download = fetcher.download(self.job, self)

    def landed(self, index: int) -> None:
        super().landed(index)
        self.download.landed(index)


@asynccontextmanager
async def asking(directory: Path, *seeds: str, settings: Fetch | None = None) -> AsyncIterator[RemoteFetcher]:
    """A running fetcher that asks these web seeds; by default it gives none up for being silent."""
    remotes = Remotes([WebSeed(url) for url in seeds], [], "none")
    chosen = settings or Fetch(stall=600.0)
    fetcher = RemoteFetcher(chosen, Rclone(enabled=False), Ledger(), remotes, directory, memory=30.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(fetcher.run)
        yield fetcher
        nursery.cancel_scope.cancel()
