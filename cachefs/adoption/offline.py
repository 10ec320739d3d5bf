"""Adopting a directory into a data directory that no daemon uses at the time.

How it works: an existing snapshots directory is taken over before the first mount. The lock is the data directory's;
if it has none yet it is made from chain.toml, or else it is the directory's own `snapshot-lock.json`, which says what
its node was using. Everything that a mount would write down is written down here, so the next mount finds the objects
complete and hashes nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from cachefs import locks
from cachefs.adoption.hashing import Report
from cachefs.adoption.memory import Memory
from cachefs.adoption.takeover import MEMORY_NAME, Adoption, Takeover
from cachefs.catalog import snapshots
from cachefs.config import Config
from cachefs.errors import ConfigError
from cachefs.layout import STATE, STORE
from cachefs.locks import LOCK_NAME, LockFile
from cachefs.manifests import Manifests
from cachefs.store.lock import DataDirLock
from cachefs.store.objects import ObjectStore
from cachefs.store.state import State


async def adopt(config: Config, data_dir: Path, root: Path, report: Report | None = None) -> Adoption:
    """Take over the files below `root`; `missing` are then the names that a mount would still have to fetch.

    DataDirBusy if a daemon uses `data_dir`; CatalogError or ConfigError if there is no lock to go by.
    """
    with DataDirLock(data_dir):
        if not os.access(data_dir, os.W_OK):
            raise ConfigError(str(data_dir), "it is read-only, so nothing can be taken over into it")
        lock_file = LockFile(data_dir)
        _make_lock(config, lock_file, root)
        lock, created = await lock_file.load_or_make(config, config.snapshots.chain_name)
        state = State.open(data_dir / STATE)
        try:
            state.sync_names(lock.downloads, created)
            store = ObjectStore(data_dir / STORE, state)
            manifests = Manifests(store, state, lock.downloads)
            takeover = Takeover(store, manifests.recall, manifests.found, Memory(data_dir / MEMORY_NAME))
            adoption = await takeover.directory(root, lock.downloads, report)
            manifests.save()
            complete = {info.name for info in state.infos().values() if info.completed is not None}
            adoption.missing = [name for name in locks.shown(config, lock) if name not in complete]
            return adoption
        finally:
            state.close()


def _make_lock(config: Config, lock_file: LockFile, root: Path) -> None:
    """Begin with the directory's own lock, if there is no other to begin with."""
    own = root / LOCK_NAME
    if config.snapshots.chain_toml or lock_file.path.exists() or not own.exists():
        return
    lock_file.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    snapshots.load(own, config.snapshots.chain_name).save(lock_file.path)
