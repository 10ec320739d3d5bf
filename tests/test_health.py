"""The circuit breaker: when a failing source is left alone, and for how long."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.fetch.health import Breaker


def play(scenario: Callable[[Breaker], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario(Breaker(tolerance=3, first=2.0, longest=60.0))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_source_is_asked_until_it_has_failed_as_often_as_is_tolerated() -> None:
    async def scenario(breaker: Breaker) -> None:
        pauses = []
        for _ in range(3):
            pauses.append(breaker.pause())
            breaker.failed("refused")
        assert pauses == [0, 0, 0]
        assert breaker.pause() == 2
        assert breaker.reason == "refused"

    play(scenario)


def test_each_further_failure_doubles_the_pause_up_to_the_longest() -> None:
    async def scenario(breaker: Breaker) -> None:
        breaker.failed("refused")
        breaker.failed("refused")
        pauses = []
        for _ in range(1100):
            breaker.failed("refused")
            pauses.append(breaker.pause())
            await trio.sleep(breaker.pause())
        assert pauses[:7] == [2, 4, 8, 16, 32, 60, 60]
        assert set(pauses[7:]) == {60}

    play(scenario)


def test_the_source_may_be_asked_again_when_the_pause_is_over() -> None:
    async def scenario(breaker: Breaker) -> None:
        for _ in range(3):
            breaker.failed("refused")
        await trio.sleep(1.5)
        assert breaker.pause() == pytest.approx(0.5)
        await trio.sleep(0.5)
        assert breaker.pause() == 0

    play(scenario)


def test_one_success_forgets_everything() -> None:
    async def scenario(breaker: Breaker) -> None:
        for _ in range(3):
            breaker.failed("refused")
            await trio.sleep(breaker.pause())
        breaker.failed("refused")
        breaker.succeeded()
        assert breaker.pause() == 0
        assert not breaker.reason
        breaker.failed("refused")
        assert breaker.pause() == 0

    play(scenario)


def test_a_hiccup_costs_one_short_pause_however_many_requests_it_hit() -> None:
    async def scenario(breaker: Breaker) -> None:
        for _ in range(40):
            breaker.failed("refused")
        assert breaker.pause() == 2

    play(scenario)


def test_a_source_that_asks_for_a_pause_gets_it_at_once_within_reason() -> None:
    async def scenario(breaker: Breaker) -> None:
        breaker.failed("HTTP 429", retry_after=7)
        assert breaker.pause() == 7
        breaker.failed("HTTP 429", retry_after=5)
        assert breaker.pause() == 7
        breaker.failed("HTTP 503", retry_after=1e9)
        assert breaker.pause() == 60

    play(scenario)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["fail", "succeed", "sleep"]), st.floats(0, 1000))))
def test_no_history_leaves_a_source_alone_for_longer_than_the_longest_pause(moves: list[tuple[str, float]]) -> None:
    async def scenario(breaker: Breaker) -> None:
        for move, number in moves:
            if move == "sleep":
                await trio.sleep(number)
            elif move == "fail":
                breaker.failed("refused", retry_after=number)
            else:
                breaker.succeeded()
                assert not breaker.pause()
            assert 0 <= breaker.pause() <= 60.001

    play(scenario)
