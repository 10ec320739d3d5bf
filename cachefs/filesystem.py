"""The mount's operations in small types of its own: nothing of any kernel interface is in here.

How it works: the tree says which names there are, a shelf for each catalogue how long they are, the cache reads. A
name is listed and looked up before its length is known; its attributes and its open wait for metadata, with a
deadline. A look-up must not: the kernel holds the directory meanwhile, and with it whoever lists it. Errors of the
layers below become an errno in one table at the bottom, and nowhere else. A driver translates these calls to
its kernel's and back; it holds no policy.

The tree never changes; a reload brings a new one, and `switch` puts it in place between two requests. An inode
stands for one content, so a handle goes on with the bytes it was opened for, and what is open keeps its attributes. An
open directory goes on through the names that it had, as far as they are still there. A request that comes for another
inode of the old tree, or that waited while the trees were switched, is answered ESTALE: the kernel then looks the
name up anew and tries once more, so that the caller sees the new tree and no error.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cachefs.cache import Cache
from cachefs.callers import Caller
from cachefs.catalog.names import MAX_COMPONENT
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
    TooManyWaiting,
)
from cachefs.flow import Reader
from cachefs.shelf import Shelf

MOST_WAITING = 1_000
"""Requests that wait for a size at a time: each is a task of the driver's, and others must find one free."""


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


@dataclass(slots=True)
class _Opened:
    """A file that is open, `handles` times, as it was when it was opened first."""

    file: File
    attributes: Attributes
    handles: int = 0


class NoSuchEntry(CachefsError):
    """A name, inode or handle that isn't there."""


class Stale(NoSuchEntry):
    """An inode that the tree has no more, or never had: its name has to be looked up anew."""


class NameTooLong(CachefsError):
    """A name that no file can have."""


class Filesystem:
    """What a driver calls. Handles are numbers that `open` gives out."""

    def __init__(self, tree: Tree, shelves: Mapping[str, Shelf], cache: Cache, *, born: float) -> None:
        self._tree = tree
        self._shelves = shelves
        self._cache = cache
        self._born = born
        self._readers: dict[int, Reader] = {}
        self._opened: dict[ContentId, set[int]] = {}
        self._open: dict[int, _Opened] = {}
        self._inodes: dict[int, int] = {}
        self._directories: dict[int, Directory] = {}
        self._handles = itertools.count(1)
        self._waiting = 0

    def switch(self, tree: Tree, born: float) -> None:
        """Show another tree from now on; handles that are open go on with what they have."""
        self._tree, self._born = tree, born

    def lookup(self, parent: int, name: str) -> Attributes:
        """An entry of a directory, with its size if that is known; NoSuchEntry, NameTooLong. Never waits."""
        if name in (".", ".."):
            return self._listed(self._directory(parent if name == "." else self._directory(parent).parent))
        if len(os.fsencode(name)) > MAX_COMPONENT:
            raise NameTooLong(f"{name}: longer than {MAX_COMPONENT} bytes")
        node = self._tree.lookup(parent, name)
        if node is None:
            raise NoSuchEntry(f"{name}: no such entry")
        return self._listed(node)

    async def attributes(self, inode: int) -> Attributes:
        """A file or directory by its inode, with its size; Stale, MetadataUnavailable, TooManyWaiting."""
        node = self._node(inode)
        shown = self._listed(node)
        if isinstance(node, File) and shown.size is None:
            with self._patient(node):
                await self._shelves[node.catalogue].require_length(node)
            shown = self._listed(node)
        return shown

    def open_directory(self, inode: int) -> int:
        """A handle for `listing`; NoSuchEntry."""
        self._shown(inode)
        directory, handle = self._directory(inode), next(self._handles)
        self._directories[handle] = directory
        return handle

    def listing(self, handle: int, position: int) -> Iterator[tuple[str, Attributes, int]]:
        """The entries that a directory had when it was opened and has still, from `position` on, each with the next
        position. Never waits."""
        directory = self._directories.get(handle)
        if directory is None:
            raise NoSuchEntry(f"handle {handle} is not an open directory")
        for after, then in directory.listing(position):
            node = self._tree.lookup(directory.inode, then.name)
            if node is not None:
                yield node.name, self._listed(node), after

    def close_directory(self, handle: int) -> None:
        self._directories.pop(handle, None)

    def facts(self, inode: int) -> dict[str, str]:
        """What is known of a file, under the names of its extended attributes; empty for a directory."""
        node = self._node(inode)
        if not isinstance(node, File):
            return {}
        length = self._listed(node).size
        known = self._cache.known(node.content)
        state = "unknown" if length is None else "absent"
        if length is not None and known.held:
            state = "complete" if known.held == length else "partial"
        trouble = self._shelves[node.catalogue].trouble(node) if self._tree.node(inode) else ""
        return {
            "user.cachefs.checksum": str(node.content),
            "user.cachefs.state": state,
            "user.cachefs.progress": f"{known.held}/{'?' if length is None else length}",
            "user.cachefs.source": " ".join(known.sources),
            "user.cachefs.error": known.error or trouble,
        }

    def fact(self, inode: int, name: str) -> str | None:
        """One extended attribute of a file; None if it has none of this name."""
        # The kernel asks for others too, security.capability for one, before it does anything with a file.
        return self.facts(inode).get(name) if name.startswith("user.cachefs.") else None

    async def open(self, inode: int, thread: int = 0, *, direct: bool = False) -> int:
        """A handle for reading, opened by this thread, `direct` past the kernel's page cache.

        NoSuchEntry, MetadataUnavailable, TooManyWaiting, StoreFull, StoreFailed.
        """
        node = self._shown(inode)
        if not isinstance(node, File):
            raise NoSuchEntry(f"inode {inode} is not a file")
        with self._patient(node):
            item = await self._shelves[node.catalogue].item(node)
        attributes = self._listed(node)
        reader = await self._cache.open(item, Caller(thread, direct=direct))
        if item.fails_early:
            await self._cache.begin(reader)
        handle = next(self._handles)
        self._readers[handle], self._inodes[handle] = reader, inode
        self._open.setdefault(inode, _Opened(node, attributes)).handles += 1
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
        if reader is None:
            return
        inode = self._inodes.pop(handle)
        self._open[inode].handles -= 1
        if not self._open[inode].handles:
            del self._open[inode]
        self._cache.close(reader)

    def usage(self) -> Usage:
        return Usage(sum(shelf.total() for shelf in self._shelves.values()), len(self._tree))

    def outdated(self) -> int:
        """How many handles are open of files that the tree has no more."""
        # Of a copy: a worker thread asks, too.
        return sum(opened.handles for inode, opened in tuple(self._open.items()) if self._tree.node(inode) is None)

    def _shown(self, inode: int) -> Node:
        """What the tree has under this inode; Stale."""
        node = self._tree.node(inode)
        if node is None:
            raise Stale(f"inode {inode}: no such entry")
        return node

    def _node(self, inode: int) -> Node:
        """The same, or what is open though the tree has it no more."""
        if self._tree.node(inode) is None:
            if inode in self._open:
                return self._open[inode].file
            for directory in self._directories.values():
                if directory.inode == inode:
                    return directory
        return self._shown(inode)

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
        # A length that a reload forgets and finds again must not shrink a file that is open.
        if node.inode in self._open:
            return self._open[node.inode].attributes
        shelf = self._shelves[node.catalogue]
        return Attributes(node.inode, False, shelf.length(node), shelf.mtime(node))

    @contextlib.contextmanager
    def _patient(self, node: File) -> Iterator[None]:
        """Wait for metadata inside. TooManyWaiting; Stale if the tree has the node no more then, whatever came."""
        unknown = self._listed(node).size is None
        if unknown and self._waiting >= MOST_WAITING:
            error = TooManyWaiting(f"{node.name}: {self._waiting} requests wait for sizes already")
            self._cache.last_error = str(error)  # a file without a size has no attributes to tell it
            raise error
        self._waiting += unknown
        try:
            with self._unless_switched(node):
                yield
        finally:
            self._waiting -= unknown

    @contextlib.contextmanager
    def _unless_switched(self, node: Node) -> Iterator[None]:
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
    NameTooLong: errno.ENAMETOOLONG,
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
