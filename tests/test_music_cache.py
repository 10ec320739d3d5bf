"""The record cache as a Python API: the two requests of the specification, and what many askers share."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from cachefs.catalog import records
from cachefs.catalog.records import Record
from cachefs.content import ContentId
from cachefs.errors import CachefsError, Fault, RecordMismatch, SourceLied, UrlFailed
from cachefs.fetch.whole.providers import HttpProvider
from cachefs.fetch.whole.receiver import Fetched, Receiver
from cachefs.records import MusicCache, Order, etch
from cachefs.records.etching import Etched
from tests.fakes import until
from tests.records_kit import OPEN, PIECE, Host, digest_header, leftovers, sha256, song, stored, web

SONG = song(1, 2 * PIECE + 1000)
OTHER = song(2, 1000)
CONTENT = ContentId.parse(f"sha256:{sha256(SONG)}")


def run(place: Path, scenario: Callable[[MusicCache, Host], Awaitable[None]]) -> None:
    """Run `scenario` with a cache in `place` and a server."""

    async def main(host: Host) -> None:
        async with MusicCache.open(place, OPEN) as cache:
            with trio.fail_after(60):
                await scenario(cache, host)

    with web() as host:
        trio.run(main, host)
    assert leftovers(place) == []


def test_3_14_a_request_by_url_always_downloads_and_returns_the_checksum(tmp_path: Path) -> None:
    async def scenario(cache: MusicCache, host: Host) -> None:
        url = host.put("song.mp3", SONG)
        assert await cache.request_by_url(url) == CONTENT
        assert await cache.request_by_url(url) == CONTENT
        assert len(host.asked) == 2
        path = cache.path(CONTENT)
        assert path is not None
        assert path.read_bytes() == SONG

    run(tmp_path, scenario)


def test_6_what_is_there_is_not_moved_again(tmp_path: Path) -> None:
    async def scenario(cache: MusicCache, host: Host) -> None:
        url = host.put("song.mp3", SONG)
        path = cache.path(await cache.request_by_url(url))
        assert path is not None
        before = path.stat()
        await cache.request_by_url(url)
        assert path.stat() == before

    run(tmp_path, scenario)


def test_10_11_a_request_with_a_checksum_looks_first_and_downloads_only_a_miss(tmp_path: Path) -> None:
    async def scenario(cache: MusicCache, host: Host) -> None:
        url = host.put("song.mp3", SONG)
        for _ in range(3):
            assert await cache.request_by_url_and_checksum(url, sha256(SONG)) == CONTENT
        assert len(host.asked) == 1

    run(tmp_path, scenario)


def test_12_15_other_bytes_raise_and_are_not_kept(tmp_path: Path) -> None:
    async def scenario(cache: MusicCache, host: Host) -> None:
        url = host.put("song.mp3", OTHER)
        with pytest.raises(RecordMismatch) as raised:
            await cache.request_by_url_and_checksum(url, CONTENT)
        error = raised.value
        assert (error.expected, error.got) == (str(CONTENT), f"sha256:{sha256(OTHER)}")
        assert (error.size, error.url) == (len(OTHER), url)
        assert cache.path(CONTENT) is None

    run(tmp_path, scenario)
    assert stored(tmp_path) == []


def test_a_failure_is_remembered_and_told_again_without_asking(tmp_path: Path) -> None:
    async def scenario(cache: MusicCache, host: Host) -> None:
        url = host.put("song.mp3", OTHER)
        for _ in range(10):
            with pytest.raises(RecordMismatch):
                await cache.request_by_url_and_checksum(url, CONTENT)
        assert len(host.asked) == 2

    run(tmp_path, scenario)


def test_9_both_requests_and_an_etch_use_one_downloader(tmp_path: Path) -> None:
    class Counting(HttpProvider):
        sent = 0

        async def send(self, url: str, receiver: Receiver) -> Fetched:
            self.sent += 1
            return await super().send(url, receiver)

    async def scenario(cache: MusicCache, host: Host) -> None:
        provider = Counting(cache.web)
        cache.add_provider(provider)
        await cache.request_by_url(host.put("one.mp3", SONG))
        await cache.request_by_url_and_checksum(host.put("two.mp3", OTHER), sha256(OTHER))
        await etch(cache, Order(host.put("three.mp3", song(3, 1000))))
        assert provider.sent == 3

    run(tmp_path, scenario)


@pytest.mark.parametrize("by", ["url", "checksum"])
def test_twenty_who_ask_at_once_share_one_download(tmp_path: Path, by: str) -> None:
    async def scenario(cache: MusicCache, host: Host) -> None:
        gate = threading.Event()
        url = host.put("song.mp3", SONG, gate=gate, hold=PIECE)
        got: list[ContentId] = []

        async def ask() -> None:
            if by == "url":
                got.append(await cache.request_by_url(url))
            else:
                got.append(await cache.request_by_url_and_checksum(url, CONTENT))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
            await until(lambda: host.sent >= PIECE)
            gate.set()
        assert got == [CONTENT] * 20
        assert len(host.asked) == 1

    run(tmp_path, scenario)


def test_who_waited_for_a_download_that_failed_gets_the_same_error(tmp_path: Path) -> None:
    async def scenario(cache: MusicCache, host: Host) -> None:
        gate = threading.Event()
        url = host.put("song.mp3", OTHER, gate=gate)
        errors: list[CachefsError] = []

        async def ask() -> None:
            try:
                await cache.request_by_url_and_checksum(url, CONTENT)
            except CachefsError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
            await until(lambda: bool(host.asked))
            gate.set()
        assert {type(error) for error in errors} == {RecordMismatch}
        assert len(errors) == 5
        assert len(host.asked) == 1

    run(tmp_path, scenario)


def test_who_waits_for_anothers_download_can_be_cancelled_and_leaves_it_alone(tmp_path: Path) -> None:
    async def scenario(cache: MusicCache, host: Host) -> None:
        gate = threading.Event()
        url = host.put("song.mp3", SONG, gate=gate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.request_by_url, url)
            await until(lambda: bool(host.asked))
            with trio.move_on_after(0.2) as scope:
                await cache.request_by_url(url)
            assert scope.cancelled_caught
            gate.set()
        assert cache.path(CONTENT) is not None
        assert len(host.asked) == 1

    run(tmp_path, scenario)


async def both(cache: MusicCache, host: Host, first: Order, second: Order) -> tuple[Etched | Exception, ...]:
    """What becomes of two etches of a page that has a gate; the second comes while the first downloads."""
    ends: dict[Order, Etched | Exception] = {}

    async def one(order: Order) -> None:
        try:
            ends[order] = await etch(cache, order)
        except CachefsError as error:
            ends[order] = error

    gate, asked = host.pages["/song.mp3"].gate, len(host.asked)
    assert gate is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, first)
        await until(lambda: len(host.asked) > asked)
        nursery.start_soon(one, second)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    return ends[first], ends[second]


@pytest.mark.parametrize("by", ["again", "file"])
def test_who_etches_again_or_from_a_file_is_not_given_anothers_failure(tmp_path: Path, by: str) -> None:
    """The record is of other bytes of the same length: a plain etch fails, and neither of these does."""
    mine = tmp_path / "mine.mp3"
    mine.write_bytes(song(2, len(SONG)))
    content = ContentId.parse(f"sha256:{sha256(mine.read_bytes())}")

    async def scenario(cache: MusicCache, host: Host) -> None:
        url = host.put("song.mp3", SONG, gate=threading.Event())
        records.update(cache.lock_path, lambda lock: lock.with_record(Record("song.mp3", url, content, len(SONG))))
        second = Order(url, again=True) if by == "again" else Order(url, source=mine)
        failed, etched = await both(cache, host, Order(url), second)
        assert isinstance(failed, RecordMismatch)
        assert isinstance(etched, Etched)
        assert etched.record.content == (CONTENT if by == "again" else content)

    run(tmp_path / "data", scenario)


def test_an_etch_again_that_fails_is_not_the_failure_of_who_etches_what_is_here(tmp_path: Path) -> None:
    async def scenario(cache: MusicCache, host: Host) -> None:
        url = host.put("song.mp3", SONG)
        await etch(cache, Order(url))
        host.put("song.mp3", OTHER, gate=threading.Event(), headers=digest_header(SONG))
        failed, etched = await both(cache, host, Order(url, again=True), Order(url))
        assert isinstance(failed, SourceLied)
        assert isinstance(etched, Etched)
        assert not etched.downloaded

    run(tmp_path, scenario)


@pytest.mark.parametrize("body", [SONG, OTHER], ids=["the same content", "other content"])
def test_what_another_process_adds_to_a_record_while_it_downloads_stays(tmp_path: Path, body: bytes) -> None:
    async def scenario(cache: MusicCache, host: Host) -> None:
        gate, mirrors = threading.Event(), ("https://e.org/1", "https://e.org/2", "https://e.org/3")
        before = (await etch(cache, Order(host.put("song.mp3", SONG), mirrors=mirrors[:1]))).record
        host.put("song.mp3", body, gate=gate)
        added = replace(before, mirrors=mirrors[:2], swarm=ContentId("btih", bytes(20)))
        asked = len(host.asked)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(etch, cache, Order(before.url, mirrors=mirrors[2:], again=True))
            await until(lambda: len(host.asked) > asked)
            records.update(cache.lock_path, lambda lock: lock.with_record(added))
            gate.set()
        record = cache.record("song.mp3")
        assert record.mirrors == mirrors
        assert record.swarm == (added.swarm if body == SONG else None)

    run(tmp_path, scenario)


def test_16_play_returns_at_once_and_tells_later(tmp_path: Path) -> None:
    async def scenario(cache: MusicCache, host: Host) -> None:
        gate = threading.Event()
        record = Record("song.mp3", host.put("song.mp3", SONG, gate=gate), CONTENT, len(SONG))
        async with trio.open_nursery() as nursery:
            play = cache.play(record, nursery)
            assert not play.ended.is_set()
            gate.set()
            await play.wait()
            assert cache.path(CONTENT) is not None
            broken = cache.play(Record("x.mp3", f"{host.url}x.mp3", ContentId("sha256", bytes(32)), 3), nursery)
            with pytest.raises(UrlFailed, match="HTTP 404"):
                await broken.wait()

    run(tmp_path, scenario)


class Faulty:
    """A provider with a mistake in it."""

    def takes(self, url: str) -> bool:
        return url.endswith("faulty.mp3")

    async def send(self, url: str, receiver: Receiver) -> Fetched:
        raise RuntimeError("a mistake")


def test_a_fault_of_ours_costs_one_play(tmp_path: Path) -> None:
    async def scenario(cache: MusicCache, host: Host) -> None:
        cache.add_provider(Faulty())
        record = Record("faulty.mp3", host.put("faulty.mp3", SONG), CONTENT, len(SONG))
        async with trio.open_nursery() as nursery:
            with pytest.raises(Fault, match="a mistake"):
                await cache.play(record, nursery).wait()
            await cache.play(replace(record, url=host.put("song.mp3", SONG)), nursery).wait()

    run(tmp_path, scenario)


def test_a_stored_file_that_was_changed_behind_our_back_is_fetched_again(tmp_path: Path) -> None:
    async def scenario(cache: MusicCache, host: Host) -> None:
        url = host.put("song.mp3", SONG)
        path = cache.path(await cache.request_by_url(url))
        assert path is not None
        path.chmod(0o600)
        path.write_bytes(bytes(len(SONG)))
        assert cache.path(CONTENT) is None
        await cache.request_by_url_and_checksum(url, CONTENT)
        assert path.read_bytes() == SONG
        assert len(host.asked) == 2

    run(tmp_path, scenario)


def test_content_whose_row_was_lost_is_found_by_hashing_it(tmp_path: Path) -> None:
    async def first(cache: MusicCache, host: Host) -> None:
        await cache.request_by_url(host.put("song.mp3", SONG))

    async def second(cache: MusicCache, host: Host) -> None:
        assert cache.path(CONTENT) is None
        await cache.request_by_url_and_checksum(f"{host.url}gone.mp3", CONTENT, size=len(SONG))
        assert cache.path(CONTENT) is not None
        assert host.asked == []

    run(tmp_path, first)
    for path in tmp_path.glob("state.db*"):
        path.unlink()
    run(tmp_path, second)


def test_what_is_no_checksum_is_refused(tmp_path: Path) -> None:
    async def scenario(cache: MusicCache, host: Host) -> None:
        with pytest.raises(CachefsError, match="not a SHA-256"):
            await cache.request_by_url_and_checksum(host.url, "12")

    run(tmp_path, scenario)
