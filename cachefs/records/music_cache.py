"""The record cache for a program: a request by URL, a request by URL and checksum, a checksum or an error.

How it works: a request by URL always downloads, because a URL says nothing about bytes. A request with a
checksum looks into the store first, and downloads only what isn't there; what comes and has another checksum
is never kept. Both download to a temporary file, which becomes the store's object by a rename once it has been
hashed. Who asks for the same at the same time, in this process or another, gets the one download's result.

It works beside a mount on the same data directory, and without one. Of what failed, the reason is remembered for
a while that grows with each failure: asking again within it fails at once, with the same words.

    async with MusicCache.open(Path("data")) as cache:
        checksum = await cache.request_by_url("https://example.org/song.flac")
        await cache.request_by_url_and_checksum("https://example.org/song.flac", checksum)
        print(cache.path(checksum))
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from cachefs.catalog import records
from cachefs.catalog.records import LOCK_NAME, SIDECARS, Pieces, Record
from cachefs.config import Rclone
from cachefs.config import Records as Settings
from cachefs.content import ContentId
from cachefs.errors import CachefsError, Fault, UrlFailed
from cachefs.fetch.health import Breaker
from cachefs.fetch.http.client import Rules, WebClient
from cachefs.fetch.whole.downloads import Downloader
from cachefs.fetch.whole.providers import HttpProvider, LocalProvider, Provider
from cachefs.fetch.whole.rclone_provider import RcloneProvider
from cachefs.fetch.whole.receiver import Expected, Fetched, Progress
from cachefs.fetch.whole.strategies import STRATEGIES, patient
from cachefs.layout import STATE, STORE
from cachefs.records.arriving import Arriving, Boundless, Room, arriving
from cachefs.records.incoming import Flight, Incoming
from cachefs.records.pieces import PieceLists, list_pieces, whole
from cachefs.store.state import State
from cachefs.store.vault import Vault

log = logging.getLogger(__name__)


@dataclass
class Play:
    """A record that is being made ready. `error` says why it can't be, once `ended` is set."""

    record: Record
    ended: trio.Event = field(default_factory=trio.Event)
    error: CachefsError | None = None

    async def wait(self) -> None:
        """Return when the content is in the store; raises what kept it from getting there."""
        await self.ended.wait()
        if self.error is not None:
            raise self.error


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of a download: its piece list, and whether it was moved into the store (it was new there)."""

    pieces: Pieces
    moved: bool


class MusicCache:
    """A data directory's records. `open` makes one; use it in the event loop it was opened in."""

    def __init__(
        self, data_dir: Path, settings: Settings, state: State, web: WebClient, providers: Sequence[Provider]
    ) -> None:
        self.data_dir = data_dir
        self.settings = settings
        self.web = web
        self.lock_path = data_dir / LOCK_NAME
        self.vault = Vault(data_dir / STORE, state)
        self.pieces = PieceLists(data_dir / SIDECARS, self.vault)
        self.incoming = Incoming(data_dir / "incoming")
        self.room: Room = Boundless()
        self._downloader = Downloader(providers, patient(STRATEGIES[settings.strategy], settings.stall_timeout))
        self._breakers: dict[str, Breaker] = {}
        self._errors: dict[str, UrlFailed] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        data_dir: Path,
        settings: Settings | None = None,
        *,
        rclone: Rclone | None = None,
        state: State | None = None,
        more_providers: Sequence[Provider] = (),
    ) -> AsyncIterator[MusicCache]:
        """A cache on `data_dir`, made if need be; `more_providers` are asked before those that come with it.

        `state` is the store's, for a process that has it open already. StoreFailed.
        """
        async with AsyncExitStack() as stack:
            if state is None:
                state = State.open(data_dir / STATE)
                stack.callback(state.close)
            settings = settings or Settings()
            web = await stack.enter_async_context(WebClient(_rules(settings)))
            cache = cls(data_dir, settings, state, web, [*more_providers, *_providers(settings, web, rclone)])
            await trio.to_thread.run_sync(cache.incoming.clear)
            yield cache

    def add_provider(self, provider: Provider) -> None:
        """Ask this one before the others from now on."""
        self._downloader.add(provider)

    # The two requests

    async def request_by_url(self, url: str, *, mirrors: Sequence[str] = ()) -> ContentId:
        """Download `url` into the store, whatever is there; the content's checksum.

        UrlFailed and its kinds, StoreFull, StoreFailed.
        """
        async with self.incoming.flight(f"url {url}") as flight:
            other = shared(flight, url)
            if other is not None and self.path(other) is not None:
                return other
            async with self.arriving() as files:
                fetched = await self.noted(flight, self.download((url, *mirrors), Expected(), files))
                await self.keep(fetched, files)
                flight.note(landed=fetched.content)
            return fetched.content

    async def request_by_url_and_checksum(
        self,
        url: str,
        checksum: ContentId | str,
        *,
        size: int | None = None,
        mirrors: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> ContentId:
        """Have the content with this SHA-256 in the store, from `url` if it isn't there yet; its checksum.

        RecordMismatch if the URL gives other bytes, which are not kept; UrlFailed, StoreFull, StoreFailed.
        """
        content = _content(checksum)
        if await self.has(content, size):
            return content
        async with self.incoming.flight(str(content)) as flight:
            if flight.shared and flight.failed and str(content) in self._errors:  # it was in this process
                raise self._errors[str(content)]
            shared(flight, url)
            if await self.has(content, size):
                return content
            async with self.arriving() as files:
                expected = Expected(content, size)
                fetching = self._remembered((url, *mirrors), expected, files, progress)
                await self.keep(await self.noted(flight, fetching), files)
                flight.note(landed=content)
        return content

    async def request(self, record: Record, progress: Progress | None = None) -> ContentId:
        """Have a record's content in the store. As above; CachefsError for one that was never fetched."""
        if record.content is None:
            raise CachefsError(f"{record.name}: no checksum is known yet; etch it: cachefs etch --again {record.url}")
        mirrors = (*record.mirrors, *_magnet(record))
        return await self.request_by_url_and_checksum(
            record.url, record.content, size=record.size, mirrors=mirrors, progress=progress
        )

    def play(self, record: Record, nursery: trio.Nursery) -> Play:
        """Begin to have a record's content in the store, in `nursery`, and return at once."""
        play = Play(record)
        nursery.start_soon(self._play, play)
        return play

    async def _play(self, play: Play) -> None:
        try:
            await self.request(play.record)
        except CachefsError as error:
            play.error = error
        except Exception as error:  # a fault of ours costs a record, not the mount
            log.exception("%s: fetching it whole", play.record.name)
            play.error = Fault(error)
        play.ended.set()

    # What is here

    def path(self, checksum: ContentId | str) -> Path | None:
        """Where the content's file is, if all of it is here and sealed. Read it; never write to it."""
        content = _content(checksum)
        return self.vault.path(content) if self.vault.sealed(content) is not None else None

    async def has(self, content: ContentId, size: int | None = None) -> bool:
        """Whether all of the content is in the store, recorded or, failing that, by hashing the file."""
        if self.vault.sealed(content) is not None:
            return True
        return size is not None and await self.vault.holds(self.pieces.own(content, size) or whole(content, size))

    def record(self, name: str) -> Record:
        """The record `name`; CachefsError if there is none, CatalogError if the lock can't be taken."""
        found = records.load(self.lock_path).records.get(name)
        if found is None:
            raise CachefsError(f"{name}: no such record in {self.lock_path}")
        return found

    # The way in

    async def download(
        self, urls: Sequence[str], expected: Expected, files: Arriving, progress: Progress | None = None
    ) -> Fetched:
        """The one downloader: bytes that are what is expected, in a temporary file of `files`."""
        limited = Expected(expected.content, expected.size, expected.md5, self.settings.max_size)
        return await self._downloader.download(urls, limited, files.make_file, progress, files.cover)

    def arriving(self) -> AbstractAsyncContextManager[Arriving]:
        """The place of one download, until it is kept or given up; there is room for it."""
        return arriving(self.incoming, self.room)

    async def keep(self, fetched: Fetched, files: Arriving) -> Kept:
        """Move a download into the store, unless its content is there already, with its piece list."""
        listed = await trio.to_thread.run_sync(list_pieces, fetched.path, fetched.size)
        manifest = self.pieces.save(fetched.content, fetched.size, listed)
        moved = await self.vault.admit(fetched.path, manifest)
        files.came(fetched.content)
        return Kept(listed.pieces, moved)

    async def _remembered(
        self, urls: Sequence[str], expected: Expected, files: Arriving, progress: Progress | None
    ) -> Fetched:
        """Download, unless that has just failed: then fail in the same way at once."""
        key = f"{expected.content}"
        breaker = self._breakers.setdefault(key, Breaker(tolerance=2))
        if breaker.pause():
            raise self._errors[key]
        try:
            fetched = await self.download(urls, expected, files, progress)
        except UrlFailed as error:
            breaker.failed(str(error))
            self._errors[key] = error
            raise
        del self._breakers[key]
        return fetched

    async def noted(self, flight: Flight, fetching: Awaitable[Fetched]) -> Fetched:
        """What `fetching` gives; should it fail, word of that is left for those who wait."""
        try:
            return await fetching
        except UrlFailed as error:
            flight.note(failed=str(error))
            raise


def shared(flight: Flight, url: str) -> ContentId | None:
    """What another's download of the same has just given; UrlFailed if that failed."""
    if flight.shared and flight.failed:
        raise UrlFailed(url, f"another process has just tried: {flight.failed}")
    return flight.landed if flight.shared else None


def _content(checksum: ContentId | str) -> ContentId:
    if isinstance(checksum, ContentId):
        return checksum
    try:
        return ContentId.parse(checksum if ":" in checksum else f"sha256:{checksum}")
    except ValueError:
        raise CachefsError(f"{checksum!r} is not a SHA-256 in 64 hex digits") from None


def _magnet(record: Record) -> tuple[str, ...]:
    return (f"magnet:?xt=urn:btih:{record.swarm.hex}",) if record.swarm else ()


def _rules(settings: Settings) -> Rules:
    return Rules(
        allow_http=settings.allow_http,
        allow_private=settings.allow_private,
        connect=settings.connect_timeout,
        stall=settings.stall_timeout,
    )


def _providers(settings: Settings, web: WebClient, rclone: Rclone | None) -> list[Provider]:
    return [
        HttpProvider(web),
        LocalProvider(allowed=settings.allow_file),
        RcloneProvider(settings.remote_map(), rclone, stall=settings.stall_timeout),
    ]
