"""Verifying names: what is held of each is hashed, and a verdict says what was found.

How it works: names with the same content are verified once. Several are under way at a time, so that many small files
keep all cores as busy as a large one. A name of which nothing is held is passed over: there is nothing in it that could
be wrong. What is wrong is no longer served when its verdict is given; what happens to it then, and whether it is
fetched again, is the caller's, who gives `mend`.

`verify_data_dir` does all of this for a data directory that no daemon works on. Nothing can be fetched there:
blocks that are wrong are missing for the next mount, which fetches them when they are read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import trio

from cachefs import metainfo
from cachefs.catalog import records, snapshots
from cachefs.catalog.files import is_there
from cachefs.content import ContentId, Manifest
from cachefs.errors import CachefsError, MetadataUnavailable
from cachefs.layout import RECORDS, SNAPSHOTS, STATE, STORE, label
from cachefs.store import DataDirLock, ObjectStore, State
from cachefs.store.scrub import Checker
from cachefs.store.vault import unpacked

Report = Callable[[int, int], None]
"""Told the bytes that are hashed so far and the bytes that are to be hashed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of one name: how many blocks were held, of how many, and which were wrong, from 0.

    `lost`: which were found wrong earlier, and haven't come again; `mended`: how many of all these are here again;
    `trouble`: what kept it from being verified or mended.
    """

    name: str
    content: ContentId
    held: int = 0
    blocks: int = 0
    wrong: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()
    mended: int = 0
    trouble: str = ""

    @property
    def good(self) -> bool:
        """Whether everything that was held is right now."""
        return not self.trouble and self.mended == len(self.missing)

    @property
    def missing(self) -> tuple[int, ...]:
        """The blocks that are to be fetched, sorted."""
        return tuple(sorted({*self.wrong, *self.lost}))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What verifying some names came to: those that are not as they were, by name; how many were held; bytes hashed."""

    verdicts: tuple[Verdict, ...]
    names: int
    size: int

    @property
    def good(self) -> bool:
        return all(verdict.good for verdict in self.verdicts)

    def as_json(self) -> dict[str, Any]:
        """Plain data, as it goes over the control socket."""
        told = [
            {
                "name": verdict.name,
                "content": str(verdict.content),
                "held": verdict.held,
                "blocks": verdict.blocks,
                "wrong": list(verdict.wrong),
                "lost": list(verdict.lost),
                "mended": verdict.mended,
                "trouble": verdict.trouble,
            }
            for verdict in self.verdicts
        ]
        return {"names": self.names, "bytes": self.size, "good": self.good, "verdicts": told}


Describe = Callable[[str, ContentId], Awaitable[Manifest]]
Mend = Callable[[Verdict], Awaitable[Verdict]]


class Verification:
    """One verification of many names."""

    def __init__(self, store: ObjectStore, checker: Checker, describe: Describe, mend: Mend, report: Report) -> None:
        self._store = store
        self._checker = checker
        self._describe = describe
        self._mend = mend
        self._report = report
        self._done = self._total = 0

    async def run(self, names: Mapping[str, ContentId], *, fail_fast: bool = False) -> Outcome:
        """Verify what is held of `names`, all of it or until the first that is wrong."""
        groups: dict[ContentId, list[str]] = {}
        for name in sorted(names):
            groups.setdefault(names[name], []).append(name)
        sizes = await self._store.inventory()
        held = [content for content in groups if content in sizes]
        self._total = sum(sizes[content] for content in held)
        self._report(0, self._total)
        found: dict[ContentId, Verdict] = {}
        queue = iter(held)

        async def work() -> None:
            for content in queue:
                found[content] = await self._verify(groups[content][0], content)
                if fail_fast and not found[content].good:
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for _ in range(self._checker.threads):
                nursery.start_soon(work)
        told = [replace(verdict, name=name) for verdict in found.values() for name in groups[verdict.content]]
        changed = sorted((v for v in told if v.missing or v.trouble), key=lambda verdict: verdict.name)
        return Outcome(tuple(changed), sum(len(groups[content]) for content in found), self._done)

    async def _verify(self, name: str, content: ContentId) -> Verdict:
        verdict = Verdict(name, content)
        try:
            manifest = await self._describe(name, content)
            checked = await self._checker.check(self._store, manifest, self._hashed)
            verdict = replace(verdict, held=checked.held, blocks=manifest.blocks)
            verdict = replace(verdict, wrong=checked.wrong, lost=checked.lost, trouble=checked.trouble)
            return await self._mend(verdict) if verdict.missing else verdict
        except CachefsError as error:
            return replace(verdict, trouble=str(error))

    def _hashed(self, size: int) -> None:
        self._done += size
        self._report(self._done, max(self._total, self._done))


T = TypeVar("T")


def matching(names: Mapping[str, T], patterns: Iterable[str]) -> dict[str, T]:
    """Those of `names` that match one of the shell patterns, all without any; CachefsError if one matches none."""
    wanted = list(patterns)
    if not wanted:
        return dict(names)
    found: dict[str, T] = {}
    for pattern in wanted:
        matched = {name: what for name, what in names.items() if name == pattern or fnmatchcase(name, pattern)}
        if not matched:
            raise CachefsError(f"{pattern}: no name in the lock is or matches this")
        found |= matched
    return found


def verify_data_dir(data_dir: Path, patterns: Iterable[str], *, fail_fast: bool, report: Report) -> Outcome:
    """Verify the names of a data directory's lock. DataDirBusy if a daemon works on it; CatalogError, StoreFailed."""
    with DataDirLock(data_dir):  # first: a daemon knows its names whatever became of the lock's file
        names = matching(names_of(data_dir), patterns)
        state = State.open(data_dir / STATE)
        try:
            _know_names(state, data_dir / SNAPSHOTS / snapshots.LOCK_NAME)
            return trio.run(_verify_alone, ObjectStore(data_dir / STORE, state), names, fail_fast, report)
        finally:
            state.close()


def _know_names(state: State, lock: Path) -> None:
    """Give a database that was lost the lock's names, as a mount does, so that what is found complete can be said."""
    if is_there(lock) and not state.infos():
        state.sync_names(snapshots.load(lock, None).downloads, lock.stat().st_mtime)


def names_of(data_dir: Path) -> dict[str, ContentId]:
    """The names in a data directory's locks: snapshots as they are, records with their folder. CatalogError."""
    recorded = data_dir / records.LOCK_NAME
    names: dict[str, ContentId] = {}
    path = data_dir / SNAPSHOTS / snapshots.LOCK_NAME
    if is_there(path) or not is_there(recorded):
        names |= snapshots.load(path, None).downloads
    if is_there(recorded):
        kept = records.load(recorded).contents()
        names |= {label(RECORDS, name): content for name, content in kept.items()}
    return names


async def _verify_alone(store: ObjectStore, names: Mapping[str, ContentId], fail_fast: bool, report: Report) -> Outcome:
    async def describe(name: str, content: ContentId) -> Manifest:
        return stored_manifest(store, name, content)

    async def leave(verdict: Verdict) -> Verdict:
        return verdict

    try:
        return await Verification(store, Checker(), describe, leave, report).run(names, fail_fast=fail_fast)
    finally:
        await store.aclose()


def stored_manifest(store: ObjectStore, name: str, content: ContentId) -> Manifest:
    """The manifest from the store alone; MetadataUnavailable if it isn't there, or isn't this content's."""
    raw = store.manifest(content)
    manifest: Manifest | None = None
    if content.algorithm == "sha256":
        manifest = unpacked(content, raw or b"")
    elif raw is not None and (found := metainfo.parse(raw)).content == content:
        manifest = found.manifest
    if manifest is None:
        raise MetadataUnavailable(name, "the store has none to verify it with; a mount fetches it")
    return manifest
