"""The readahead window: when it opens, how it grows, and what closes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.window import HORIZON, SLACK, START, STEP, Window, limit

BLOCK = 2 * 2**20
BLOCKS = 1000
READ = 128 * 2**10

sizes = st.integers(1, 2**20)
offsets = st.integers(0, BLOCK * BLOCKS - 1)


def read_in_order(window: Window, until: int, offset: int = 0, size: int = READ) -> int:
    """Read from `offset` on until at least `until` bytes are read; where the next read begins."""
    end = offset + until
    while offset < end:
        window.saw(offset, size)
        offset += size
    return offset


def test_nothing_is_read_ahead_of_an_untouched_file() -> None:
    assert not Window(BLOCK, BLOCKS).ahead(64)


@given(offsets, sizes)
def test_a_single_read_starts_no_readahead(offset: int, size: int) -> None:
    window = Window(BLOCK, BLOCKS)
    window.saw(offset, size)
    assert not window.ahead(64)


@given(st.lists(st.tuples(st.integers(0, BLOCKS // 4 - 1), sizes), unique_by=lambda read: read[0]))
def test_reads_all_over_the_file_start_no_readahead(reads: list[tuple[int, int]]) -> None:
    window = Window(BLOCK, BLOCKS)
    for place, size in reads:
        window.saw(place * 4 * BLOCK, size)
        assert not window.ahead(64)


@given(st.lists(st.integers(0, SLACK), max_size=START // 4096))
def test_small_reads_close_to_each_other_start_no_readahead_until_enough_was_read(places: list[int]) -> None:
    window = Window(BLOCK, BLOCKS)
    for place in places:
        window.saw(place, 4096)
        assert not window.ahead(64)


def test_readahead_begins_after_a_mebibyte_in_order_with_four_blocks() -> None:
    window = Window(BLOCK, BLOCKS)
    after = read_in_order(window, READ)
    after = read_in_order(window, START - READ, after)
    assert not window.ahead(64), "the first read only marks where a run may begin"
    read_in_order(window, READ, after)
    assert window.ahead(64) == range(1, 5)


def test_readahead_doubles_with_every_block_read_in_order() -> None:
    window, at, seen = Window(BLOCK, BLOCKS), 0, []
    at = read_in_order(window, READ)
    for _ in range(7):
        at = read_in_order(window, BLOCK, at)
        seen.append(len(window.ahead(4096)))
    doubled = [8, 16, 32, 64, 128, 256, 512]
    assert all(0 <= most - size < min(STEP, most // STEP) for size, most in zip(seen, doubled, strict=True))


def test_a_wide_window_ends_at_every_few_blocks_only() -> None:
    window, at = Window(BLOCK, BLOCKS), 0
    at = read_in_order(window, 8 * BLOCK)
    ends = set()
    for _ in range(4 * STEP):
        at = read_in_order(window, BLOCK, at)
        ends.add(window.ahead(64).stop)
    assert len(ends) <= 5
    assert all(end % STEP == 0 for end in ends)


def test_a_wide_window_reaches_the_end_of_the_file() -> None:
    window = Window(BLOCK, 61)
    read_in_order(window, 8 * BLOCK)
    assert window.ahead(64).stop == 61


def test_readahead_begins_with_the_block_after_the_last_one_read() -> None:
    window = Window(BLOCK, BLOCKS)
    read_in_order(window, 3 * BLOCK)
    assert window.ahead(64).start == 3
    window.saw(3 * BLOCK, 1)
    assert window.ahead(64).start == 4


@given(offsets, sizes)
def test_a_jump_ends_readahead(offset: int, size: int) -> None:
    window = Window(BLOCK, BLOCKS)
    after = read_in_order(window, 4 * BLOCK, 500 * BLOCK)
    assert window.ahead(64)
    window.saw(offset, size)
    jumped = abs(offset - after) > max(SLACK, size)
    assert bool(window.ahead(64)) != jumped


def test_a_jump_tells_the_blocks_that_the_run_had_come_to() -> None:
    window = Window(BLOCK, BLOCKS)
    at = read_in_order(window, 4 * BLOCK + READ, 500 * BLOCK)
    assert not window.saw(at, READ)
    assert window.saw(3 * BLOCK, READ) == range(503, 505)
    assert not window.saw(700 * BLOCK, READ), "one read is no run"


@given(st.permutations(range(8)), st.integers(2, 20))
def test_requests_out_of_order_within_the_slack_do_not_end_readahead(order: list[int], groups: int) -> None:
    window = Window(BLOCK, BLOCKS)
    at = read_in_order(window, BLOCK)
    for _ in range(groups):
        for turn in order:
            window.saw(at + turn * READ, READ)
        at += 8 * READ
        assert window.ahead(64)
        assert window.ahead(64).start in (at // BLOCK, at // BLOCK + 1)


@given(st.lists(st.integers(0, 2 * SLACK), min_size=1), st.integers(0, 4096))
def test_reading_the_same_bytes_again_does_not_widen_the_window(steps: list[int], most: int) -> None:
    window = Window(BLOCK, BLOCKS)
    read_in_order(window, 4 * BLOCK)
    before = window.ahead(most)
    window.saw(4 * BLOCK - READ, READ)
    assert window.ahead(most) == before


@given(st.lists(st.tuples(offsets, sizes)), st.integers(0, 4096), st.integers(1, 50))
def test_the_window_never_leaves_the_file_nor_passes_its_limit(
    reads: list[tuple[int, int]], most: int, blocks: int
) -> None:
    window = Window(BLOCK, blocks)
    for offset, size in reads:
        for step in range(6):
            window.saw(offset + step * size, size)
            ahead = window.ahead(most)
            assert len(ahead) <= most
            assert all(0 <= index < blocks for index in ahead)


@given(st.floats(0, 1e12), st.integers(1, 2**28), st.integers(0, 4096))
def test_the_limit_is_two_seconds_of_bandwidth_and_at_least_two_blocks(rate: float, block: int, most: int) -> None:
    allowed = limit(rate, block, most)
    assert min(2, most) <= allowed <= most
    assert allowed == most or allowed * block >= rate * HORIZON
    assert allowed <= 2 or (allowed - 1) * block <= rate * HORIZON


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 2), (BLOCK, 3), (10.0 * BLOCK, 21), (1e12, 64)])
def test_the_limit_follows_the_bandwidth(rate: float, expected: int) -> None:
    assert limit(rate, BLOCK, 64) == expected


def test_readahead_can_be_turned_off() -> None:
    assert limit(1e12, BLOCK, 0) == 0
