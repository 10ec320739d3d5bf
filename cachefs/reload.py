"""Taking another lock into use while mounted: all of it at one moment, or nothing.

How it works: the lock is read and checked as a whole, and the new tree is made of it, before anything is touched;
an error up to there leaves the mount as it is. Then database, manifests, metadata and file system are switched
with no await in between, so that no request sees the one half of it. Open handles stand for contents, not for names,
and go on. Last, the kernel is told which names it remembers wrongly; until it has heard that, it may still come
with an old inode, is answered ESTALE, and looks the name up anew by itself.

A name that comes, or whose hash changed, has its metadata looked for like any other; what the store has already
under that hash, from an older lock say, is used at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import trio

from cachefs import locks
from cachefs.catalog import records
from cachefs.catalog.difference import Difference
from cachefs.catalog.records import Record, RecordsLock
from cachefs.catalog.snapshots import SnapshotLock
from cachefs.catalog.tree import File, Tree, outdated
from cachefs.config import Config
from cachefs.content import ContentId
from cachefs.errors import CachefsError
from cachefs.fetch.metadata import MetadataService
from cachefs.filesystem import Filesystem
from cachefs.locks import CATALOGUE, LockFile
from cachefs.manifests import Manifests
from cachefs.records import shelf
from cachefs.records.shelf import RecordShelf
from cachefs.shelf import SnapshotShelf
from cachefs.store.state import State

log = logging.getLogger(__name__)

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
    def of(cls, config: Config, lock: SnapshotLock, created: float, recorded: RecordsLock | None) -> Shown:
        """What the two locks show; a catalogue that has no lock is not there at all. CatalogError."""
        names = locks.shown(config, lock)
        catalogues = {CATALOGUE: names} if lock.downloads or recorded is None else {}
        ready = recorded.ready() if recorded is not None else {}
        if recorded is not None:
            catalogues[shelf.CATALOGUE] = {name: record.content for name, record in ready.items() if record.content}
        return cls(lock, created, names, Tree.build(catalogues), ready)

    @classmethod
    async def load(cls, config: Config, lock_file: LockFile, chain: str | None) -> Shown:
        """What the files say now; the snapshots' lock is made if there is none, unless records are all there is."""
        path = lock_file.data_dir / records.LOCK_NAME
        recorded = records.load(path) if path.exists() else None
        if recorded is not None and not config.snapshots.chain_toml and not lock_file.path.exists():
            return cls.of(config, SnapshotLock("", {}), path.stat().st_mtime, recorded)
        return cls.of(config, *await lock_file.load_or_make(config, chain), recorded)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a mount that hold names; `forget` tells the kernel, and blocks until it has heard."""

    state: State
    manifests: Manifests
    metadata: MetadataService
    shelf: SnapshotShelf
    filesystem: Filesystem
    records: RecordShelf
    forget: Callable[[Iterable[tuple[int, str]]], None]


class Reloader:
    """Holds what is shown now, and replaces it."""

    def __init__(self, config: Config, lock_file: LockFile, shown: Shown, parts: Parts) -> None:
        self.shown = shown
        self._config = config
        self._lock_file = lock_file
        self._parts = parts
        self._alone = trio.Lock()

    async def reload(self) -> Difference:
        """Use the lock as it is in the file now; what that changed. On any CachefsError nothing has changed."""
        async with self._alone:
            before = self.shown
            new = await Shown.load(self._config, self._lock_file, before.lock.chain or None)
            difference = Difference.of(before.lock.downloads, new.lock.downloads)
            if difference or new.records != before.records:
                await self._use(new)
                _tell(difference)
            return difference

    async def reload_records(self) -> None:
        """Use the records as they are in the file now, and nothing else. On any CachefsError nothing has changed."""
        async with self._alone:
            before = self.shown
            recorded = records.load(self._lock_file.data_dir / records.LOCK_NAME)
            new = Shown.of(self._config, before.lock, before.created, recorded)
            if new.records != before.records:
                await self._use(new)

    async def hang_up(self) -> None:
        """The same at SIGHUP: what went wrong is for the log."""
        try:
            if not await self.reload():
                log.info("reload: the lock is the same")
        except CachefsError as error:
            log.error("reload: nothing has changed: %s", error)

    async def _use(self, new: Shown) -> None:
        old, parts = self.shown, self._parts
        parts.state.sync_names(new.lock.downloads, new.created)
        parts.manifests.switch(new.names)
        parts.metadata.forget(Difference.of(old.names, new.names).gone)
        parts.shelf.mtime = mtimes(parts.state)
        parts.records.records = new.records
        parts.filesystem.switch(new.tree, new.created)
        self.shown = new
        wrong = list(outdated(old.tree, new.tree))
        # A look-up under way holds its directory in the kernel until we have answered: not on the event loop.
        await trio.to_thread.run_sync(parts.forget, wrong, abandon_on_cancel=True)
        await parts.manifests.seek(parts.metadata)


def mtimes(state: State) -> Callable[[File], float]:
    """When each name's content came into the lock, which is what its file's mtime shows."""
    created = {name: info.created for name, info in state.infos().items()}
    return lambda file: created[file.path]


def _tell(difference: Difference) -> None:
    log.info("reload: %s", difference.summary())
    lines = list(difference.lines())
    for line in lines[:_LOGGED]:
        log.info("  %s", line)
    if len(lines) > _LOGGED:
        log.info("  and %d more", len(lines) - _LOGGED)
