"""Letting objects go: which of them may, and what it takes to be rid of one.

How it works: an object stays while somebody reads it, while it is being fetched as a whole (`keeping`) and while it
is pinned. Any other may go: whoever only seeds it leaves it, the store unlinks its file, and its charge ends. One that
wouldn't go counts as open for a moment, so that others are chosen. How much has to go is for `room.py` to say, and
which go first for `eviction.py`.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import trio

from cachefs.content import ContentId
from cachefs.errors import CachefsError
from cachefs.store import eviction
from cachefs.store.claims import Nobody, Users
from cachefs.store.eviction import Evicted, Held, in_words
from cachefs.store.objects import ObjectStore
from cachefs.store.state import State
from cachefs.store.tally import Tally

_STUCK = 2.0  # seconds for which what could not go is not tried again

_log = logging.getLogger(__name__)


class Evictor:
    """Evicts objects of a store, unless they are `pinned` or its `users` need them; `clock` is Unix seconds."""

    def __init__(self, store: ObjectStore, state: State, tally: Tally, clock: Callable[[], float]) -> None:
        self.pinned: set[ContentId] = {pin.content for pin in state.pins()}
        self.users: Users = Nobody()
        self._store = store
        self._state = state
        self._tally = tally
        self._clock = clock
        self._kept: Counter[ContentId] = Counter()
        self._stuck: dict[ContentId, float] = {}

    @contextlib.contextmanager
    def keeping(self, contents: Iterable[ContentId]) -> Iterator[None]:
        """While this lasts, none of these is evicted."""
        kept = Counter(iter(contents))  # a mapping would pass for counts
        self._kept.update(kept)
        try:
            yield
        finally:
            self._kept.subtract(kept)
            self._kept += Counter()

    def held(self) -> list[Held]:
        """Every object that takes room. StoreFailed."""
        used = self._used()
        return [
            Held(content, size, used.get(content, 0.0), self._why_stays(content), catalogue)
            for content, size, catalogue in self._tally.items()
            if size > 0
        ]

    def movable(self) -> list[Held]:
        """Those of them that may go. StoreFailed."""
        found = [item for item in self._tally.items() if item[1] > 0 and not self._why_stays(item[0])]
        # Where room is short because a node has all files open, this is asked many times a second, and none may go.
        used = self._used() if found else {}
        return [Held(content, size, used.get(content, 0.0), "", catalogue) for content, size, catalogue in found]

    def _used(self) -> dict[ContentId, float]:
        return self._state.last_used() | {s.manifest.content: s.last_used for s in self._store.opened()}

    def _why_stays(self, content: ContentId) -> str:
        if self.users.reads(content) or self._stuck.get(content, 0.0) > trio.current_time():
            return "open"
        if self._kept[content]:
            return "being fetched"
        return "pinned" if content in self.pinned else ""

    def expired(self) -> list[Held]:
        """Those that may go and are too old, or one too many, by the limits. StoreFailed."""
        going: list[Held] = []
        held, now, limits = self.held(), self._clock(), self._tally.limits
        for catalogue in (*limits.catalogues, ""):
            within = [i for i in held if i not in going and (not catalogue or i.catalogue == catalogue)]
            going += eviction.expired(within, limits.of(catalogue), now)
        return going

    async def evict(self, content: ContentId, *, manifest: bool = False) -> Evicted:
        """Evict one object now, unless it has to stay. StoreFailed."""
        if why := self._why_stays(content):
            return Evicted(stays=why)
        gone = await self.users.let_go(content)
        if why := self._why_stays(content):  # somebody pinned it meanwhile, say
            return Evicted(stays=why)
        freed = await self._store.remove(content, manifest=manifest) if gone else None
        if freed is None:
            return Evicted(stays="open")
        self._tally.claims.pop(content, None)
        self._tally.charge(content, 0)
        return Evicted(freed)

    async def evict_all(self, going: Iterable[Held]) -> list[tuple[ContentId, Evicted]]:
        """Evict those of these that can go; what became of each."""
        return [(item.content, await self._evict(item)) for item in going]

    async def _evict(self, item: Held) -> Evicted:
        try:
            outcome = await self.evict(item.content)
        except CachefsError as error:  # others may go all the same
            outcome = Evicted(stays=str(error))
        now = trio.current_time()
        self._stuck = {content: until for content, until in self._stuck.items() if until > now}
        if outcome.stays:
            self._stuck[item.content] = now + _STUCK
        why = outcome.stays or f"evicted, {in_words(outcome.freed)} freed"
        _log.info("%s, unused for %.0f s: %s", item.content, self._clock() - item.last_used, why)
        return outcome
