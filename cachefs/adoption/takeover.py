"""Taking over local files that are what the lock says, and telling what became of the others.

How it works: every file that has a name in the lock is identified (`hashing`); one that is the lock's goes into the
store by reflink, hard link or in place (`store.places`), with its metadata, so that it is complete at once and
nothing of it is asked of any source. One that isn't is told with its hash and the lock's, and otherwise left alone: so
is one that can't be read, and whatever has no name in the lock.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from rich.filesize import decimal

from cachefs import mountinfo
from cachefs.adoption.hashing import Local, Recall, Report, identify, local_files
from cachefs.adoption.memory import Memory
from cachefs.content import ContentId
from cachefs.errors import CachefsError, ConfigError
from cachefs.metainfo import Metainfo
from cachefs.store.objects import ObjectStore
from cachefs.store.places import How

_NAMED = 20

MEMORY_NAME = "hashes.json"
"""Where, in the data directory, it is remembered which hash a local file had."""


@dataclass(frozen=True, slots=True)
class Other:
    """A file that isn't what the lock says: its hash and the lock's, and the pieces that differ, where known."""

    name: str
    path: Path
    found: ContentId
    expected: ContentId
    wrong: tuple[int, ...]
    pieces: int

    def lines(self) -> list[str]:
        """For people: what is wrong, and a line to paste into the lock to use the file as it is."""
        which = f", {len(self.wrong)} of {self.pieces} pieces differ: {_some(self.wrong)}" if self.wrong else ""
        return [
            f"{self.name}: the file has {self.found.hex}, the lock says {self.expected.hex}{which}",
            f"  to use it, put this into the lock: {json.dumps(self.name)}:{json.dumps(self.found.hex)}",
        ]


@dataclass(slots=True)
class Adoption:
    """What became of a directory's files; what is told of single ones is sorted by name.

    taken: how each was taken over; size: their bytes; others: those of another hash; failed: why names
    can't be used; unnamed: files whose name the lock doesn't have; missing: names of the lock that are not here;
    inner: a folder whose files would have names of the lock, were they taken from there.
    """

    taken: dict[str, How] = field(default_factory=dict)
    size: int = 0
    others: list[Other] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    unnamed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    inner: str = ""

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "taken": {name: how.value for name, how in sorted(self.taken.items())},
            "bytes": self.size,
            "others": [
                {"name": o.name, "hash": o.found.hex, "lock": o.expected.hex, "wrong_pieces": list(o.wrong)}
                for o in self.others
            ],
            "failed": self.failed,
            "unnamed": sorted(self.unnamed),
            "missing": sorted(self.missing),
        }

    def answer(self) -> dict[str, Any]:
        """`as_json` and, as `text`, the same for people."""
        return {**self.as_json(), "text": list(self.lines())}

    def lines(self) -> Iterator[str]:
        """For people: what isn't right, name by name, and a summary."""
        for other in self.others:
            yield from other.lines()
        for name, why in self.failed.items():
            yield f"{name}: {why}"
        if self.taken:
            yield f"{len(self.taken):,} files match, {decimal(self.size)} ({self.ways()})"
        else:
            meant = f"; names of the lock are in its folder {_shown(self.inner)}: is that meant?" if self.inner else ""
            yield f"no file matches{meant}"
        if self.others or self.failed:
            yield f"{len(self.others):,} are something else, {len(self.failed):,} can't be used; left alone"
        if self.unnamed:
            yield f"{len(self.unnamed):,} have no name in the lock: {_names(self.unnamed)}"
        if self.missing:
            yield f"{len(self.missing):,} names will be fetched when read: {_names(self.missing)}"

    def ways(self) -> str:
        """How many files were taken over by which means, in words."""
        counts = Counter(how.value for how in self.taken.values())
        return ", ".join(f"{count:,} {how}" for how, count in sorted(counts.items()))


@dataclass(frozen=True, slots=True)
class Takeover:
    """Into which store files are taken over. `recall` gives known metadata, `learn` keeps what the lock has."""

    store: ObjectStore
    recall: Recall
    learn: Callable[[Metainfo], None]
    memory: Memory

    async def directory(self, root: Path, entries: Mapping[str, ContentId], report: Report | None = None) -> Adoption:
        """Take over the files below `root` that are what `entries` say; ConfigError if they aren't there to be read."""
        require_on_disk(root)
        try:
            files, unreadable = await trio.to_thread.run_sync(local_files, root, entries)
        except OSError as error:
            raise ConfigError(str(error.filename or root), f"can't be read: {error.strerror}") from error
        adoption = await self.files(files, report)
        adoption.failed = dict(sorted({**adoption.failed, **unreadable}.items()))
        adoption.unnamed = [file.name for file in files if file.expected is None]
        parts = (name.partition("/") for name in adoption.unnamed)
        adoption.inner = next((folder for folder, _, name in parts if name in entries), "")
        return adoption

    async def files(self, files: list[Local], report: Report | None = None) -> Adoption:
        """Take over those of `files` that are what the lock says."""
        adoption = Adoption()
        found, identified = trio.open_memory_channel[Local](len(files))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_all, identified, adoption)
            with found:
                await identify(files, self.recall, self.memory, done=found.send_nowait, report=report)
        adoption.others.sort(key=lambda other: other.name)
        adoption.failed = dict(sorted(adoption.failed.items()))
        return adoption

    async def _take_all(self, identified: trio.MemoryReceiveChannel[Local], adoption: Adoption) -> None:
        async for file in identified:
            try:
                await self._take(file, adoption)
            except CachefsError as error:
                adoption.failed[file.name] = str(error)

    async def _take(self, file: Local, adoption: Adoption) -> None:
        if file.info is None or file.expected is None:
            adoption.failed[file.name] = file.failure
            return
        if file.matches:
            self.learn(file.info)
            adoption.taken[file.name] = await self.store.adopt(file.info.manifest, file.path, file.seal)
            adoption.size += file.seal.size
            return
        if self.recall(file.info.content) is None:  # the lock may come to say so; hashing it once is enough
            self.store.save_manifest(file.info.content, file.info.raw)
        pieces = file.info.manifest.blocks
        adoption.others.append(Other(file.name, file.path, file.info.content, file.expected, file.wrong, pieces))


def require_on_disk(path: Path) -> None:
    """ConfigError if a cachefs mount shows the path: taking it over would fetch all of it, to serve it from itself."""
    if mountinfo.showing(path) is not None:
        raise ConfigError(str(path), "a cachefs mount shows this; name the files as they lie on a disk")


def _names(names: list[str]) -> str:
    return ", ".join(map(_shown, sorted(names)[:_NAMED])) + (", …" if len(names) > _NAMED else "")


def _shown(name: str) -> str:
    """A name on one line of a terminal: a file may have any bytes for a name."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name)


def _some(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
