"""Where a mount's bytes and sizes come from: peers, web seeds and remotes, and who decides among them.

How it works: everything that a setting calls a source is made here, once, and shared: the ledger counts what each one
gave, one fetcher has torrents and one asks web seeds and remotes, the router lets one of the two fetch, the metadata
service asks all of them for sizes. Web seeds are those of the command line, of cachefs.toml and of the data
directory's webseed.toml.
"""

from __future__ import annotations

from pathlib import Path

import trio

from cachefs.config import Config, load_webseed_toml
from cachefs.fetch.metadata.rebuild import RemoteMetadata
from cachefs.fetch.metadata.service import Found, MetadataService
from cachefs.fetch.remote.fetcher import RemoteFetcher
from cachefs.fetch.remote.remotes import Remotes
from cachefs.fetch.routing.router import Router
from cachefs.fetch.sources import Ledger, WebSeed
from cachefs.fetch.torrent.fetcher import TorrentFetcher
from cachefs.metainfo import Metainfo
from cachefs.store.objects import ObjectStore
from cachefs.store.room import Room

_RECENT = 60.0
_MOST_EVIDENCE = 3


class Sourcing:
    """A mount's sources; `found` is told of metadata, and whole files that were fetched for theirs go to `store`."""

    def __init__(self, config: Config, data_dir: Path, store: ObjectStore, room: Room, found: Found) -> None:
        sources = config.sources
        seeds = [WebSeed(url) for url in (*sources.webseeds, *_webseed_toml(data_dir))]
        self._store = store
        self.ledger = Ledger([*map(str, sources.peers), *map(str, seeds), *sources.rclone_remotes])
        self.torrent = TorrentFetcher(
            config.torrent, self.ledger, peers=sources.peers, web_seeds=seeds, trackers=sources.trackers
        )
        remotes = Remotes(seeds, sources.rclone_remotes, sources.carried_webseeds, direct=config.fetch.direct)
        place, memory = data_dir / "rclone", config.read.failure_memory
        self.remote = RemoteFetcher(config.fetch, config.rclone, self.ledger, remotes, place, memory=memory)
        last_resort = None
        if (seeds and config.fetch.direct) or (config.rclone.enabled and (seeds or sources.rclone_remotes)):
            last_resort = RemoteMetadata(self.remote, place, self._keep, room.holding)
            last_resort.clear()
        self.metadata = MetadataService(
            config.read,
            self.ledger,
            found,
            directory=sources.torrent_dir,
            web_seeds=seeds,
            peers=self.torrent,
            last_resort=last_resort,
        )
        self.router = Router(config.fetch, self.torrent, self.remote, self.remote.hedging, self.metadata.came_from_web)

    async def _keep(self, info: Metainfo, path: Path) -> None:
        await self._store.take(info.manifest, path)

    async def start(self, nursery: trio.Nursery) -> None:
        """Have the fetchers work, in this nursery; the metadata service is started when its answers can be kept."""
        await nursery.start(self.torrent.run)
        await nursery.start(self.remote.run)
        await nursery.start(self.router.run)

    def evidence(self) -> str:
        """What went wrong of late, in words; empty if nothing did."""
        return "; ".join(self.ledger.recent(_RECENT)[:_MOST_EVIDENCE])


def _webseed_toml(data_dir: Path) -> tuple[str, ...]:
    path = data_dir / "webseed.toml"
    return load_webseed_toml(path) if path.exists() else ()
