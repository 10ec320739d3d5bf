"""The store's door: manifests and objects by content id, and the committer that makes them durable.

How it works: nothing is opened before it is needed, so a store of any size starts at once. Opening one object
is single-flight: its lock is held while it is recovered or closed, and whoever comes meanwhile waits and gets
the same `StoredObject`. Between open and close its row carries no seal, which is how the next start knows that
the daemon died. `run` commits what has landed after a second. At full speed it waits for five: syncing
there took a third of a cold read's speed, and what a commit protects from is a power cut alone, because after a
mere crash of the daemon the data is still there and only hashed again. A commit that fails, on a full disk say,
is tried again while reads go on.

A manifest is written beside its object with a rename and no sync: it is checked against its own digest by
whoever reads it, so one that a power cut tore is fetched again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import trio

from cachefs.content import Bitmap, ContentId, Manifest, Span
from cachefs.diskerrors import named
from cachefs.errors import CachefsError, Stopping, StoreFailed
from cachefs.store import disk, losses, places, recovery, space
from cachefs.store.places import How
from cachefs.store.recovery import Found
from cachefs.store.state import ObjectRow, Seal, State
from cachefs.store.stored import StoredObject, Tools

COMMIT_SECONDS = 1.0
"""How long landed blocks wait for a commit, in seconds."""

BURST_BYTES = 64 * 2**20
"""How many bytes landing within `COMMIT_SECONDS` make a burst, ..."""

BURST_SECONDS = 5.0
"""... whose blocks wait this long at most: a sync at full speed takes a third of the speed away."""

_BUSY = 5.0  # seconds that an eviction waits for an object that is being opened or closed
_HASHING_THREADS = 2  # of the machine's cores; readers need the others, and the rest of the thread pool

_log = logging.getLogger(__name__)


class ObjectStore:
    """The objects under `root`; `clock` gives Unix seconds, `sync` makes a descriptor's data durable."""

    def __init__(
        self,
        root: Path,
        state: State,
        *,
        clock: Callable[[], float] = time.time,
        sync: Callable[[int], None] = os.fdatasync,
    ) -> None:
        self.root = root
        self._tools = Tools(state, clock, sync)
        self._objects: dict[ContentId, StoredObject] = {}
        self._users: dict[ContentId, int] = {}
        self._locks: dict[ContentId, trio.Lock] = {}
        self._hashing = trio.CapacityLimiter(_HASHING_THREADS)
        self._landed = trio.Event()
        self._landed_bytes = 0
        self._uncommitted: dict[StoredObject, None] = {}
        self._failing: set[ContentId] = set()
        self._condemned: dict[ContentId, CachefsError] = {}
        self._unrecorded: dict[ContentId, frozenset[int]] = {}
        self._closed = False
        self.brought: set[ContentId] = set()
        """Objects whose data came whole, by another way than landing: whoever keeps count takes them out."""
        self.metadata_bytes = 0
        """The bytes on disk that manifests saved since the start take, about."""

    def taken(self, content: ContentId) -> int:
        """The bytes that an object's data takes on disk, open or not. StoreFailed."""
        path = self._directory(content) / "data"
        with named(path):
            return space.taken(path)

    def manifest(self, content: ContentId) -> bytes | None:
        """The manifest as it was saved, unchecked; None if there is none. Blocking, short. StoreFailed."""
        path = self._directory(content) / "manifest"
        with named(path):
            return disk.read_file(path) or None

    def save_manifest(self, content: ContentId, raw: bytes) -> None:
        """Keep a manifest that the caller has checked. Blocking, short. StoreFull, StoreFailed."""
        disk.save_manifest(self.root, content, raw)
        # A directory of its own comes with it: what a limit has to reckon with until the store is looked at again.
        self.metadata_bytes += space.cost(Span(0, len(raw))) + space.UNIT

    def held(self, content: ContentId) -> int:
        """How many verified bytes of some content are here. Blocking, short."""
        stored = self._objects.get(content)
        if stored is not None:
            return stored.held
        row = self._tools.state.load_object(content)
        return row.held if row is not None else 0

    def known(self) -> Iterator[ContentId]:
        """The content ids whose manifests are here, from the directories themselves. Blocking: run it in a thread."""
        return self._ids("manifest")

    def _ids(self, file: str) -> Iterator[ContentId]:
        for path in self.root.glob(f"*/??/*/{file}"):
            with contextlib.suppress(ValueError):
                yield ContentId.parse(f"{path.parts[-4]}:{path.parts[-2]}")

    async def inventory(self) -> dict[ContentId, int]:
        """Every object there is, and how many verified bytes of it: 0 for a data file of which nothing is recorded."""
        found = await trio.to_thread.run_sync(lambda: dict.fromkeys(self._ids("data"), 0))
        found |= self._tools.state.held()  # a file may be gone that should be there
        return found | {content: stored.held for content, stored in self._objects.items()}

    def recorded(self, manifest: Manifest) -> Bitmap:
        """The blocks of `held`: the next open may believe less. Blocking, short. StoreFailed."""
        stored = self._objects.get(manifest.content)
        if stored is not None:
            return stored.verified.copy()
        row = self._tools.state.load_object(manifest.content)
        return recovery.recorded_bits(manifest, row) or Bitmap(manifest.blocks)

    def lost(self, manifest: Manifest) -> list[int]:
        """The blocks that were held, were found wrong or gone, and aren't here again. Blocking, short. StoreFailed."""
        return losses.missing(self._tools.state, manifest, self.recorded(manifest))

    async def adopt(self, manifest: Manifest, source: Path, seal: Seal) -> How:
        """Take over a file whose bytes the caller has verified against `manifest` while it looked like `seal`.

        The file itself is never touched. HELD if all of it is here already. StoreFailed if the file has changed
        since, or if somebody reads what is here of it now; StoreFull.
        """
        content = manifest.content
        async with self._alone(content):
            if self._closed:
                raise Stopping
            data, row = self._directory(content) / "data", self._tools.state.load_object(content)
            present = self._objects.get(content)
            if present is not None and not present.complete:
                raise StoreFailed(f"{source}: {content} is being fetched and read; close it, or try again later")
            taken = None
            if present is None:
                taken = await trio.to_thread.run_sync(_take_over, manifest, row, source, data, seal)
            if taken is None:
                return How.HELD
            how, now = taken
            self.brought.add(content)
            self._tools.state.save_object(content, recovery.whole(manifest, now, self._tools.clock()))
            return how

    async def doubtful(self) -> list[ContentId]:
        """The objects whose data file looks otherwise than recorded, or isn't recorded: worth opening once."""
        seals = self._tools.state.seals()
        return await trio.to_thread.run_sync(recovery.doubtful, self.root, seals)

    async def take(self, manifest: Manifest, path: Path) -> None:
        """Move a file in as an object's bytes, unless there are some. They are hashed at the next open. StoreFailed."""
        content = manifest.content
        async with self._alone(content):
            if content not in self._objects:
                await trio.to_thread.run_sync(self._take, self._directory(content) / "data", path)
                self.brought.add(content)

    def _take(self, place: Path, path: Path) -> None:
        with named(place):
            disk.make_directory(place.parent)
            if not place.exists():
                path.rename(place)

    async def remove(self, content: ContentId, *, manifest: bool = False) -> int | None:
        """Delete an object's data, and its `manifest` if so told; the bytes that frees, or None because it is open.

        What the state says of it goes last: that can fail on a full disk, and does no harm when it is left behind,
        because a file that is gone doesn't look like its seal. StoreFailed.
        """
        with trio.move_on_after(_BUSY):
            async with self._alone(content):
                if content in self._objects:
                    return None
                delete = space.remove_object if manifest else space.remove_data
                freed = await trio.to_thread.run_sync(delete, self._directory(content))
                self._unrecorded.pop(content, None)
                try:
                    self._tools.state.forget_object(content)
                except CachefsError as error:
                    _log.warning("%s: evicted, and its record stays: %s", content, error)
                return freed
        return None

    def opened(self) -> list[StoredObject]:
        """The objects that are open now."""
        return list(self._objects.values())

    async def open(self, manifest: Manifest) -> StoredObject:
        """The object of `manifest`, recovered if this is its first user; each open needs one `release`.

        Takes as long as the hashing of what isn't trusted takes; cancelling it loses none of that.
        StoreFull, StoreFailed, or Stopping after `aclose`.
        """
        content = manifest.content
        async with self._alone(content):
            if self._closed:
                raise Stopping
            if content in self._condemned:
                raise self._condemned[content]
            stored = self._objects.get(content)
            if stored is None:
                stored = await self._recover(manifest)
                if self._closed:  # meanwhile; the row without a seal makes the next start look at it
                    stored.abandon()
                    raise Stopping
                self._objects[content] = stored
            self._users[content] = self._users.get(content, 0) + 1
            return stored

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The committer: runs until it is cancelled, and does nothing while nothing lands."""
        task_status.started()
        while True:
            await self._landed.wait()
            await trio.sleep(COMMIT_SECONDS)
            if self._landed_bytes >= BURST_BYTES:
                await trio.sleep(BURST_SECONDS - COMMIT_SECONDS)
            await self.commit()

    async def commit(self) -> None:
        """Commit every open object now. What fails is logged once and left for the next commit."""
        self._landed, self._landed_bytes = trio.Event(), 0
        uncommitted, self._uncommitted = self._uncommitted, {}  # few of thousands that may be open
        for stored in uncommitted:
            if stored.closed:
                continue
            with self._tolerant(stored):
                await stored.commit()
            if stored.condemned is not None:
                self._condemned[stored.manifest.content] = stored.condemned

    async def aclose(self) -> None:
        """Commit, seal and close every object, whoever still uses it. Nothing can be opened afterwards."""
        self._closed = True
        with trio.CancelScope(shield=True):
            for content in list(self._objects):
                async with self._alone(content):
                    await self._close(content)

    def landed(self, stored: StoredObject, size: int) -> None:
        """An object's word that a block became servable; wakes the committer."""
        self._landed.set()
        self._landed_bytes += size
        self._uncommitted[stored] = None

    async def released(self, stored: StoredObject) -> None:
        """An object's word that a user is done with it."""
        content = stored.manifest.content
        if self._objects.get(content) is not stored:
            return
        self._users[content] -= 1
        with trio.CancelScope(shield=True):
            async with self._alone(content):
                if self._users.get(content) == 0:
                    await self._close(content)

    def _directory(self, content: ContentId) -> Path:
        return disk.directory_of(self.root, content)

    @contextlib.asynccontextmanager
    async def _alone(self, content: ContentId) -> AsyncIterator[None]:
        """Hold the object's lock; the lock itself goes when nobody waits for it."""
        lock = self._locks.setdefault(content, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and self._locks.get(content) is lock:
                del self._locks[content]

    async def _recover(self, manifest: Manifest) -> StoredObject:
        row = self._tools.state.load_object(manifest.content)
        path = self._directory(manifest.content) / "data"
        found = await trio.to_thread.run_sync(recovery.find, path, manifest, row)
        completed, last_used = (row.completed, row.last_used) if row else (None, None)
        stored = StoredObject(manifest, path, found, completed, self._tools, last_used)
        try:
            if not stored.sealed:
                await self._settle(stored, found)
            lost = [index for index in recovery.recorded_bits(manifest, row) or () if index not in stored.verified]
            if lost:
                _log.warning("%s: %d blocks are gone or wrong, and missing from now on", path, len(lost))
                with self._tolerant(stored):
                    losses.note(self._tools.state, manifest, lost)
            if gone := self._unrecorded.get(manifest.content):
                with self._tolerant(stored):
                    await stored.doubt(gone)
        except BaseException:
            stored.abandon()
            raise
        stored.attach(self)
        return stored

    async def _settle(self, stored: StoredObject, found: Found) -> None:
        """Record that the object is in use, hash what isn't trusted of it, and seal it if it is whole.

        A state that can't be written (disk full) stops no reader: a file that is written to later no longer looks
        like its seal, so what the row goes on to say is not believed for longer than it is true.
        """
        with self._tolerant(stored):
            stored.save_unsealed()
        if found.suspects:
            await self._hash(stored, found)
        with self._tolerant(stored):
            await stored.commit()

    async def _hash(self, stored: StoredObject, found: Found) -> None:
        _log.info("%s: checking %d blocks that were not recorded", stored.path, len(found.suspects))
        try:
            with named(stored.path):
                await trio.to_thread.run_sync(
                    recovery.rehash, found, stored.manifest, stored.path, self._tools.sync, limiter=self._hashing
                )
            self.brought.add(stored.manifest.content)  # which may be a copy now of what was shared
        finally:
            stored.reopened(found)
            with self._tolerant(stored):
                stored.save_unsealed()

    async def _close(self, content: ContentId) -> None:
        stored = self._objects.pop(content, None)
        self._users.pop(content, None)
        if stored is None:
            return
        with self._tolerant(stored):
            await stored.close()
        if gone := stored.unrecorded:  # the disk is full: the next open must not believe what is recorded
            self._unrecorded[content] = gone
        else:
            self._unrecorded.pop(content, None)
        if stored.condemned is not None:
            self._condemned[content] = stored.condemned
        self._failing.discard(content)

    @contextlib.contextmanager
    def _tolerant(self, stored: StoredObject) -> Iterator[None]:
        """Let a commit fail: said once when it begins and once when it is over, and tried again by `run`."""
        content = stored.manifest.content
        try:
            yield
        except CachefsError as error:
            self._landed.set()
            self._uncommitted[stored] = None
            if content not in self._failing:
                self._failing.add(content)
                _log.error("blocks can't be made durable, and would be hashed again after a restart: %s", error)
        else:
            if content in self._failing and not stored.frozen:
                self._failing.discard(content)
                _log.info("%s: committed after failures", stored.path)


def _take_over(
    manifest: Manifest, row: ObjectRow | None, source: Path, data: Path, seal: Seal
) -> tuple[How, Seal] | None:
    """Make a file an object's, and say how; None if all of the object is there already. Blocking."""
    return None if recovery.is_whole(data, manifest, row) else places.take(source, data, seal)
