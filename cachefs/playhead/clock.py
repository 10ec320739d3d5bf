"""Clocks that agree: a steady one for the daemon that decides, and a measured idea of it for those who follow.

How it works: the deciding daemon counts from the UTC at its start with CLOCK_BOOTTIME, so a wall clock that is set
in the middle of a song moves nothing, and a machine that slept knows how long. A follower never uses its own wall
clock, which may be minutes off. It asks for the time, notes its own steady clock before and after, and takes the
answer for the middle: wrong by half the round trip at most, when one way took all of it. Of the last few answers the
one with the shortest round trip counts (the clock filter of NTP, RFC 5905 section 10); the two machines' oscillators
drift apart by some 0.05 ms a second, so eight answers ten seconds apart add 4 ms at the very most.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

_REMEMBERED = 8
_DRIFT = 0.01
"""Seconds by which two clocks may have moved apart while the answers that are remembered came in."""


def steady() -> float:
    """Seconds of a clock that nobody sets and that counts while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SteadyUtc:
    """UTC as it was when this was made, plus the time since, in seconds since 1970."""

    def __init__(self, wall: Callable[[], float] = time.time, counter: Callable[[], float] = steady) -> None:
        self._counter = counter
        self._base = wall() - counter()

    def __call__(self) -> float:
        return self._base + self._counter()


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer: what to add to our steady clock to get theirs, and the round trip that it took, in seconds."""

    offset: float
    round_trip: float


class FollowedUtc:
    """Another machine's clock, as our steady clock and the best of the last answers tell it."""

    def __init__(self, counter: Callable[[], float] = steady) -> None:
        self._counter = counter
        self._samples: deque[Sample] = deque(maxlen=_REMEMBERED)
        self._best = Sample(0.0, float("inf"))

    def __call__(self) -> float:
        """Their time now, in seconds since 1970. Meaningless until `known`."""
        return self._counter() + self._best.offset

    @property
    def known(self) -> bool:
        return bool(self._samples)

    @property
    def uncertainty(self) -> float:
        """By how many seconds the time may be off; infinite before the first answer."""
        return self._best.round_trip / 2

    def add(self, asked: float, theirs: float, answered: float) -> None:
        """Take an answer: `theirs` came to a question of ours between `asked` and `answered` by our steady clock.

        An answer that can't be of the same clock as the best one is of a daemon that began anew: only it counts.
        """
        sample = Sample(theirs - (asked + answered) / 2, answered - asked)
        if abs(sample.offset - self._best.offset) > (sample.round_trip + self._best.round_trip) / 2 + _DRIFT:
            self._samples.clear()
        self._samples.append(sample)
        self._best = min(self._samples, key=lambda sample: sample.round_trip)
