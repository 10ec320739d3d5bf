"""Where one name's metadata is looked for, and in which order: each source that may have it, until one does.

How it works: a name is asked of the directory of .torrent files, of each web seed, of the operator's remotes, and of
peers. What one of them gives is taken if its info-hash is the lock's. The last resort, to make metadata of a whole
file, costs that file: it is for names that somebody looks up, and only when each web seed and remote has said that it
has no .torrent. One that was busy or away for a moment may well have it, and should not be asked for all the bytes.
One that has been silent for ten minutes, while others answered, counts as gone (`Silence`), and has none.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from cachefs.content import ContentId
from cachefs.errors import ContentMismatch, MetadataUnavailable, MetainfoError, NoMetadata
from cachefs.fetch.health import Breaker
from cachefs.fetch.metadata.web import WebMetadata
from cachefs.metainfo import Metainfo, load, parse

log = logging.getLogger(__name__)

_Ask = Callable[[str, ContentId], Awaitable[Metainfo]]


class PeerMetadata(Protocol):
    """Peers, as a source of info dictionaries."""

    @property
    def has_peers(self) -> bool: ...

    async def metainfo(self, content: ContentId, name: str) -> bytes: ...


class LastResort(Protocol):
    """Where to look when neither web seeds nor peers have a .torrent."""

    async def torrent(self, name: str, content: ContentId) -> Metainfo: ...

    async def rebuild(self, name: str, content: ContentId) -> Metainfo: ...


class MetadataSearch:
    """The sources of metadata; `patience` is for how many seconds peers are asked. `hosts` are set by whoever runs."""

    def __init__(
        self, directory: Path | None, peers: PeerMetadata, last_resort: LastResort | None, patience: float
    ) -> None:
        self.hosts: list[WebMetadata] = []
        self.from_web: set[ContentId] = set()
        """What a web seed has told the metadata of."""
        self._last_resort = last_resort
        self._directory = directory
        self._peers = peers
        self._patience = patience
        self._peer_breaker = Breaker(tolerance=8, first=5.0)

    @property
    def has_others(self) -> bool:
        """Whether anybody can be asked but web seeds."""
        return bool(self._directory or self._peers.has_peers or self._last_resort)

    def rest(self) -> float:
        """Seconds until any source may be asked: names that can wait aren't spent on sources that are left alone."""
        if self._directory is not None:
            return 0.0
        breakers = [host.breaker for host in self.hosts]
        breakers += [self._peer_breaker] if self._peers.has_peers else []
        return min((breaker.pause() for breaker in breakers), default=0.0)

    async def find(self, name: str, content: ContentId, *, urgent: bool, thorough: bool) -> Metainfo:
        """The first source's right answer, or MetadataUnavailable with what each of them said.

        `urgent`: somebody waits for it; `thorough`: the last resort is tried as well.
        """
        said, unsure = list[str](), list[float]()
        web: list[_Ask] = [partial(host.fetch, urgent=urgent) for host in self.hosts]
        remotes = [self._last_resort.torrent] if self._last_resort else []
        directory, peers = [self._from_directory] * bool(self._directory), [self._from_peers] * self._peers.has_peers
        for ask in (*directory, *web, *remotes, *peers):
            try:
                metainfo = await ask(name, content)
                if ask in web:
                    self.from_web.add(content)
                return metainfo
            except MetadataUnavailable as error:
                said.append(error.reason)
                if ask in (*web, *remotes) and not isinstance(error, NoMetadata):
                    unsure.append(error.retry_after or 0.0)
            except (MetainfoError, ContentMismatch) as error:
                log.warning("%s: metadata refused: %s", name, error)
                said.append(str(error))
        if self._last_resort and thorough:
            return await self._rebuilt(self._last_resort, name, content, said, unsure)
        raise MetadataUnavailable(name, "; ".join(said))

    async def _rebuilt(
        self, last_resort: LastResort, name: str, content: ContentId, said: list[str], unsure: list[float]
    ) -> Metainfo:
        if unsure:
            said.append("it isn't made of the whole file yet, because who gave no answer may have a .torrent")
            raise MetadataUnavailable(name, "; ".join(said), min(unsure))
        try:
            return await last_resort.rebuild(name, content)
        except MetadataUnavailable as error:
            raise MetadataUnavailable(name, "; ".join([*said, error.reason])) from error

    async def _from_directory(self, name: str, content: ContentId) -> Metainfo:
        assert self._directory is not None
        path = self._directory / f"{name}.torrent"
        try:
            metainfo = await trio.to_thread.run_sync(load, path)
        except OSError as error:
            raise MetadataUnavailable(name, f"{path}: {error.strerror}") from error
        if metainfo.content != content:
            raise ContentMismatch(content, metainfo.content, str(path))
        return metainfo

    async def _from_peers(self, name: str, content: ContentId) -> Metainfo:
        if self._peer_breaker.pause():
            raise MetadataUnavailable(name, f"peers: left alone for now: {self._peer_breaker.reason}")
        with trio.move_on_after(self._patience):
            metainfo = parse(await self._peers.metainfo(content, name))
            self._peer_breaker.succeeded()
            return metainfo
        reason = f"no peer sent its info dictionary within {self._patience:g} s"
        self._peer_breaker.failed(reason)
        raise MetadataUnavailable(name, f"peers: {reason}")
