"""The mount's operations in small types of its own: nothing of any kernel interface is in here.

How it works: the tree says which names there are, a shelf for each catalogue how long they are, the cache reads. A
name is listed before its length is known; looking it up waits for metadata, with a deadline. Errors of the
layers below become an errno in one table at the bottom, and nowhere else. A driver translates these calls to
its kernel's and back; it holds no policy.

The tree never changes; a reload brings a new one, and `switch` puts it in place between two requests. An inode
stands for one content, so a handle goes on with the bytes it was opened for. A request that comes for an inode
of the old tree, or that waited while the trees were switched, is answered ESTALE: the kernel then looks the
name up anew and tries once more, so that the caller sees the new tree and no error.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cachefs.cache import Cache
from cachefs.callers import Caller
from cachefs.catalog.tree import Directory, File, Node, Tree
from cachefs.content import ContentId
from cachefs.errors import (
    Abandoned,
    CachefsError,
    MetadataUnavailable,
    RecordInconsistent,
    RecordMismatch,
    SourceLied,
    SourceRefused,
    SourceSilent,
    SourceTooLarge,
    StoreFull,
)
from cachefs.flow import Reader
from cachefs.shelf import Shelf


@dataclass(frozen=True, slots=True)
class Attributes:
    """What `stat` shows; `size` in bytes, None while it isn't known."""

    inode: int
    is_directory: bool
    size: int | None
    mtime: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What `statfs` shows: bytes in all files whose length is known, and how many names there are."""

    size: int
    files: int


class NoSuchEntry(CachefsError):
    """A name, inode or handle that isn't there."""


class Stale(NoSuchEntry):
    """An inode that the tree has no more, or never had: its name has to be looked up anew."""


class Filesystem:
    """What a driver calls. Handles are numbers that `open` gives out."""

    def __init__(self, tree: Tree, shelves: Mapping[str, Shelf], cache: Cache, *, born: float) -> None:
        self._tree = tree
        self._shelves = shelves
        self._cache = cache
        self._born = born
        self._readers: dict[int, Reader] = {}
        self._opened: dict[ContentId, set[int]] = {}
        self._open: dict[int, Attributes] = {}
        self._handles = itertools.count(1)

    def switch(self, tree: Tree, born: float) -> None:
        """Show another tree from now on; handles that are open go on with what they have."""
        self._tree, self._born = tree, born

    async def lookup(self, parent: int, name: str) -> Attributes:
        """An entry of a directory, with its size; NoSuchEntry, MetadataUnavailable."""
        if name in (".", ".."):
            return self._listed(self._directory(parent if name == "." else self._directory(parent).parent))
        node = self._tree.lookup(parent, name)
        if node is None:
            raise NoSuchEntry(f"{name}: no such entry")
        return await self._sized(node)

    async def attributes(self, inode: int) -> Attributes:
        """A file or directory by its inode, with its size; NoSuchEntry, MetadataUnavailable."""
        if self._tree.node(inode) is None:
            for attributes in self._open.values():
                if attributes.inode == inode:
                    return attributes
        return await self._sized(self._node(inode))

    def listing(self, inode: int, position: int) -> Iterator[tuple[str, Attributes, int]]:
        """A directory's entries from `position` on, each with the next position. Never waits."""
        for after, node in self._directory(inode).listing(position):
            yield node.name, self._listed(node), after

    def facts(self, inode: int) -> dict[str, str]:
        """What is known of a file, under the names of its extended attributes; empty for a directory."""
        node = self._node(inode)
        if not isinstance(node, File):
            return {}
        length = self._shelves[node.catalogue].length(node)
        known = self._cache.known(node.content)
        state = "unknown" if length is None else "absent"
        if length is not None and known.held:
            state = "complete" if known.held == length else "partial"
        return {
            "user.cachefs.checksum": str(node.content),
            "user.cachefs.state": state,
            "user.cachefs.progress": f"{known.held}/{'?' if length is None else length}",
            "user.cachefs.source": " ".join(known.sources),
            "user.cachefs.error": known.error or self._shelves[node.catalogue].trouble(node),
        }

    def fact(self, inode: int, name: str) -> str | None:
        """One extended attribute of a file; None if it has none of this name."""
        # The kernel asks for others too, security.capability for one, before it does anything with a file.
        return self.facts(inode).get(name) if name.startswith("user.cachefs.") else None

    async def open(self, inode: int, thread: int = 0, *, direct: bool = False) -> int:
        """A handle for reading, opened by this thread, `direct` past the kernel's page cache.

        NoSuchEntry, MetadataUnavailable, StoreFull, StoreFailed.
        """
        node = self._node(inode)
        if not isinstance(node, File):
            raise NoSuchEntry(f"inode {inode} is not a file")
        with self._unless_switched(node):
            item = await self._shelves[node.catalogue].item(node)
        attributes = self._listed(node)
        reader = await self._cache.open(item, Caller(thread, direct=direct))
        if item.fails_early:
            await self._cache.begin(reader)
        handle = next(self._handles)
        self._readers[handle], self._open[handle] = reader, attributes
        self._opened.setdefault(node.content, set()).add(inode)
        return handle

    def inodes(self, content: ContentId) -> frozenset[int]:
        """The inodes under which this content was ever opened: where the kernel may have pages of it."""
        return frozenset(self._opened.get(content, ()))

    def read_now(self, handle: int, offset: int, size: int) -> memoryview | None:
        """Bytes that are in memory, valid until the next await; None if `read` has to be used. NobodyAsked.

        To be called for each request, in the order in which they come.
        """
        return self._cache.read_now(self._reader(handle), offset, size)

    async def read(self, handle: int, offset: int, size: int, thread: int = 0) -> bytes | memoryview:
        """The bytes at `offset`: fewer than `size` only at the end of the file. Unavailable at the deadline.

        Abandoned if `thread`, which reads, is killed, or whoever opened the file. A view is valid until the next await.
        """
        return await self._cache.read(self._reader(handle), offset, size, thread)

    def descriptor(self, handle: int) -> int | None:
        """A descriptor of a file on disk that has all of an open file, checked, and stays; None if there is none."""
        return self._reader(handle).flow.stored.descriptor

    async def complete(self, handle: int) -> None:
        """Return when everything of an open file is here and durable. Unavailable, StoreFull, StoreFailed."""
        await self._cache.complete(self._reader(handle))

    def flushed(self, handle: int) -> None:
        """A descriptor was closed; `close` follows when it was the last one and nothing is read for it any more."""
        reader = self._readers.get(handle)
        if reader is not None:
            reader.flushed()

    def close(self, handle: int) -> None:
        reader = self._readers.pop(handle, None)
        self._open.pop(handle, None)
        if reader is not None:
            self._cache.close(reader)

    def usage(self) -> Usage:
        return Usage(sum(shelf.total() for shelf in self._shelves.values()), len(self._tree))

    def outdated(self) -> int:
        """How many handles are open of files that the tree has no more."""
        # Of a copy: a worker thread asks, too.
        return sum(self._tree.node(attributes.inode) is None for attributes in tuple(self._open.values()))

    def _node(self, inode: int) -> Node:
        node = self._tree.node(inode)
        if node is None:
            raise Stale(f"inode {inode}: no such entry")
        return node

    def _directory(self, inode: int) -> Directory:
        node = self._tree.node(inode)
        if not isinstance(node, Directory):
            raise NoSuchEntry(f"inode {inode} is not a directory")
        return node

    def _reader(self, handle: int) -> Reader:
        reader = self._readers.get(handle)
        if reader is None:
            raise NoSuchEntry(f"handle {handle} is not open")
        return reader

    def _listed(self, node: Node) -> Attributes:
        if isinstance(node, Directory):
            return Attributes(node.inode, True, 0, self._born)
        shelf = self._shelves[node.catalogue]
        return Attributes(node.inode, False, shelf.length(node), shelf.mtime(node))

    async def _sized(self, node: Node) -> Attributes:
        if isinstance(node, File):
            shelf = self._shelves[node.catalogue]
            if shelf.length(node) is None:
                with self._unless_switched(node):
                    await shelf.require_length(node)
        return self._listed(node)

    @contextlib.contextmanager
    def _unless_switched(self, node: Node) -> Iterator[None]:
        """Raise Stale if the tree has this node no more after what is waited for inside, whatever came of that."""
        gone = Stale(f"{node.name}: the lock has changed meanwhile")
        try:
            yield
        except MetadataUnavailable:
            if self._tree.node(node.inode) is None:
                raise gone from None
            raise
        if self._tree.node(node.inode) is None:
            raise gone


ERRNO: dict[type[CachefsError], int] = {
    NoSuchEntry: errno.ENOENT,
    Stale: errno.ESTALE,
    SourceRefused: errno.EACCES,
    SourceSilent: errno.ETIMEDOUT,
    SourceTooLarge: errno.EFBIG,
    SourceLied: errno.EBADMSG,
    RecordMismatch: errno.EBADMSG,
    RecordInconsistent: errno.EBADMSG,
    Abandoned: errno.EINTR,
    StoreFull: errno.ENOSPC,
}
"""The only place where an error becomes an errno. What isn't listed is EIO."""


def errno_of(error: CachefsError) -> int:
    """The errno a caller gets for `error`."""
    return ERRNO.get(type(error), errno.EIO)
