"""Metadata (.torrent files) for the whole catalogue, in the background; a looked-up name first.

How it works: a bounded crew of workers takes names from two queues, the looked-up ones before the
rest; a few workers take looked-up names only, so that a silent source can't occupy all of them. Who is asked for a
name, and in which order, is for search.py.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import trio

from cachefs.content import ContentId
from cachefs.errors import CachefsError, Fault, MetadataUnavailable, Stopping
from cachefs.fetch.metadata.search import LastResort, MetadataSearch, PeerMetadata
from cachefs.fetch.metadata.web import WebMetadata
from cachefs.fetch.sources import Ledger, WebSeed
from cachefs.metainfo import Metainfo

if TYPE_CHECKING:
    from cachefs.config import Read

log = logging.getLogger(__name__)

Found = Callable[[Metainfo], None]

_LOOKUP_WORKERS = 8
_HTTP_CONNECTIONS = 40
_HOST_TIMEOUT = 5.0
_LONGEST_RETRY = 600.0
_NO_SOURCE = "no source is configured: give --webseed, --peer or --torrent-dir"
_PEERS_SHARE = 0.8  # of a lookup's time, so that its error can tell what the peers did


@dataclass(slots=True)
class _Failure:
    reason: str
    until: float
    times: int
    retry_at: float
    thorough: bool
    """Whether everything was tried: in the background the last resort isn't."""


@dataclass(slots=True)
class _Wanted:
    """A name that was looked up and isn't settled yet: it is looked for on when the last one ran out of time."""

    settled: trio.Event = field(default_factory=trio.Event)
    lookups: int = 0
    """How many wait for it."""


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
        self._seeds = tuple(web_seeds)
        self._has_last_resort = last_resort is not None
        self._search = MetadataSearch(directory, peers, last_resort, settings.metadata_timeout * _PEERS_SHARE)
        self._contents: dict[str, ContentId] = {}
        self._urgent: deque[str] = deque()
        self._background: deque[str] = deque()
        self._retries: list[tuple[float, str]] = []
        self._failures: dict[str, _Failure] = {}
        self._waits: dict[str, _Wanted] = {}
        self._active: set[str] = set()
        self._lookups = 0
        self._stopping = False
        self._told_no_source = False
        self._drained = trio.Event()
        self._work = trio.lowlevel.ParkingLot()
        self._hopeless_until = float("-inf")
        self._arrived_at = float("-inf")

    def came_from_web(self, content: ContentId) -> bool:
        """Whether a web seed told its metadata, in this run: then that web seed is known to be there."""
        return content in self._search.from_web

    @property
    def has_sources(self) -> bool:
        return bool(self._seeds) or self._search.has_others

    def want(self, names: Mapping[str, ContentId]) -> None:
        """Fetch these in the background too, in their order."""
        fresh = [name for name, content in names.items() if self._contents.get(name) != content]
        self._contents.update(names)
        for name in fresh:  # why another content could not be found says nothing about this one
            self._failures.pop(name, None)
        if self.has_sources and fresh:
            self._background.extend(fresh)
            self._work.unpark_all()
        elif fresh and not self._told_no_source:
            self._told_no_source = True
            log.warning("the sizes of %d names can't be had: %s", len(fresh), _NO_SOURCE)

    def forget(self, names: Iterable[str]) -> None:
        """These names, or what they stood for, are gone: look for their metadata no more."""
        for name in names:
            self._contents.pop(name, None)
            self._failures.pop(name, None)
            self._let_go(name)

    def report(self) -> MetadataReport:
        last = "" if self.has_sources or not self._contents else _NO_SOURCE
        last = next(reversed(self._failures.values())).reason if self._failures else last
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
        wanted = self._waits.setdefault(name, _Wanted())
        since = trio.current_time()
        self._lookups += 1
        wanted.lookups += 1
        try:
            with trio.move_on_after(self._settings.metadata_timeout):
                await wanted.settled.wait()
                return True
            return False
        finally:
            self._lookups -= 1
            wanted.lookups -= 1
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
            raise MetadataUnavailable(name, _NO_SOURCE)
        if failure is not None and now < failure.until and failure.thorough:
            raise MetadataUnavailable(name, failure.reason)
        if now < self._hopeless_until:
            raise MetadataUnavailable(name, f"a lookup timed out a moment ago: {self._silence()}")

    def _silence(self) -> str:
        return "; ".join(self._ledger.recent(60.0)[:3]) or "the sources do not answer"

    def waiting(self) -> list[str]:
        """The names that somebody waits for now; those of which everybody ran out of time are looked for, too."""
        return [name for name, wanted in self._waits.items() if wanted.lookups]

    async def stop(self) -> None:
        """Let every lookup go, and return when nobody waits."""
        self._stopping = True
        for name in list(self._waits):
            self._let_go(name)
        if self._lookups:
            await self._drained.wait()

    def _let_go(self, name: str) -> None:
        """Wake who waits for a name."""
        if (wanted := self._waits.pop(name, None)) is not None:
            wanted.settled.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work for ever."""
        workers = self._settings.metadata_concurrency
        limits = httpx.Limits(max_connections=_HTTP_CONNECTIONS)
        timeout = httpx.Timeout(min(_HOST_TIMEOUT, self._settings.metadata_timeout), pool=None)
        async with httpx.AsyncClient(limits=limits, timeout=timeout) as client:
            self._search.hosts = [WebMetadata(seed, client, self._ledger) for seed in self._seeds]
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
            return trio.current_time() + self._search.rest()
        return max(self._retries[0][0], trio.current_time() + self._search.rest()) if self._retries else float("inf")

    def _next(self, lookups_only: bool) -> str | None:
        if self._urgent:
            return self._urgent.popleft()
        if lookups_only or self._search.rest():
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
        urgent = name in self._waits
        thorough = urgent or not self._has_last_resort
        try:
            self._accept(name, await self._search.find(name, content, urgent=urgent, thorough=thorough))
        except CachefsError as error:
            if self._contents.get(name) == content:
                self._remember(name, error, thorough)
        except Exception as error:
            log.exception("%s: looking for its metadata", name)
            self._remember(name, Fault(error), thorough)
        finally:
            self._active.discard(name)
        if self._contents.get(name, content) != content:  # the name stands for something else since
            await self._settle(name)
            return
        if not thorough and name in self._waits and name in self._contents:  # somebody came to ask meanwhile
            self._urgent.append(name)
            self._work.unpark_all()
            return
        self._let_go(name)

    def _accept(self, name: str, metainfo: Metainfo) -> None:
        self._found(metainfo)
        if self._contents.get(name) == metainfo.content:
            del self._contents[name]
            self._failures.pop(name, None)
        self._hopeless_until = float("-inf")
        self._arrived_at = trio.current_time()

    def _remember(self, name: str, error: CachefsError, thorough: bool) -> None:
        reason, memory = str(error), self._settings.failure_memory
        if isinstance(error, MetadataUnavailable):
            reason = error.reason
            memory = memory if error.retry_after is None else min(memory, max(error.retry_after, 1.0))
        before = self._failures.pop(name, None)  # the latest failure stands last
        times = before.times + 1 if before else 1
        now = trio.current_time()
        retry_at = now + min(max(memory, 1.0) * 2.0 ** min(times, 16), _LONGEST_RETRY)
        self._failures[name] = _Failure(reason, now + memory, times, retry_at, thorough)
        heapq.heappush(self._retries, (retry_at, name))
        self._work.unpark_all()  # they sleep until the retry that was the first before
