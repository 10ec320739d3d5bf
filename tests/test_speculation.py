"""Budgets of readahead: who reads files through is never held back, who only begins them soon is."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from cachefs.callers import Caller
from cachefs.config import Read
from cachefs.flow import Reader
from cachefs.speculation import HALF_LIFE, Account, Accounts
from tests import cache_kit
from tests.cache_kit import DEADLINE, Bench
from tests.fakes import content

BUDGET = 1000
BLOCK = 2**20


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def test_what_one_reader_has_ahead_counts_against_the_process_s_others_only() -> None:
    async def scenario() -> None:
        account = Account(BUDGET)
        account.ahead(1, 600)
        assert account.left(1) == 1000
        assert account.left(2) == 400
        account.ahead(1, 100)
        assert account.left(2) == 900

    play(scenario)


def test_a_reader_that_used_what_was_ahead_leaves_nothing_counted() -> None:
    async def scenario() -> None:
        account = Account(BUDGET)
        account.ahead(1, 600)
        account.ahead(1, 0)
        account.close(1)
        assert account.left(2) == BUDGET
        assert account.idle

    play(scenario)


def test_what_was_ahead_in_vain_is_forgotten_by_half_in_half_a_minute() -> None:
    async def scenario() -> None:
        account = Account(BUDGET)
        account.ahead(1, 800)
        account.close(1)
        assert account.left(2) == 200
        await trio.sleep(HALF_LIFE)
        assert account.left(2) == 600
        account.waste(400)
        assert account.left(2) == 200
        await trio.sleep(20 * HALF_LIFE)
        assert account.left(2) >= BUDGET - 1
        assert account.idle

    play(scenario)


def test_a_process_that_begins_many_files_and_reads_none_on_is_left_with_nothing_and_never_less() -> None:
    async def scenario() -> None:
        account = Account(BUDGET)
        for reader in range(50):
            account.ahead(reader, min(300, account.left(reader)))
            account.close(reader)
        assert account.left(99) == 0
        assert account.wasted == BUDGET

    play(scenario)


def test_each_process_has_an_account_and_idle_ones_are_forgotten_when_there_are_many() -> None:
    async def scenario() -> None:
        accounts = Accounts(BUDGET)
        busy = accounts.of(0)
        busy.ahead(1, 10)
        idle = accounts.of(1)
        for process in range(2, 2000):
            accounts.of(process)
        assert accounts.of(0) is busy
        assert accounts.of(1) is not idle
        assert accounts.of(0) is not accounts.of(1)

    play(scenario)


# The same through the cache

LONG = content(3, 12 * BLOCK, block=BLOCK)


def scan(tmp_path: Path, budget: int, scenario: Callable[[Bench], Awaitable[None]]) -> None:
    cache_kit.run(tmp_path, scenario, Read(deadline=DEADLINE, speculation=budget), [LONG])


async def read_through(bench: Bench, reader: Reader, blocks: int) -> int:
    """Read so many blocks in order, each landing when it is asked for; the most blocks that were ahead at a time."""
    most = 0
    for index in range(blocks):
        await bench.start_read(reader, index * BLOCK, BLOCK)
        if index not in reader.flow.stored.verified:
            bench.fetcher.last.land(index)
        await bench.settled()
        most = max(most, len(bench.fetcher.last.ahead))
    assert len(bench.outcomes) == blocks
    return most


async def opened_by(bench: Bench, process: int) -> Reader:
    bench.clock.autojump_threshold = float("inf")
    reader = await bench.cache.open(LONG.item, Caller(process))
    bench.clock.autojump_threshold = 0
    return reader


def test_a_process_without_a_budget_gets_what_it_asks_for_and_no_more(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        assert await read_through(bench, await opened_by(bench, 1), 8) == 0

    scan(tmp_path, 0, scenario)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_readahead_takes_its_budget_and_no_more(tmp_path: Path, blocks: int) -> None:
    async def scenario(bench: Bench) -> None:
        assert await read_through(bench, await opened_by(bench, 1), 8) == blocks

    scan(tmp_path, blocks * BLOCK, scenario)


def test_two_open_files_of_a_process_share_its_budget_and_another_process_has_its_own(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        first = await opened_by(bench, os.getpid())
        await read_through(bench, first, 4)
        second, stranger = await opened_by(bench, os.getpid()), await opened_by(bench, 1)
        for reader in (second, stranger):
            for index in range(4):
                reader.window.saw(index * BLOCK, BLOCK)
        assert len(second.ahead(64)) == 0
        assert len(stranger.ahead(64)) == 2

    scan(tmp_path, 2 * BLOCK, scenario)


def test_a_file_read_through_to_its_end_leaves_nothing_wasted(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        reader = await opened_by(bench, os.getpid())
        await read_through(bench, reader, LONG.blocks)
        bench.cache.close(reader)
        again = await opened_by(bench, os.getpid())
        for index in range(4):
            again.window.saw(index * BLOCK, BLOCK)
        assert len(again.ahead(2)) == 2

    scan(tmp_path, 2 * BLOCK, scenario)
