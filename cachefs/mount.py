"""The assembly: one running mount, from configuration to unmount.

How it works: every part is made here, in the order in which they stand on each other, and the order in
which they are taken down is the reverse: readers are let go first, so that nobody hangs; then the kernel's
side goes, so that nobody new comes; then the network, so that nothing lands; then the store writes down what it
has. A mount ends by SIGINT or SIGTERM, by `cachefs umount`, or because somebody took it away with
`fusermount3 -u`; all three run the same way. SIGHUP takes an edited lock into use.

What is at the mount point already is looked at first (`mountpoint.py`): a mount whose daemon died is cleared away.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from cachefs import mountinfo
from cachefs.adoption.memory import Memory
from cachefs.adoption.online import adopting
from cachefs.adoption.overrides import Overrides
from cachefs.adoption.takeover import MEMORY_NAME, Takeover
from cachefs.catalog.tree import File
from cachefs.config import Config
from cachefs.content import ContentId, Span
from cachefs.control import holding, keeping
from cachefs.control import socket as control
from cachefs.control.status import StatusSource
from cachefs.drivers import driver, overlay, tuning
from cachefs.ending import Ending
from cachefs.engine import Engine
from cachefs.errors import CachefsError, StoreFull
from cachefs.fetch.base import Item
from cachefs.filesystem import Filesystem
from cachefs.keeper import Keeper
from cachefs.layout import RECORDS, SNAPSHOTS, STATE
from cachefs.locks import LockFile
from cachefs.mountpoint import OwnMount, claimed, places, prepare
from cachefs.pickup import PickUp
from cachefs.playhead.service import PlayheadService
from cachefs.prefetch import Prefetcher
from cachefs.recheck import recheck
from cachefs.records import MusicCache
from cachefs.reload import Parts, Progress, Reloader, Shown
from cachefs.store.lock import DataDirLock
from cachefs.store.state import State
from cachefs.upkeep import Upkeep

log = logging.getLogger(__name__)

_GRACE = 2.0
_LINGER = 0.5
_WATCH_AGAIN = 10.0
_TAKEN_AWAY = "the mount was taken away"


@dataclass(frozen=True, slots=True)
class Mounted:
    """What a mount that has become usable tells; `remarks` are on local files that aren't what the lock says."""

    mountpoint: Path
    chain: str
    names: int
    shown: int
    records: int
    remarks: tuple[str, ...] = ()


def run(config: Config, ready: Callable[[Mounted], None], hashing: Progress) -> None:
    """Mount, tell `hashing` how far local files are, call `ready` when it is usable, return when it is gone."""
    mountpoint, data_dir = places(config)
    driver.require_rights(config.mount)
    _writable_view(config, mountpoint, data_dir)  # before anything is touched, for what it refuses
    prepare(mountpoint)
    with DataDirLock(data_dir, mountpoint):
        trio.run(_run, config, mountpoint, data_dir, ready, hashing, restrict_keyboard_interrupt_to_checkpoints=True)


def _writable_view(config: Config, mountpoint: Path, data_dir: Path) -> overlay.WritableView | None:
    if not config.mount.writable:
        return None
    owner = overlay.Owner.parse(config.mount.owner)
    return overlay.WritableView(mountpoint / SNAPSHOTS, data_dir / SNAPSHOTS, owner)


async def _run(
    config: Config, mountpoint: Path, data_dir: Path, ready: Callable[[Mounted], None], hashing: Progress
) -> None:
    ending = Ending()
    async with ending.at_signals():
        lock_file = LockFile(data_dir)
        shown = await Shown.load(config, lock_file, config.snapshots.chain_name)
        with contextlib.closing(State.open(data_dir / STATE)) as state:
            async with MusicCache.open(data_dir, config.records, rclone=config.rclone, state=state) as music:
                assembly = Assembly(config, mountpoint, data_dir, lock_file, shown, state, music, ending)
                await assembly.run(ready, hashing)


class Assembly:
    """All parts of one mount, and the order in which they live and die."""

    def __init__(
        self,
        config: Config,
        mountpoint: Path,
        data_dir: Path,
        lock_file: LockFile,
        shown: Shown,
        state: State,
        music: MusicCache,
        ending: Ending,
    ) -> None:
        self._config = config
        self._mountpoint = mountpoint
        self._data_dir = data_dir
        state.sync_names(shown.lock.downloads, shown.created)
        self._engine = engine = Engine(config, data_dir, state, music, shown.names, shown.records)
        self._filesystem = Filesystem(shown.tree, engine.shelves, engine.cache, born=shown.created)
        self._view = _writable_view(config, mountpoint, data_dir)
        self._driver = self._make_driver()
        self._keeper = Keeper(
            engine.store, state, engine.room, lambda: self._reloader.shown.contents(),
            recorded=lambda: self._reloader.shown.records.values(),
        )  # fmt: skip
        found = engine.manifests.found
        takeover = Takeover(engine.store, engine.manifests.recall, found, Memory(data_dir / MEMORY_NAME))
        overrides = Overrides(lock_file.path.parent, takeover, state.complete_hashes)
        self._reloader = Reloader(config, lock_file, shown, self._reloaded(), overrides.apply)
        self._adopt = adopting(takeover, lambda: self._reloader.shown, state)
        with contextlib.suppress(StoreFull):
            self._keeper.refresh()
        self._upkeep = Upkeep(
            engine.store, state, engine.cache, config.scrub,
            files=lambda: self._reloader.shown.tree.files(), shelves=engine.shelves, forget_pages=self._forget_pages,
        )  # fmt: skip
        self._status = StatusSource(
            mountpoint, data_dir, config.snapshots.chain_toml, self._view is not None, time.time(),
            lambda: self._reloader.shown, engine, self._upkeep, self._driver,
        )  # fmt: skip
        self._seeding = _complete(state, shown.names, config.torrent.active_torrents) if config.torrent.seed else {}
        self._prefetcher = Prefetcher(engine.cache, engine.room.evictor, engine.shelves)
        pick_up = PickUp(RECORDS, self._prefetcher, lambda: self._reloader.shown.tree)
        self._playheads = PlayheadService(config.playhead, data_dir, pick_up.fetch)
        self._url: str | None = None
        self._own = OwnMount(mountpoint)
        self._ending = ending
        self._served = trio.Event()

    def _make_driver(self) -> driver.Driver:
        settings, view = self._config.mount, self._view
        allow_other = settings.allow_other or (view is not None and view.foreign)
        owner = view.owner if view else None
        return driver.driver_of(
            settings, self._filesystem, self._mountpoint, self._data_dir, allow_other=allow_other, owner=owner
        )

    def _reloaded(self) -> Parts:
        """What follows a reload."""
        engine = self._engine
        return Parts(
            engine.state, engine.manifests, engine.metadata, engine.snapshots, self._filesystem, self._forget,
            followers=(self._keeper.refresh,), records=engine.records,
        )  # fmt: skip

    async def run(self, ready: Callable[[Mounted], None], hashing: Progress) -> None:
        """Bring everything up, wait for a reason to stop, take everything down."""
        async with self._engine.running():
            remarks = await self._reloader.prepare(self._reloader.shown.lock.downloads, hashing)
            await self._ending.mounting()
            with contextlib.closing(self._own):
                with claimed(self._mountpoint):
                    self._driver.mount()
                    self._own.begin()
                try:
                    await self._mounted(ready, remarks)
                finally:
                    self._own.leave()
                    # Not before the last handler has ended: it would answer through a session that is gone.
                    self._driver.close()

    async def _mounted(self, ready: Callable[[Mounted], None], remarks: list[str]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve)
            await trio.to_thread.run_sync(self._settle)
            if self._view is not None:
                await trio.to_thread.run_sync(self._view.mount)
                nursery.start_soon(self._watch_view, self._view)
                nursery.start_soon(self._view.keep_fresh, self._filesystem.outdated)
            commands: dict[str, control.Command | control.Job] = {
                "status": self._tell,
                "stop": self._stopping,
                "verify": control.Job(self._upkeep.verify),
                "scrub": control.Job(self._upkeep.scrub),
                "reload": control.Job(self._reloader.answer),
                "records-changed": self._reloader.reload_records,
                "adopt": self._adopt,
                "prefetch": control.Job(self._prefetch),
                **keeping.commands(self._keeper),
                **holding.commands(self._engine.room),
            }
            await nursery.start(control.serve, self._data_dir, commands)
            await nursery.start(self._playheads.run)
            await self._serve_status(nursery)
            nursery.start_soon(self._watch_mount)
            nursery.start_soon(self._seed_complete)
            nursery.start_soon(self._engine.records.seed_complete)
            nursery.start_soon(self._engine.outage.run)
            nursery.start_soon(self._upkeep.run)
            nursery.start_soon(recheck, self._engine.store, self._engine.manifests.recall)
            nursery.start_soon(self._hang_up)
            if self._ending.usable():
                ready(self._told(remarks))
            await self._ending.wait()
            await self._let_go()
            nursery.cancel_scope.cancel()

    async def _serve(self) -> None:
        await self._driver.serve()
        self._served.set()
        self._ending.begin("the connection to the kernel was aborted" if self._own.now() else _TAKEN_AWAY)

    async def _seed_complete(self) -> None:
        """Offer what is complete, one after the other: readers come first."""
        for name, content in self._seeding.items():
            info = self._engine.manifests.recall(content)
            if info is not None:
                with contextlib.suppress(CachefsError):
                    await self._engine.cache.seed(Item(name, info.manifest, info))

    def _settle(self) -> None:
        """Wait until the kernel has been answered once, then raise its limits."""
        with contextlib.suppress(OSError):  # it is gone already, which is told elsewhere
            self._mountpoint.stat()
        if self._own.entry is not None:
            snapshots = self._reloader.shown.names
            tuning.tune(self._own.entry, tuning.READ_AHEAD_KIB if snapshots else tuning.RECORDS_READ_AHEAD_KIB)

    async def _hang_up(self) -> None:
        async for _ in self._ending.hang_ups:
            await self._reloader.hang_up()

    async def _watch_mount(self) -> None:
        while self._own.entry is not None:
            try:
                await mountinfo.wait_gone(self._own.entry)
                break
            except OSError as error:  # no descriptor is left to watch with; the driver hears of an end as well
                log.warning("the mount table can't be watched: %s; tried again in %.0f s", error.strerror, _WATCH_AGAIN)
                await trio.sleep(_WATCH_AGAIN)
        self._ending.begin(_TAKEN_AWAY)

    async def _watch_view(self, view: overlay.WritableView) -> None:
        await view.wait_gone()
        # Who expects to write must not go on with the read-only directory below.
        self._ending.begin("the writable view was taken away")

    async def _forget_pages(self, content: ContentId, spans: Sequence[Span]) -> None:
        for inode in self._filesystem.inodes(content):
            await self._driver.forget_pages(inode, spans)

    def _forget(self, entries: Iterable[tuple[int, str]]) -> None:
        self._driver.forget(entries)
        if self._view is not None:
            self._view.refresh(self._filesystem.outdated())

    async def _tell(self) -> Mapping[str, Any]:
        more = {"playhead": self._playheads.report(), "last_copies": self._engine.last_copies(), "http": self._url}
        return {**await self._status.collect(), **more}

    async def _serve_status(self, nursery: trio.Nursery) -> None:
        address = self._config.status.http
        if address is not None:
            from cachefs.control import http  # the library of metrics takes a while, and most mounts don't need it

            self._url = await nursery.start(http.serve, self._tell, address)

    def _told(self, remarks: Iterable[str]) -> Mounted:
        shown = self._reloader.shown
        names = len(shown.lock.downloads)
        return Mounted(self._mountpoint, shown.lock.chain, names, len(shown.names), len(shown.records), tuple(remarks))

    async def _prefetch(self, tell: Callable[[Any], None], patterns: Sequence[str]) -> Mapping[str, Any]:
        tree = self._reloader.shown.tree
        found = [tree.find(item.catalogue, item.name) for item in self._keeper.matching(patterns)]
        return await self._prefetcher.fetch([node for node in found if isinstance(node, File)], tell)

    async def _stopping(self) -> None:
        self._ending.begin("cachefs umount")

    async def _let_go(self) -> None:
        """Answer everybody who waits, before the kernel's side goes."""
        with trio.move_on_after(_GRACE):
            await self._engine.stop()
        if self._view is not None and not self._own.cover():  # it goes first, while what is below it still answers
            await trio.to_thread.run_sync(self._view.unmount)
        # The kernel asks once more for a page whose readahead failed, so the answers go on until the last user
        # is gone: that ends a mount which was taken out of the tree.
        with trio.move_on_after(_LINGER):
            await trio.to_thread.run_sync(self._own.leave)
            await self._served.wait()


def _complete(state: State, names: Mapping[str, ContentId], most: int) -> dict[str, ContentId]:
    """The names whose content is complete, the latest first, at most `most`."""
    infos = [info for name, info in state.infos().items() if info.completed is not None and name in names]
    infos.sort(key=lambda info: info.completed or 0.0, reverse=True)
    return {info.name: names[info.name] for info in infos[:most]}
