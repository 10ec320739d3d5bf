"""Opening and closing: every order in which opens, landings, failures, ends and closings can come."""

from __future__ import annotations

import tempfile
from pathlib import Path

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefs.errors import CachefsError, StoreFailed, StoreFull
from cachefs.flow import Reader
from tests.cache_kit import DEADLINE, FILE, OTHER, Bench, bytes_of, run
from tests.fakes import BLOCK


def test_closing_the_last_reader_ends_the_demand_and_the_object_once_the_fetcher_lets_go(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        first, second = await bench.open(), await bench.open()
        await bench.read(first, 0, 10)
        bench.cache.close(first)
        assert bench.fetcher.last.opened
        bench.cache.close(second)
        assert not bench.fetcher.last.opened
        assert not bench.fetcher.last.urgent | bench.fetcher.last.ahead
        await bench.settled()
        assert bench.store.opened(), "blocks may still land"
        bench.fetcher.last.end()
        await bench.until_closed()
        assert not bench.cache.flows()

    run(tmp_path, scenario)


def test_an_object_that_nothing_was_fetched_for_is_closed_with_its_last_reader(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        bench.cache.close(await bench.open())
        await bench.until_closed()
        assert not bench.fetcher.jobs

    run(tmp_path, scenario)


def test_reopening_while_the_download_lives_goes_on_with_it(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        await bench.start_read(reader, 0, 10)
        bench.fetcher.last.land(0)
        await bench.settled()
        bench.cache.close(reader)
        bench.fetcher.last.land(1)
        again = await bench.open()
        assert bench.fetcher.last.opened
        await bench.read(again, BLOCK, 10)
        await bench.start_read(again, 2 * BLOCK, 10)
        assert len(bench.fetcher.jobs) == 1
        assert bench.fetcher.last.urgent == {2}
        assert bench.outcomes == [FILE.data[:10], FILE.data[BLOCK:][:10]]

    run(tmp_path, scenario)


def test_content_reopened_after_and_during_its_closing_is_read_with_what_landed(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        for turn in range(FILE.blocks - 1):
            reader = await bench.open()
            await bench.start_read(reader, turn * BLOCK, 10)
            bench.fetcher.last.land(turn)
            await bench.settled()
            bench.cache.close(reader)
            bench.fetcher.last.end()
            if turn % 2:
                await bench.until_closed()
            elif turn % 4:
                await bench.settled()
        reader = await bench.open()
        for turn in range(FILE.blocks - 1):
            await bench.read(reader, turn * BLOCK, 10)
        assert len(bench.fetcher.jobs) == FILE.blocks - 1
        assert not [outcome for outcome in bench.outcomes if isinstance(outcome, CachefsError)]

    run(tmp_path, scenario)


def test_many_opens_at_once_share_one_object_and_leave_none_open(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        readers: list[Reader] = []

        async def one() -> None:
            readers.append(await bench.cache.open(FILE.item))

        bench.clock.autojump_threshold = float("inf")
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
        bench.clock.autojump_threshold = 0
        assert len({id(reader.flow) for reader in readers}) == 1
        assert len(bench.store.opened()) == 1
        for reader in readers:
            bench.cache.close(reader)
        await bench.until_closed()

    run(tmp_path, scenario)


def test_closing_a_reader_twice_takes_nothing_from_who_opened_since(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        stale = await bench.open()
        bench.cache.close(stale)
        reader = await bench.open()
        bench.cache.close(stale)
        await bench.settled()
        assert bench.cache.flows() == [reader.flow]
        await bench.start_read(reader, 0, 10)
        bench.fetcher.last.land(0)
        await bench.settled()
        assert bench.outcomes == [FILE.data[:10]]

    run(tmp_path, scenario)


def test_a_block_that_lands_after_everything_was_closed_harms_nothing(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        await bench.start_read(reader, 0, 10)
        late = bench.fetcher.last
        late.land(0)
        await bench.settled()
        bench.cache.close(reader)
        late.end()
        await bench.until_closed()
        late.land(1)
        late.sink.failed(StoreFailed("late"))
        reader = await bench.open()
        await bench.read(reader, 0, 10)
        await bench.store.commit()
        assert bench.outcomes == [FILE.data[:10]] * 2
        bench.cache.close(reader)
        await bench.until_closed()

    run(tmp_path, scenario)


def test_a_fetcher_that_ends_under_a_reader_is_asked_again_by_the_next_read(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        reader = await bench.open()
        await bench.start_read(reader, 0, 10)
        bench.fetcher.last.land(0)
        await bench.settled()
        bench.fetcher.last.end()
        await bench.start_read(reader, BLOCK, 10)
        assert len(bench.fetcher.jobs) == 2
        assert bench.fetcher.last.urgent == {1}
        assert 0 in bench.fetcher.last.job.have

    run(tmp_path, scenario)


def test_an_open_given_up_while_the_object_is_recovered_leaves_it_closed(tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        for checkpoints in range(12):
            with trio.CancelScope() as impatient:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(bench.cache.open, FILE.item)
                    for _ in range(checkpoints):
                        await trio.lowlevel.checkpoint()
                    impatient.cancel()
            assert not [flow for flow in bench.cache.flows() if not flow.readers]
            for flow in bench.cache.flows():
                bench.cache.close(next(iter(flow.readers)))
            await bench.until_closed()

    run(tmp_path, scenario)


# Any order of events. What a kernel and a fetcher never do is left out: a file is not closed while a read of it
# waits, and a download ends only when nobody has the file open.

_moves = st.one_of(
    st.tuples(st.just("open"), st.integers(0, 1)),
    st.tuples(st.just("close"), st.integers(0, 5)),
    st.tuples(st.just("read"), st.integers(0, 2**16)),
    st.tuples(st.just("land"), st.integers(0, FILE.blocks - 1)),
    st.tuples(st.just("fail"), st.integers(0, 5)),
    st.tuples(st.just("end"), st.integers(0, 5)),
    st.tuples(st.just("wait"), st.sampled_from([1, 20, 61])),
)


class Model:
    """Plays moves on a bench, and knows what must hold after each."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.readers: list[Reader] = []
        self.reading: dict[Reader, int] = {}
        self.reads = 0

    async def play(self, move: str, number: int) -> None:
        if move == "open":
            self.readers.append(await self.bench.open((FILE, OTHER)[number]))
        elif move == "wait":
            await trio.sleep(number)
        elif self.readers and move == "read":
            self.bench.nursery.start_soon(self._read, self.readers[number % len(self.readers)], number)
        elif self.readers and move == "close":
            self._close(self.readers[number % len(self.readers)])
        elif self.bench.fetcher.jobs:
            self._fetcher_moves(move, number)
        await self.bench.settled()
        self.check()

    async def _read(self, reader: Reader, number: int) -> None:
        self.reads += 1
        self.reading[reader] = self.reading.get(reader, 0) + 1
        offset = number * 13 % len(bytes_of(reader))
        await self.bench.read(reader, offset, number * 7 % (2 * BLOCK) + 1)
        self.reading[reader] -= 1

    def _close(self, reader: Reader) -> None:
        if not self.reading.get(reader):
            self.readers.remove(reader)
            self.bench.cache.close(reader)

    def _fetcher_moves(self, move: str, number: int) -> None:
        job = self.bench.fetcher.jobs[number % len(self.bench.fetcher.jobs)]
        if job.ended:
            return
        if move == "land":
            job.land(number % job.job.item.manifest.blocks)
        elif move == "fail":
            job.sink.failed(StoreFull("no room"))
        elif not job.opened:
            job.end()

    def check(self) -> None:
        cache, live = self.bench.cache, [job for job in self.bench.fetcher.jobs if not job.ended]
        assert len(cache.waiting()) == sum(self.reading.values())
        assert {id(reader.flow) for reader in self.readers} <= {id(flow) for flow in cache.flows()}
        for wait in cache.waiting():
            (job,) = (job for job in live if job.job.item.name == wait.name)
            assert {index for index in wait.blocks if index not in job.job.have} <= job.urgent
        for job in live:
            content = job.job.item.content
            assert job.opened == any(reader.flow.item.content == content for reader in self.readers)
            assert job.opened or not job.urgent | job.ahead

    async def finish(self) -> None:
        """Everybody's deadline passes, everything is closed: every read was answered, and no object is open."""
        await trio.sleep(DEADLINE + 1)
        assert len(self.bench.outcomes) == self.reads
        for reader in list(self.readers):
            self._close(reader)
        for job in self.bench.fetcher.jobs:
            if not job.ended:
                job.end()
        await self.bench.until_closed()
        assert not self.bench.cache.flows()


@settings(deadline=None, max_examples=60)
@given(st.lists(_moves, max_size=40))
def test_no_order_of_events_loses_a_reader_or_leaves_an_object_open(moves: list[tuple[str, int]]) -> None:
    async def scenario(bench: Bench) -> None:
        model = Model(bench)
        for move, number in moves:
            await model.play(move, number)
        await model.finish()

    with tempfile.TemporaryDirectory() as root:
        run(Path(root), scenario)
