"""What libtorrent does not take: a block that it is offered, and a whole torrent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from cachefs.config import Fetch
from cachefs.content import Bitmap
from cachefs.fetch.base import Claim, Job
from cachefs.fetch.policy import Hedging
from cachefs.fetch.routing.download import RoutedDownload
from cachefs.fetch.routing.router import Router
from cachefs.metainfo import Bencodable, bdecode, bencode, parse
from tests.fakes import BLOCK, WITHIN, Content, FakeDownload, content, until
from tests.records_kit import web
from tests.remote_kit import Kept, asking
from tests.torrent_kit import fetching

FILE = content(1, 3 * BLOCK)


def odd(**change: Bencodable) -> Content:
    """A file whose .torrent is in order for us and not for libtorrent."""
    outer = bdecode(FILE.info.raw)
    assert isinstance(outer, dict)
    info = outer[b"info"]
    assert isinstance(info, dict)
    changed = {name.replace("_", " ").encode(): value for name, value in change.items()}
    return Content(parse(bencode({b"info": info | changed})), FILE.data)


class Reluctant(FakeDownload):
    """A torrent whose peers may be sending all blocks, and that takes none from anybody else."""

    def __init__(self, job: Job, sink: Any) -> None:
        super().__init__(job, sink, FILE.data)
        self.pieces = self
        self.removed = False
        self.told: list[int] = []

    def may_write(self, index: int) -> bool:
        return not self.removed

    async def offer(self, index: int, data: bytes) -> bool:
        return False

    def remove(self) -> None:
        self.removed = True

    async def step_aside(self, index: int) -> None:
        assert self.removed

    def arrived(self, index: int) -> None:
        self.told.append(index)


class Asked(Reluctant):
    """A torrent that has peers, who were asked for nothing yet."""

    holders, arriving, rate = 1, False, 0.0

    def may_write(self, index: int) -> bool:
        return False

    async def step_aside(self, index: int) -> None: ...


class Torrents:
    """A torrent fetcher with one torrent."""

    has_peers = True

    def __init__(self, kind: type[Reluctant] = Reluctant) -> None:
        self._kind = kind

    def download(self, job: Job, sink: Any) -> Reluctant:
        self.given = self._kind(job, sink)
        return self.given


class Web:
    """A fetcher from the web, whose download is told what landed."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def download(self, job: Job, sink: Any) -> Web:
        self.sink = sink
        return self

    def landed(self, index: int) -> None:
        self.told.append(index)

    def askable(self) -> list[str]:
        return ["a web seed"]

    def flying(self) -> set[int]:
        return set()

    def demand(self, urgent: Any, ahead: Any) -> None: ...


class Taken:
    """A taker that keeps what it was given in memory."""

    def __init__(self) -> None:
        self.written: dict[int, bytes] = {}
        self.have: list[int] = []

    def write(self, index: int, data: memoryview) -> None:
        self.written[index] = bytes(data)

    async def deliver(self, index: int, data: memoryview) -> None:
        raise AssertionError("two fetch: it is written, or offered")

    def claim(self, blocks: range) -> Claim | None:
        raise AssertionError("the router says who may write")

    def has_room(self, index: int) -> bool:
        return index == 2

    def release(self, claim: Claim) -> None: ...

    def landed(self, index: int) -> None:
        self.have.append(index)

    def failed(self, error: Exception) -> None: ...

    def ended(self) -> None: ...


def routed(torrents: Torrents, web: Web, taken: Taken) -> RoutedDownload:
    settings = Fetch()
    router = Router(settings, cast(Any, torrents), cast(Any, web), Hedging(settings), lambda _: False)
    return router.download(Job(FILE.item, lambda: Path("nowhere"), Bitmap(FILE.blocks)), taken)


def test_who_keeps_the_blocks_says_of_what_the_web_sends_unasked_whether_there_is_room() -> None:
    web = Web()

    async def main() -> None:
        routed(Torrents(), web, Taken())
        assert [index for index in range(3) if web.sink.has_room(index)] == [2]

    trio.run(main)


def test_a_block_that_libtorrent_does_not_take_is_written_and_told_to_it_later() -> None:
    torrents, web, taken = Torrents(), Web(), Taken()

    async def main() -> None:
        await routed(torrents, web, taken).deliver(1, memoryview(FILE.piece(1)))

    trio.run(main)
    assert taken.written == {1: FILE.piece(1)}
    assert taken.have == torrents.given.told == web.told == [1]


def test_peers_are_not_asked_for_a_block_that_is_being_written_though_it_has_become_their_turn() -> None:
    torrents, web, taken = Torrents(Asked), Web(), Taken()

    async def main() -> None:
        settings = Fetch()
        router = Router(settings, cast(Any, torrents), cast(Any, web), Hedging(settings), lambda _: False)
        download = router.download(Job(FILE.item, lambda: Path("nowhere"), Bitmap(FILE.blocks)), taken)

        def keep(index: int, data: memoryview) -> None:
            trio.from_thread.run_sync(download.demand, {0, index}, {2})
            taken.written[index] = bytes(data)

        taken.write = keep  # type: ignore[method-assign]
        await download.deliver(1, memoryview(FILE.piece(1)))
        assert torrents.given.demands == [{0, 2}]
        download.demand({1}, set())
        assert torrents.given.urgent == {1}

    trio.run(main)
    assert taken.written == {1: FILE.piece(1)}


@pytest.mark.parametrize("item", [odd(meta_version=2), odd(name=b"")], ids=["a v2 torrent", "no name"])
def test_a_file_whose_torrent_libtorrent_refuses_is_had_from_the_web_and_that_is_told_once(
    tmp_path: Path, item: Content, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with trio.fail_after(WITHIN), web() as host:
            host.put("file", item.data)
            async with fetching(tmp_path) as torrents, asking(tmp_path, host.url) as remote:
                router = Router(Fetch(), torrents.fetcher, remote, remote.hedging, lambda _: False)
                for kept in (Kept(item), Kept(item)):
                    await fetch(router, kept)

    async def fetch(router: Router, kept: Kept) -> None:
        download = router.download(replace(kept.job, item=replace(item.item, name="file")), kept)
        download.demand(set(range(item.blocks)), set())
        await until(lambda: kept.have.complete)
        download.close()
        await until(lambda: kept.has_ended)

    trio.run(main)
    assert len([line for line in caplog.messages if "libtorrent refuses" in line]) == 1
