"""The reads that wait: how many may, for how long each, and how the mount's end lets all of them go.

How it works: a read whose blocks aren't all here takes a place before it waits and leaves it with its answer. The
places are what the status shows, and what the end of the mount waits for. They are bounded: the kernel's side has a
limited number of requests under way, and cached reads must find one free. Until when a read waits is asked anew
every moment, for in one mode that depends on when a byte last came. Nothing here knows what is waited for.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import trio

from cachefs.errors import Stopping, TooManyWaiting

if TYPE_CHECKING:
    from cachefs.config import Read


@dataclass(frozen=True, slots=True)
class Waiting:
    """One blocked read, for the status; `since` on trio's clock, in seconds."""

    name: str
    blocks: tuple[int, ...]
    since: float


class Waits:
    """The places of a mount's waiting reads, as many as `settings` has, and its rules for giving up."""

    def __init__(self, settings: Read) -> None:
        self._settings = settings
        self._places: dict[int, Waiting] = {}
        self._next_place = 0
        self._stopping = False
        self._drained = trio.Event()

    def waiting(self) -> list[Waiting]:
        """The reads that wait now, longest first."""
        return sorted(self._places.values(), key=lambda wait: wait.since)

    def require_running(self) -> None:
        """Return if reads may still wait; Stopping once the end has begun."""
        if self._stopping:
            raise Stopping

    @contextlib.contextmanager
    def place(self, name: str, blocks: Sequence[int]) -> Iterator[float]:
        """A place for a read of these blocks while this lasts, and since when, on trio's clock. TooManyWaiting."""
        if len(self._places) >= self._settings.max_waiting:
            raise TooManyWaiting(f"{name}: {len(self._places)} reads wait already ([read] max_waiting)")
        self._next_place += 1
        place, since = self._next_place, trio.current_time()
        self._places[place] = Waiting(name, tuple(blocks), since)
        try:
            yield since
        finally:
            del self._places[place]
            if self._stopping and not self._places:
                self._drained.set()

    def until(self, path: str, since: float, moved_at: float | None) -> float:
        """Until when a read that waits `since` then goes on waiting, as things stand; all on trio's clock, in seconds.

        `path` is catalogue and name, `moved_at` when a byte last came for the file, None if nothing fetches it.
        """
        mode = self._mode(path)
        if mode == "wait":
            return math.inf
        end = since + self._settings.deadline
        if mode == "fail-fast" and moved_at is not None:
            return min(end, max(since, moved_at) + self._settings.fail_fast_after)
        return end

    def _mode(self, path: str) -> str:
        return next((mode for pattern, mode in self._settings.on_unavailable if fnmatchcase(path, pattern)), "deadline")

    def stop(self) -> None:
        """Begin the end: no read may wait from now on. Those that do are the caller's to let go."""
        self._stopping = True

    async def over(self) -> None:
        """Return when nobody waits any more, once `stop` was called."""
        if self._places:
            await self._drained.wait()
