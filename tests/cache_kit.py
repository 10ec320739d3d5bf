"""What the tests of the cache share: a running cache over the real store, with a fetcher that does what it is told.

Time is virtual and jumps whenever nothing runs, so it stands still while an object is opened: that is done in
threads, under a deadline.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio
import trio.testing

from cachefs.cache import Cache
from cachefs.callers import Caller
from cachefs.config import Read
from cachefs.errors import CachefsError
from cachefs.fetch.base import Item
from cachefs.flow import Reader
from cachefs.store import ObjectStore
from cachefs.store.room import Room
from tests.fakes import BLOCK, Content, FakeFetcher, content, store_at, until

DEADLINE = 60.0
FILE = content(1, 10 * BLOCK + 1000)
OTHER = content(2, 3 * BLOCK, name="domain/v1-accounts.0-64.kv")


class Bench:
    """A running cache over a real store and a fake fetcher."""

    def __init__(
        self,
        store: ObjectStore,
        clock: trio.testing.MockClock,
        nursery: trio.Nursery,
        limits: Read,
        room: Room | None = None,
        contents: Iterable[Content] = (FILE, OTHER),
    ) -> None:
        self.store = store
        self.clock = clock
        self.nursery = nursery
        self.contents = {item.info.content: item for item in contents}
        self.fetcher = FakeFetcher(*self.contents.values())
        self.cache = Cache(store, self.fetcher, limits, lambda: "http://host/: refused", room)
        self.outcomes: list[bytes | CachefsError] = []

    async def open(self, item: Content = FILE) -> Reader:
        return await self._open(item.item, Caller())

    async def open_record(self) -> Reader:
        """Open FILE as records are opened, by who reads past the page cache: none of its reads is a guess."""
        return await self._open(replace(FILE.item, frugal=True), Caller(direct=True))

    async def _open(self, item: Item, caller: Caller) -> Reader:
        self.clock.autojump_threshold = float("inf")
        reader = await self.cache.open(item, caller)
        self.clock.autojump_threshold = 0
        return reader

    async def read(self, reader: Reader, offset: int, size: int) -> None:
        """Read as a driver does, and note what came of it."""
        try:
            ready = self.cache.read_now(reader, offset, size)
            data = bytes(ready if ready is not None else await self.cache.read(reader, offset, size))
        except CachefsError as error:
            self.outcomes.append(error)
        else:
            assert data == self.contents[reader.flow.item.content].data[offset : offset + size]
            self.outcomes.append(data)

    async def read_for(self, thread: int, reader: Reader, offset: int, size: int) -> None:
        """The same of a read for which the driver was told the thread, and which waits."""
        try:
            self.outcomes.append(bytes(await self.cache.read(reader, offset, size, thread)))
        except CachefsError as error:
            self.outcomes.append(error)

    async def start_read(self, reader: Reader, offset: int, size: int) -> None:
        """Read in the background, and return when that read waits."""
        self.nursery.start_soon(self.read, reader, offset, size)
        await self.settled()

    async def settled(self) -> None:
        await trio.testing.wait_all_tasks_blocked()

    async def until_closed(self) -> None:
        """Return when the store has closed every object."""
        await until(lambda: not self.store.opened())

    @property
    def error(self) -> CachefsError:
        """The only outcome, which is an error."""
        (outcome,) = self.outcomes
        assert isinstance(outcome, CachefsError)
        return outcome


def bytes_of(reader: Reader) -> bytes:
    return next(item.data for item in (FILE, OTHER) if item.info.content == reader.flow.item.content)


def run(
    root: Path,
    scenario: Callable[[Bench], Awaitable[None]],
    limits: Read | None = None,
    contents: Iterable[Content] = (FILE, OTHER),
) -> None:
    """Run `scenario` on a bench in `root`."""

    async def main() -> None:
        async with bench(store, clock, limits or Read(deadline=DEADLINE), contents) as made:
            await scenario(made)
        await store.aclose()

    clock = trio.testing.MockClock(autojump_threshold=0)
    with store_at(root) as store:
        trio.run(main, clock=clock)


@asynccontextmanager
async def bench(
    store: ObjectStore, clock: trio.testing.MockClock, limits: Read, contents: Iterable[Content] = (FILE, OTHER)
) -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        made = Bench(store, clock, nursery, limits, contents=contents)
        await nursery.start(made.cache.run)
        yield made
        nursery.cancel_scope.cancel()
