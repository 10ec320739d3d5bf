"""The assembly: one running mount, from configuration to unmount.

How it works: every part is made here, in the order in which they stand on each other, and the order in
which they are taken down is the reverse: readers are let go first, so that nobody hangs; then the kernel's
side goes, so that nobody new comes; then the network, so that nothing lands; then the store writes down what it
has. A mount ends by a signal, by `cachefs umount`, or because somebody took it away with `fusermount3 -u`;
all three run the same way.

What is at the mount point already is looked at first: a mount whose daemon died is cleared away.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import trio

from cachefs import mountinfo
from cachefs.cache import Cache
from cachefs.catalog import chain, snapshots
from cachefs.catalog.snapshots import SnapshotLock
from cachefs.catalog.tree import File, Tree
from cachefs.config import Config, load_webseed_toml
from cachefs.content import ContentId
from cachefs.control import socket as control
from cachefs.control.status import StatusSource
from cachefs.drivers import tuning
from cachefs.drivers.pyfuse3 import Pyfuse3Driver
from cachefs.errors import CachefsError, CatalogError, ConfigError
from cachefs.fetch.metadata import MetadataService
from cachefs.fetch.sources import Ledger, WebSeed
from cachefs.fetch.torrent import TorrentFetcher
from cachefs.filesystem import Filesystem
from cachefs.manifests import Manifests
from cachefs.playhead.service import PlayheadService
from cachefs.store.lock import DataDirLock
from cachefs.store.objects import ObjectStore
from cachefs.store.state import State

log = logging.getLogger(__name__)

CATALOGUE = "snapshots"
LOCK_NAME = "snapshot-lock.json"
_GRACE = 2.0
_LINGER = 0.5
_LARGEST_CHAIN_TOML = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Mounted:
    """What a mount that has become usable tells."""

    mountpoint: Path
    chain: str
    names: int
    shown: int


def run(config: Config, ready: Callable[[Mounted], None]) -> None:
    """Mount, call `ready` when the mount is usable, and return when it is gone."""
    mountpoint, data_dir = _places(config)
    with DataDirLock(data_dir, mountpoint):
        _prepare_mountpoint(mountpoint)
        trio.run(_run, config, mountpoint, data_dir, ready, restrict_keyboard_interrupt_to_checkpoints=True)


def _places(config: Config) -> tuple[Path, Path]:
    if config.mount.mountpoint is None:
        raise ConfigError("mountpoint", "not given: name it on the command line or as [mount] mountpoint")
    if config.mount.data_dir is None:
        raise ConfigError("data_dir", "not given: --data-dir DIR, or [mount] data_dir; it is where the bytes are kept")
    mountpoint, data_dir = (Path(os.path.abspath(p)) for p in (config.mount.mountpoint, config.mount.data_dir))  # noqa: PTH100
    if data_dir.is_relative_to(mountpoint):
        raise ConfigError(str(data_dir), f"the data directory can't be inside the mount point {mountpoint}")
    return mountpoint, data_dir


def _prepare_mountpoint(mountpoint: Path) -> None:
    if mountinfo.mount_at(mountpoint) is not None:
        if not mountinfo.is_dead(mountpoint):
            raise CachefsError(f"{mountpoint} is mounted already; `cachefs umount {mountpoint}` takes it away")
        log.warning("%s: clearing away a mount whose daemon is gone", mountpoint)
        mountinfo.unmount_lazily(mountpoint)
    if not mountpoint.is_dir():
        raise CachefsError(f"{mountpoint} is not a directory; make it first: mkdir -p {mountpoint}")


async def _run(config: Config, mountpoint: Path, data_dir: Path, ready: Callable[[Mounted], None]) -> None:
    lock, created = await _lock(config, data_dir)
    state = State.open(data_dir / "state.db")
    try:
        await Assembly(config, mountpoint, data_dir, lock, created, state).run(ready)
    finally:
        state.close()


async def _lock(config: Config, data_dir: Path) -> tuple[SnapshotLock, float]:
    """The lock, made from chain.toml if there is none yet, and when it was written."""
    folder = data_dir / CATALOGUE
    path = folder / LOCK_NAME
    name = config.snapshots.chain_name
    if await trio.Path(path).exists():
        lock = snapshots.load(path, name)
    else:
        entries = await _chain(config.snapshots.chain_toml, path)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = snapshots.load_or_create(path, name, lambda: entries)
        log.info("%s: made with %d names", path, len(entries))
    return lock, path.stat().st_mtime


async def _chain(location: str, lock: Path) -> Mapping[str, ContentId]:
    """The entries of a chain.toml, by path or URL."""
    if not location:
        raise ConfigError("chain_toml", f"{lock} doesn't exist yet, so --chain-toml PATH|URL is needed to make it")
    if "://" not in location:
        return chain.load_chain(Path(location))
    body = bytearray()
    try:
        client = httpx.AsyncClient(follow_redirects=True, timeout=30.0)
        async with client, client.stream("GET", location) as response:
            response.raise_for_status()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > _LARGEST_CHAIN_TOML:
                    raise CatalogError(location, f"more than {_LARGEST_CHAIN_TOML} bytes")
        return chain.parse_chain(body.decode(), location)
    except httpx.HTTPError as error:
        raise CatalogError(location, f"can't be fetched: {str(error) or type(error).__name__}") from error
    except UnicodeDecodeError:
        raise CatalogError(location, "not UTF-8") from None


class Assembly:
    """All parts of one mount, and the order in which they live and die."""

    def __init__(
        self, config: Config, mountpoint: Path, data_dir: Path, lock: SnapshotLock, created: float, state: State
    ) -> None:
        self._mountpoint = mountpoint
        self._data_dir = data_dir
        self._lock = lock
        names = _shown(config, lock)
        state.sync_names(lock.downloads, created)
        self._tree = Tree.build({CATALOGUE: names})
        self._store = ObjectStore(data_dir / "store", state)
        self._manifests = Manifests(self._store, state, names)
        web_seeds = [WebSeed(url) for url in (*config.sources.webseeds, *_webseed_toml(data_dir))]
        sources = config.sources
        self._ledger = Ledger([*map(str, sources.peers), *map(str, web_seeds)])
        self._fetcher = TorrentFetcher(
            config.torrent, self._ledger, peers=sources.peers, web_seeds=web_seeds, trackers=sources.trackers
        )
        self._metadata = MetadataService(
            config.read,
            self._ledger,
            self._manifests.found,
            directory=sources.torrent_dir,
            web_seeds=web_seeds,
            peers=self._fetcher,
        )
        self._cache = Cache(self._store, self._fetcher, config.read, self._evidence)
        filesystem = Filesystem(
            self._tree, self._manifests, self._metadata, self._cache, mtime=_mtimes(state), born=created
        )
        self._driver = Pyfuse3Driver(filesystem, mountpoint, data_dir, allow_other=config.mount.allow_other)
        self._status = StatusSource(
            mountpoint, data_dir, lock.chain, len(lock.downloads), self._tree, state, self._manifests,
            self._metadata, self._cache, self._fetcher, self._ledger, time.time(),
        )  # fmt: skip
        self._seeding = _complete(state, names, config.torrent.active_torrents) if config.torrent.seed else {}
        self._playheads = PlayheadService(config.playhead, data_dir)
        self._stop = trio.Event()
        self._served = trio.Event()

    def _evidence(self) -> str:
        return "; ".join(self._ledger.recent(60.0)[:3])

    async def run(self, ready: Callable[[Mounted], None]) -> None:
        """Bring everything up, wait for a reason to stop, take everything down."""
        async with self._services():
            self._driver.mount()
            try:
                await self._mounted(ready)
            finally:
                # Not before the last handler has ended: it would answer through a session that is gone.
                self._driver.close()

    async def _mounted(self, ready: Callable[[Mounted], None]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_signals)
            nursery.start_soon(self._serve)
            await trio.to_thread.run_sync(self._settle)
            commands: dict[str, control.Command] = {"status": self._status.collect, "stop": self._stopping}
            await nursery.start(control.serve, self._data_dir, commands)
            await nursery.start(self._playheads.run)
            nursery.start_soon(self._watch_mount)
            nursery.start_soon(self._seed_complete)
            ready(Mounted(self._mountpoint, self._lock.chain, len(self._lock.downloads), self._shown_files()))
            await self._stop.wait()
            await self._let_go()
            nursery.cancel_scope.cancel()

    def _shown_files(self) -> int:
        return sum(1 for _ in self._tree.files())

    @contextlib.asynccontextmanager
    async def _services(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(self._store.run)
                await nursery.start(self._fetcher.run)
                await nursery.start(self._cache.run)
                await nursery.start(self._metadata.run)
                await nursery.start(self._manifests.run, self._metadata)
                yield
            finally:
                nursery.cancel_scope.cancel()
        self._manifests.save()
        await self._store.aclose()

    async def _serve(self) -> None:
        await self._driver.serve()
        self._served.set()
        self._stop.set()

    async def _seed_complete(self) -> None:
        """Offer what is complete, one after the other: readers come first."""
        for name, content in self._seeding.items():
            info = self._manifests.recall(content)
            if info is not None:
                with contextlib.suppress(CachefsError):
                    await self._cache.seed(info, name)

    def _settle(self) -> None:
        """Wait until the kernel has been answered once, then raise its limits."""
        self._mountpoint.stat()
        entry = mountinfo.mount_at(self._mountpoint)
        if entry is not None:
            tuning.tune(entry)

    async def _watch_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async for number in signals:
                log.info("stopping at %s", signal.Signals(number).name)
                self._stop.set()

    async def _watch_mount(self) -> None:
        await mountinfo.wait_gone(self._mountpoint)
        self._stop.set()

    async def _stopping(self) -> None:
        self._stop.set()

    async def _let_go(self) -> None:
        """Answer everybody who waits, before the kernel's side goes."""
        with trio.move_on_after(_GRACE):
            await self._metadata.stop()
            await self._cache.stop()
        # The kernel asks once more for a page whose readahead failed, so the answers go on until the last user
        # is gone: that ends a mount which was taken out of the tree.
        with trio.move_on_after(_LINGER):
            await trio.to_thread.run_sync(self._detach)
            await self._served.wait()

    def _detach(self) -> None:
        entry = mountinfo.mount_at(self._mountpoint)
        if entry is not None and entry.data_dir == self._data_dir:
            with contextlib.suppress(CachefsError):  # somebody was quicker
                mountinfo.unmount_lazily(self._mountpoint)


def _shown(config: Config, lock: SnapshotLock) -> dict[str, ContentId]:
    settings = config.snapshots
    names = snapshots.shown(
        lock.downloads,
        all_versions=settings.versions == "all",
        minimum=settings.minimum_version,
        current=settings.current_version,
    )
    return {name: lock.downloads[name] for name in names}


def _webseed_toml(data_dir: Path) -> tuple[str, ...]:
    path = data_dir / "webseed.toml"
    return load_webseed_toml(path) if path.exists() else ()


def _complete(state: State, names: Mapping[str, ContentId], most: int) -> dict[str, ContentId]:
    """The names whose content is complete, the latest first, at most `most`."""
    infos = [info for name, info in state.infos().items() if info.completed is not None and name in names]
    infos.sort(key=lambda info: info.completed or 0.0, reverse=True)
    return {info.name: names[info.name] for info in infos[:most]}


def _mtimes(state: State) -> Callable[[File], float]:
    created = {name: info.created for name, info in state.infos().items()}
    return lambda file: created[file.path]
