"""The limit: room is granted before anything is fetched, and made by evicting what was not used for longest.

How it works: whoever wants blocks of an object asks `admit`, which decides at once and without waiting: blocks that
somebody waits for (`must`) are granted while there is room, readahead (`may`) with what is left then. So what the
store takes on disk never exceeds the limit: a block that was not granted is not demanded, and can't arrive.

What was not granted wakes `run`. It measures what is really taken, evicts as much as is needed and tells the
claimants to ask again. If nothing can go, because the rest is open or pinned, those who wait are refused, with the
reason, and readahead stays as short as it is. Readahead makes room for itself only up to a `HEADROOM`-th of the limit
at a time: it may take the place of what is old, but not sweep the store.

Everything the store holds counts: data, manifests and directories. Manifests are never evicted and are not asked
room for; they push data out. A limit on free space counts what was granted as taken, for it isn't on disk yet.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from cachefs.content import ContentId
from cachefs.errors import CachefsError, StoreFull
from cachefs.store import eviction, space
from cachefs.store.claims import Charges, Claim, Claimant
from cachefs.store.eviction import Held, Limits, in_words
from cachefs.store.objects import ObjectStore
from cachefs.store.state import State

HEADROOM = 16
"""Readahead may have this part of the limit evicted for itself."""

SWEEP_EVERY = 60.0
"""Seconds between two looks at ages, and at the disk's free space."""

SCAN_EVERY = 1800.0
"""Seconds between two looks at the whole store, for what came into it without being asked for."""

_FUTILE = 2.0  # seconds for which readahead doesn't ask again, nor what could not go is tried again
_UNBOUNDED = 2**62

_log = logging.getLogger(__name__)


class Users(Protocol):
    """Who knows which objects are being read."""

    def reads(self, content: ContentId) -> bool:
        """Whether anybody has it open."""

    async def let_go(self, content: ContentId) -> bool:
        """Close it if nobody reads it, though it may be being seeded; False if somebody does."""


class Nobody:
    """The users of a data directory that no daemon works on."""

    def reads(self, content: ContentId) -> bool:
        return False

    async def let_go(self, content: ContentId) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Evicted:
    """What became of a wish to evict: the bytes freed, or why it stays."""

    freed: int = 0
    stays: str = ""


class Room:
    """The room in a store; `catalogue_of` names a content id's catalogue ("" for none), `clock` is Unix seconds."""

    def __init__(
        self,
        store: ObjectStore,
        state: State,
        limits: Limits | None = None,
        *,
        catalogue_of: Callable[[ContentId], str] = lambda content: "",
        clock: Callable[[], float] = time.time,
        disk_free: Callable[[], int] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.pinned: set[ContentId] = {pin.content for pin in state.pins()}
        self._store = store
        self._state = state
        self._users: Users = Nobody()
        self._catalogue_of = catalogue_of
        self._clock = clock
        self._disk_free = disk_free or (lambda: space.free_on_disk(store.root.parent))
        self._charges = Charges()
        self._claims: dict[ContentId, Claim] = {}
        self._fetched: Counter[ContentId] = Counter()
        self._other = 0
        self._metadata_before = 0
        self._scanned_at = float("-inf")
        self._pressed = trio.Event()
        self._futile_until = float("-inf")
        self._again_at = float("inf")
        self._stuck: dict[ContentId, float] = {}

    # Asking for room

    def admit(self, claimant: Claimant, must: Collection[int], may: Sequence[int]) -> set[int]:
        """Which of these blocks may be fetched now; all earlier wishes of this claimant end.

        `may` is cut short where the room ends. For `must` that isn't granted, `grow` or `refused` is called later.
        """
        if not self.limits:
            return {*must, *may}
        claim = self._claims.get(claimant.stored.manifest.content)
        if claim is None or claim.stored is not claimant.stored:
            claim = self._claims[claimant.stored.manifest.content] = Claim(claimant)
        claim.want({*must, *may}, trio.current_time())
        granted, claim.short = self._grant(claim, sorted(must))
        more, cut = self._grant(claim, may if not claim.short else [i for i in may if claim.granted(i)])
        claim.spare = min(sum(map(claim.cost, cut)), self._headroom(claim))
        if claim.short or (claim.spare and trio.current_time() >= self._futile_until):
            self._pressed.set()
        return granted | more

    def _grant(self, claim: Claim, blocks: Iterable[int]) -> tuple[set[int], list[int]]:
        """Those that may be fetched, and, from the first that finds no room on, those that may not."""
        granted: set[int] = set()
        left: list[int] = []
        free: int | None = None
        for index in blocks:
            if index in claim.stored.verified or claim.granted(index):
                granted.add(index)
                continue
            free = self._free(claim) if free is None else free
            cost = claim.cost(index)
            if left or cost > free or not self._scanned:
                left.append(index)
                continue
            claim.grant(index)
            self._charges.add(claim.content, cost, self._catalogue_of(claim.content))
            granted.add(index)
            free -= cost
        return granted, left

    @property
    def _scanned(self) -> bool:
        return self._scanned_at > float("-inf")

    def _headroom(self, claim: Claim) -> int:
        sizes = [b.size for b in (self.limits.whole, self.limits.of(self._catalogue_of(claim.content))) if b.size]
        return min(sizes, default=self.limits.free_space) // HEADROOM

    def _free(self, claim: Claim) -> int:
        catalogue = self._catalogue_of(claim.content)
        return min(self._free_in(""), self._free_in(catalogue) if catalogue else _UNBOUNDED)

    def _free_in(self, catalogue: str) -> int:
        """The bytes that may still be granted, in a catalogue or in all; negative when the limit is exceeded."""
        size = self.limits.of(catalogue).size
        free = _UNBOUNDED if size is None else size - self._charges.sum(catalogue)
        if catalogue:
            return free
        free -= self._metadata() if size is not None else 0
        if self.limits.free_space:
            promised = sum(claim.promised() for claim in self._claims.values())
            free = min(free, self._disk_free() - promised - self.limits.free_space)
        return free

    def _metadata(self) -> int:
        return self._other + self._store.metadata_bytes - self._metadata_before

    # Making room

    async def run(self, users: Users, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep to the limits for ever; returns at once if there are none."""
        self._users = users
        task_status.started()
        if not self.limits:
            return
        sweep_at = float("-inf")
        while True:
            with self._told():
                if trio.current_time() >= sweep_at:
                    sweep_at = trio.current_time() + SWEEP_EVERY
                    await self._look_around()
                await self._relieve()
            with trio.move_on_at(min(sweep_at, self._again_at)):
                await self._pressed.wait()

    async def _look_around(self) -> None:
        if trio.current_time() - self._scanned_at >= SCAN_EVERY:
            await self.look()
        await self.sweep()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except CachefsError as error:
            _log.error("room can't be made: %s", error)
            self._pressed = trio.Event()
            self._refuse(StoreFull(f"room can't be made: {error}"))

    async def look(self) -> None:
        """Find out what the store takes, file by file."""
        before = self._store.metadata_bytes
        scan = await trio.to_thread.run_sync(space.scan, self._store.root)
        self._other, self._metadata_before = scan.other, before
        for content in [content for content, _ in self._charges.items() if content not in scan.data]:
            self._charges.set(content, 0, self._catalogue_of(content))
        for content, size in scan.data.items():
            self._charges.set(content, size, self._catalogue_of(content))
        self._scanned_at = trio.current_time()
        self._measure()

    def _measure(self) -> None:
        """Make the charges of what is being fetched exact."""
        for content, claim in list(self._claims.items()):
            self._charges.set(content, claim.measure(trio.current_time()), self._catalogue_of(content))
            if claim.stored.closed:
                del self._claims[content]

    async def _relieve(self) -> None:
        """Evict for those who were not granted all they need, and let them ask again."""
        self._pressed, self._again_at = trio.Event(), float("inf")
        if not self._scanned:
            await self.look()
        self._measure()
        going = self._victims()
        for item in going:
            await self._evict(item)
        if not going:
            self._futile_until = trio.current_time() + _FUTILE
        self._measure()
        for claim in list(self._claims.values()):
            if claim.short or claim.spare:
                claim.claimant.grow()
        self._settle()

    def _settle(self) -> None:
        """Of those who still lack room: look again at once, or when a pause is over, or refuse them."""
        if not any(claim.short for claim in self._claims.values()) or self._victims():
            return  # whoever lacks room has said so again
        now = trio.current_time()
        pauses = [pause for claim in self._claims.values() if (pause := claim.lingering(now)) is not None]
        if pauses:
            self._pressed, self._again_at = trio.Event(), now + min(pauses)
        else:
            self._refuse(StoreFull(self._reason()))

    def _deficit(self, catalogue: str) -> int:
        """How many bytes have to go for everybody to get what was asked for."""
        claims = [c for c in self._claims.values() if not catalogue or self._catalogue_of(c.content) == catalogue]
        return sum(claim.missing() for claim in claims) - self._free_in(catalogue)

    def _victims(self) -> list[Held]:
        held = self._held()
        going: list[Held] = []
        for catalogue in (*self.limits.catalogues, ""):
            rest = [i for i in held if i not in going and (not catalogue or i.catalogue == catalogue)]
            gone = sum(item.size for item in going if not catalogue or item.catalogue == catalogue)
            deficit = self._deficit(catalogue)
            going += eviction.to_free(rest, deficit - gone, self._smallest())
        return going

    def _smallest(self) -> int:
        """What is needed to be of use to anybody; 0 when nobody asked, and the limit is exceeded all the same."""
        return min((claim.cost(claim.short[0]) for claim in self._claims.values() if claim.short), default=0)

    def _held(self) -> list[Held]:
        used = self._state.last_used() | {s.manifest.content: s.last_used for s in self._store.opened()}
        return [
            Held(content, size, used.get(content, 0.0), self._why_stays(content), self._catalogue_of(content))
            for content, size in self._charges.items()
        ]

    def _why_stays(self, content: ContentId) -> str:
        if self._users.reads(content) or self._stuck.get(content, 0.0) > trio.current_time():
            return "open"
        if self._fetched[content]:
            return "being fetched"
        return "pinned" if content in self.pinned else ""

    async def _evict(self, item: Held) -> Evicted:
        outcome = await self.evict(item.content)
        if outcome.stays:
            self._stuck[item.content] = trio.current_time() + _FUTILE
        why = outcome.stays or f"evicted, {in_words(outcome.freed)} freed"
        _log.info("%s, unused for %.0f s: %s", item.content, self._clock() - item.last_used, why)
        return outcome

    def _refuse(self, error: CachefsError) -> None:
        for claim in list(self._claims.values()):
            blocks, claim.short = claim.short, []
            if blocks:
                claim.claimant.refused(blocks, error)

    def _reason(self) -> str:
        """Why there is no room, for the reader."""
        limits, held = self.limits, eviction.occupied(self._held())
        parts = [f"no room: the limit ([limits] size = {in_words(limits.whole.size)})"] if limits.whole.size else []
        if limits.free_space and self._disk_free() < 2 * limits.free_space:
            parts = [f"no room: {in_words(self._disk_free())} free on disk, {in_words(limits.free_space)} to be left"]
        return f"{'; '.join(parts) or 'no room in the catalogue'}; held: {held}, metadata {in_words(self._metadata())}"

    # What commands ask

    async def evict(self, content: ContentId, *, manifest: bool = False) -> Evicted:
        """Evict one object now, unless it has to stay. StoreFailed."""
        why = self._why_stays(content)
        if why:
            return Evicted(stays=why)
        freed = await self._store.remove(content, manifest=manifest) if await self._users.let_go(content) else None
        if freed is None:
            return Evicted(stays="open")
        self._claims.pop(content, None)
        self._charges.set(content, 0, self._catalogue_of(content))
        return Evicted(freed)

    async def sweep(self) -> list[tuple[ContentId, Evicted]]:
        """Evict what is too old, or one too many, and what exceeds the limits; what became of each."""
        going: list[Held] = []
        self._measure()
        held = [item for item in self._held() if item.size > 0]
        now = self._clock()
        for catalogue in (*self.limits.catalogues, ""):
            within = [i for i in held if i not in going and (not catalogue or i.catalogue == catalogue)]
            going += eviction.expired(within, self.limits.of(catalogue), now)
        done = [(item.content, await self._evict(item)) for item in going]
        excess = self._victims() if self.limits else []
        return done + [(item.content, await self._evict(item)) for item in excess]

    @contextlib.contextmanager
    def keeping(self, contents: Iterable[ContentId]) -> Iterator[None]:
        """While this lasts, none of these is evicted."""
        kept = Counter(contents)
        self._fetched.update(kept)
        try:
            yield
        finally:
            self._fetched.subtract(kept)
            self._fetched += Counter()

    def taken(self) -> int | None:
        """The bytes that the store takes and has granted; None where nothing is limited, and so nothing is counted."""
        return self._charges.sum() + self._metadata() if self._scanned else None
