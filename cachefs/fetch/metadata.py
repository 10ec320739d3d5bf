"""Metadata (.torrent files) for the whole catalogue, in the background; a looked-up name first.

How it works: a bounded crew of workers takes names from two queues, the looked-up ones before the
rest; a few workers take looked-up names only, so that a silent source can't occupy all of them. A name is
asked of the directory of .torrent files, of each web seed, and of peers, until one gives
metadata whose info-hash is the lock's.

No lookup hangs and no failure is paid for twice. A name that failed is remembered, with the reason, for
a while, and tried again in the background; a source that fails is left alone (its breaker is open); and
when a lookup ran out of time while nothing at all arrived, the next lookups fail at once until something
does: listing 17,000 names with dead sources takes one time-out, not 17,000.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import httpx
import trio

from cachefs.content import ContentId
from cachefs.errors import CachefsError, ContentMismatch, Fault, MetadataUnavailable, MetainfoError, Stopping
from cachefs.fetch.health import Breaker
from cachefs.fetch.sources import Ledger, WebSeed
from cachefs.fetch.webmeta import WebMetadata
from cachefs.metainfo import Metainfo, parse

if TYPE_CHECKING:
    from cachefs.config import Read

log = logging.getLogger(__name__)

Found = Callable[[Metainfo], None]

_LOOKUP_WORKERS = 8
_HTTP_CONNECTIONS = 40
_HOST_TIMEOUT = 5.0
_LONGEST_RETRY = 600.0
_PEERS_SHARE = 0.8  # of a lookup's time, so that its error can tell what the peers did


class PeerMetadata(Protocol):
    """Peers, as a source of info dictionaries."""

    @property
    def has_peers(self) -> bool: ...

    async def metainfo(self, content: ContentId, name: str) -> bytes: ...


class LastResort(Protocol):
    """Where to look when neither web seeds nor peers have a .torrent."""

    async def torrent(self, name: str, content: ContentId) -> Metainfo: ...

    async def rebuild(self, name: str, content: ContentId) -> Metainfo: ...


@dataclass(slots=True)
class _Failure:
    reason: str
    until: float
    times: int
    retry_at: float
    thorough: bool
    """Whether everything was tried: in the background the last resort isn't."""


@dataclass(frozen=True, slots=True)
class MetadataReport:
    """For the status: how many names' metadata are waited for, and why names failed last."""

    queued: int
    failed: int
    last_error: str


class MetadataService:
    """Fetches metadata; `found` is called with each accepted one, on the event loop."""

    def __init__(
        self,
        settings: Read,
        ledger: Ledger,
        found: Found,
        *,
        directory: Path | None,
        web_seeds: Iterable[WebSeed],
        peers: PeerMetadata,
        last_resort: LastResort | None = None,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._found = found
        self._directory = directory
        self._seeds = tuple(web_seeds)
        self._peers = peers
        self._last_resort = last_resort
        self._peer_breaker = Breaker(tolerance=8, first=5.0)
        self._hosts: list[WebMetadata] = []
        self._contents: dict[str, ContentId] = {}
        self._urgent: deque[str] = deque()
        self._background: deque[str] = deque()
        self._retries: list[tuple[float, str]] = []
        self._failures: dict[str, _Failure] = {}
        self._waits: dict[str, trio.Event] = {}
        self._active: set[str] = set()
        self._from_web: set[ContentId] = set()
        self._lookups = 0
        self._stopping = False
        self._drained = trio.Event()
        self._work = trio.lowlevel.ParkingLot()
        self._hopeless_until = float("-inf")
        self._arrived_at = float("-inf")

    def came_from_web(self, content: ContentId) -> bool:
        """Whether a web seed told its metadata, in this run: then that web seed is known to be there."""
        return content in self._from_web

    @property
    def has_sources(self) -> bool:
        return bool(self._directory or self._seeds or self._peers.has_peers or self._last_resort)

    def want(self, names: Mapping[str, ContentId]) -> None:
        """Fetch these in the background too, in their order."""
        fresh = [name for name, content in names.items() if self._contents.get(name) != content]
        self._contents.update(names)
        for name in fresh:  # why another content could not be found says nothing about this one
            self._failures.pop(name, None)
        if self.has_sources and fresh:
            self._background.extend(fresh)
            self._work.unpark_all()

    def forget(self, names: Iterable[str]) -> None:
        """These names, or what they stood for, are gone: look for their metadata no more."""
        for name in names:
            self._contents.pop(name, None)
            self._failures.pop(name, None)
            if (wait := self._waits.pop(name, None)) is not None:
                wait.set()

    def report(self) -> MetadataReport:
        last = next(reversed(self._failures.values())).reason if self._failures else ""
        return MetadataReport(len(self._contents), len(self._failures), last)

    def failure(self, name: str) -> str:
        """Why this name's metadata is not here, as far as is known."""
        failure = self._failures.get(name)
        return failure.reason if failure else ""

    async def lookup(self, name: str) -> None:
        """Return when `name`'s metadata was found; MetadataUnavailable if it can't be in time."""
        if self._stopping:
            raise Stopping
        if name not in self._contents:
            return
        self._refuse_hopeless(name)
        if name not in self._waits:
            self._urgent.append(name)
            self._work.unpark_all()
        if not await self._settled(name):
            raise MetadataUnavailable(name, self.failure(name) or self._silence())
        if self._stopping:
            raise Stopping
        if name in self._contents:
            raise MetadataUnavailable(name, self.failure(name))

    async def _settled(self, name: str) -> bool:
        """Wait until a worker is done with `name`; False if that takes too long."""
        wait = self._waits.setdefault(name, trio.Event())
        since = trio.current_time()
        self._lookups += 1
        try:
            with trio.move_on_after(self._settings.metadata_timeout):
                await wait.wait()
                return True
            return False
        finally:
            self._lookups -= 1
            self._despair(since)
            if self._stopping and not self._lookups:
                self._drained.set()

    def _despair(self, since: float) -> None:
        # A lookup that waited in vain while nothing arrived says as much about every other name.
        now = trio.current_time()
        if now - since >= self._settings.metadata_timeout * _PEERS_SHARE and self._arrived_at < since:
            self._hopeless_until = now + self._settings.failure_memory

    def _refuse_hopeless(self, name: str) -> None:
        now = trio.current_time()
        failure = self._failures.get(name)
        if not self.has_sources:
            raise MetadataUnavailable(name, "no source is configured: give --webseed, --peer or --torrent-dir")
        if failure is not None and now < failure.until and failure.thorough:
            raise MetadataUnavailable(name, failure.reason)
        if now < self._hopeless_until:
            raise MetadataUnavailable(name, f"a lookup timed out a moment ago: {self._silence()}")

    def _silence(self) -> str:
        return "; ".join(self._ledger.recent(60.0)[:3]) or "the sources do not answer"

    def waiting(self) -> list[str]:
        """The names that are being looked up now."""
        return list(self._waits)

    async def stop(self) -> None:
        """Let every lookup go, and return when nobody waits."""
        self._stopping = True
        for name in list(self._waits):
            self._waits.pop(name).set()
        if self._lookups:
            await self._drained.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work for ever."""
        workers = self._settings.metadata_concurrency
        limits = httpx.Limits(max_connections=_HTTP_CONNECTIONS)
        timeout = httpx.Timeout(min(_HOST_TIMEOUT, self._settings.metadata_timeout), pool=None)
        async with httpx.AsyncClient(limits=limits, timeout=timeout, follow_redirects=True) as client:
            self._hosts = [WebMetadata(seed, client, self._ledger) for seed in self._seeds]
            async with trio.open_nursery() as nursery:
                for index in range(workers + _LOOKUP_WORKERS):
                    nursery.start_soon(self._worker, index < _LOOKUP_WORKERS)
                task_status.started()

    async def _worker(self, lookups_only: bool) -> None:
        while True:
            name = self._next(lookups_only)
            if name is not None:
                await self._settle(name)
                await trio.lowlevel.checkpoint()  # a search that asks nobody, all being left alone, had none
            else:
                with trio.move_on_at(float("inf") if lookups_only else self._wake_at()):
                    await self._work.park()

    def _wake_at(self) -> float:
        if self._background:
            return trio.current_time() + self._rest()
        return max(self._retries[0][0], trio.current_time() + self._rest()) if self._retries else float("inf")

    def _rest(self) -> float:
        """Seconds until any source may be asked: names that can wait aren't spent on sources that are left alone."""
        if self._directory is not None:
            return 0.0
        breakers = [host.breaker for host in self._hosts]
        breakers += [self._peer_breaker] if self._peers.has_peers else []
        return min((breaker.pause() for breaker in breakers), default=0.0)

    def _next(self, lookups_only: bool) -> str | None:
        if self._urgent:
            return self._urgent.popleft()
        if lookups_only or self._rest():
            return None
        while self._retries and self._retries[0][0] <= trio.current_time():
            when, name = heapq.heappop(self._retries)
            failure = self._failures.get(name)
            if failure is not None and failure.retry_at == when:  # else it was tried since, and has a later turn
                return name
        return self._background.popleft() if self._background else None

    async def _settle(self, name: str) -> None:
        """Find one name's metadata, or remember why it can't be found; wake who waits either way."""
        content = self._contents.get(name)
        if content is None or name in self._active:
            return
        self._active.add(name)
        thorough = self._last_resort is None or name in self._waits
        try:
            self._accept(name, await self._search(name, content, thorough))
        except CachefsError as error:
            if self._contents.get(name) == content:
                reason = error.reason if isinstance(error, MetadataUnavailable) else str(error)
                self._remember(name, reason, thorough)
        except Exception as error:
            log.exception("%s: looking for its metadata", name)
            self._remember(name, str(Fault(error)), thorough)
        finally:
            self._active.discard(name)
        if self._contents.get(name, content) != content:  # the name stands for something else since
            await self._settle(name)
            return
        if not thorough and name in self._waits and name in self._contents:  # somebody came to ask meanwhile
            self._urgent.append(name)
            self._work.unpark_all()
            return
        wait = self._waits.pop(name, None)
        if wait is not None:
            wait.set()

    def _accept(self, name: str, metainfo: Metainfo) -> None:
        self._found(metainfo)
        if self._contents.get(name) == metainfo.content:
            del self._contents[name]
            self._failures.pop(name, None)
        self._hopeless_until = float("-inf")
        self._arrived_at = trio.current_time()

    def _remember(self, name: str, reason: str, thorough: bool) -> None:
        before = self._failures.pop(name, None)  # the latest failure stands last
        times = before.times + 1 if before else 1
        now = trio.current_time()
        pause = max(self._settings.failure_memory, 1.0) * 2.0 ** min(times, 16)
        retry_at = now + min(pause, _LONGEST_RETRY)
        self._failures[name] = _Failure(reason, now + self._settings.failure_memory, times, retry_at, thorough)
        heapq.heappush(self._retries, (retry_at, name))
        self._work.unpark_all()  # they sleep until the retry that was the first before

    async def _search(self, name: str, content: ContentId, thorough: bool) -> Metainfo:
        """The first source's right answer, or MetadataUnavailable with what each of them said."""
        said: list[str] = []
        searches = [self._from_directory] if self._directory else []
        from_web = [partial(host.fetch, urgent=name in self._waits) for host in self._hosts]
        searches += from_web
        searches += [self._last_resort.torrent] if self._last_resort else []
        searches += [self._from_peers] if self._peers.has_peers else []
        # At the price of the whole file: only for somebody who asks for this name.
        searches += [self._last_resort.rebuild] if self._last_resort and thorough else []
        for search in searches:
            try:
                metainfo = await search(name, content)
                if search in from_web:
                    self._from_web.add(content)
                return metainfo
            except MetadataUnavailable as error:
                said.append(error.reason)
            except (MetainfoError, ContentMismatch) as error:
                log.warning("%s: metadata refused: %s", name, error)
                said.append(str(error))
        raise MetadataUnavailable(name, "; ".join(said))

    async def _from_directory(self, name: str, content: ContentId) -> Metainfo:
        assert self._directory is not None
        path = self._directory / f"{name}.torrent"
        try:
            metainfo = parse(await trio.Path(path).read_bytes())
        except OSError as error:
            raise MetadataUnavailable(name, f"{path}: {error.strerror}") from error
        if metainfo.content != content:
            raise ContentMismatch(content, metainfo.content, str(path))
        return metainfo

    async def _from_peers(self, name: str, content: ContentId) -> Metainfo:
        if self._peer_breaker.pause():
            raise MetadataUnavailable(name, f"peers: left alone for now: {self._peer_breaker.reason}")
        timeout = self._settings.metadata_timeout * _PEERS_SHARE
        with trio.move_on_after(timeout):
            metainfo = parse(await self._peers.metainfo(content, name))
            self._peer_breaker.succeeded()
            return metainfo
        reason = f"no peer sent its info dictionary within {timeout:g} s"
        self._peer_breaker.failed(reason)
        raise MetadataUnavailable(name, f"peers: {reason}")
