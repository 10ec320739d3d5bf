"""Files by ranges from real web seeds that hang, are slow or ignore ranges: who is asked for what, and what is kept."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from cachefs.config import Fetch
from cachefs.fetch.remote.download import RemoteDownload
from cachefs.fetch.remote.fetcher import RemoteFetcher
from tests.fakes import BLOCK, WITHIN, Content, content, until
from tests.records_kit import Host, web
from tests.remote_kit import Kept, KeptAlone, asking


class Bench:
    """A running fetcher and its downloads."""

    def __init__(self, fetcher: RemoteFetcher) -> None:
        self.fetcher = fetcher
        self.sources = fetcher.configured()

    def fetch(self, item: Content) -> tuple[RemoteDownload, Kept]:
        """A download of which nothing is wanted yet, and where its blocks go."""
        kept = KeptAlone(item, self.fetcher)
        return kept.download, kept


def play(
    tmp_path: Path, scenario: Callable[[Bench], Awaitable[None]], *seeds: str, settings: Fetch | None = None
) -> None:
    """Run `scenario` on a fetcher that asks these web seeds."""

    async def main() -> None:
        with trio.fail_after(WITHIN):
            async with asking(tmp_path, *seeds, settings=settings) as fetcher:
                await scenario(Bench(fetcher))

    trio.run(main)


def file(seed: int, blocks: int) -> Content:
    return content(seed, blocks * BLOCK, name=f"v1-{seed:06}-headers.seg")


@contextmanager
def serving(*items: Content, count: int = 1) -> Iterator[list[Host]]:
    """So many web seeds with these files."""
    with ExitStack() as stack:
        hosts = [stack.enter_context(web()) for _ in range(count)]
        for host in hosts:
            for item in items:
                host.put(item.info.name, item.data)
        yield hosts


def hang(host: Host, item: Content, after: int = 0) -> threading.Event:
    """Have a host send no more than `after` bytes of an answer about this file, until the event is set."""
    gate = threading.Event()
    host.put(item.info.name, item.data, gate=gate, hold=after)
    return gate


def everything(item: Content) -> frozenset[int]:
    return frozenset(range(item.blocks))


NOTHING: frozenset[int] = frozenset()


# Who waits goes first


def test_who_waits_is_asked_for_though_requests_that_nobody_waits_for_have_every_place_of_the_source(
    tmp_path: Path,
) -> None:
    background = [file(number, 300) for number in (1, 2)]
    wanted = file(3, 1)

    async def scenario(bench: Bench) -> None:
        for item in background:
            bench.fetch(item)[0].demand(NOTHING, everything(item))
        await until(lambda: bench.sources[0].busy == 4)
        download, taken = bench.fetch(wanted)
        download.demand({0}, NOTHING)
        await until(lambda: 0 in taken.have)

    with serving(wanted) as [host]:
        for item in background:
            hang(host, item, after=1000)
        play(tmp_path, scenario, host.url, settings=Fetch(stall=600.0, requests=4))


def test_of_requests_that_nobody_waits_for_only_one_is_broken_off_and_it_is_made_again(tmp_path: Path) -> None:
    background, wanted = file(1, 600), file(2, 1)

    async def scenario(bench: Bench) -> None:
        behind, landed = bench.fetch(background)
        behind.demand(NOTHING, everything(background))
        await until(lambda: len(host.asked_for(background.info.name)) == 4)
        download, taken = bench.fetch(wanted)
        download.demand({0}, NOTHING)
        await until(lambda: 0 in taken.have)
        await until(lambda: len(host.asked_for(background.info.name)) == 5)
        gate.set()
        await until(lambda: landed.have.complete)
        assert not bench.fetcher.ledger.recent(60)

    with serving(wanted) as [host]:
        gate = hang(host, background, after=1000)
        play(tmp_path, scenario, host.url, settings=Fetch(stall=600.0, requests=4))


def test_a_request_that_somebody_waits_for_makes_place_for_nobody(tmp_path: Path) -> None:
    first, second = file(1, 1), file(2, 1)

    async def scenario(bench: Bench) -> None:
        before, landed = bench.fetch(first)
        before.demand({0}, NOTHING)
        await until(lambda: bench.sources[0].busy == 1)
        download, taken = bench.fetch(second)
        download.demand({0}, NOTHING)
        await trio.sleep(0.5)
        assert not host.asked_for(second.info.name)
        gate.set()
        await until(lambda: 0 in landed.have and 0 in taken.have)
        assert len(host.asked_for(first.info.name)) == 1

    with serving(second) as [host]:
        gate = hang(host, first, after=1000)
        play(tmp_path, scenario, host.url, settings=Fetch(stall=600.0, requests=1))


def test_a_block_behind_others_that_nobody_waits_for_is_asked_for_by_itself(tmp_path: Path) -> None:
    item = file(1, 100)

    async def scenario(bench: Bench) -> None:
        download, taken = bench.fetch(item)
        download.demand(NOTHING, everything(item))
        await until(lambda: len(taken.have) == 2)
        host.put(item.info.name, item.data)
        download.demand({50}, everything(item) - {50})
        await until(lambda: 50 in taken.have)
        await until(lambda: taken.have.complete)

    with serving() as [host]:
        hang(host, item, after=2 * BLOCK + 1000)
        play(tmp_path, scenario, host.url)


# A source that ignores ranges


def test_of_a_whole_file_only_what_is_wanted_is_kept(tmp_path: Path) -> None:
    item = file(1, 30)

    async def scenario(bench: Bench) -> None:
        bench.sources[0].health.ignored_a_range()
        download, taken = bench.fetch(item)
        download.demand({27}, frozenset({20}))
        await until(lambda: {20, 27} <= set(taken.have))
        await until(lambda: bench.sources[0].busy == 0)
        assert sorted(taken.written) == [20, 27]
        assert len(host.asked) == 1
        assert download.landed_bytes == 2 * BLOCK

    with serving() as [host]:
        host.put(item.info.name, item.data, ranges=False)
        play(tmp_path, scenario, host.url)


def test_blocks_that_are_here_are_not_written_again(tmp_path: Path) -> None:
    item = file(1, 10)

    async def scenario(bench: Bench) -> None:
        download, taken = bench.fetch(item)
        download.demand({3}, NOTHING)
        await until(lambda: 3 in taken.have)
        download.demand({9}, frozenset({3}))
        await until(lambda: 9 in taken.have)
        assert taken.written == [3, 9]

    with serving() as [host]:
        host.put(item.info.name, item.data, ranges=False)
        play(tmp_path, scenario, host.url)


def test_a_whole_file_whose_blocks_are_offered_to_a_torrent_is_kept_in_no_other_way(tmp_path: Path) -> None:
    item = file(1, 10)

    async def scenario(bench: Bench) -> None:
        download, taken = bench.fetch(item)
        taken.claims = False
        download.demand({7}, NOTHING)
        await until(lambda: 7 in taken.have)
        assert taken.written == [7]

    with serving() as [host]:
        host.put(item.info.name, item.data, ranges=False)
        play(tmp_path, scenario, host.url)


def test_a_source_that_ignored_one_range_is_asked_for_ranges_again_when_it_is_forgiven(tmp_path: Path) -> None:
    item = file(1, 10)

    async def scenario(bench: Bench) -> None:
        download, taken = bench.fetch(item)
        download.demand({7}, NOTHING)
        await until(lambda: 7 in taken.have)
        host.put(item.info.name, item.data)
        download.restart()
        download.demand({9}, NOTHING)
        await until(lambda: 9 in taken.have)
        assert [asked.headers.get("range", "") for asked in host.asked] == [asked_for(7), "", asked_for(9)]

    def asked_for(index: int) -> str:
        span = item.info.manifest.span(index)
        return f"bytes={span.offset}-{span.end - 1}"

    with serving() as [host]:
        host.put(item.info.name, item.data, ranges=False)
        play(tmp_path, scenario, host.url)


# A source that gives less than it is asked for


@pytest.mark.parametrize("most", [BLOCK // 3, BLOCK, 5 * BLOCK // 2])
@pytest.mark.parametrize("alone", [True, False])
def test_what_a_source_leaves_out_of_a_range_is_asked_for_next(tmp_path: Path, most: int, alone: bool) -> None:
    item = content(1, 6 * BLOCK + 7)

    async def scenario(bench: Bench) -> None:
        download, taken = bench.fetch(item)
        if not alone:
            taken.claims = False
        download.demand({0}, everything(item) - {0})
        await until(lambda: taken.have.complete)
        assert len(host.asked) == -(-len(item.data) // most)
        assert not bench.fetcher.ledger.recent(60)

    with serving() as [host]:
        host.put(item.info.name, item.data, most=most)
        play(tmp_path, scenario, host.url)


def test_a_source_that_hangs_up_in_the_midst_of_a_range_is_still_one_that_failed(tmp_path: Path) -> None:
    item = file(1, 2)

    async def scenario(bench: Bench) -> None:
        download, taken = bench.fetch(item)
        download.demand({0, 1}, NOTHING)
        await until(lambda: taken.have.complete)
        assert "cut short" in bench.fetcher.ledger.recent(60)[0]

    with serving() as [host]:
        host.put(item.info.name, item.data, cut=BLOCK + 10)
        play(tmp_path, scenario, host.url)


# A source that falls silent


def test_a_far_slower_source_is_asked_when_the_quick_one_is_silent(tmp_path: Path) -> None:
    item = file(1, 1)

    async def scenario(bench: Bench) -> None:
        quick, slow = bench.sources
        quick.health.measured(100_000_000, 1.0)
        slow.health.measured(1_000_000, 1.0)
        download, taken = bench.fetch(item)
        download.demand({0}, NOTHING)
        await until(lambda: 0 in taken.have)
        assert quick.health.objection(item.info.content)

    with serving(item, count=2) as [first, second]:
        hang(first, item)
        play(tmp_path, scenario, first.url, second.url)


def test_a_far_slower_source_is_asked_when_every_place_of_the_quick_one_hangs(tmp_path: Path) -> None:
    blocking, item = file(1, 4), file(2, 1)

    async def scenario(bench: Bench) -> None:
        quick, slow = bench.sources
        quick.health.measured(100_000_000, 1.0)
        slow.health.measured(1_000_000, 1.0)
        bench.fetch(blocking)[0].demand({0, 2}, NOTHING)
        await until(lambda: quick.busy == 2)
        download, taken = bench.fetch(item)
        download.demand({0}, NOTHING)
        await until(lambda: 0 in taken.have)

    with serving(item, count=2) as [first, second]:
        hang(first, blocking)
        play(tmp_path, scenario, first.url, second.url, settings=Fetch(stall=600.0, requests=2))
