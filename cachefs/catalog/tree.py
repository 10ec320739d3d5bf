"""The tree of names that the mount shows, with an inode number for each.

How it works: a tree is made at once from whole catalogues and never changes; a reload makes a new one. So it
needs no locks, and an entry's place in its directory is a stable position for a readdir that comes back for
more. An inode number is a hash of (catalogue, name, content id): it is the same after every restart, and a
name whose content changed has another, so the kernel never mixes pages of the old and the new. Two names
with one hash are as good as impossible; if it happens, the later in the order of names takes the next free number.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import xxhash

from cachefs.catalog.names import BadName, check_name, check_names
from cachefs.content import ContentId
from cachefs.errors import CatalogError

ROOT_INODE = 1
"""The mount's root, by the kernel's convention. 0 means "no inode" there."""

_INODE_MASK = 2**63 - 1


@dataclass(frozen=True, slots=True, eq=False)
class File:
    """A file: `name` is the last part, `path` the whole name in its catalogue."""

    inode: int
    name: str
    path: str
    catalogue: str
    content: ContentId


@dataclass(frozen=True, slots=True, eq=False)
class Directory:
    """A directory: its parent's inode (the root's is its own), and its entries sorted by name."""

    inode: int
    name: str
    parent: int
    children: dict[str, Node]

    def listing(self, position: int = 0) -> Iterator[tuple[int, Node]]:
        """The entries from `position` on, each with the position that follows it."""
        return enumerate(islice(self.children.values(), position, None), position + 1)


Node: TypeAlias = Directory | File


class Tree:
    """All names of a mount: a directory for each catalogue under the root."""

    __slots__ = ("_nodes", "root")

    def __init__(self) -> None:
        self.root = Directory(ROOT_INODE, "", ROOT_INODE, {})
        self._nodes: dict[int, Node] = {ROOT_INODE: self.root}

    @classmethod
    def build(cls, catalogues: Mapping[str, Mapping[str, ContentId]]) -> Tree:
        """The tree of `catalogues`; CatalogError for a name that can't be shown or clashes with another."""
        tree = cls()
        for catalogue, entries in sorted(catalogues.items()):
            _check(catalogue, entries)
            tree._add_catalogue(catalogue, entries)
        for directory in tree.directories():
            _sort(directory.children)
        return tree

    def _add_catalogue(self, catalogue: str, entries: Mapping[str, ContentId]) -> None:
        folders = {"": self._add_directory(self.root, catalogue, catalogue, "")}
        for path, content in sorted(entries.items()):
            above, _, name = path.rpartition("/")
            folder = folders.get(above) or self._make_folders(folders, catalogue, above)
            inode = self._number(catalogue, path, str(content))
            folder.children[name] = self._nodes[inode] = File(inode, name, path, catalogue, content)

    def _make_folders(self, folders: dict[str, Directory], catalogue: str, path: str) -> Directory:
        """The directory `path`, made together with those above it."""
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            step = "/".join(parts[:depth])
            if step not in folders:
                above = folders["/".join(parts[: depth - 1])]
                folders[step] = self._add_directory(above, parts[depth - 1], catalogue, step)
        return folders[path]

    def _add_directory(self, parent: Directory, name: str, catalogue: str, path: str) -> Directory:
        inode = self._number(catalogue, path)
        directory = Directory(inode, name, parent.inode, {})
        parent.children[name] = self._nodes[inode] = directory
        return directory

    def _number(self, *what: str) -> int:
        # No name holds a NUL, so the parts can't run into each other.
        return free_inode(xxhash.xxh3_64_intdigest("\0".join(what).encode()), self._nodes)

    def node(self, inode: int) -> Node | None:
        """The node with this inode number, if there is one."""
        return self._nodes.get(inode)

    def lookup(self, parent: int, name: str) -> Node | None:
        """The entry `name` of the directory with inode `parent`, if there is one."""
        directory = self._nodes.get(parent)
        return directory.children.get(name) if isinstance(directory, Directory) else None

    def find(self, catalogue: str, path: str = "") -> Node | None:
        """The node of a name in a catalogue, if there is one; the catalogue's own directory without a name."""
        node = self.root.children.get(catalogue)
        for part in path.split("/") if path else ():
            node = node.children.get(part) if isinstance(node, Directory) else None
        return node

    def files(self) -> Iterator[File]:
        """Every file, catalogue by catalogue, sorted by name."""
        return (node for node in self._nodes.values() if isinstance(node, File))

    def directories(self) -> Iterator[Directory]:
        """Every directory, the root included."""
        return (node for node in self._nodes.values() if isinstance(node, Directory))

    def __len__(self) -> int:
        """How many files and directories there are, the root included."""
        return len(self._nodes)


def outdated(old: Tree, new: Tree) -> Iterator[tuple[int, str]]:
    """The entries of `old`, as directory inode and name, that `new` doesn't have or has with another inode."""
    for directory in old.directories():
        for name, node in directory.children.items():
            now = new.lookup(directory.inode, name)
            if now is None or now.inode != node.inode:
                yield directory.inode, name


def free_inode(wanted: int, taken: Container[int]) -> int:
    """The first inode number from `wanted` (cut to 63 bits) on that is neither taken nor the root's nor 0."""
    inode = wanted & _INODE_MASK
    while inode <= ROOT_INODE or inode in taken:
        inode = (inode + 1) & _INODE_MASK
    return inode


def _check(catalogue: str, entries: Mapping[str, ContentId]) -> None:
    try:
        check_name(catalogue)
        check_names(entries)
    except BadName as error:
        raise CatalogError(catalogue, error.why, key=error.name) from None
    if "/" in catalogue:
        raise CatalogError(catalogue, "a catalogue is one folder; its name has no slash")


def _sort(children: dict[str, Node]) -> None:
    """Put a directory in order: what stands in subfolders came in the order of whole names."""
    ordered = sorted(children.items())
    children.clear()
    children.update(ordered)
