"""Serving a directory, once it is ready, as torrent seeder and web seed.

How it works: the sockets are bound first, so that a wrong address fails before terabytes are hashed. Then
`torrents` makes what is published, `seeder` gets the torrents and `web` the names. All of it runs in one
nursery: cancel it, and everything has ended.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import trio

from cachefs.config.values import Peer
from cachefs.origin import web
from cachefs.origin.seeder import open_seeder
from cachefs.origin.torrents import Published, Report, SeededFile, Skipped, publish

__all__ = ["OriginConfig", "Published", "SeededFile", "Serving", "Skipped", "publish", "serve"]


@dataclass(frozen=True, slots=True)
class OriginConfig:
    """What to serve and where. `listen` is for peers, `http` for web-seed clients; None leaves that side off, and
    port 0 takes any free one.

    Products are written to `out`, or beside the files. `discover`: let peers find the seeder by DHT,
    local discovery and port mapping.
    """

    root: Path
    out: Path | None = None
    listen: Peer | None = None
    http: Peer | None = None
    discover: bool = False


@dataclass(frozen=True, slots=True)
class Serving:
    """A seed box that is ready: what is published, and the addresses that were bound."""

    published: Published
    torrent: Peer | None
    http: str | None


async def serve(
    config: OriginConfig,
    *,
    report: Report | None = None,
    task_status: trio.TaskStatus[Serving] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Publish and serve until cancelled; `started` once every file is served. ConfigError if that can't be done."""
    site, torrent, url = web.Site(), None, None
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        if config.http is not None:
            url = await nursery.start(web.serve, config.http.host, config.http.port, site)
        seeder = None
        if config.listen is not None:
            seeder = await stack.enter_async_context(open_seeder(config.listen, discover=config.discover))
            torrent = seeder.address
        root, out = config.root.resolve(), config.out.resolve() if config.out is not None else None
        published = await publish(root, out, report)
        site.assets = published.assets()
        if seeder is not None:
            await seeder.add(published.files)
        task_status.started(Serving(published, torrent, url))
        await trio.sleep_forever()
