"""Who is asked for a block: every rule of it, in one place.

How it works: nothing here does anything. `hand_over` says whether a file's torrent or the web (web seeds, remotes, a
record's own URLs) is to fetch what is wanted, by the first row of a table that holds. `Hedging` says when a block
that somebody waits for is late, and whether a second source may be asked for it: only while such extra requests stay
within a share of what was fetched anyway. `rank` puts sources in the order in which they are worth asking. What is
known of a source is in health.py; who acts on all this is the router and the fetchers of ranges.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Protocol, TypeVar

from cachefs.content import ContentId
from cachefs.fetch.health import SourceHealth

if TYPE_CHECKING:
    from cachefs.config import Fetch


class Choice(enum.Enum):
    """Which back end fetches."""

    TORRENT = "torrent"
    WEB = "web"


@dataclass(frozen=True, slots=True)
class Situation:
    """What one file's sources look like at this moment; times in seconds, rates in bytes per second."""

    has_torrent: bool
    """Whether there is a torrent that could be asked."""
    web_sources: int
    """How many web seeds and remotes may be asked for this file."""
    findable: bool
    """Whether there is any way to find a peer."""
    peers: int
    """How many connected peers have something of this file."""
    looked_for: float
    """For how long peers have been looked for."""
    from_web: bool
    """Whether the .torrent was not known before, and came from a web seed."""
    waited: float
    """For how long readers have waited without any block of the torrent's coming; 0 when none waits."""
    arriving: bool
    """Whether any bytes came from peers in the last second or so."""
    rate: float
    """What they gave, in bytes per second."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the table: when `holds`, `choice` fetches; `reason` is for the status, and for nothing else."""

    reason: str
    holds: Callable[[Situation, Fetch], bool]
    choice: Choice
    sticks_for: float = 0.0
    """Seconds for which it goes on to decide, once it has."""
    means_drought: bool = False
    """Whether peers were looked for in vain, as they may be for other files."""


_GIVEN_UP_FOR = 30.0
"""Seconds that a torrent which stalled is left alone while the web fetches."""


HAND_OVER: Sequence[Rule] = (
    Rule("no torrent", lambda now, _: not now.has_torrent, Choice.WEB),
    Rule("no web source may be asked", lambda now, _: not now.web_sources, Choice.TORRENT),
    Rule("there is no way to find peers", lambda now, _: not now.peers and not now.findable, Choice.WEB),
    Rule("no peers yet; a web seed has the .torrent", lambda now, _: not now.peers and now.from_web, Choice.WEB),
    Rule("no peers", lambda now, s: not now.peers and now.looked_for >= s.peer_grace, Choice.WEB, means_drought=True),
    Rule(
        "the torrent is stalled",
        lambda now, s: now.waited >= s.stalled_after and not now.arriving,
        Choice.WEB,
        sticks_for=_GIVEN_UP_FOR,
    ),
    Rule(
        "the torrent is slow",
        lambda now, s: now.waited >= s.stalled_after and now.rate < s.slow_below,
        Choice.WEB,
        sticks_for=_GIVEN_UP_FOR,
    ),
    Rule("torrent first", lambda now, s: True, Choice.TORRENT),
)
"""From top to bottom; the first row that holds decides."""


def hand_over(now: Situation, settings: Fetch) -> Rule:
    """The row that decides who fetches."""
    return next(rule for rule in HAND_OVER if rule.holds(now, settings))


FAR_SLOWER = 10.0
"""The factor by which a source is slower that isn't asked while the other may be."""


class Candidate(Protocol):
    """A source that can be ranked."""

    health: SourceHealth
    busy: int


C = TypeVar("C", bound=Candidate)


def rank(candidates: Iterable[C], content: ContentId) -> list[C]:
    """Those that may be asked for `content`, best first.

    A source nobody has measured yet comes first, for there is no other way to learn what it can do; then the quickest,
    requests under way counted in. One that gives whole files only comes last. One that is far slower than the
    quickest isn't asked at all: a busy quick source is done sooner than an idle slow one.
    """
    usable = [source for source in candidates if not source.health.objection(content)]
    best = max((source.health.rate or 0.0 for source in usable), default=0.0)
    usable = [s for s in usable if s.health.rate is None or s.health.rate * FAR_SLOWER >= best]

    def cost(source: C) -> tuple[bool, float]:
        rate = source.health.rate
        return not source.health.ranges, 0.0 if rate is None else (source.busy + 1) / max(rate, 1.0)

    return sorted(usable, key=cost)


class Hedging:
    """When to ask a second source, and what that has cost so far. Sizes in bytes, times in seconds."""

    FIRST = 1.0
    """When a block is late while nothing is known of how long they take."""
    ALLOWANCE = 16 * 2**20
    """Extra traffic that may be had on credit, so that the first reads are helped, too."""

    def __init__(self, settings: Fetch) -> None:
        self._settings = settings
        self._waits: deque[float] = deque(maxlen=64)
        self.received = 0
        self.extra = 0
        self.hedged = 0
        self.won = 0

    def landed(self, size: int, waited: float | None) -> None:
        """A block came; `waited` is for how long somebody waited for it, None if nobody did."""
        self.received += size
        if waited is not None:
            self._waits.append(waited)

    def late_after(self) -> float:
        """After how long a block is late: a factor above what is usual here."""
        if not self._settings.hedging:
            return float("inf")
        if len(self._waits) < 4:
            return self.FIRST
        return max(self._settings.hedge_floor, self._settings.hedge_factor * median(self._waits))

    def allows(self, size: int) -> bool:
        """Whether `size` more bytes may be asked for twice."""
        share = self._settings.extra_traffic
        return share > 0 and self.extra + size <= self.ALLOWANCE + share * self.received

    def hedge(self, size: int) -> None:
        """A second request for `size` bytes is made."""
        self.hedged += 1
        self.extra += size
