"""Fetching a record because somebody picked it up: it will be wanted whole, from its beginning on.

How it works: the record is read as a player would, in order, a block at a time, so that the readahead window opens and
what is fetched ahead stands behind what somebody waits for. Bytes are looked at by nobody. One that can't be had
block by block is downloaded whole by its shelf, as it would be for a reader.
"""

from __future__ import annotations

from collections.abc import Callable

from cachefs.cache import Cache
from cachefs.catalog.tree import File, Tree
from cachefs.errors import MetadataUnavailable
from cachefs.shelf import Shelf


class PickUp:
    """Fetches files of one catalogue by name; `tree` gives the tree that is shown now."""

    def __init__(self, catalogue: str, shelf: Shelf, cache: Cache, tree: Callable[[], Tree]) -> None:
        self._catalogue = catalogue
        self._shelf = shelf
        self._cache = cache
        self._tree = tree

    async def fetch(self, name: str) -> None:
        """Return when all of it is here; MetadataUnavailable for a name that isn't shown, Unavailable, StoreFull."""
        file = self._tree().find(self._catalogue, name)
        if not isinstance(file, File):
            raise MetadataUnavailable(name, f"{self._catalogue}/ shows no such file")
        item = await self._shelf.item(file)
        reader = await self._cache.open(item)
        try:
            for index in range(item.manifest.blocks):
                if reader.flow.stored.complete:
                    break
                span = item.manifest.span(index)
                if self._cache.read_now(reader, span.offset, span.length) is None:
                    await self._cache.read(reader, span.offset, 1)
        finally:
            self._cache.close(reader)
