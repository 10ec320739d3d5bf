"""A record's blocks, asked of real servers that answer ranges in all the ways that HTTP has, and in others."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest
import trio

from cachefs.content import Bitmap
from cachefs.errors import CachefsError, Fault, RecordMismatch, UrlFailed
from cachefs.fetch.base import Claim, Item, Job
from cachefs.fetch.http.client import Rules, WebClient
from cachefs.fetch.ranges.download import RangeDownload
from cachefs.fetch.ranges.fetcher import RangeFetcher
from cachefs.fetch.sources import Ledger
from tests.fakes import BLOCK, Content, content, until
from tests.player_kit import slow_link
from tests.records_kit import Host, data_dir, etch, sha256, stored, web

FILE = content(1, 20 * BLOCK + 1000)
ALL = frozenset(range(FILE.blocks))
RULES = Rules(allow_http=True, allow_private=True, stall=10.0)
NINES = "9" * 5000


class Collected:
    """A sink that verifies blocks and keeps which landed, and the errors that readers would get."""

    def __init__(self, item: Item) -> None:
        self.have = Bitmap(item.manifest.blocks)
        self.errors: list[Exception] = []
        self._manifest = item.manifest

    async def deliver(self, index: int, data: memoryview) -> None:
        self.write(index, data)
        self.landed(index)

    def claim(self, blocks: range) -> Claim:
        return Claim(blocks)

    def write(self, index: int, data: memoryview) -> None:
        self._manifest.verify(index, data)

    def has_room(self, index: int) -> bool:
        return True

    def release(self, claim: Claim) -> None: ...

    def landed(self, index: int) -> None:
        self.have.add(index)

    def failed(self, error: Exception) -> None:
        self.errors.append(error)

    def ended(self) -> None: ...


class Reading:
    """A record of a file's bytes at some URLs, being fetched."""

    def __init__(
        self, fetcher: RangeFetcher, *urls: str, file: Content = FILE, sink: Callable[[Item], Collected] = Collected
    ) -> None:
        item = replace(file.item, metainfo=None, urls=urls, catalogue="records")
        self.sink = sink(item)
        self._download: RangeDownload = fetcher.download(Job(item, lambda: Path("nowhere"), self.sink.have), self.sink)

    async def all(self) -> None:
        """Return when all blocks are here: the first is waited for, the others come as readahead, by one request."""
        self._download.demand(frozenset({0}), ALL - {0})
        await self._settled(ALL)
        assert self.sink.errors == []

    async def want(self, *blocks: int) -> None:
        """Return when these are here: each is waited for."""
        wanted = frozenset(blocks)
        self._download.demand(wanted, frozenset())
        await self._settled(wanted)
        assert self.sink.errors == []

    async def ended(self) -> None:
        """Return when no request is under way."""
        await until(lambda: not self._download.busy)

    async def failure(self, *blocks: int) -> CachefsError:
        """The error that who waits for these blocks gets."""
        wanted = frozenset(blocks or ALL)
        self._download.demand(wanted, frozenset())
        await self._settled(wanted)
        (error,) = self.sink.errors
        assert isinstance(error, CachefsError)
        return error

    async def _settled(self, wanted: frozenset[int]) -> None:
        await until(lambda: bool(self.sink.errors) or not self.sink.have.missing(wanted))


def fetched(scenario: Callable[[RangeFetcher, Host], Awaitable[None]], rules: Rules = RULES) -> None:
    """Run `scenario` with a fetcher and a server."""

    async def main(host: Host) -> None:
        async with WebClient(rules) as client, trio.open_nursery() as nursery:
            fetcher = RangeFetcher(client, Ledger())
            await nursery.start(fetcher.run)
            await scenario(fetcher, host)
            nursery.cancel_scope.cancel()

    with web() as host:
        trio.run(main, host)


WRONG_RANGES = [f"bytes 0-9/{NINES}", f"bytes 0-{NINES}/10", "bytes ²-9/10", "bytes */10", "pages 1-2/3"]


@pytest.mark.parametrize("told", WRONG_RANGES)
def test_a_range_that_means_nothing_is_no_answer(told: str) -> None:
    async def scenario(fetcher: RangeFetcher, host: Host) -> None:
        url = host.put("song.mp3", FILE.data, headers={"Content-Range": told})
        error = await Reading(fetcher, url).failure(0)
        assert isinstance(error, UrlFailed)
        assert "HTTP 206 with" in str(error)
        assert len(str(error)) < 300

    fetched(scenario)


def test_a_length_that_no_file_has_is_passed_over_by_an_etch(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        etch(data, host.put("song.mp3", FILE.data, headers={"Content-Range": f"bytes 0-9/{NINES}"}))
    assert stored(data) == [sha256(FILE.data)]


LARGE = content(2, 3 * 2**18, 2**18)
SLOW, HURRIED = 2**18 / 4, replace(RULES, stall=1.5)
"""A link that carries a block of it in four seconds, and rules by which that is too long."""


def test_a_url_that_is_slow_with_a_block_is_left_alone_and_another_one_asked() -> None:
    async def scenario(fetcher: RangeFetcher, host: Host) -> None:
        host.put("song.mp3", LARGE.data)
        mirror = host.put("mirror.mp3", LARGE.data)
        with slow_link(host.url, SLOW) as link:
            await Reading(fetcher, link.url + "song.mp3", mirror, file=LARGE).want(0, 1)
            assert "of 262144 bytes in 1.5 s" in "; ".join(fetcher.ledger.recent(60))
            await Reading(fetcher, link.url + "song.mp3", mirror, file=LARGE).want(0, 1)
        assert len(host.asked_for("song.mp3")) == 1

    fetched(scenario, HURRIED)


def test_a_url_that_is_slow_may_take_its_time_where_no_other_one_gives_anything() -> None:
    async def scenario(fetcher: RangeFetcher, host: Host) -> None:
        host.put("song.mp3", LARGE.data)
        with slow_link(host.url, SLOW) as link:
            for mirrors in ((), (f"{host.url}gone.mp3",)):
                await Reading(fetcher, link.url + "song.mp3", *mirrors, file=LARGE).want(2)
        assert len(host.asked_for("gone.mp3")) == 1

    fetched(scenario, HURRIED)


class Faulty(Collected):
    """A sink with a mistake in it."""

    def write(self, index: int, data: memoryview) -> None:
        raise RuntimeError("a mistake")


def test_a_fault_of_ours_is_told_to_who_waits_and_costs_a_request() -> None:
    async def scenario(fetcher: RangeFetcher, host: Host) -> None:
        url = host.put("song.mp3", FILE.data)
        error = await Reading(fetcher, url, sink=Faulty).failure()
        assert isinstance(error, Fault)
        assert "a mistake" in str(error)
        await Reading(fetcher, url).all()

    fetched(scenario)


# Servers that give what they like of a range

Part: TypeAlias = "tuple[int, str, bytes]"
"""Status, Content-Range and body of an answer."""


@asynccontextmanager
async def ranged(give: Callable[[int, int], Part]) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that answers what `give` makes of a range's first and last byte; its URL, and what was asked for."""
    asked: list[str] = []

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        with suppress(trio.BrokenResourceError):
            while part := await stream.receive_some():
                head += part
                if head.endswith(b"\r\n\r\n"):
                    (first, last) = re.findall(rb"bytes=(\d+)-(\d+)", head)[0]
                    asked.append(f"{int(first)}-{int(last)}")
                    status, told, body = give(int(first), int(last))
                    lines = f"HTTP/1.1 {status} So\r\nContent-Range: {told}\r\nContent-Length: {len(body)}\r\n\r\n"
                    await stream.send_all(lines.encode() + body)
                    head = b""

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}/song.mp3", asked
        nursery.cancel_scope.cancel()


def given(give: Callable[[int, int], Part], scenario: Callable[[Reading, list[str]], Awaitable[None]]) -> None:
    """Run `scenario` on a record at such a server."""

    async def main(fetcher: RangeFetcher, host: Host) -> None:
        async with ranged(give) as (url, asked):
            await scenario(Reading(fetcher, url), asked)

    fetched(main)


async def comes(reading: Reading, asked: list[str]) -> None:
    await reading.all()


def test_a_length_that_nobody_knows_is_no_hindrance() -> None:
    given(lambda first, last: (206, f"bytes {first}-{last}/*", FILE.data[first : last + 1]), comes)


@pytest.mark.parametrize("most", [BLOCK, BLOCK + 1, 3 * BLOCK - 1, 5 * BLOCK + 1000])
@pytest.mark.parametrize("total", [str(len(FILE.data)), "*"])
def test_the_beginning_of_what_was_asked_for_is_taken_and_the_rest_asked_for_again(most: int, total: str) -> None:
    def give(first: int, last: int) -> Part:
        last = min(last, first + most - 1)
        return 206, f"bytes {first}-{last}/{total}", FILE.data[first : last + 1]

    async def scenario(reading: Reading, asked: list[str]) -> None:
        await reading.all()
        step, left = most // BLOCK * BLOCK, max(0, len(FILE.data) - most)
        assert asked == [f"{at}-{len(FILE.data) - 1}" for at in range(0, left + step, step)]

    given(give, scenario)


def test_a_server_that_never_gives_a_whole_block_is_given_up() -> None:
    def give(first: int, last: int) -> Part:
        return 206, f"bytes {first}-{first + 999}/{len(FILE.data)}", FILE.data[first : first + 1000]

    async def scenario(reading: Reading, asked: list[str]) -> None:
        assert "gave less than it was asked for" in str(await reading.failure(0))
        assert asked == [f"0-{BLOCK - 1}"] * 3

    given(give, scenario)


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (-BLOCK, -BLOCK), (0, -4 * BLOCK)])
def test_another_part_than_what_was_asked_for_is_no_answer(shift: tuple[int, int]) -> None:
    def give(first: int, last: int) -> Part:
        first, last = first + shift[0], last + shift[1]
        return 206, f"bytes {first}-{last}/{len(FILE.data)}", FILE.data[first : last + 1]

    async def scenario(reading: Reading, asked: list[str]) -> None:
        assert "HTTP 206 with bytes" in str(await reading.failure(2, 3))
        assert len(asked) == 1

    given(give, scenario)


def test_a_file_that_has_become_shorter_is_another_one() -> None:
    async def scenario(reading: Reading, asked: list[str]) -> None:
        error = await reading.failure(12)
        assert isinstance(error, RecordMismatch)
        assert error.size == 300_000
        assert f"is 300000 bytes long, the record says {len(FILE.data)}" in str(error)
        assert len(asked) == 1

    given(lambda first, last: (416, "bytes */300000", b""), scenario)


@pytest.mark.parametrize("told", [f"bytes */{len(FILE.data)}", "bytes */*", "no idea"])
def test_a_server_that_refuses_a_range_and_tells_no_other_length_just_fails(told: str) -> None:
    async def scenario(reading: Reading, asked: list[str]) -> None:
        error = await reading.failure(12)
        assert not isinstance(error, RecordMismatch)
        assert "HTTP 416: it has no such range" in str(error)

    given(lambda first, last: (416, told, b""), scenario)
