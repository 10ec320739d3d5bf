"""Fetching a record because somebody picked it up: it will be wanted whole, and before anybody reads it here."""

from __future__ import annotations

from collections.abc import Callable

from cachefs.catalog.tree import File, Tree
from cachefs.errors import CachefsError, MetadataUnavailable
from cachefs.prefetch import Prefetcher


class PickUp:
    """Fetches files of one catalogue by name; `tree` gives the tree that is shown now."""

    def __init__(self, catalogue: str, prefetcher: Prefetcher, tree: Callable[[], Tree]) -> None:
        self._catalogue = catalogue
        self._prefetcher = prefetcher
        self._tree = tree

    async def fetch(self, name: str) -> None:
        """Return when all of it is here, behind what readers wait for; CachefsError when that can't be."""
        file = self._tree().find(self._catalogue, name)
        if not isinstance(file, File):
            raise MetadataUnavailable(name, f"{self._catalogue}/ shows no such file")
        result = await self._prefetcher.fetch([file], lambda _: None)
        for what, why in result["failed"].items():
            raise CachefsError(f"{what}: {why}")
