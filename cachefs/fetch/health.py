"""When to leave a failing source alone: a circuit breaker.

How it works: a source that fails `tolerance` times in a row is left alone for a pause that doubles
with each further failure, up to `longest`; one success closes the breaker and forgets all that. Many requests
fail together when a host goes away, so those that were under way when the breaker opened don't count: a
hiccup costs one short pause, however many it hit. What it does is a function of the clock and of what it was
told: no task, no I/O.
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
        self.reason = reason
        pause = min(retry_after, self._longest)
        if not self.pause():
            self._failures += 1
            pause = max(pause, self._backoff())
        self._open_until = max(self._open_until, trio.current_time() + pause)

    def _backoff(self) -> float:
        doublings = self._failures - self._tolerance
        return min(self._first * 2.0 ** min(doublings, 16), self._longest) if doublings >= 0 else 0.0
