"""When to leave a failing source alone: a circuit breaker.

How it works: a source that fails `tolerance` times in a row is left alone for a pause that doubles
with each further failure, up to `longest`; one success closes the breaker and forgets all that. What it does
is a function of the clock and of what it was told: no task, no I/O.
"""

from __future__ import annotations

import trio


class Breaker:
    """Whether a source may be asked; pauses in seconds."""

    def __init__(self, *, tolerance: int = 3, first: float = 2.0, longest: float = 60.0) -> None:
        self._tolerance = tolerance
        self._first = first
        self._longest = longest
        self._failures = 0
        self._open_until = float("-inf")
        self.reason = ""

    def pause(self) -> float:
        """Seconds until the source may be asked; 0 when it may be now."""
        return max(0.0, self._open_until - trio.current_time())

    def succeeded(self) -> None:
        self._failures = 0
        self._open_until = float("-inf")
        self.reason = ""

    def failed(self, reason: str, *, retry_after: float = 0.0) -> None:
        """Count a failure; `retry_after` is what the source itself asked for."""
        self._failures += 1
        self.reason = reason
        doublings = self._failures - self._tolerance
        pause = min(self._first * 2.0 ** min(doublings, 16), self._longest) if doublings >= 0 else 0.0
        if pause or retry_after:
            self._open_until = trio.current_time() + max(pause, min(retry_after, self._longest))
