"""How a player is kept at the playhead: decided from one look at it, without I/O.

How it works: a small drift is worked off by speed, so that nobody hears a jump: the speed differs from the playhead's
rate by what brings the drift to nothing within a second, at most by five per cent (mpv keeps the pitch). A large
drift would take too long, and is ended by one exact seek. A seek takes time, during which the playhead goes on, so
it aims ahead by what the last ones took; what it still misses is a small drift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from cachefs.playhead.model import Playhead

SEEK_BEYOND, SEEK_AGAIN_BEYOND = 0.1, 0.4
"""Seconds of drift beyond which a seek is quicker than speed; and shortly after a seek, which had to miss a little."""

NOTICED, SETTLED = 0.008, 0.002
"""Seconds of drift from which the speed is changed, and at which it is the playhead's rate again.

Between them lies what a change of speed itself costs: mpv's filter that keeps the pitch moves the sound by some
milliseconds when it comes and when it goes.
"""

_LARGEST_TRIM = 0.05
_WORKED_OFF_IN = 1.0
_PAUSED_WITHIN = 0.01
_LONGEST_SEEK = 2.0


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a player: `position` and `duration` in seconds, `duration` None if unknown."""

    position: float
    paused: bool
    speed: float
    duration: float | None


@dataclass(frozen=True, slots=True)
class Orders:
    """What to tell the player, in this order; None leaves it as it is. `seek` in seconds."""

    pause: bool | None = None
    seek: float | None = None
    speed: float | None = None


def steer(head: Playhead, utc: float, look: Look, seek_takes: float = 0.0, seek_beyond: float = SEEK_BEYOND) -> Orders:
    """The orders that bring a player, seen at `utc`, to `head`. `seek_takes`: seconds that a seek takes."""
    target = head.position_at(utc) / 1000.0
    ended = look.duration is not None and target >= look.duration
    if ended and look.duration is not None:
        target = look.duration
    if not head.playing or ended:
        return _hold(target, look)
    drift = target - look.position
    if abs(drift) > seek_beyond:
        goal = target + head.rate * seek_takes
        return Orders(_unless(look.paused, False), goal, _unless(look.speed, head.rate))
    return Orders(_unless(look.paused, False), None, _unless(look.speed, _speed(head.rate, drift, look.speed)))


def _hold(target: float, look: Look) -> Orders:
    """Stand still at `target`."""
    seek = target if abs(target - look.position) > _PAUSED_WITHIN else None
    return Orders(_unless(look.paused, True), seek, None)


def _speed(rate: float, drift: float, present: float) -> float:
    if abs(drift) <= (NOTICED if present == rate else SETTLED):
        return rate
    trim = max(-_LARGEST_TRIM, min(_LARGEST_TRIM, drift / _WORKED_OFF_IN / rate))
    speed = round(rate * (1 + trim), 3)
    # A speed that is nearly right is left: each change costs the player some work.
    return present if present != rate and abs(speed - present) < 0.002 else speed


def _unless(present: T, wanted: T) -> T | None:
    return None if present == wanted else wanted


def seek_time(before: float, late: float) -> float:
    """What a seek takes, in seconds, learnt from how late (negative: early) the player was right after one."""
    return max(0.0, min(_LONGEST_SEEK, before + 0.5 * late))
