"""Reading through: single flight, deadlines, failures, readahead, and how many may wait."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio
import trio.testing

from cachefs import window
from cachefs.cache import LOOK_AT_CALLER
from cachefs.config import Read
from cachefs.errors import RecordInconsistent, Stopping, StoreFailed, StoreFull, TooManyWaiting, Unavailable
from cachefs.filesystem import errno_of
from tests.cache_kit import DEADLINE, FILE, OTHER, Bench, run
from tests.fakes import BLOCK, content


def test_fifty_readers_of_one_missing_block_make_one_demand_and_its_landing_wakes_them_all(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        readers = [await bench.open() for _ in range(50)]
        for reader in readers:
            await bench.start_read(reader, 3 * BLOCK + 7, 100)
        assert len(bench.fetcher.jobs) == 1
        assert bench.fetcher.last.urgent == {3}
        assert len(bench.cache.waiting()) == 50
        bench.fetcher.last.land(3)
        await bench.settled()
        assert bench.outcomes == [FILE.data[3 * BLOCK + 7 :][:100]] * 50
        assert not bench.cache.waiting()

    run(tmp_path, scenario)


def test_a_read_over_several_blocks_waits_for_all_of_them(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        await bench.start_read(reader, BLOCK - 1, BLOCK + 2)
        assert bench.fetcher.last.urgent == {0, 1, 2}
        for index in (2, 0):
            bench.fetcher.last.land(index)
            await bench.settled()
            assert not bench.outcomes
        bench.fetcher.last.land(1)
        await bench.settled()
        assert bench.outcomes == [FILE.data[BLOCK - 1 : 2 * BLOCK + 1]]

    run(tmp_path, scenario)


def test_a_read_past_the_end_gives_what_there_is_and_asks_for_nothing(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        await bench.read(reader, len(FILE.data), 4096)
        assert bench.outcomes == [b""]
        assert not bench.fetcher.jobs
        await bench.start_read(reader, len(FILE.data) - 10, 4096)
        bench.fetcher.last.land(10)
        await bench.settled()
        assert bench.outcomes[1] == FILE.data[-10:]

    run(tmp_path, scenario)


def test_a_read_that_nobody_serves_fails_at_its_deadline_and_says_why(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        began = trio.current_time()
        bench.nursery.start_soon(bench.read, reader, 0, 10)
        await bench.settled()
        bench.fetcher.last.words = "no peer is connected"
        await trio.sleep(DEADLINE + 1)
        assert trio.current_time() - began == pytest.approx(DEADLINE + 1)
        assert isinstance(bench.error, Unavailable)
        assert bench.error.waited == pytest.approx(DEADLINE)
        assert FILE.info.name in str(bench.error)
        assert "no peer is connected; http://host/: refused" in str(bench.error)
        assert errno_of(bench.error) == errno.EIO
        assert bench.cache.last_error == str(bench.error)
        assert bench.fetcher.last.restarts == 1, "sources that were given up are tried again"

    run(tmp_path, scenario)


def test_a_read_that_begins_when_all_was_tried_anew_in_vain_a_moment_ago_has_it_tried_once_more(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        first, second = await bench.open(), await bench.open()
        await bench.start_read(first, 0, 10)
        await trio.sleep(DEADLINE + 0.1)
        assert bench.fetcher.last.restarts == 1
        await bench.start_read(second, BLOCK, 10)
        await trio.sleep(DEADLINE / 2 + 0.1)
        assert bench.fetcher.last.restarts == 2
        bench.fetcher.last.land(1)
        await bench.settled()
        assert bench.outcomes[-1] == FILE.data[BLOCK : BLOCK + 10]

    run(tmp_path, scenario)


def test_one_readers_timeout_ends_no_fetch(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        first, second = await bench.open(), await bench.open()
        await bench.start_read(first, 0, 10)
        await trio.sleep(DEADLINE / 2)
        await bench.start_read(second, 0, 10)
        await trio.sleep(DEADLINE / 2 + 1)
        assert isinstance(bench.error, Unavailable)
        assert bench.fetcher.last.urgent == {0}
        bench.fetcher.last.land(0)
        await bench.settled()
        assert bench.outcomes[1] == FILE.data[:10]

    run(tmp_path, scenario)


def test_a_wait_for_a_block_that_landed_since_it_was_found_missing_ends_at_once(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        await bench.start_read(reader, 0, 10)
        bench.fetcher.last.land(0)
        with trio.fail_after(1):
            await reader.flow.wait([0], 4, reader)
        assert not bench.fetcher.last.urgent

    run(tmp_path, scenario)


def test_a_jump_goes_before_what_the_kernel_read_ahead_of_the_same_file_for_a_moment(tmp_path: Path) -> None:
    long = content(3, 80 * BLOCK)

    async def scenario(bench: Bench) -> None:
        reader, other = await bench.open(long), await bench.open(long)
        for index in range(20):
            await bench.start_read(reader, index * BLOCK, BLOCK)
            bench.fetcher.last.land(index)
            await bench.settled()
        await bench.start_read(reader, 20 * BLOCK, BLOCK)
        await bench.start_read(reader, 70 * BLOCK, 10)
        assert bench.fetcher.last.urgent == {70}
        assert 20 in bench.fetcher.last.ahead
        await bench.start_read(other, 20 * BLOCK, 10)
        assert bench.fetcher.last.urgent == {20, 70}, "somebody else waits for it"
        bench.fetcher.last.land(20)
        await bench.start_read(reader, 21 * BLOCK, 10)
        await trio.sleep(3)
        assert bench.fetcher.last.urgent == {21, 70}, "it was a thread's, and waits no longer"

    run(tmp_path, scenario, contents=(long,))


def test_a_block_that_was_given_up_on_is_still_fetched_behind_those_that_are_waited_for(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        await bench.read(reader, 0, 10)
        assert isinstance(bench.error, Unavailable)
        await bench.start_read(reader, 5 * BLOCK, 10)
        assert bench.fetcher.last.urgent == {5}
        assert 0 in bench.fetcher.last.ahead
        bench.fetcher.last.land(0)
        await bench.read(reader, 0, 10)
        assert bench.outcomes[1] == FILE.data[:10]

    run(tmp_path, scenario)


def test_a_deadline_restarts_nothing_while_blocks_still_land(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        await bench.start_read(reader, 0, 10)
        await trio.sleep(DEADLINE - 1)
        bench.fetcher.last.land(4)
        await trio.sleep(2)
        assert isinstance(bench.error, Unavailable)
        assert bench.fetcher.last.restarts == 0

    run(tmp_path, scenario)


def test_a_failure_reaches_everybody_who_waits_and_the_next_read_asks_again(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        for index in range(5):
            await bench.start_read(reader, index * BLOCK, 10)
        bench.fetcher.last.sink.failed(StoreFull("no room"))
        await bench.settled()
        assert [type(outcome) for outcome in bench.outcomes] == [StoreFull] * 5
        assert not bench.cache.waiting()
        await bench.start_read(reader, 0, 10)
        assert bench.fetcher.last.urgent == {0}
        bench.fetcher.last.land(0)
        await bench.settled()
        assert bench.outcomes[5] == FILE.data[:10]

    run(tmp_path, scenario)


def test_a_cancelled_reader_leaves_no_waiter_behind(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        with trio.move_on_after(5):
            await bench.cache.read(reader, 0, 10)
        assert not bench.cache.waiting()
        await bench.start_read(reader, BLOCK, 10)
        assert bench.fetcher.last.urgent == {1}
        assert 0 in bench.fetcher.last.ahead

    run(tmp_path, scenario)


def test_a_sequential_reader_is_read_ahead_of_and_never_past_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "START", 4 * BLOCK)

    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        size = window.START // 2
        await bench.start_read(reader, 0, size)
        assert not bench.fetcher.last.ahead
        bench.fetcher.last.land(0, 1)
        await bench.start_read(reader, size, 2 * size)
        assert bench.fetcher.last.ahead
        assert bench.fetcher.last.ahead <= set(range(6, FILE.blocks))
        bench.fetcher.last.land(*range(2, 9))
        await bench.start_read(reader, 3 * size, 2 * size)
        assert not bench.fetcher.last.ahead & set(range(9)), "what is here is not asked for again"

    run(tmp_path, scenario)


def test_reads_that_need_not_wait_keep_the_readahead_going(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "START", 4 * BLOCK)

    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        await bench.start_read(reader, 0, 10)
        bench.fetcher.last.land(*range(7))
        for offset in range(10, 6 * BLOCK, BLOCK // 2):
            await bench.read(reader, offset, BLOCK // 2)
        assert bench.fetcher.last.ahead >= {7, 8}
        assert not bench.fetcher.last.urgent

    run(tmp_path, scenario)


def test_the_end_of_a_record_comes_before_readahead_once_it_is_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "START", 3 * BLOCK)
    last = FILE.blocks - 1

    async def scenario(bench: Bench) -> None:
        reader = await bench.open_record()
        for index in range(3):
            await bench.start_read(reader, index * BLOCK, BLOCK)
            assert bench.fetcher.last.urgent == {index}
            assert not bench.fetcher.last.ahead
            bench.fetcher.last.land(index)
            await bench.settled()
        await bench.start_read(reader, 3 * BLOCK, BLOCK)
        assert bench.fetcher.last.urgent == {3, last}
        bench.fetcher.last.land(last)
        await bench.start_read(reader, 4 * BLOCK, BLOCK)
        assert bench.fetcher.last.urgent == {3, 4}
        assert last not in bench.fetcher.last.ahead

    run(tmp_path, scenario)


def test_two_files_are_two_downloads_and_do_not_meet(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        one, other = await bench.open(FILE), await bench.open(OTHER)
        await bench.start_read(one, 0, 10)
        await bench.start_read(other, BLOCK, 10)
        first, second = bench.fetcher.jobs
        assert [set(first.urgent), set(second.urgent)] == [{0}, {1}]
        second.sink.failed(StoreFailed("gone"))
        await bench.settled()
        first.land(0)
        await bench.settled()
        assert [type(outcome) for outcome in bench.outcomes] == [StoreFailed, bytes]

    run(tmp_path, scenario)


def test_more_readers_than_may_wait_are_refused_at_once_while_cached_reads_go_on(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        await bench.start_read(reader, 9 * BLOCK, 10)
        bench.fetcher.last.land(9)
        for _ in range(4):
            await bench.start_read(reader, 0, 10)
        bench.outcomes.clear()
        began = trio.current_time()
        await bench.read(reader, BLOCK, 10)
        assert isinstance(bench.error, TooManyWaiting)
        assert "4 reads wait already ([read] max_waiting)" in str(bench.error)
        assert bench.cache.last_error == bench.cache.known(FILE.info.content).error == str(bench.error)
        await bench.read(reader, 9 * BLOCK, 10)
        assert bench.outcomes[1] == FILE.data[9 * BLOCK :][:10]
        assert trio.current_time() == began
        bench.fetcher.last.land(0)
        await bench.settled()
        await bench.start_read(reader, BLOCK, 10)
        assert bench.fetcher.last.urgent == {1}

    run(tmp_path, scenario, Read(deadline=DEADLINE, max_waiting=4))


def test_a_read_of_what_was_thrown_away_says_why_also_where_nobody_waited_for_it(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        reader.flow.stored.condemned = RecordInconsistent("its record contradicts itself")
        await bench.read(reader, 0, 10)
        assert bench.cache.known(FILE.info.content).error == "its record contradicts itself" == str(bench.error)

    run(tmp_path, scenario)


def test_stop_lets_every_reader_go_and_refuses_new_waits_but_not_cached_reads(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        one, other = await bench.open(FILE), await bench.open(OTHER)
        await bench.start_read(one, 0, 10)
        bench.fetcher.last.land(0)
        await bench.settled()
        for index in range(1, 5):
            await bench.start_read(one, index * BLOCK, 10)
        await bench.start_read(other, 0, 10)
        began = trio.current_time()
        await bench.cache.stop()
        await bench.settled()
        await bench.read(one, 5 * BLOCK, 10)
        await bench.read(one, 0, 10)
        assert trio.current_time() == began
        assert [type(outcome) for outcome in bench.outcomes] == [bytes] + [Stopping] * 6 + [bytes]
        assert not bench.cache.waiting()

    run(tmp_path, scenario)


def test_stop_lets_also_those_go_who_look_up_in_that_moment(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        async def stop() -> None:
            await trio.sleep_until(looking_up)
            await bench.cache.stop()

        reader, looking_up = await bench.open(), trio.current_time() + LOOK_AT_CALLER
        for number in range(21):  # some of them look up before it, and some behind it
            if number == 10:
                bench.nursery.start_soon(stop)
            await bench.start_read(reader, 0, 10)
        await trio.sleep_until(looking_up)
        await bench.settled()
        assert trio.current_time() == looking_up
        assert [type(outcome) for outcome in bench.outcomes] == [Stopping] * 21

    run(tmp_path, scenario)


def test_a_read_of_several_blocks_that_come_seconds_apart_ends_with_the_last(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.start_read(await bench.open(), 0, 3 * BLOCK)
        for index in (1, 0, 2):
            await trio.sleep(2.5)
            assert not bench.outcomes
            bench.fetcher.last.land(index)
        await bench.settled()
        assert bench.outcomes == [FILE.data[: 3 * BLOCK]]

    run(tmp_path, scenario)


def test_a_block_on_its_way_as_readahead_stays_wanted_when_its_reader_comes_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "START", 2 * BLOCK)

    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        for index in range(4):
            await bench.start_read(reader, index * BLOCK, BLOCK)
            bench.fetcher.last.land(index)
            await bench.settled()
        assert 4 in bench.fetcher.last.ahead
        bench.fetcher.last.demands.clear()
        await bench.start_read(reader, 4 * BLOCK, BLOCK)
        assert 4 in bench.fetcher.last.urgent
        assert all(4 in wanted for wanted in bench.fetcher.last.demands)

    run(tmp_path, scenario)
