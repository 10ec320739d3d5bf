"""Taking another lock into use while mounted: all of it at one moment, or nothing.

How it works: the lock is read and checked as a whole, and the new tree is made of it, before anything is touched;
an error up to there leaves the mount as it is. Then database, manifests, metadata and file system are switched
with no await in between, so that no request sees the one half of it. Open handles stand for contents, not for names,
and go on. Last, the kernel is told which names it remembers wrongly; until it has heard that, it may still come
with an old inode, is answered ESTALE, and looks the name up anew by itself.

Before any of that, `prepare` may make contents of the new lock available from local files.

A name that comes, or whose hash changed, has its metadata looked for like any other; what the store has already
under that hash, from an older lock say, is used at once.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from cachefs import locks
from cachefs.catalog import records
from cachefs.catalog.difference import Difference
from cachefs.catalog.files import is_there
from cachefs.catalog.records import Record, RecordsLock
from cachefs.catalog.snapshots import SnapshotLock
from cachefs.catalog.tree import Tree, outdated
from cachefs.config import Config
from cachefs.content import ContentId
from cachefs.errors import CachefsError
from cachefs.fetch.metadata.service import MetadataService
from cachefs.filesystem import Filesystem
from cachefs.layout import RECORDS, SNAPSHOTS, label
from cachefs.locks import LockFile
from cachefs.manifests import Manifests
from cachefs.records.shelf import RecordShelf
from cachefs.shelf import SnapshotShelf, mtimes
from cachefs.store.state import State

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Told the bytes of local files that are hashed so far and the bytes that are to be hashed."""

_LOGGED = 20
"""How many names of a difference the log tells; `cachefs reload` prints all."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a mount shows at one time: the lock, when it was written (Unix seconds), the names shown, their tree."""

    lock: SnapshotLock
    created: float
    names: dict[str, ContentId]
    tree: Tree
    records: Mapping[str, Record]

    @classmethod
    def of(cls, config: Config, lock: SnapshotLock, created: float, recorded: RecordsLock | None = None) -> Shown:
        """What the two locks show; a catalogue that has no lock is not there at all. CatalogError."""
        names = locks.shown(config, lock)
        catalogues = {SNAPSHOTS: names} if lock.downloads or recorded is None else {}
        ready = recorded.ready() if recorded is not None else {}
        if recorded is not None:
            catalogues[RECORDS] = {name: record.content for name, record in ready.items() if record.content}
        return cls(lock, created, names, Tree.build(catalogues), ready)

    def contents(self) -> dict[str, Mapping[str, ContentId]]:
        """Every name of both locks, shown or not, by catalogue."""
        recorded = {name: record.content for name, record in self.records.items() if record.content is not None}
        return {SNAPSHOTS: self.lock.downloads, RECORDS: recorded}

    def named(self) -> dict[str, ContentId]:
        """The same in one, by what users call them."""
        every = self.contents().items()
        return {label(catalogue, name): each for catalogue, names in every for name, each in names.items()}

    @classmethod
    async def load(cls, config: Config, lock_file: LockFile, chain: str | None) -> Shown:
        """What the files say now; the snapshots' lock is made if there is none, unless records are all there is."""
        path = lock_file.data_dir / records.LOCK_NAME
        recorded = records.load(path) if is_there(path) else None
        if recorded is not None and not config.snapshots.chain_toml and not is_there(lock_file.path):
            return cls.of(config, SnapshotLock("", {}), path.stat().st_mtime, recorded)
        lock, created = await lock_file.load_or_make(config, chain)
        # A large lock takes a while; readers are served meanwhile.
        return await trio.to_thread.run_sync(cls.of, config, lock, created, recorded)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a mount that hold names.

    `forget` tells the kernel, and blocks until it has heard. `followers` are called when the switch is made.
    """

    state: State
    manifests: Manifests
    metadata: MetadataService
    shelf: SnapshotShelf
    filesystem: Filesystem
    forget: Callable[[Iterable[tuple[int, str]]], None]
    followers: tuple[Callable[[], None], ...] = ()
    records: RecordShelf | None = None


class Reloader:
    """Holds what is shown now, and replaces it."""

    def __init__(
        self,
        config: Config,
        lock_file: LockFile,
        shown: Shown,
        parts: Parts,
        prepare: Callable[[Mapping[str, ContentId], Progress], Awaitable[list[str]]],
    ) -> None:
        self.shown = shown
        self.prepare = prepare
        self._config = config
        self._lock_file = lock_file
        self._parts = parts
        self._alone = trio.Lock()

    async def reload(self, progress: Progress = lambda done, total: None) -> tuple[Difference, list[str]]:
        """Use the lock as it is in the file now; what that changed, and remarks on local files.

        On any CachefsError nothing has changed, nor if it is cancelled.
        """
        async with self._alone:
            before = self.shown
            new = await Shown.load(self._config, self._lock_file, before.lock.chain or None)
            remarks = await self.prepare(new.lock.downloads, progress)
            difference = Difference.of(before.named(), new.named())
            if difference or new.records != before.records:
                with trio.CancelScope(shield=True):
                    self._switch(new)
                    await self._spread(before)
            _tell(difference, remarks)
            return difference, remarks

    async def answer(self, tell: Callable[[Any], None]) -> Mapping[str, Any]:
        """`reload` as the control socket answers it, in plain data; `tell` gets the progress."""
        difference, remarks = await self.reload(lambda done, total: tell({"done": done, "total": total}))
        text = [*difference.lines(), difference.summary(), *remarks]
        return {"difference": difference.as_json(), "remarks": remarks, "text": text}

    async def reload_records(self) -> None:
        """Use the records as they are in the file now, and nothing else. On any CachefsError nothing has changed."""
        async with self._alone:
            before = self.shown
            recorded = records.load(self._lock_file.data_dir / records.LOCK_NAME)
            new = await trio.to_thread.run_sync(Shown.of, self._config, before.lock, before.created, recorded)
            if new.records != before.records:
                with trio.CancelScope(shield=True):
                    self._switch(new)
                    await self._spread(before)
        if self._parts.records is not None:
            await self._parts.records.seed_complete()

    async def hang_up(self) -> None:
        """The same at SIGHUP: what went wrong is for the log."""
        try:
            await self.reload()
        except CachefsError as error:
            log.error("reload: nothing has changed: %s", error)
        except Exception:  # a fault of ours is no reason to end the mount
            log.exception("reload failed")

    def _switch(self, new: Shown) -> None:
        """What may fail comes first, the rest is assignments: no await, so nobody sees a part of it."""
        parts, old = self._parts, self.shown
        parts.state.sync_names(new.lock.downloads, new.created)
        mtime = mtimes(parts.state)
        parts.manifests.switch(new.names)
        parts.shelf.mtime = mtime
        parts.metadata.forget(Difference.of(old.names, new.names).gone)
        if parts.records is not None:
            parts.records.records = new.records
        parts.filesystem.switch(new.tree, new.created)
        self.shown = new

    async def _spread(self, old: Shown) -> None:
        """Let everybody else know. What fails here is logged: the lock is in use."""
        parts, new = self._parts, self.shown
        for follow in parts.followers:
            with _logged():
                follow()
        wrong = list(outdated(old.tree, new.tree))
        # A look-up under way holds its directory in the kernel until we have answered: not on the event loop.
        with _logged():
            await trio.to_thread.run_sync(parts.forget, wrong, abandon_on_cancel=True)
        with _logged():
            await parts.manifests.seek(parts.metadata)


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except (CachefsError, OSError) as error:
        log.error("reload: the lock is in use, but: %s", error)


def _tell(difference: Difference, remarks: Iterable[str]) -> None:
    for remark in remarks:
        log.warning("%s", remark)
    log.info("reload: %s", difference.summary())
    lines = list(difference.lines())
    for line in lines[:_LOGGED]:
        log.info("  %s", line)
    if len(lines) > _LOGGED:
        log.info("  and %d more", len(lines) - _LOGGED)
