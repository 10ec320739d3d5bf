"""What the tests of the limit share: a cache over a real store that has a limit, and many small contents.

Allocated bytes are those of the test's own file system, so the figures are real; time is virtual, and passes only
when a test says so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
import trio.testing

from cachefs.config import Read
from cachefs.content import ContentId
from cachefs.flow import Reader
from cachefs.store import ObjectStore, State, room, space
from cachefs.store.eviction import Bounds, Limits
from tests.cache_kit import DEADLINE, Bench
from tests.fakes import Content, FakeDownload, content

BLOCK = 2**18
FILES = [
    content(number, 4 * BLOCK, BLOCK, name=f"v1-{number:06}-{number + 1:06}-bodies.seg") for number in range(20, 32)
]
"""A dozen files of four blocks each."""

METADATA = 2**17
"""Half a block, and more than directories and manifests of these tests take."""


class RoomBench(Bench):
    """A running cache and the room of its store; `seconds` is the wall clock that uses are recorded by."""

    def __init__(
        self, store: ObjectStore, state: State, clock: trio.testing.MockClock, nursery: trio.Nursery, limits: Limits
    ) -> None:
        self.state = state
        self.catalogues: dict[ContentId, str] = {}
        self.disk = 2**40
        self.room = room.Room(
            store,
            state,
            limits,
            catalogue_of=lambda content: self.catalogues.get(content, ""),
            clock=trio.current_time,
            disk_free=lambda: self.disk,
        )
        super().__init__(store, clock, nursery, Read(deadline=DEADLINE), self.room, FILES)

    async def open(self, item: Content = FILES[0]) -> Reader:
        return await self.cache.open(item.item)

    async def read(self, reader: Reader, offset: int, size: int) -> None:
        done = len(self.outcomes)
        self.nursery.start_soon(super().read, reader, offset, size)
        await self.until(lambda: len(self.outcomes) > done)

    async def start_read(self, reader: Reader, offset: int, size: int) -> None:
        self.nursery.start_soon(super().read, reader, offset, size)
        await self.settled()

    async def fill(self, item: Content, *, blocks: int | None = None) -> None:
        """Have the first `blocks` of a file, or all, read and landed, and the file closed, a second after another."""
        self.clock.jump(1)
        reader = await self.open(item)
        for index in range(item.blocks if blocks is None else blocks):
            await self.have(reader, index)
        await self.shut(reader)

    async def have(self, reader: Reader, index: int) -> None:
        """Have one block read and landed."""
        await self.start_read(reader, index * BLOCK, 10)
        if index in reader.flow.stored.verified:
            return
        await self.granted(reader, index)
        self.download(reader).land(index)
        await self.settled()

    async def granted(self, reader: Reader, index: int) -> None:
        """Return when a block is demanded of the fetcher: room may have to be made first."""
        await self.until(lambda: index in self.download(reader).urgent)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when it holds; virtual time passes meanwhile, a minute at most."""
        with trio.fail_after(DEADLINE):
            while not condition():
                await trio.to_thread.run_sync(lambda: None)
                await self.settled()
                self.clock.jump(0.001)

    def download(self, reader: Reader) -> FakeDownload:
        return next(d for d in reversed(self.fetcher.jobs) if d.job.item == reader.flow.item)

    async def shut(self, reader: Reader) -> None:
        """Close the file, and let the fetcher let go of it."""
        self.cache.close(reader)
        if reader.flow.download is not None:
            self.download(reader).end()
        await reader.flow.closed.wait()

    def taken(self) -> int:
        """The bytes on disk of all data files."""
        return sum(map(space.taken, self.store.root.glob("*/??/*/data")))

    def held(self, *items: Content) -> list[bool]:
        """Which of these the store has anything of."""
        return [space.taken(self.path(item)) > 0 for item in items]

    def path(self, item: Content) -> Path:
        """Where the store keeps the bytes."""
        return self.store.root / "btih" / item.info.content.hex[:2] / item.info.content.hex / "data"


def run(root: Path, scenario: Callable[[RoomBench], Awaitable[None]], limits: Limits) -> None:
    """Run `scenario` on a store in `root` that has limits."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            made = RoomBench(store, state, clock, nursery, limits)
            await nursery.start(made.cache.run)
            await nursery.start(made.room.run, made.cache)
            await scenario(made)
            nursery.cancel_scope.cancel()
        await store.aclose()

    clock = trio.testing.MockClock()
    root.mkdir(parents=True, exist_ok=True)
    state = State.open(root / "state.db")
    store = ObjectStore(root / "store", state, clock=trio.current_time)
    try:
        trio.run(main, clock=clock)
    finally:
        state.close()


def limit(blocks: int) -> Limits:
    """A limit of so many blocks of data, metadata apart."""
    return Limits(Bounds(size=blocks * BLOCK + METADATA))
