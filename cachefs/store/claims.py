"""What each open object may still grow by: blocks that were granted to a download and may not be on disk yet.

How it works: a block that is demanded may be written at any moment from then on, so it is charged before the
demand leaves us. An object's charge is what its file takes plus what its granted blocks may still add; a block that
lands changes nothing, it was charged already. A block that isn't wanted any more stays charged for `GRACE` seconds,
since peers were asked for it and may still answer; then what it has left on disk shows in the file itself. Charges
are upper bounds that only grow between two measurements; measuring (`Claim.measure`) makes them exact.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Protocol

import trio

from cachefs.content import ContentId
from cachefs.errors import CachefsError
from cachefs.store import space
from cachefs.store.stored import StoredObject

GRACE = 10.0
"""Seconds for which a block that is no longer wanted may still arrive."""

_WANTED = float("inf")


class Claimant(Protocol):
    """Who wants room for the blocks of an open object."""

    stored: StoredObject

    def grow(self) -> None:
        """There may be more room now: ask again."""

    def refused(self, blocks: Collection[int], error: CachefsError) -> None:
        """There is no room for these blocks, and none can be made."""


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


@dataclass(slots=True, eq=False)
class Asked:
    """A wish for room at one go, and how it was answered."""

    size: int
    catalogue: str
    since: float
    answered: trio.Event = field(default_factory=trio.Event)
    error: CachefsError | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Room that was given at one go; `end` gives it back, and may be called again."""

    end: Callable[[], None] = lambda: None


class Claim:
    """One claimant's granted blocks, and those it was not granted: `short` ones, and `spare` bytes of readahead."""

    def __init__(self, claimant: Claimant) -> None:
        self.claimant = claimant
        self.stored = claimant.stored
        self.short: list[int] = []
        self.since = float("inf")
        self.spare = 0
        self._granted: dict[int, float] = {}  # each with the time from which on it need not be reckoned with

    @property
    def content(self) -> ContentId:
        return self.stored.manifest.content

    def cost(self, index: int) -> int:
        """The bytes that block `index` takes at most."""
        return space.cost(self.stored.manifest.span(index))

    def want(self, blocks: Collection[int], now: float) -> None:
        """Of what was granted, only `blocks` are wanted now; what has landed is done with."""
        verified = self.stored.verified
        for index, until in list(self._granted.items()):
            if index in blocks:
                self._granted[index] = _WANTED
            elif index in verified:
                del self._granted[index]
            elif until == _WANTED:
                self._granted[index] = now + GRACE

    def grant(self, index: int) -> None:
        self._granted[index] = _WANTED

    def granted(self, index: int) -> bool:
        return index in self._granted

    @property
    def settled(self) -> bool:
        """Whether, as it was measured last, nothing is to come and nothing was refused: what it takes stays."""
        return self.stored.closed or not (self._granted or self.missing())

    def promised(self) -> int:
        """The bytes that granted blocks may still take, at most."""
        return sum(self.cost(index) for index in self._granted if index not in self.stored.verified)

    def missing(self) -> int:
        """The bytes that it was not granted."""
        return self.spare + sum(map(self.cost, self.short))

    def measure(self, now: float) -> int:
        """What the object takes and may come to take, exactly, in bytes. StoreFailed."""
        if self.stored.closed:
            self._granted.clear()
            return space.taken(self.stored.path)
        verified = self.stored.verified
        self._granted = {i: until for i, until in self._granted.items() if until > now and i not in verified}
        # What is to come first: what is written in between counts twice, where the other order would lose it.
        to_come = sum(map(self.stored.to_write, self._granted))
        return to_come + self.stored.allocated

    def lingering(self, now: float) -> float | None:
        """In how many seconds the first block that isn't wanted any more stops being charged; None if there is none."""
        times = [until - now for until in self._granted.values() if until != _WANTED]
        return max(0.0, min(times)) if times else None
