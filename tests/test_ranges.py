"""Which of a record's blocks are asked for next, when several readers wait on a link that is slow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import trio
import trio.testing

from cachefs.content import Bitmap
from cachefs.fetch.base import Job
from cachefs.fetch.http.client import Rules, WebClient
from cachefs.fetch.ranges.download import RangeDownload
from cachefs.fetch.ranges.fetcher import RangeFetcher
from cachefs.fetch.ranges.request import Stream
from cachefs.fetch.sources import Ledger
from tests.counterparts import nginx, open_sockets
from tests.fakes import BLOCK, content
from tests.records_kit import song

FILE = content(1, 100 * BLOCK)
RULES = Rules(allow_http=True, allow_private=True)


class Desk:
    """A fetcher that begins no request, and notes which it was to begin."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.begun: list[Stream] = []

    def start(self, fetch: Callable[[Stream], Awaitable[None]], stream: Stream) -> None:
        self.begun.append(stream)

    def remember(self, download: RangeDownload) -> None: ...


def begun(*demands: set[int]) -> list[int]:
    """The first blocks of the requests that are begun for these demands, a second apart, on a slow link."""
    desk = Desk()

    async def main() -> None:
        download = RangeDownload(cast(Any, desk), Job(FILE.item, lambda: Path("nowhere"), Bitmap(100)), cast(Any, None))
        for urgent in demands:
            download.received("http://127.0.0.1/song", BLOCK // 2)
            download.demand(urgent, set(range(10)) - urgent)
            await trio.sleep(1)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return [stream.blocks.start for stream in desk.begun]


def test_who_reads_elsewhere_goes_before_blocks_that_are_on_their_way_and_come_late() -> None:
    assert begun({0}, {0, 1, 2, 3, 90}) == [0, 90]


def test_a_block_on_its_way_behind_others_is_asked_for_by_itself_if_nobody_else_waits() -> None:
    assert begun({0}, {0, 5}) == [0, 5]


def test_of_two_places_that_nobody_brings_the_one_that_was_waited_for_first_goes_first() -> None:
    assert begun({50}, {50, 90}, {50, 90, 20}) == [50, 90]


def test_what_follows_right_behind_a_stretch_under_way_waits_for_its_end_all_of_it() -> None:
    assert begun({0}, {0, 10, 11, 12}) == [0]
    assert begun({0}, {0, 10, 11, 13}) == [0, 13]


def test_connections_that_no_record_needs_any_more_are_closed_after_a_while(tmp_path: Path) -> None:
    (tmp_path / "song").write_bytes(song(1, 1000))

    clock = trio.testing.MockClock()

    async def main() -> None:
        async with WebClient(RULES) as client, trio.open_nursery() as nursery:
            await nursery.start(RangeFetcher(client, Ledger()).run)
            before = open_sockets()
            async with client.get(f"{url}song", {}) as answer:
                await answer.read_some(memoryview(bytearray(1000)))
            assert open_sockets() == before + 1
            clock.jump(30)
            await trio.testing.wait_all_tasks_blocked()
            assert open_sockets() == before
            nursery.cancel_scope.cancel()

    with nginx(tmp_path) as url:
        trio.run(main, clock=clock)
