"""Fetching whole files ahead of any reader, and telling how far it is.

How it works: some files at a time are opened as a reader opens them, and of each so many missing blocks are
waited for, patiently: they are fetched behind what real readers wait for. A landed block is followed by the next
missing one. While it lasts, none of the files is evicted, so that the later ones don't push out the earlier; what the
limit has no room for ends with that reason. A file of which nothing comes for as long as a reader would wait is given
up, and told; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import trio

from cachefs.cache import Cache
from cachefs.catalog.tree import File
from cachefs.content import ContentId
from cachefs.errors import CachefsError
from cachefs.flow import Reader
from cachefs.layout import label
from cachefs.shelf import Shelf
from cachefs.store.evictor import Evictor

FILES_AT_A_TIME = 4
BLOCKS_AT_A_TIME = 64
"""Of each file; as many as are read ahead of a reader by default."""

_TELL_EVERY = 0.25


@dataclass(slots=True)
class Part:
    """One file being fetched: its length and what is here of it, in bytes."""

    name: str
    length: int
    have: int


@dataclass(slots=True)
class Progress:
    """How far it is: bytes here and to be here as far as known, files, those at work, and what failed, and why."""

    files: int
    done: int = 0
    have: int = 0
    length: int = 0
    fetched: int = 0
    active: list[Part] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class Prefetcher:
    """Fetches whole files."""

    def __init__(self, cache: Cache, evictor: Evictor, shelves: Mapping[str, Shelf]) -> None:
        self._cache = cache
        self._evictor = evictor
        self._shelves = shelves

    async def fetch(self, files: Iterable[File], tell: Callable[[Any], None]) -> Mapping[str, Any]:
        """Fetch all of these; what came of it, as plain data. What fails is in there and raises nothing."""
        work: dict[ContentId, File] = {file.content: file for file in files}
        lengths = [self._shelves[file.catalogue].length(file) for file in work.values()]
        progress = Progress(len(work), length=sum(length or 0 for length in lengths))
        queue = iter(work.values())

        async def worker() -> None:
            for file in queue:
                await self._file(file, progress)

        with self._evictor.keeping(work):
            async with trio.open_nursery() as telling:
                telling.start_soon(_tell, progress, tell)
                async with trio.open_nursery() as nursery:
                    for _ in range(FILES_AT_A_TIME):
                        nursery.start_soon(worker)
                telling.cancel_scope.cancel()
        return asdict(progress)

    async def _file(self, file: File, progress: Progress) -> None:
        shelf, name = self._shelves[file.catalogue], label(file.catalogue, file.path)
        known = shelf.length(file)
        try:
            reader = await self._cache.open(await shelf.item(file))
        except CachefsError as error:
            progress.failed[name] = str(error)
            return
        stored = reader.flow.stored
        part = Part(name, stored.manifest.length, stored.held)
        progress.active.append(part)
        progress.length += 0 if known else part.length
        progress.have += part.have
        try:
            await self._blocks(reader, part, progress)
            await self._cache.complete(reader)
            progress.done += 1
        except CachefsError as error:
            progress.failed[name] = str(error)
        finally:
            progress.active.remove(part)
            self._cache.close(reader)

    async def _blocks(self, reader: Reader, part: Part, progress: Progress) -> None:
        """Return when every block is here; raise what kept the first from coming that can't be had."""
        stored = reader.flow.stored
        queue = iter(stored.verified.missing(range(stored.manifest.blocks)))
        errors: list[CachefsError] = []

        async def lane() -> None:
            try:
                for index in queue:
                    await self._cache.fetch(reader, index)
                    size = stored.manifest.span(index).length
                    part.have += size
                    progress.have += size
                    progress.fetched += size
            except CachefsError as error:
                errors.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(min(BLOCKS_AT_A_TIME, stored.manifest.blocks)):
                nursery.start_soon(lane)
        if errors:
            raise errors[0]


async def _tell(progress: Progress, tell: Callable[[Any], None]) -> None:
    while True:
        tell(asdict(progress))
        await trio.sleep(_TELL_EVERY)
