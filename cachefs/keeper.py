"""What stays and what goes, by name: pins, eviction on demand, and collecting what no name stands for any more.

How it works: users speak of names, the store of content ids, and this is where one becomes the other. A pin belongs to
a name: when the lock gives that name other content, the pin goes over to it. Evicting goes through the room's evictor,
which refuses what is open or pinned. Garbage is content that is in the store and in no catalogue. Only kinds of
content are judged of which a catalogue is known here: what a catalogue that wasn't looked at names is never garbage. A
record's content comes before the record, so what the records' lock names by then counts as well, and what is younger
than a day stays, for whoever is about to write the record. So it is with the files in `pieces/`: one goes when no
record, in use or in the lock's file, and no object needs it, and it is as old.

The same object serves a running mount and a data directory that no daemon works on (`idle`).
"""

from __future__ import annotations

import fnmatch
import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from cachefs.catalog import records, snapshots
from cachefs.catalog.files import is_there
from cachefs.catalog.records import Record
from cachefs.content import ContentId
from cachefs.errors import CachefsError, StoreFailed
from cachefs.layout import RECORDS, SNAPSHOTS, STATE, STORE, label
from cachefs.store import disk, space
from cachefs.store.eviction import Evicted, Limits, catalogue_of
from cachefs.store.lock import DataDirLock
from cachefs.store.objects import ObjectStore
from cachefs.store.room import Room
from cachefs.store.state import Pin, State
from cachefs.store.vault import unpacked

log = logging.getLogger(__name__)

_LEFT_BEHIND = 3600.0  # seconds after which nobody is still at work on a file that is half made
_SETTLED = 86_400.0
_RECORDED = "sha256"  # what records are of

Names = Callable[[], Mapping[str, Mapping[str, ContentId]]]
"""Every catalogue's names and their content, as they are now."""

Records = Callable[[], Iterable[Record]]
"""The records that are in use now."""

Progress = Callable[[int, int], None]
"""Told how many objects are done, and of how many."""


@dataclass(frozen=True, slots=True, order=True)
class Named:
    """A name in a catalogue, and its content."""

    catalogue: str
    name: str
    content: ContentId

    @property
    def label(self) -> str:
        """What the user calls it: snapshots as in the lock, others with their folder."""
        return label(self.catalogue, self.name)


@dataclass(slots=True)
class Outcome:
    """What went, each with the bytes it freed, and what stays, each with the reason; by name."""

    gone: dict[str, int] = field(default_factory=dict)
    stays: dict[str, str] = field(default_factory=dict)

    @property
    def freed(self) -> int:
        return sum(self.gone.values())


@dataclass(slots=True)
class Collected:
    """What `gc` did: content without a name, leavings of unclean ends (bytes), what the limits asked for, and piece
    lists and torrents that nothing needs."""

    nameless: Outcome
    leavings: int
    limits: Outcome
    sidecars: Outcome

    @property
    def freed(self) -> int:
        return self.nameless.freed + self.leavings + self.limits.freed + self.sidecars.freed


class Keeper:
    """Pins, evicts and collects by name; `clock` gives Unix seconds."""

    def __init__(
        self,
        store: ObjectStore,
        state: State,
        room: Room,
        names: Names,
        clock: Callable[[], float] = time.time,
        *,
        recorded: Records = lambda: (),
    ) -> None:
        self._store = store
        self._state = state
        self._room = room
        self._names = names
        self._clock = clock
        self._recorded = recorded

    def refresh(self) -> None:
        """Have every pin follow its name; to be called when a lock was taken into use. StoreFull, StoreFailed."""
        names, pins = self._names(), self._state.pins()
        now = [Pin(pin.catalogue, pin.name, names.get(pin.catalogue, {}).get(pin.name, pin.content)) for pin in pins]
        if now != pins:
            self._state.set_pins(now)
        self._room.evictor.pinned = {pin.content for pin in now}

    def matching(self, patterns: Iterable[str]) -> list[Named]:
        """The names that match any of the shell patterns, sorted; CachefsError for a pattern that matches none."""
        everything = [Named(c, name, content) for c, names in self._names().items() for name, content in names.items()]
        return sorted({item for pattern in patterns for item in _matching(pattern, everything)})

    def pin(self, patterns: Iterable[str]) -> list[str]:
        """Let none of these be evicted until they are unpinned; the names. StoreFailed."""
        self._require_lasting()
        items = self.matching(patterns)
        self._state.set_pins(Pin(item.catalogue, item.name, item.content) for item in items)
        self._room.evictor.pinned |= {item.content for item in items}
        return [item.label for item in items]

    def unpin(self, patterns: Iterable[str]) -> list[str]:
        """Take pins away, also of names that are in no lock any more; the names. StoreFailed."""
        self._require_lasting()
        pinned = [Named(pin.catalogue, pin.name, pin.content) for pin in self._state.pins()]
        items = sorted({item for pattern in patterns for item in _matching(pattern, pinned, "no pinned name")})
        self._state.drop_pins(Pin(item.catalogue, item.name, item.content) for item in items)
        self._room.evictor.pinned = {pin.content for pin in self._state.pins()}
        return [item.label for item in items]

    def _require_lasting(self) -> None:
        if not self._state.lasting:
            raise StoreFailed(f"{self._store.root.parent} can't be written to: pins stay as they are there")

    def pins(self) -> list[str]:
        """The names that are pinned."""
        return [label(pin.catalogue, pin.name) for pin in self._state.pins()]

    async def evict(self, patterns: Iterable[str], progress: Progress) -> Outcome:
        """Delete what the store holds of these names; metadata stays. StoreFailed."""
        held = await self._store.inventory()
        contents = {item.content: item.label for item in reversed(self.matching(patterns)) if item.content in held}
        return await self._evict(contents, progress)

    async def collect(self, progress: Progress) -> Collected:
        """Delete what no name stands for, and what the limits say is too much or too old, now. StoreFailed."""
        outcome = await self._collect_nameless(progress)
        before = self._clock() - _LEFT_BEHIND
        leavings = await trio.to_thread.run_sync(space.remove_leavings, self._store.root, before)
        limits = Outcome()
        if self._room.limits:
            named = self._labels()
            await self._room.look()
            for content, evicted in await self._room.sweep():
                _note(limits, named.get(content, str(content)), evicted.freed, evicted.stays)
        return Collected(outcome, leavings, limits, await trio.to_thread.run_sync(self._collect_sidecars))

    def _labels(self) -> dict[ContentId, str]:
        """A name for each content that has one in use."""
        return {content: label(c, name) for c, names in self._names().items() for name, content in names.items()}

    async def _collect_nameless(self, progress: Progress) -> Outcome:
        held = await trio.to_thread.run_sync(lambda: {*self._store.known(), *space.scan(self._store.root).data})
        stays: dict[str, str] = {}
        named = {*self._labels()}  # read after what is held: whoever names it meanwhile keeps it
        kinds = {content.algorithm for content in named}
        try:
            recorded = {*records.load(self._store.root.with_name(records.LOCK_NAME)).contents().values()}
            named, kinds = named | recorded, kinds | {content.algorithm for content in recorded}
        except CachefsError as error:
            kinds, stays = kinds - {_RECORDED}, {str(self._store.root / _RECORDED): str(error)}
        nameless = {content: str(content) for content in sorted(held - named) if content.algorithm in kinds}
        outcome = await self._evict(nameless, progress, manifest=True, why_stays=self._too_young)
        return Outcome(outcome.gone, stays | outcome.stays)

    def _too_young(self, content: ContentId) -> str:
        if content.algorithm != _RECORDED:
            return ""
        came = space.changed_at(disk.directory_of(self._store.root, content))
        young = came > self._clock() - _SETTLED
        return "it came within a day, and its record may be about to be written" if young else ""

    def _collect_sidecars(self) -> Outcome:
        """Delete the piece lists and torrents that nothing needs; none where no record is known."""
        directory = self._store.root.with_name(records.SIDECARS)
        try:
            known = [*self._recorded(), *records.load(directory.with_name(records.LOCK_NAME))]
            if not known:
                return Outcome()
            kept = {name for record in known for name in record.sidecars} | self._lists_of_objects()
            return Outcome(space.remove_sidecars(directory, kept, self._clock() - _SETTLED))
        except CachefsError as error:
            return Outcome(stays={str(directory): str(error)})

    def _lists_of_objects(self) -> Set[str]:
        """The names that the piece lists of all objects have, or would have."""
        found = set()
        for content in self._store.known():
            raw = self._store.manifest(content) if content.algorithm == _RECORDED else None
            manifest = unpacked(content, raw) if raw else None
            if manifest is not None:
                found.add(hashlib.sha256(manifest.digests).hexdigest())
        return found

    async def _evict(
        self,
        contents: Mapping[ContentId, str],
        progress: Progress,
        *,
        manifest: bool = False,
        why_stays: Callable[[ContentId], str] = lambda content: "",
    ) -> Outcome:
        outcome = Outcome()
        for number, (content, name) in enumerate(contents.items(), 1):
            try:
                why = why_stays(content)
                evicted = Evicted(stays=why) if why else await self._room.evictor.evict(content, manifest=manifest)
            except CachefsError as error:  # others may go all the same
                evicted = Evicted(stays=str(error))
            _note(outcome, name, evicted.freed, evicted.stays)
            progress(number, len(contents))
        return Outcome(dict(sorted(outcome.gone.items())), dict(sorted(outcome.stays.items())))


def _note(outcome: Outcome, name: str, freed: int, stays: str) -> None:
    if stays:
        outcome.stays[name] = stays
    else:  # also what frees nothing: the link to a file that is the user's as well
        outcome.gone[name] = freed


def _matching(pattern: str, items: Iterable[Named], nothing: str = "no name") -> list[Named]:
    wanted = re.compile(fnmatch.translate(pattern)).match
    found = [
        item
        for item in items
        for name in (item.label, f"{item.catalogue}/{item.name}")
        if name == pattern or wanted(name)
    ]
    if not found:
        near = next((f"; did you mean {item.label}?" for item in items if wanted(item.name)), "")
        raise CachefsError(f"{nothing} matches {pattern}{near or '; * stands for anything, / included'}")
    return found


@contextmanager
def idle(data_dir: Path, limits: Limits | None = None) -> Iterator[Keeper]:
    """A keeper of a data directory that no daemon works on; DataDirBusy if one does, CatalogError for a broken lock."""
    path, recorded = data_dir / SNAPSHOTS / snapshots.LOCK_NAME, data_dir / records.LOCK_NAME
    if not is_there(path) and not is_there(recorded):
        raise CachefsError(f"{data_dir} is no data directory: there is neither {path} nor {recorded}")
    with DataDirLock(data_dir):
        names: dict[str, Mapping[str, ContentId]] = {}
        if is_there(path):
            names[SNAPSHOTS] = snapshots.load(path, None).downloads
        if is_there(recorded):
            names[RECORDS] = records.load(recorded).contents()
        state = State.open(data_dir / STATE)
        try:
            store = ObjectStore(data_dir / STORE, state)
            keeper = Keeper(store, state, Room(store, state, limits, catalogue_of=catalogue_of), lambda: names)
            keeper.refresh()
            yield keeper
        finally:
            state.close()
