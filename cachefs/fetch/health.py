"""How a source has done so far: when to leave it alone, and how quick it is.

How it works: a `Breaker` is a circuit breaker: a source that fails `tolerance` times in a row is left alone for a
pause that doubles with each further failure, up to `longest`; one success closes the breaker and forgets all
that. Many requests fail together when a host goes away, so those that were under way when the breaker opened
don't count: a hiccup costs one short pause, however many it hit. `SourceHealth` adds what is known for single
contents, and speed. `Silence` tells a source that is away for a while from one that is gone. All of it is a function
of the clock and of what it was told: no task, no I/O.
"""

from __future__ import annotations

import trio

from cachefs.content import ContentId


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


class Silence:
    """Whether a source has given no answer for so long that none is expected of it.

    That is so after ten minutes, in five tries, a minute or more apart. Tries between which nobody else answered
    either are one: they say more of our own network than of the source.
    """

    TRIES = 5
    APART = 60.0
    LONG = 600.0

    def __init__(self) -> None:
        self._tries = 0
        self._since = self._tried_at = float("-inf")
        self._answers = 0

    def answered(self) -> None:
        """It said something of use, be it that it doesn't have what it was asked for."""
        self._tries = 0

    def failed(self, answers: int) -> None:
        """It was asked in vain; `answers` is how many all sources together have given so far."""
        now = trio.current_time()
        if not self._tries:
            self._since = now
        elif answers == self._answers or now < self._tried_at + self.APART:
            return
        self._tries, self._tried_at, self._answers = self._tries + 1, now, answers

    @property
    def is_long(self) -> bool:
        """Whether it counts as gone, until it answers again."""
        return self._tries >= self.TRIES and trio.current_time() >= self._since + self.LONG


class SourceHealth:
    """What experience says of one source: whether to ask it for some content, and how quick it is likely to be.

    A fault of the host opens the breaker; a fault of one content (not there, forbidden, wrong bytes) is remembered for
    that content alone. Speed is an average that follows the last few answers, and is forgotten after `MEMORY`
    seconds, so that a source that was slow once gets another chance.
    """

    MEMORY = 120.0
    _WEIGHT = 0.3
    _MOST_CONTENTS = 10_000

    def __init__(self) -> None:
        self.breaker = Breaker(tolerance=1, first=1.0)
        self._whole_files = Breaker(tolerance=1, first=60.0, longest=600.0)
        self._refused: dict[ContentId, tuple[float, str]] = {}
        self._rate: float | None = None
        self._measured_at = float("-inf")

    def objection(self, content: ContentId) -> str:
        """Why it should not be asked for `content` now; empty if it may be."""
        until, why = self._refused.get(content, (0.0, ""))
        if trio.current_time() < until:
            return why
        return f"left alone for now: {self.breaker.reason}" if self.breaker.pause() else ""

    def refuse(self, content: ContentId, why: str, seconds: float) -> None:
        """Don't ask it for `content` for so many seconds; infinite is a ban."""
        self._refused.pop(content, None)
        self._refused[content] = (trio.current_time() + seconds, why)
        if len(self._refused) > self._MOST_CONTENTS:
            del self._refused[next(iter(self._refused))]

    @property
    def ranges(self) -> bool:
        """Whether it may be asked for a part of a file; if not, it is only good for a whole one."""
        return not self._whole_files.pause()

    def ignored_a_range(self) -> None:
        """It sent a whole file where a part was asked for: for a minute it isn't asked for parts, later for longer."""
        self._whole_files.failed("does not answer ranges")

    def answered_a_range(self) -> None:
        """It sent a part; one that was asked for before it ignored another says nothing."""
        if self.ranges:
            self._whole_files.succeeded()

    def forgive(self, content: ContentId) -> None:
        """Forget what was wrong with `content`, and with the host."""
        self._refused.pop(content, None)
        self.breaker.succeeded()
        self._whole_files.succeeded()

    def measured(self, size: int, seconds: float) -> None:
        """It gave `size` bytes in so many seconds."""
        rate = size / max(seconds, 1e-6)
        before = self.rate
        self._rate = rate if before is None else before * (1 - self._WEIGHT) + rate * self._WEIGHT
        self._measured_at = trio.current_time()

    @property
    def rate(self) -> float | None:
        """Bytes per second that one request of it gives; None if it wasn't asked lately."""
        return self._rate if trio.current_time() - self._measured_at < self.MEMORY else None
