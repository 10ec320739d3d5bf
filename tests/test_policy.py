"""The policy of fetching: who is asked, in which order, and when a second source may be."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from cachefs.config import Fetch
from cachefs.content import ContentId
from cachefs.fetch.health import SourceHealth
from cachefs.fetch.policy import FAR_SLOWER, HAND_OVER, Choice, Hedging, Situation, hand_over, rank

CONTENT = ContentId("btih", bytes(20))
SETTINGS = Fetch(peer_grace=1.0, stalled_after=5.0, slow_below=65_536)
MIB = 2**20

WELL = Situation(
    has_torrent=True,
    web_sources=2,
    findable=True,
    peers=3,
    looked_for=0.0,
    from_web=False,
    waited=0.0,
    arriving=True,
    rate=10e6,
)
"""A file whose torrent does what it should, and that web seeds have as well."""

ROWS = [
    ("no torrent", Choice.WEB, {"has_torrent": False, "peers": 0}),
    ("no torrent", Choice.WEB, {"has_torrent": False, "web_sources": 0}),
    ("no web source may be asked", Choice.TORRENT, {"web_sources": 0, "peers": 0, "findable": False}),
    ("no web source may be asked", Choice.TORRENT, {"web_sources": 0, "waited": 100.0, "rate": 0.0}),
    ("there is no way to find peers", Choice.WEB, {"peers": 0, "findable": False}),
    ("no peers yet; a web seed has the .torrent", Choice.WEB, {"peers": 0, "from_web": True}),
    ("torrent first", Choice.TORRENT, {"from_web": True}),
    ("torrent first", Choice.TORRENT, {"peers": 0, "looked_for": 0.99}),
    ("no peers", Choice.WEB, {"peers": 0, "looked_for": 1.0}),
    ("no peers", Choice.WEB, {"peers": 0, "looked_for": math.inf}),
    ("torrent first", Choice.TORRENT, {"looked_for": math.inf}),
    ("the torrent is stalled", Choice.WEB, {"waited": 5.0, "arriving": False, "rate": 1e9}),
    ("torrent first", Choice.TORRENT, {"waited": 4.99, "arriving": False, "rate": 0.0}),
    ("the torrent is slow", Choice.WEB, {"waited": 5.0, "rate": 65_535.0}),
    ("torrent first", Choice.TORRENT, {"waited": 100.0, "rate": 65_536.0}),
    ("torrent first", Choice.TORRENT, {"waited": 4.99, "rate": 0.0}),
    ("torrent first", Choice.TORRENT, {}),
]


@pytest.mark.parametrize(("reason", "choice", "change"), ROWS)
def test_the_first_row_of_the_table_that_holds_decides(reason: str, choice: Choice, change: dict[str, Any]) -> None:
    rule = hand_over(replace(WELL, **change), SETTINGS)
    assert (rule.reason, rule.choice) == (reason, choice)


def test_every_row_of_the_table_decides_some_situation() -> None:
    assert [rule.reason for rule in HAND_OVER] == list(dict.fromkeys(row.reason for row in HAND_OVER))
    assert {reason for reason, _, _ in ROWS} == {rule.reason for rule in HAND_OVER}


def test_a_torrent_that_was_given_up_is_left_alone_for_a_while_and_peers_that_were_not_found_are_remembered() -> None:
    assert {rule.reason for rule in HAND_OVER if rule.sticks_for} == {"the torrent is stalled", "the torrent is slow"}
    assert {rule.reason for rule in HAND_OVER if rule.means_drought} == {"no peers"}


SITUATIONS = st.builds(
    Situation,
    has_torrent=st.booleans(),
    web_sources=st.integers(0, 3),
    findable=st.booleans(),
    peers=st.integers(0, 3),
    looked_for=st.floats(0, math.inf),
    from_web=st.booleans(),
    waited=st.floats(0, math.inf),
    arriving=st.booleans(),
    rate=st.floats(0, 1e12),
)


@given(SITUATIONS)
def test_nobody_is_asked_who_can_not_answer_while_the_other_can(now: Situation) -> None:
    choice = hand_over(now, SETTINGS).choice
    if now.has_torrent and not now.web_sources:
        assert choice is Choice.TORRENT
    if not now.has_torrent:
        assert choice is Choice.WEB


@given(SITUATIONS)
def test_a_torrent_with_peers_whose_readers_do_not_wait_is_never_left(now: Situation) -> None:
    choice = hand_over(replace(now, has_torrent=True, peers=max(now.peers, 1), waited=0.0), SETTINGS).choice
    assert choice is Choice.TORRENT


# The order of sources


@dataclass(eq=False)
class Source:
    """A source as `rank` sees it."""

    name: str
    rate: float | None = None
    busy: int = 0
    health: SourceHealth = field(default_factory=SourceHealth)

    def __post_init__(self) -> None:
        if self.rate is not None:
            self.health.measured(int(self.rate), 1.0)


def order(*sources: Source) -> list[str]:
    return [source.name for source in rank(sources, CONTENT)]


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def test_quick_sources_are_asked_before_slower_ones_and_unknown_ones_before_both() -> None:
    async def scenario() -> None:
        assert order(Source("slow", 2e6), Source("quick", 9e6), Source("new")) == ["new", "quick", "slow"]

    play(scenario)


def test_requests_under_way_count_against_a_source() -> None:
    async def scenario() -> None:
        assert order(Source("busy", 9e6, busy=8), Source("idle", 2e6)) == ["idle", "busy"]
        assert order(Source("busy", 9e6, busy=3), Source("idle", 2e6)) == ["busy", "idle"]

    play(scenario)


def test_a_far_slower_source_is_not_asked_while_a_quick_one_may_be() -> None:
    async def scenario() -> None:
        quick, slow = Source("quick", 20e6, busy=8), Source("slow", 20e6 / FAR_SLOWER - 1)
        assert order(quick, slow) == ["quick"]
        quick.health.breaker.failed("refused")
        assert order(quick, slow) == ["slow"]

    play(scenario)


def test_a_source_that_gives_whole_files_only_comes_last() -> None:
    async def scenario() -> None:
        whole = Source("whole", 9e6)
        whole.health.ignored_a_range()
        assert order(whole, Source("ranges", 2e6)) == ["ranges", "whole"]

    play(scenario)


def test_a_source_that_is_left_alone_or_refused_for_this_content_is_not_asked() -> None:
    async def scenario() -> None:
        banned, failed = Source("banned"), Source("failed")
        banned.health.refuse(CONTENT, "wrong bytes", math.inf)
        failed.health.breaker.failed("refused")
        assert order(banned, failed) == []
        assert rank([banned], ContentId("btih", b"1" * 20)) == [banned]

    play(scenario)


# Hedging


def test_a_block_is_late_a_factor_after_the_usual_wait_and_never_before_the_floor() -> None:
    hedging = Hedging(replace(SETTINGS, hedge_factor=4.0, hedge_floor=0.25))
    assert hedging.late_after() == Hedging.FIRST
    for waited in (0.5, 0.5, 0.5):
        hedging.landed(MIB, waited)
    assert hedging.late_after() == Hedging.FIRST
    hedging.landed(MIB, 100.0)
    assert hedging.late_after() == pytest.approx(2.0), "the median, so that one late block changes nothing"
    for _ in range(64):
        hedging.landed(MIB, 0.01)
    assert hedging.late_after() == 0.25


def test_what_nobody_waited_for_says_nothing_of_waits() -> None:
    hedging = Hedging(SETTINGS)
    for _ in range(10):
        hedging.landed(MIB, None)
    assert hedging.late_after() == Hedging.FIRST
    assert hedging.received == 10 * MIB


def test_without_hedging_nothing_is_ever_late() -> None:
    hedging = Hedging(replace(SETTINGS, hedging=False))
    hedging.landed(MIB, 0.1)
    assert hedging.late_after() == math.inf


def test_no_extra_traffic_means_none_from_the_first_byte_on() -> None:
    hedging = Hedging(replace(SETTINGS, extra_traffic=0.0))
    hedging.landed(1000 * MIB, 0.1)
    assert not hedging.allows(1)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 64 * MIB))), st.floats(0, 1))
def test_extra_traffic_never_exceeds_its_share_of_what_came_and_the_allowance(
    moves: list[tuple[bool, int]], share: float
) -> None:
    hedging = Hedging(replace(SETTINGS, extra_traffic=share))
    asked = 0
    for second, size in moves:
        if not second:
            hedging.landed(size, None)
        elif hedging.allows(size):
            hedging.hedge(size)
            asked += 1
        assert hedging.extra <= Hedging.ALLOWANCE + share * hedging.received
        assert hedging.hedged == asked
