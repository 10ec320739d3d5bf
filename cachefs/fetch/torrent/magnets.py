"""Metadata from peers (BEP 9): info dictionaries that are on their way.

How it works: a magnet torrent that wants no piece is added to the session and removed as soon as its info dictionary is
here, or nobody waits for it any more. libtorrent checks the dictionary against the info-hash. A download's own torrent
of the same content may come meanwhile: then it stays.
"""

from __future__ import annotations

from collections.abc import Callable

import libtorrent as lt
import trio

from cachefs import metainfo
from cachefs.content import ContentId
from cachefs.fetch.torrent.download import Swarm


class _Magnet:
    """One info dictionary on its way, and how many wait for it."""

    def __init__(self) -> None:
        self.waiting = 0
        self.done = trio.Event()
        self.info = b""


class Magnets:
    """All of them. `is_taken` says whether a content's torrent is a download's, by its digest."""

    def __init__(self, session: lt.session, swarm: Swarm, is_taken: Callable[[bytes], bool]) -> None:
        self._session = session
        self._swarm = swarm
        self._is_taken = is_taken
        self._magnets: dict[bytes, _Magnet] = {}

    async def metainfo(self, content: ContentId) -> bytes:
        """A .torrent made of the info dictionary that peers send; waits until one does. Cancel it to give up."""
        magnet = self._magnets.setdefault(content.digest, _Magnet())
        if not magnet.waiting:
            self._session.async_add_torrent(self._params(content))
        magnet.waiting += 1
        try:
            await magnet.done.wait()
        finally:
            magnet.waiting -= 1
            if not magnet.waiting:
                del self._magnets[content.digest]
                self._remove(content.digest)
        return metainfo.wrap(magnet.info)

    def _params(self, content: ContentId) -> lt.add_torrent_params:
        params = lt.add_torrent_params()
        params.info_hashes = lt.info_hash_t(lt.sha1_hash(content.digest))
        params.save_path = "/nonexistent"
        params.trackers = list(self._swarm.trackers)
        params.flags = lt.torrent_flags.default_dont_download
        return params

    def _remove(self, digest: bytes) -> None:
        handle = self._session.find_torrent(lt.sha1_hash(digest))
        if handle.is_valid() and not self._is_taken(digest):
            self._session.remove_torrent(handle)

    def on_added(self, digest: bytes, handle: lt.torrent_handle) -> bool:
        """A torrent has been added; whether it is one of these."""
        if digest in self._magnets:
            self._dial(handle)
        return digest in self._magnets

    def on_metadata(self, digest: bytes, info: lt.torrent_info | None) -> None:
        """An info dictionary has come, which is right."""
        magnet = self._magnets.get(digest)
        if magnet is not None and info is not None:
            magnet.info = info.info_section()
            magnet.done.set()

    def dial(self) -> None:
        """Dial the addresses that are known once more, for all that is waited for."""
        for digest in self._magnets:
            handle = self._session.find_torrent(lt.sha1_hash(digest))
            if handle.is_valid():
                self._dial(handle)

    def _dial(self, handle: lt.torrent_handle) -> None:
        for address in self._swarm.peers:
            handle.connect_peer(address)
