"""What the tests of the torrent fetcher share: real libtorrent seeders, and a sink that checks all that lands.

The seeders live in this process and take their bytes from files that a test may spoil: they check nothing.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import libtorrent as lt
import trio

from cachefs.config import Peer, Torrent
from cachefs.content import Bitmap
from cachefs.fetch.base import Job
from cachefs.fetch.sources import Ledger, WebSeed
from cachefs.fetch.torrent.download import TorrentDownload
from cachefs.fetch.torrent.extents import Extents
from cachefs.fetch.torrent.fetcher import TorrentFetcher
from tests.counterparts import LOOPBACK
from tests.fakes import Content, content, until

PIECE = 2**16
FILE = content(1, 32 * PIECE + 1000, PIECE)
QUIET = Torrent(
    listen=Peer(LOOPBACK, 0), dht=False, lsd=False, upnp=False, natpmp=False, utp=False, pex=False, idle_seconds=0.2
)


class Seeder:
    """A libtorrent session that seeds `items` from files in `root`, right or wrong."""

    def __init__(self, root: Path, *items: Content) -> None:
        self.session = lt.session(
            {
                "listen_interfaces": f"{LOOPBACK}:0",
                "enable_dht": False,
                "enable_lsd": False,
                "enable_upnp": False,
                "enable_natpmp": False,
                "allow_multiple_connections_per_ip": True,
                "tick_interval": 100,
            }
        )
        self.files = {item.info.content: root / f"{item.info.content.hex}.origin" for item in items}
        self.handles = [self.add(item) for item in items]

    def add(self, item: Content) -> lt.torrent_handle:
        path = self.files[item.info.content]
        path.write_bytes(item.data)
        params = lt.load_torrent_buffer(item.info.raw)
        params.save_path, params.renamed_files = str(path.parent), {0: path.name}
        params.have_pieces = [True] * item.blocks
        flags = lt.torrent_flags
        params.flags = flags.upload_mode | flags.no_verify_files
        return self.session.add_torrent(params)

    @property
    def peer(self) -> Peer:
        return Peer(LOOPBACK, self.session.listen_port())

    def slow_down(self, rate: int) -> None:
        """Upload at most `rate` bytes per second of each torrent."""
        for handle in self.handles:
            handle.set_upload_limit(rate)

    def sent(self) -> int:
        """The bytes of payload that were uploaded."""
        return sum(handle.status().total_payload_upload for handle in self.handles)


@contextmanager
def seeding(root: Path, *items: Content) -> Iterator[Seeder]:
    seeder = Seeder(root, *items)
    yield seeder
    seeder.handles.clear()
    del seeder.session


class Receiver:
    """A `Sink` that checks every block that lands, in the file, at that moment."""

    def __init__(self, item: Content, path: Path) -> None:
        self.item = item
        self.path = path
        self.have = Bitmap(item.blocks)
        self.landed_order: list[int] = []
        self.errors: list[Exception] = []
        self.has_ended = False
        self.download: TorrentDownload | None = None

    def landed(self, index: int) -> None:
        span = self.item.info.manifest.span(index)
        with self.path.open("rb") as file:
            file.seek(span.offset)
            assert file.read(span.length) == self.item.piece(index), f"block {index} landed before it was in the file"
        self.landed_order.append(index)
        self.have.add(index)

    def failed(self, error: Exception) -> None:
        self.errors.append(error)

    def ended(self) -> None:
        assert not self.has_ended
        self.has_ended = True

    def touched(self) -> set[int]:
        """The blocks in whose place the file holds anything."""
        extents = Extents(self.path)
        try:
            return set(extents.blocks_touched(self.item.info.manifest))
        finally:
            extents.close()

    def wants(self, *urgent: int, ahead: frozenset[int] = frozenset()) -> None:
        assert self.download is not None
        self.download.demand(frozenset(urgent), ahead)

    async def lands(self, *blocks: int) -> None:
        await until(lambda: not self.have.missing(blocks))


@dataclass
class Bench:
    """A running fetcher."""

    root: Path
    fetcher: TorrentFetcher
    ledger: Ledger

    def receiver(self, item: Content = FILE, directory: Path | None = None) -> Receiver:
        """A sparse file for `item`, as the store makes it, and a sink for it."""
        path = (directory or self.root) / item.info.content.hex / "data"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch()
        os.truncate(path, len(item.data))
        return Receiver(item, path)

    def fetch(self, receiver: Receiver) -> TorrentDownload:
        job = Job(receiver.item.item, lambda: receiver.path, receiver.have)
        receiver.download = self.fetcher.download(job, receiver)
        return receiver.download

    def failures(self) -> str:
        return "; ".join(self.ledger.recent(60))


@asynccontextmanager
async def fetching(
    root: Path, *peers: Peer, settings: Torrent = QUIET, seeds: tuple[str, ...] = ()
) -> AsyncIterator[Bench]:
    ledger = Ledger()
    fetcher = TorrentFetcher(settings, ledger, peers=peers, web_seeds=[WebSeed(url) for url in seeds])
    async with trio.open_nursery() as nursery:
        await nursery.start(fetcher.run)
        yield Bench(root, fetcher, ledger)
        nursery.cancel_scope.cancel()


def fetch_from(
    tmp_path: Path,
    scenario: Callable[[Bench, Seeder], Awaitable[None]],
    *items: Content,
    settings: Torrent = QUIET,
) -> None:
    """Run `scenario` with a fetcher whose only peer seeds `items`."""

    async def main() -> None:
        with seeding(tmp_path, *(items or (FILE,))) as seeder:
            async with fetching(tmp_path / "store", seeder.peer, settings=settings) as bench:
                await scenario(bench, seeder)

    trio.run(main)
