"""The playhead as a fact: positions that follow from it, changes and their revisions, and clocks that agree."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.errors import PlayheadConflict, PlayheadInvalid
from cachefs.playhead.clock import FollowedUtc, SteadyUtc
from cachefs.playhead.model import MAX_POSITION_MS, MAX_RATE, MIN_RATE, Change, Playhead, changed
from cachefs.playhead.steering import SEEK_AGAIN_BEYOND, SEEK_BEYOND, Look, Orders, steer

SONG = "Fast Car.mp3"
PLAYING = Playhead(SONG, "playing", 10_000, 500.0, 1.0, 7)

heads = st.builds(
    Playhead,
    record=st.just(SONG),
    state=st.sampled_from(["playing", "paused"]),
    position_ms=st.integers(0, MAX_POSITION_MS),
    anchor_utc=st.floats(0, 2**32),
    rate=st.floats(MIN_RATE, MAX_RATE),
    revision=st.integers(0, 2**53),
)


def test_position_is_where_it_was_plus_rate_times_the_time_since() -> None:
    assert PLAYING.position_at(502.5) == 12_500
    assert changed(PLAYING, Change("rate", rate=2.0), 502.0, 8).position_at(503.0) == 14_000


def test_a_paused_record_stays_where_it_is() -> None:
    paused = changed(PLAYING, Change("pause"), 503.25, 8)
    assert paused.position_at(503.25) == paused.position_at(9999.0) == 13_250


@given(heads, st.floats(0, 2**32))
def test_no_change_but_a_seek_moves_the_position(head: Playhead, utc: float) -> None:
    for change in (Change("pause"), Change("play"), Change("rate", rate=1.5)):
        after = changed(head, change, utc, head.revision + 1)
        expected = min(head.position_at(utc), MAX_POSITION_MS) if after is not head else head.position_at(utc)
        assert after.position_at(utc) == pytest.approx(expected, abs=25)


def test_a_change_has_a_new_revision_and_one_that_changes_nothing_has_not() -> None:
    assert changed(PLAYING, Change("pause"), 501.0, 8).revision == 8
    assert changed(PLAYING, Change("play"), 501.0, 8) is PLAYING


def test_a_change_for_another_revision_is_refused_with_the_present_playhead() -> None:
    with pytest.raises(PlayheadConflict) as refused:
        changed(PLAYING, Change("pause", if_revision=6), 501.0, 8)
    assert Playhead.from_json(refused.value.present) == PLAYING
    assert changed(PLAYING, Change("pause", if_revision=7), 501.0, 8).revision == 8


@given(heads)
def test_a_playhead_survives_json(head: Playhead) -> None:
    assert Playhead.from_json(json.loads(json.dumps(head.as_json()))) == head


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"state": "stopped"}, "state"),
        ({"position_ms": -1}, "position_ms"),
        ({"position_ms": 1.5}, "position_ms"),
        ({"position_ms": True}, "position_ms"),
        ({"rate": 0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": 10**400}, "rate"),
        ({"anchor_utc": 10**400}, "anchor_utc"),
        ({"anchor_utc": "now"}, "anchor_utc"),
        ({"record": "../x"}, "record"),
        ({"record": ["a"]}, "record"),
        ({"color": "red"}, "color"),
    ],
)
def test_a_playhead_that_cannot_be_is_refused_by_field(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(PlayheadInvalid, match=said):
        Playhead.from_json(PLAYING.as_json() | wrong)


@pytest.mark.parametrize("wrong", [{"action": "stop"}, {"action": "seek"}, {"action": "rate"}, {}, [], "play"])
def test_a_change_that_says_nothing_is_refused(wrong: object) -> None:
    with pytest.raises(PlayheadInvalid):
        Change.from_json(wrong)


class Counter:
    """A clock that stands still until it is set."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_setting_the_wall_clock_moves_no_music() -> None:
    wall, counter = Counter(1000.0), Counter(50.0)
    utc = SteadyUtc(wall, counter)
    wall.now, counter.now = 5000.0, 52.0
    assert utc() == 1002.0


def test_a_followers_own_wall_clock_does_not_matter() -> None:
    counter = Counter(7.0)
    utc = FollowedUtc(counter)
    utc.add(asked=7.0, theirs=1000.01, answered=7.02)
    counter.now = 17.0
    assert utc() == pytest.approx(1010.0)
    assert utc.uncertainty == pytest.approx(0.01)


@given(st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)), min_size=1, max_size=8))
def test_the_time_is_never_off_by_more_than_half_the_shortest_round_trip(ways: list[tuple[float, float]]) -> None:
    counter = Counter(0.0)
    utc, now = FollowedUtc(counter), 0.0
    for there, back in ways:
        utc.add(asked=now, theirs=1000.0 + now + there, answered=now + there + back)
        now += 1.0
    counter.now = now
    assert abs(utc() - (1000.0 + now)) <= min(sum(way) for way in ways) / 2 + 1e-6


def test_a_daemon_that_began_anew_with_another_clock_is_believed_at_once() -> None:
    counter = Counter(100.0)
    utc = FollowedUtc(counter)
    utc.add(100.0, 5000.0, 100.001)
    utc.add(110.0, 5070.0, 110.05)
    counter.now = 120.0
    assert utc() == pytest.approx(5080.0, abs=0.05)


def _look(position: float, *, paused: bool = False, speed: float = 1.0) -> Look:
    return Look(position, paused, speed, 300.0)


def test_a_small_drift_is_worked_off_by_speed_and_a_large_one_by_a_seek() -> None:
    late = steer(PLAYING, 502.0, _look(11.95))
    assert late.seek is None
    assert late.speed == pytest.approx(1.05)
    early = steer(PLAYING, 502.0, _look(12.02))
    assert early.speed == pytest.approx(0.98)
    far = steer(PLAYING, 502.0, _look(12.0 - SEEK_BEYOND - 0.01), seek_takes=0.25)
    assert far.seek == pytest.approx(12.25)


def test_a_player_in_its_place_is_left_alone() -> None:
    assert steer(PLAYING, 502.0, _look(12.001)) == Orders()
    assert steer(changed(PLAYING, Change("pause"), 502.0, 8), 600.0, _look(12.0, paused=True)) == Orders()


def test_a_trim_ends_when_the_drift_does() -> None:
    assert steer(PLAYING, 502.0, _look(12.001, speed=1.05)) == Orders(speed=1.0)


@given(st.floats(-0.35, 0.35), st.sampled_from([0.5, 1.0, 2.0]))
def test_any_drift_is_gone_within_seconds_and_stays_away(drift: float, rate: float) -> None:
    head = Playhead(SONG, "playing", 10_000, 500.0, rate, 7)
    utc, position, speed = 500.0, 10.0 - drift, rate
    for _ in range(120):
        orders = steer(head, utc, _look(position, speed=speed), seek_beyond=SEEK_AGAIN_BEYOND)
        assert orders.seek is None
        speed = speed if orders.speed is None else orders.speed
        utc, position = utc + 0.2, position + 0.2 * speed
    assert speed == rate
    assert abs(head.position_at(utc) / 1000 - position) < 0.01


def test_a_playhead_beyond_the_end_holds_the_player_there() -> None:
    assert steer(PLAYING, 5000.0, _look(299.0)) == Orders(pause=True, seek=300.0)
