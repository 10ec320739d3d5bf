"""The limit: room is granted before anything is fetched, and made by evicting what was not used for longest.

How it works: whoever wants blocks of an object asks `admit`, which decides at once and without waiting: blocks that
somebody waits for (`must`) are granted while there is room, readahead (`may`) with what is left then. So what the
store takes on disk never exceeds the limit: a block that was not granted is not demanded, and can't arrive.

What was not granted wakes `run`. It measures what is really taken, has as much evicted as is needed (`evictor.py`)
and tells the claimants to ask again. If nothing can go, because the rest is open or pinned, those who wait are
refused, with the reason, and readahead stays as short as it is. Readahead makes room for itself only up to a
`HEADROOM`-th of the limit at a time: it may take the place of what is old, but not sweep the store. What comes
without having been demanded (`spare`) is treated like it.

Everything the store holds counts: data, manifests and directories. Manifests are never evicted and are not asked
room for; they push data out. A limit on free space counts what was granted as taken, for it isn't on disk yet.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set

import trio

from cachefs.content import ContentId
from cachefs.errors import CachefsError, StoreFull
from cachefs.layout import RECORDS
from cachefs.store import eviction
from cachefs.store.claims import Asked, Claim, Claimant, Hold, Users
from cachefs.store.eviction import Evicted, Held, Limits, in_words
from cachefs.store.evictor import Evictor
from cachefs.store.objects import ObjectStore
from cachefs.store.state import State
from cachefs.store.tally import Tally

HEADROOM = 16
"""Readahead may have this part of the limit evicted for itself."""

SWEEP_EVERY = 60.0
"""Seconds between two looks at ages, and at the disk's free space."""

SCAN_EVERY = 1800.0
"""Seconds between two looks at the whole store, for what came into it without being asked for."""

_FUTILE = 2.0  # seconds for which readahead doesn't ask again
_PATIENCE = 1.0  # seconds before anybody is refused: what is open now may be closed in a moment
_LOOK_AGAIN = 0.1

_log = logging.getLogger(__name__)


class Room:
    """The room in a store, which its `evictor` makes.

    `catalogue_of` names a content id's catalogue ("" for none), `clock` is Unix seconds.
    """

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
        self._store = store
        self._tally = Tally(store, self.limits, catalogue_of, disk_free)
        self.evictor = Evictor(store, state, self._tally, clock)
        self._asking: list[Asked] = []
        self._pressed, self._looked = trio.Event(), trio.Event()
        self._futile_until = float("-inf")
        self._again_at = float("inf")
        self._refused_at = float("-inf")

    # Asking for room

    def admit(self, claimant: Claimant, must: Collection[int], may: Sequence[int]) -> set[int]:
        """Which of these blocks may be fetched now; all earlier wishes of this claimant end.

        `may` is cut short where the room ends. For `must` that isn't granted, `grow` or `refused` is called later.
        """
        if not self.limits:
            return {*must, *may}
        if not must and not may and claimant.stored.complete:
            return set()
        now, claim = trio.current_time(), self._tally.claim(claimant)
        claim.want({*must, *may}, now)
        granted, claim.short = self._grant(claim, sorted(must))
        more, cut = self._grant(claim, may if not claim.short else [i for i in may if claim.granted(i)])
        claim.spare = min(sum(map(claim.cost, cut)), self._headroom(claim))
        claim.since = min(claim.since, now) if claim.short else float("inf")
        self._press(claim)
        return granted | more

    def _grant(self, claim: Claim, blocks: Iterable[int]) -> tuple[set[int], list[int]]:
        """Those that may be fetched, and, from the first that finds no room on, those that may not."""
        granted: set[int] = set()
        left: list[int] = []
        free: int | None = None
        for index in blocks:
            if claim.granted(index) or index in claim.stored.verified:
                granted.add(index)
                continue
            if free is None:
                free = self._tally.free(self._tally.catalogue_of(claim.content))
            cost = claim.cost(index)
            if left or cost > free or not self._tally.known:
                left.append(index)
                continue
            self._tally.grant(claim, index)
            granted.add(index)
            free -= cost
        return granted, left

    def spare(self, claimant: Claimant, index: int) -> bool:
        """Whether a block that comes without having been asked for may be kept: it is granted then, as readahead is.

        Not while anybody who waits lacks room, and not of an object that the limits can't hold whole: what is wanted of
        it would lack the room.
        """
        if not self.limits:
            return True
        claim = self._tally.claim(claimant)
        length = claim.stored.manifest.length
        if self._short() or length > self._size(claim, length):
            return claim.granted(index)
        granted, _ = self._grant(claim, [index])
        if not granted:
            claim.spare = max(claim.spare, min(length - claim.stored.held, self._headroom(claim)))
            self._press(claim)
        return bool(granted)

    def _size(self, claim: Claim, unlimited: int) -> int:
        """The most bytes that an object's limits let it have, beside nothing else."""
        bounds = self.limits.whole, self.limits.of(self._tally.catalogue_of(claim.content))
        return min((bound.size for bound in bounds if bound.size), default=unlimited)

    def _headroom(self, claim: Claim) -> int:
        return self._size(claim, self.limits.free_space) // HEADROOM

    def _press(self, claim: Claim) -> None:
        """Have room made for a claim that lacks some; for readahead not if that was in vain a moment ago."""
        if claim.short or (claim.spare and trio.current_time() >= self._futile_until):
            self._pressed.set()

    @contextlib.asynccontextmanager
    async def holding(self, size: int, catalogue: str = "") -> AsyncIterator[Hold]:
        """Room for `size` bytes that come by another way than a claim; waits until it is made. StoreFull.

        It is given back at the end: what came is then in the store, where it counts, or was deleted.
        """
        if not self.limits:
            yield Hold()
            return
        limit = min((most for name in {"", catalogue} if (most := self.limits.of(name).size) is not None), default=size)
        if size > limit:
            raise StoreFull(f"{in_words(size)} are more than the limit, {in_words(limit)}, ever has room for")
        asked = Asked(size, catalogue, trio.current_time())

        def end() -> None:
            size, asked.size = asked.size, 0
            self._tally.hold(-size, catalogue)
            self._pressed.set()

        self._asking.append(asked)
        self._pressed.set()
        try:
            await asked.answered.wait()
            if asked.error is not None:
                raise asked.error
            yield Hold(end)
        finally:
            if asked in self._asking:
                self._asking.remove(asked)
                self._pressed.set()
            elif asked.error is None:
                end()

    def came(self, content: ContentId) -> None:
        """All of this is in the store, by another way than a claim: measure it. What was held for it has ended."""
        self._store.brought.add(content)
        self._pressed.set()

    # Making room

    async def run(self, users: Users, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep to the limits for ever; returns at once if there are none."""
        self.evictor.users = users
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
        if trio.current_time() - self._tally.looked_at >= SCAN_EVERY:
            await self.look()
        await self.sweep()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except CachefsError as error:
            _log.error("room can't be made: %s", error)
            self._pressed = trio.Event()
            self._refuse(StoreFull(f"room can't be made: {error}"), self._short())

    async def look(self) -> None:
        """Find out what the store takes, file by file. StoreFailed."""
        await self._tally.look()
        self._looked.set()

    async def _relieve(self) -> None:
        """Evict for those who were not granted all they need, and let them ask again."""
        self._pressed, self._again_at = trio.Event(), float("inf")
        if not self._tally.known:
            await self.look()
        self._tally.measure()
        going = self._victims()
        await self.evictor.evict_all(going)
        if not going:
            self._futile_until = trio.current_time() + _FUTILE
        self._tally.measure()
        self._answer()
        self._settle()

    def _answer(self) -> None:
        """Grant what can be granted now."""
        for claim in list(self._tally.claims.values()):
            if claim.short or claim.spare:
                claim.claimant.grow()
        for asked in list(self._asking):
            if asked.size <= self._tally.free(asked.catalogue):
                self._asking.remove(asked)
                self._tally.hold(asked.size, asked.catalogue)
                asked.answered.set()

    def _settle(self) -> None:
        """Of those who still lack room: look again at once, or after a while, or refuse them.

        Those who have lacked it for longest are refused first, and the others get another moment: the first may be
        the kernel's readahead of a file that was closed, which is what keeps that file from being evicted.
        """
        short = self._short()
        if not short or self._victims():
            return  # whoever lacks room has said so again
        now = trio.current_time()
        pauses = [p for claim in self._tally.claims.values() if (p := claim.lingering(now)) is not None]
        if not pauses and now >= max(short[0].since, self._refused_at) + _PATIENCE:
            self._refused_at = now
            self._refuse(StoreFull(self._reason()), short[: (len(short) + 1) // 2])
        self._pressed, self._again_at = trio.Event(), now + min([*pauses, _LOOK_AGAIN])

    def _short(self) -> list[Claim | Asked]:
        """Who lacks room, the longest first."""
        claims = [claim for claim in self._tally.claims.values() if claim.short]
        return sorted([*claims, *self._asking], key=lambda one: one.since)

    def _deficit(self, catalogue: str) -> int:
        """How many bytes have to go for everybody to get what was asked for."""
        asked = sum(asked.size for asked in self._asking if not catalogue or asked.catalogue == catalogue)
        return self._tally.missing(catalogue) + asked - self._tally.free_in(catalogue)

    def _victims(self) -> list[Held]:
        if all(self._deficit(catalogue) <= 0 for catalogue in ("", *self.limits.catalogues)):
            return []
        movable = self.evictor.movable()
        going: list[Held] = []
        for catalogue in (*self.limits.catalogues, "") if movable else ():
            chosen = {item.content for item in going}
            rest = [i for i in movable if i.content not in chosen and (not catalogue or i.catalogue == catalogue)]
            gone = sum(item.size for item in going if not catalogue or item.catalogue == catalogue)
            going += eviction.to_free(rest, self._deficit(catalogue) - gone, self._smallest())
        return going

    def _smallest(self) -> int:
        """What is needed to be of use to anybody; 0 when nobody asked, and the limit is exceeded all the same."""
        claimed = [claim.cost(claim.short[0]) for claim in self._tally.claims.values() if claim.short]
        return min(claimed + [asked.size for asked in self._asking], default=0)

    def _refuse(self, error: CachefsError, whom: Iterable[Claim | Asked]) -> None:
        for one in whom:
            if isinstance(one, Claim):
                blocks, one.short, one.since = one.short, [], float("inf")
                one.claimant.refused(blocks, error)
            else:
                self._asking.remove(one)
                one.error = error
                one.answered.set()

    def _reason(self) -> str:
        """Why there is no room, for the reader."""
        limits, free = self.limits, self._tally.disk_free()
        full = [name for name in ("", *limits.catalogues) if limits.of(name).size and self._deficit(name) > 0]
        name = full[-1] if full else ""
        section, size = f"[limits.{name}]" if name else "[limits]", limits.of(name).size
        why = f"no room: the limit ({section} size) is {in_words(size)}" if size else "no room"
        if limits.free_space and free < 2 * limits.free_space:
            why = f"no room: {in_words(free)} free on disk, {in_words(limits.free_space)} to be left"
        held, metadata = eviction.occupied(self.evictor.held()), in_words(self._tally.metadata())
        return f"{why}; held: {held}, metadata {metadata}"

    # What commands and the status ask

    def lacking(self) -> Mapping[ContentId, Set[int]]:
        """The blocks of each object that somebody waits for, and that aren't fetched before there is room."""
        return {content: frozenset(claim.short) for content, claim in self._tally.claims.items() if claim.short}

    async def next_records(self, most: int) -> list[ContentId]:
        """The records that would go first, once the store was looked at; none where nothing limits them."""
        if not (self.limits.whole or self.limits.free_space or self.limits.of(RECORDS)):
            return []
        await self._looked.wait()
        records = (item for item in self.evictor.held() if item.catalogue == RECORDS)
        return [item.content for item in eviction.least_recent(records)[:most]]

    async def sweep(self) -> list[tuple[ContentId, Evicted]]:
        """Evict what is too old, or one too many, and what exceeds the limits; what became of each."""
        self._tally.measure()
        done = await self.evictor.evict_all(self.evictor.expired())
        return done + await self.evictor.evict_all(self._victims() if self.limits else [])

    def taken(self) -> int | None:
        """The bytes that the store takes and has granted; None where nothing is limited, and so nothing is counted."""
        return self._tally.taken() if self._tally.known else None
