"""The provider of torrents.

How it works: `magnet:?xt=urn:btih:…` means a torrent of one file. The torrent fetcher gets and checks its pieces, into
a file beside the receiver's, and they are sent on from there, hashed once more: the info-hash says how they travel,
the record's SHA-256 what they are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import trio

from cachefs.content import ContentId
from cachefs.errors import UrlFailed
from cachefs.fetch.http.digests import Declared
from cachefs.fetch.whole.receiver import Fetched, Receiver
from cachefs.metainfo import Metainfo

_MAGNET = re.compile(r"magnet:\?xt=urn:btih:([0-9a-fA-F]{40})(?:&.*)?")


class Torrents(Protocol):
    """What fetches a torrent of one file: `fetch/torrent/whole.py` has one, made of a torrent fetcher."""

    async def metainfo(self, content: ContentId, url: str) -> Metainfo:
        """The torrent with this info-hash; UrlFailed."""

    async def download(self, info: Metainfo, url: str, path: Path) -> None:
        """Fetch all of it into the new file `path`, each piece checked; UrlFailed, StoreFull, StoreFailed."""


class TorrentProvider:
    """`magnet:` URLs with a v1 info-hash."""

    def __init__(self, torrents: Torrents) -> None:
        self._torrents = torrents

    def takes(self, url: str) -> bool:
        return url.startswith("magnet:")

    async def send(self, url: str, receiver: Receiver) -> Fetched:
        match = _MAGNET.fullmatch(url)
        if match is None:
            raise UrlFailed(url, "is not a magnet link with a v1 info-hash (xt=urn:btih:…)")
        path = receiver.path.with_name(f"{receiver.path.name}.torrent")
        try:
            info = await self._torrents.metainfo(ContentId.btih(match[1]), url)
            receiver.announce(url, info.manifest.length, Declared())
            await receiver.reserve()
            await self._torrents.download(info, url, path)
            async with await trio.open_file(path, "rb") as file:
                while data := await file.read(2**20):
                    await receiver.write(url, data)
        except OSError as error:
            raise UrlFailed(url, f"{path}: {error.strerror}") from error
        finally:
            path.unlink(missing_ok=True)
        return await receiver.finish(url)
