"""Strategies: in which order, or how many at once, the URLs of one record are tried.

How it works: a strategy gets attempts, one for each URL in the order of the record, and runs them until
one gives the bytes. Each attempt has a receiver of its own, so two never write into one file. All strategies
end the same way: with bytes that were checked, or with one error that carries every attempt's reason. A full disk
is nobody's fault and ends them at once. `patient` makes one that waits for busy hosts, when nobody else has the bytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import trio

from cachefs.errors import CachefsError, UrlFailed, together
from cachefs.fetch.http.busy import soon
from cachefs.fetch.whole.receiver import Fetched

Run: TypeAlias = Callable[[], Awaitable[Fetched]]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One URL to try: `run` downloads it; `started` is set when its first bytes come."""

    url: str
    run: Run
    started: trio.Event = field(default_factory=trio.Event)


class Strategy(Protocol):
    """How attempts are made."""

    async def __call__(self, attempts: Sequence[Attempt]) -> Fetched:
        """What the first good attempt gave; UrlFailed if none was."""


async def first(attempts: Sequence[Attempt]) -> Fetched:
    """The first URL alone: a mirror is never asked."""
    return await attempts[0].run()


async def in_order(attempts: Sequence[Attempt]) -> Fetched:
    """One after the other, in the record's order."""
    errors: list[UrlFailed] = []
    for attempt in attempts:
        try:
            return await attempt.run()
        except UrlFailed as error:
            errors.append(error)
    raise together(errors)


async def fastest(attempts: Sequence[Attempt]) -> Fetched:
    """All at once; whose first bytes come first goes on alone. Should it fail, the others are raced again."""
    errors: list[UrlFailed] = []
    left = list(attempts)
    while left:
        race = _Race(left)
        winner = await race.run()
        if race.fatal is not None:
            raise race.fatal
        if race.fetched is not None:
            return race.fetched
        errors += race.errors.values()
        left = [attempt for attempt in left if attempt is not winner and attempt.url not in race.errors]
    raise together(errors)


class _Race:
    """Attempts side by side, until one has begun to deliver."""

    def __init__(self, attempts: Sequence[Attempt]) -> None:
        self._attempts = attempts
        self._scopes = {attempt.url: trio.CancelScope() for attempt in attempts}
        self._winner: Attempt | None = None
        self.fetched: Fetched | None = None
        self.fatal: CachefsError | None = None
        self.errors: dict[str, UrlFailed] = {}

    async def run(self) -> Attempt | None:
        """Return when the winner has ended, or nobody is left."""
        async with trio.open_nursery() as nursery:
            for attempt in self._attempts:
                nursery.start_soon(self._try, attempt)
        return self._winner

    async def _try(self, attempt: Attempt) -> None:
        with self._scopes[attempt.url]:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, attempt)
                try:
                    fetched = await attempt.run()
                except UrlFailed as error:
                    self.errors[attempt.url] = error
                except CachefsError as error:
                    self.fatal = error
                    self._won(attempt)
                else:
                    self._won(attempt)
                    self.fetched = fetched
                nursery.cancel_scope.cancel()

    async def _watch(self, attempt: Attempt) -> None:
        await attempt.started.wait()
        self._won(attempt)

    def _won(self, attempt: Attempt) -> None:
        if self._winner is None:
            self._winner = attempt
            for url, scope in self._scopes.items():
                if url != attempt.url:
                    scope.cancel()


def patient(strategy: Strategy, seconds: float) -> Strategy:
    """`strategy`; if all fail, once more for those whose hosts asked to come back within so many seconds."""

    async def run(attempts: Sequence[Attempt]) -> Fetched:
        failed: dict[str, UrlFailed] = {}
        try:
            return await strategy([_noting(attempt, failed) for attempt in attempts])
        except UrlFailed:
            waited_for = soon(failed, seconds)
            if not waited_for:
                raise
        await trio.sleep_until(min(waited_for.values()))
        try:
            return await strategy([attempt for attempt in attempts if attempt.url in waited_for])
        except UrlFailed as error:
            raise together([error, *(e for url, e in failed.items() if url not in waited_for)]) from None

    return run


def _noting(attempt: Attempt, failed: dict[str, UrlFailed]) -> Attempt:
    async def run() -> Fetched:
        try:
            return await attempt.run()
        except UrlFailed as error:
            failed[attempt.url] = error
            raise

    return Attempt(attempt.url, run, attempt.started)


STRATEGIES: Mapping[str, Strategy] = {"first": first, "fastest": fastest, "mirrors": in_order}
"""By the name that the settings give."""
