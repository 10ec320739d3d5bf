"""The lock of a data directory, from its making to its replacement.

How it works: a first start makes the lock from chain.toml; from then on the lock decides, until somebody
deletes it, edits it, or has a command do that. Whatever is to become the lock is parsed as a whole before
anything is written, is written in one step that a crash can't tear, and the versions before it are kept
(`catalog.history`). A running daemon takes note of a new lock only when it is told to, by `cachefs reload` or SIGHUP.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from cachefs.catalog import chain, snapshots
from cachefs.catalog.difference import Difference
from cachefs.catalog.files import is_strangers, read_text
from cachefs.catalog.history import History, Version
from cachefs.catalog.snapshots import LOCK_NAME, SnapshotLock
from cachefs.config import Config
from cachefs.config.values import without_login
from cachefs.content import ContentId
from cachefs.errors import CatalogError, ConfigError
from cachefs.layout import SNAPSHOTS

log = logging.getLogger(__name__)

__all__ = ["LOCK_NAME", "LockFile", "fetch_chain", "shown", "updated", "with_hashes"]

_LARGEST_CHAIN_TOML = 64 * 2**20


@dataclass(frozen=True, slots=True)
class LockFile:
    """Where a data directory has its lock and the versions before it."""

    data_dir: Path

    @property
    def path(self) -> Path:
        return self.data_dir / SNAPSHOTS / LOCK_NAME

    @property
    def history(self) -> History:
        return History(self.data_dir / "lock-history")

    async def load_or_make(self, config: Config, chain_name: str | None) -> tuple[SnapshotLock, float]:
        """The lock, made from chain.toml if there is none, and when it was written in Unix seconds.

        `chain_name` is the chain it must be of, None for any. CatalogError, ConfigError.
        """
        try:
            if not await trio.Path(self.path).exists():
                await self._make(config, chain_name)
            self._require_ours()
            text, created = read_text(self.path), self.path.stat().st_mtime
        except OSError as error:
            raise CatalogError(self.path, f"can't be used: {error.strerror}") from error
        lock = await trio.to_thread.run_sync(snapshots.parse_lock, text, self.path, chain_name)
        await trio.to_thread.run_sync(self._keep, text)
        return lock, created

    def _require_ours(self) -> None:
        """CatalogError if, of a writable view's layer, it is the work of a user who may write there. OSError."""
        if self.path.parent.stat().st_mode & stat.S_ISVTX and is_strangers(self.path, self.data_dir):
            who = f"was put there by the user {self.path.lstat().st_uid}, who has no say in what is shown"
            raise CatalogError(self.path, f"{who}: delete it, or make it yours (chown)")

    def _keep(self, text: str) -> None:
        try:
            with self.history.editing():
                self.history.keep(text)
        except CatalogError as error:
            log.warning("this lock can't be rolled back to: %s", error)

    async def _make(self, config: Config, chain_name: str | None) -> None:
        if not config.snapshots.chain_toml:
            raise ConfigError("chain_toml", f"{self.path} doesn't exist, so --chain-toml PATH|URL is needed to make it")
        entries = await fetch_chain(config.snapshots.chain_toml)
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        snapshots.load_or_create(self.path, chain_name, lambda: entries)
        log.info("%s: made with %d names", self.path, len(entries))

    def load(self) -> SnapshotLock:
        """The lock as it is in the file now; CatalogError if it can't be taken."""
        with suppress(OSError):  # reading it will say so
            self._require_ours()
        return snapshots.load(self.path, None)

    def edit(self, change: Callable[[Mapping[str, ContentId]], Mapping[str, ContentId]]) -> Difference:
        """Replace the entries by what `change` makes of them; what that changed. CatalogError: nothing was written."""
        with self.history.editing():
            lock = self.load()
            entries = dict(change(lock.downloads))
            return self._replace(lock, SnapshotLock(lock.chain, entries).dump())

    def roll_back(self, steps: int) -> Difference:
        """Put the lock back that was in use `steps` versions ago; what that changed. CatalogError."""
        with self.history.editing():
            text = self.before(steps).text()
            try:
                lock = self.load()
            except CatalogError:
                lock = SnapshotLock("", {})  # broken, which may be why it is rolled back
            return self._replace(lock, text)

    def older(self) -> list[Version]:
        """The versions that are kept and differ from the present lock, the latest first."""
        present = read_text(self.path) if self.path.exists() else ""
        return [version for version in self.history.versions() if version.text() != present]

    def before(self, steps: int) -> Version:
        """The version `steps` before the present lock; CatalogError if so many aren't kept."""
        older = self.older()
        if len(older) < steps:
            kept = f"{len(older)} older locks, not {steps}" if older else "no older lock yet"
            raise CatalogError(self.history.directory, f"keeps {kept}")
        return older[steps - 1]

    def _replace(self, old: SnapshotLock, text: str) -> Difference:
        new = snapshots.parse_lock(text, self.path, old.chain or None)
        if old.chain:
            self.history.keep(read_text(self.path))
        new.save(self.path)
        self.history.keep(text)
        return Difference.of(old.downloads, new.downloads)


def with_hashes(
    entries: Mapping[str, ContentId], given: Mapping[str, ContentId], *, new: bool = False
) -> dict[str, ContentId]:
    """`entries` with other content for the names `given`; names that aren't there are refused, or added if `new`."""
    unknown = [name for name in given if name not in entries]
    if unknown and not new:
        raise CatalogError(LOCK_NAME, "not in the lock; --new adds a name", key=unknown[0])
    return {**entries, **given}


def updated(
    entries: Mapping[str, ContentId], published: Mapping[str, ContentId], only: Iterable[str] = ()
) -> dict[str, ContentId]:
    """`entries` brought up to a published chain.toml: all of them, or `only` these names."""
    names = tuple(only)
    if not names:
        return dict(published)
    unknown = [name for name in names if name not in published and name not in entries]
    if unknown:
        raise CatalogError(LOCK_NAME, "neither in the lock nor in chain.toml", key=unknown[0])
    kept = {name: content for name, content in entries.items() if name not in names}
    return kept | {name: published[name] for name in names if name in published}


async def fetch_chain(location: str) -> dict[str, ContentId]:
    """The entries of a chain.toml, by path or URL; CatalogError if it can't be had or taken."""
    if "://" not in location:
        return chain.load_chain(Path(location))
    told = without_login(location)
    import httpx  # here, for it costs every command a tenth of a second, and a path doesn't need it

    from cachefs.fetch.http.body import answered, read_body

    try:
        async with httpx.AsyncClient(timeout=30.0) as client, answered(client, location) as response:
            response.raise_for_status()
            body = await read_body(response, _LARGEST_CHAIN_TOML)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # a host's name may be none: UnicodeError
        raise CatalogError(told, f"can't be fetched: {str(error) or type(error).__name__}") from error
    if body is None:
        raise CatalogError(told, f"more than {_LARGEST_CHAIN_TOML} bytes")
    try:
        return chain.parse_chain(body.decode(), told)
    except UnicodeDecodeError:
        raise CatalogError(told, "not UTF-8") from None


def shown(config: Config, lock: SnapshotLock) -> dict[str, ContentId]:
    """The entries that the mount shows: of several versions of a block file the highest, if so configured."""
    settings = config.snapshots
    names = snapshots.shown(
        lock.downloads,
        all_versions=settings.versions == "all",
        minimum=settings.minimum_version,
        current=settings.current_version,
    )
    return {name: lock.downloads[name] for name in names}
