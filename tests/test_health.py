"""What experience says of a source: when it is left alone, for how long, for which content, and how quick it is."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.content import ContentId
from cachefs.fetch.health import Breaker, Silence, SourceHealth


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


# A source

ONE, OTHER = ContentId("btih", b"1" * 20), ContentId("btih", b"2" * 20)


def with_health(scenario: Callable[[SourceHealth], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario(SourceHealth())

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_what_a_source_lacks_is_held_against_it_for_that_content_and_that_long_only() -> None:
    async def scenario(health: SourceHealth) -> None:
        health.refuse(ONE, "does not have it", 30)
        assert (health.objection(ONE), health.objection(OTHER)) == ("does not have it", "")
        await trio.sleep(29.9)
        assert health.objection(ONE)
        await trio.sleep(0.1)
        assert not health.objection(ONE)

    with_health(scenario)


def test_a_ban_does_not_end_by_itself_and_is_forgiven_with_the_host_s_faults() -> None:
    async def scenario(health: SourceHealth) -> None:
        health.refuse(ONE, "wrong bytes", math.inf)
        await trio.sleep(80_000)
        health.breaker.failed("silent")
        assert health.objection(ONE) == "wrong bytes"
        health.forgive(ONE)
        assert not health.objection(ONE)

    with_health(scenario)


def test_a_host_that_failed_once_is_left_alone_for_every_content() -> None:
    async def scenario(health: SourceHealth) -> None:
        health.breaker.failed("silent for 10 s")
        assert health.objection(ONE) == health.objection(OTHER) == "left alone for now: silent for 10 s"
        await trio.sleep(health.breaker.pause())
        assert not health.objection(ONE)

    with_health(scenario)


def test_the_rate_follows_the_last_answers_and_is_forgotten_after_a_while() -> None:
    async def scenario(health: SourceHealth) -> None:
        assert health.rate is None
        health.measured(10_000, 1.0)
        assert health.rate == 10_000
        health.measured(1000, 1.0)
        assert health.rate == pytest.approx(7300)
        for _ in range(40):
            health.measured(1000, 1.0)
        assert health.rate == pytest.approx(1000, rel=0.01)
        await trio.sleep(SourceHealth.MEMORY)
        assert health.rate is None
        health.measured(5000, 1.0)
        assert health.rate == 5000

    with_health(scenario)


def test_an_answer_in_no_time_is_a_rate_too() -> None:
    async def scenario(health: SourceHealth) -> None:
        health.measured(1, 0.0)
        assert health.rate is not None
        assert health.rate < math.inf

    with_health(scenario)


def test_a_source_that_ignored_a_range_is_asked_for_one_again_after_a_minute_and_later_after_longer() -> None:
    async def scenario(health: SourceHealth) -> None:
        for seconds in (60, 120, 240, 480, 600, 600):
            health.ignored_a_range()
            health.ignored_a_range()
            health.answered_a_range()
            await trio.sleep(seconds - 1)
            assert not health.ranges
            await trio.sleep(1)
            assert health.ranges
        health.answered_a_range()
        health.ignored_a_range()
        await trio.sleep(60)
        assert health.ranges

    with_health(scenario)


def test_that_a_source_ignores_ranges_is_forgiven_with_its_other_faults() -> None:
    async def scenario(health: SourceHealth) -> None:
        health.ignored_a_range()
        assert not health.ranges
        assert not health.objection(ONE)
        health.forgive(ONE)
        assert health.ranges

    with_health(scenario)


def test_what_is_remembered_of_contents_is_bounded_and_the_latest_stays() -> None:
    async def scenario(health: SourceHealth) -> None:
        for number in range(SourceHealth._MOST_CONTENTS + 1):
            health.refuse(ContentId("btih", number.to_bytes(20, "big")), "does not have it", 1e6)
        assert not health.objection(ContentId("btih", bytes(20)))
        assert health.objection(ContentId("btih", number.to_bytes(20, "big")))

    with_health(scenario)


def tries(*spans: float, answers: bool = True) -> bool:
    """Whether a source counts as gone after tries in vain, these seconds after each other; others answer in between."""

    async def main() -> bool:
        silence = Silence()
        for number, span in enumerate(spans):
            await trio.sleep(span)
            silence.failed(number if answers else 1)
        return silence.is_long

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_source_that_was_asked_in_vain_for_ten_minutes_counts_as_gone() -> None:
    assert tries(0, 150, 150, 150, 150)
    assert tries(0, *[60] * 10)
    assert not tries(0, *[60] * 9)
    assert not tries(0, 150, 150, 150, 149)


def test_a_few_tries_or_many_in_a_moment_say_nothing() -> None:
    assert not tries(0, 200, 200, 200)
    assert not tries(*[1] * 100, 600, *[1] * 59)
    assert tries(*[1] * 100, 600, *[1] * 181)


def test_while_nobody_answers_it_may_be_our_own_network() -> None:
    assert not tries(0, *[60] * 100, answers=False)


def test_a_source_that_answers_is_there_again() -> None:
    async def main() -> None:
        silence = Silence()
        for number in range(12):
            silence.failed(number)
            await trio.sleep(60)
        assert silence.is_long
        silence.answered()
        silence.failed(100)
        assert not silence.is_long

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
