"""What the mount asks a catalogue about its files: length, age, and the item to open.

How it works: the tree knows names and content ids; how long a file is and what its bytes are made of is
known in another way for each catalogue. Snapshots have manifests that are found on demand, and finding one
may take a while. A shelf hides that difference from the mount's operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cachefs.catalog.tree import File
from cachefs.fetch.base import Item
from cachefs.manifests import Finder, Manifests
from cachefs.store.state import State


class Shelf(Protocol):
    """One catalogue's files."""

    def length(self, file: File) -> int | None:
        """Its length in bytes; None if that isn't known yet. Never waits."""

    async def require_length(self, file: File) -> int:
        """Its length in bytes, waited for; MetadataUnavailable."""

    async def item(self, file: File) -> Item:
        """What to open for reading it; MetadataUnavailable."""

    def mtime(self, file: File) -> float:
        """When it last changed, in Unix seconds; the same whenever it is asked."""

    def trouble(self, file: File) -> str:
        """Why it can't be opened just now, in words for the user; empty if nothing is known to be wrong."""

    def total(self) -> int:
        """The bytes of all files whose length is known."""


class SnapshotShelf:
    """The snapshots: metadata is in the store, or `finder` finds it."""

    def __init__(self, manifests: Manifests, finder: Finder, mtime: Callable[[File], float]) -> None:
        self._manifests = manifests
        self._finder = finder
        self.mtime = mtime

    def length(self, file: File) -> int | None:
        return self._manifests.length(file.content)

    async def require_length(self, file: File) -> int:
        return await self._manifests.require_length(file.path, self._finder)

    async def item(self, file: File) -> Item:
        info = await self._manifests.metainfo(file.path, self._finder)
        return Item(file.path, info.manifest, info, catalogue=file.catalogue)

    def trouble(self, file: File) -> str:
        return "" if self.length(file) is not None else self._finder.failure(file.path)

    def total(self) -> int:
        return self._manifests.total()


def mtimes(state: State) -> Callable[[File], float]:
    """When each name's content came into the lock, which is what its file's mtime shows."""
    created = {name: info.created for name, info in state.infos().items()}
    return lambda file: created[file.path]
