"""Room for downloads on their way in: asked for before the bytes come, and given back when they are kept or gone.

How it works: the files of one download, one for each source that is tried, share what is held for them: they are tried
one after the other, and at the end one of them is kept. How much that is becomes known when the first source has told
the length, or grows with what came. Who gives room is the mount, which evicts for it, be it in this process or
another; where nothing is limited, or nobody keeps to the limits, there is always some.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from cachefs.content import ContentId
from cachefs.layout import RECORDS
from cachefs.records.incoming import Incoming
from cachefs.store.claims import Hold


class Room(Protocol):
    """Who has room to give: a mount's `cachefs.store.room.Room` is one."""

    def holding(self, size: int, catalogue: str = "") -> AbstractAsyncContextManager[Hold]:
        """Room for so many bytes, once it is made, until the end. StoreFull."""

    def came(self, content: ContentId) -> None:
        """All of this is in the store now, where it counts; what was held for it has ended."""


class Boundless:
    """Room without end."""

    @asynccontextmanager
    async def holding(self, size: int, catalogue: str = "") -> AsyncIterator[Hold]:
        yield Hold()

    def came(self, content: ContentId) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Arriving:
    """Where a download's bytes go: `make_file` makes an empty file, `cover` has room for so many bytes in all.

    `came` is to be called when they are in the store.
    """

    make_file: Callable[[], Path]
    cover: Callable[[int], Awaitable[None]]
    came: Callable[[ContentId], None]


@asynccontextmanager
async def arriving(incoming: Incoming, room: Room) -> AsyncIterator[Arriving]:
    """A download's place, whose files and room end with it."""
    async with AsyncExitStack() as held:
        covered = 0
        holds: list[Hold] = []
        one_at_a_time = trio.Lock()

        async def cover(size: int) -> None:
            nonlocal covered
            async with one_at_a_time:
                if size > covered:
                    holds.append(await held.enter_async_context(room.holding(size - covered, RECORDS)))
                    covered = size

        def came(content: ContentId) -> None:
            # Both at once: counted twice, it would push something out, maybe itself.
            for hold in holds:
                hold.end()
            room.came(content)

        with incoming.files() as files:
            yield Arriving(files.make_file, cover, came)
