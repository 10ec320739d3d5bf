"""Thousands of files held open, as a node holds them: what nobody reads costs nothing, whatever is read beside it."""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from cachefs.cache import Cache
from cachefs.config import Fetch
from cachefs.descriptors import FIRST_FILE, set_apart
from cachefs.engine import without_room
from cachefs.errors import StoreFull
from cachefs.fetch.base import Job
from cachefs.fetch.remote.download import RemoteDownload
from cachefs.fetch.remote.fetcher import RemoteFetcher
from cachefs.fetch.routing.download import RoutedDownload
from cachefs.fetch.routing.router import Router
from cachefs.fetch.torrent.nodelay import NoDelay
from cachefs.speculation import Account
from cachefs.store.claims import Claim
from cachefs.store.eviction import Limits
from cachefs.store.evictor import Evictor
from cachefs.store.objects import ObjectStore
from cachefs.store.state import State
from cachefs.store.stored import StoredObject
from tests import cache_kit, room_kit
from tests.counterparts import LOOPBACK
from tests.fakes import BLOCK, Content, content, store_at, until
from tests.records_kit import Host, web
from tests.remote_kit import Kept, KeptAlone, asking
from tests.torrent_kit import PIECE, QUIET, Bench, Receiver, Seeder, fetch_from, fetching

NOTHING: frozenset[int] = frozenset()
MANY = 40


def files(count: int = MANY, block: int = BLOCK) -> list[Content]:
    """Files of four blocks each."""
    return [content(number, 4 * block, block, name=f"v1-{number:06}-headers.seg") for number in range(count)]


@contextmanager
def serving(items: Iterable[Content], **how: Any) -> Iterator[Host]:
    """A web seed that has all of these."""
    with web() as host:
        for item in items:
            host.put(item.info.name, item.data, **how)
        yield host


@contextmanager
def looked_at(kind: type[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Any]]:
    """Collects the downloads of a kind that anybody asks whether they want something, while this lasts."""
    found: set[Any] = set()
    before = kind.busy.fget

    def busy(download: Any) -> bool:
        found.add(download)
        return bool(before(download))

    with monkeypatch.context() as patched:
        patched.setattr(kind, "busy", property(busy))
        yield found


async def ticks(fetcher: RemoteFetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Return when the fetcher has measured twice, which it does more seldom than anything else."""
    measured = 0
    before = fetcher.ledger.set_rates

    def set_rates(*told: Any) -> None:
        nonlocal measured
        measured += 1
        before(*told)

    with monkeypatch.context() as patched:
        patched.setattr(fetcher.ledger, "set_rates", set_rates)
        await until(lambda: measured > 2)


# What is looked at, again and again, of downloads


def test_of_open_files_from_the_web_only_those_are_looked_at_that_somebody_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with serving(items) as host:
            async with asking(tmp_path, host.url) as fetcher:
                kept = [KeptAlone(item, fetcher) for item in items]
                for each in kept:
                    each.download.demand({0}, {1, 2})
                await until(lambda: all(not each.have.missing(range(3)) for each in kept))
                await ticks(fetcher, monkeypatch)
                with looked_at(RemoteDownload, monkeypatch) as found:
                    kept[0].download.demand({3}, NOTHING)
                    await until(lambda: 3 in kept[0].have)
                    await ticks(fetcher, monkeypatch)
                    assert fetcher.transfers() == []
                assert found <= {kept[0].download}

    items = files()
    trio.run(main)


def test_of_open_files_the_router_reviews_only_those_of_which_something_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with serving(items) as host:
            async with asking(tmp_path, host.url) as remote, fetching(tmp_path) as bench, trio.open_nursery() as tasks:
                router = Router(Fetch(), bench.fetcher, remote, remote.hedging, lambda _: False)
                await tasks.start(router.run)
                kept = [Kept(item) for item in items]
                downloads = [router.download(_in_file(each, tmp_path), each) for each in kept]
                for download in downloads:
                    download.demand({0}, {1, 2})
                await until(lambda: all(not each.have.missing(range(3)) for each in kept))
                assert not any(download.busy for download in downloads), "what has landed isn't wanted any more"
                assert not any(download.torrent and download.torrent.sought for download in downloads)
                await ticks(remote, monkeypatch)
                with looked_at(RoutedDownload, monkeypatch) as found:
                    downloads[0].demand({3}, NOTHING)
                    await until(lambda: 3 in kept[0].have)
                    await ticks(remote, monkeypatch)
                assert found <= {downloads[0]}
                tasks.cancel_scope.cancel()

    items = files()
    trio.run(main)


def _in_file(kept: Kept, directory: Path) -> Job:
    """Its job, in an empty file: a torrent opens it."""
    path = directory / kept.item.info.content.hex
    path.touch()
    os.truncate(path, len(kept.item.data))
    return replace(kept.job, where=lambda: path)


# How many torrents are in the session


def test_of_files_that_stay_open_no_more_are_in_the_session_than_it_may_have_and_the_next_read_brings_one_back(
    tmp_path: Path,
) -> None:
    items = files(6, PIECE)

    async def scenario(bench: Bench, seeder: Seeder) -> None:
        receivers = [bench.receiver(item) for item in items]
        for receiver in receivers:
            bench.fetch(receiver)
            receiver.wants(0)
            await receiver.lands(0)
        await until(lambda: _in_session(bench) == 2)
        assert [receiver.has_ended for receiver in receivers] == [True] * 4 + [False] * 2, "the longest unread went"
        again = bench.receiver(items[0])
        bench.fetch(again)
        again.wants(1)
        await again.lands(1)

    def _in_session(bench: Bench) -> int:
        return sum(bench.fetcher.has(item.info.content) for item in items)

    fetch_from(tmp_path, scenario, *items, settings=replace(QUIET, active_torrents=2))


def test_a_torrent_that_made_room_is_back_as_soon_as_something_of_its_open_file_is_read(tmp_path: Path) -> None:
    items = files(3, PIECE)

    async def scenario(bench: Bench, seeder: Seeder) -> None:
        async with asking(tmp_path / "web") as remote, trio.open_nursery() as nursery:
            router = Router(Fetch(), bench.fetcher, remote, remote.hedging, lambda _: False)
            await nursery.start(router.run)
            receivers = [bench.receiver(item) for item in items]
            downloads = [router.download(_job(receiver), receiver) for receiver in receivers]  # type: ignore[arg-type]
            for index in range(3):
                for download, receiver in zip(downloads, receivers, strict=True):
                    download.demand({index}, NOTHING)
                    await receiver.lands(index)
                await until(lambda: sum(bench.fetcher.has(item.info.content) for item in items) == 1)
            assert not any(receiver.has_ended for receiver in receivers), "they are open"
            assert [download.sources() for download in downloads] == [["torrent"]] * 3
            for download in downloads:
                download.close()
            await until(lambda: all(receiver.has_ended for receiver in receivers))
            nursery.cancel_scope.cancel()

    def _job(receiver: Receiver) -> Any:
        return replace(Kept(receiver.item).job, where=lambda: receiver.path, have=receiver.have)

    fetch_from(tmp_path, scenario, *items, settings=replace(QUIET, active_torrents=1))


# What is looked for among all descriptors


def test_new_connections_are_found_whatever_files_are_open_and_none_of_those_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, looked_at = tmp_path / "file", list[int]()
    path.touch()
    files = [set_apart(os.open(path, os.O_RDONLY)) for _ in range(MANY)]
    fstat = os.fstat

    def noted(descriptor: int) -> os.stat_result:
        looked_at.append(descriptor)
        return fstat(descriptor)

    try:
        with ExitStack() as stack:
            no_delay = NoDelay()
            listener = stack.enter_context(socket.create_server((LOOPBACK, 0)))
            for _ in range(3):
                connection = stack.enter_context(socket.create_connection(listener.getsockname()))
                with monkeypatch.context() as patched:
                    patched.setattr(os, "fstat", noted)
                    no_delay.set()
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not set(files) & set(looked_at)
            assert not os.get_inheritable(files[0])
    finally:
        for descriptor in files:
            os.close(descriptor)


def test_the_files_of_open_content_are_out_of_the_way_of_sockets(tmp_path: Path) -> None:
    item = content(1, 4 * PIECE, PIECE)
    numbers: list[int] = []

    async def scenario(bench: Bench, seeder: Seeder) -> None:
        bench.fetch(receiver := bench.receiver(item))
        receiver.wants(0)
        await receiver.lands(0)
        numbers.append(max(_numbers_of(receiver.path)))
        state = State.open(tmp_path / "state.db")
        store = ObjectStore(tmp_path / "objects", state)
        stored = await store.open(item.info.manifest)
        numbers.extend(_numbers_of(stored.path))
        await store.aclose()
        state.close()

    fetch_from(tmp_path, scenario, item)
    assert len(numbers) == 2
    assert min(numbers) >= FIRST_FILE


def _numbers_of(path: Path) -> list[int]:
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [int(link.name) for link in links if link.readlink() == path]


def test_a_wish_makes_nobody_look_at_others_that_wait_for_the_same_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with serving(items, gate=gate) as host:
            async with asking(tmp_path, host.url) as fetcher:
                kept = [KeptAlone(item, fetcher) for item in items]
                for each in kept:
                    each.download.demand({0}, NOTHING)
                with looked_at(RemoteDownload, monkeypatch) as found:
                    kept[0].download.demand({0, 1}, NOTHING)
                assert found <= {kept[0].download}
                gate.set()
                await until(lambda: all(0 in each.have for each in kept))

    items, gate = files(), threading.Event()
    trio.run(main)


# What readers leave behind who give up


def test_what_a_reader_gave_up_on_is_not_wanted_for_ever_where_nothing_comes(tmp_path: Path) -> None:
    async def scenario(bench: cache_kit.Bench) -> None:
        reader = await bench.open()
        await bench.read(reader, 0, 10)
        fetched = bench.fetcher.last
        await trio.sleep(9)
        assert fetched.ahead == {0}, "the next reader may be glad of it"
        fetched.moved = trio.current_time()
        await trio.sleep(9)
        assert fetched.ahead == {0}, "something came"
        await trio.sleep(15)
        assert not fetched.urgent | fetched.ahead
        await bench.start_read(reader, 0, 10)
        assert fetched.urgent == {0}
        fetched.land(0)
        await bench.settled()
        assert bench.outcomes[1] == cache_kit.FILE.data[:10]

    cache_kit.run(tmp_path, scenario)


def test_what_somebody_fetches_without_a_reader_is_wanted_as_long_as_he_waits(tmp_path: Path) -> None:
    async def scenario(bench: cache_kit.Bench) -> None:
        reader = await bench.open()
        with trio.move_on_after(cache_kit.DEADLINE - 1):
            await bench.cache.fetch(reader, 3)
        await trio.sleep(3)
        assert bench.fetcher.last.ahead == {3}
        await trio.sleep(15)
        assert not bench.fetcher.last.ahead

    cache_kit.run(tmp_path, scenario)


# The store


def test_a_commit_asks_none_of_the_open_objects_but_those_of_which_something_landed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[StoredObject] = []
    commit = StoredObject.commit

    async def noted(stored: StoredObject) -> None:
        asked.append(stored)
        await commit(stored)

    async def main() -> None:
        with store_at(tmp_path) as store:
            opened = [await store.open(item.info.manifest) for item in items]
            with monkeypatch.context() as patched:
                patched.setattr(StoredObject, "commit", noted)
                await put(opened[7], items[7])
                await store.commit()
                assert asked == [opened[7]]
                await store.commit()
                assert asked == [opened[7]], "nothing has come since"
            await store.aclose()

    items = files()
    trio.run(main)


def test_an_object_is_synced_at_its_end_only_if_something_came_since_its_last_commit(tmp_path: Path) -> None:
    synced: list[int] = []

    async def main() -> None:
        state = State.open(tmp_path / "state.db")
        store = ObjectStore(tmp_path / "store", state, sync=synced.append)
        stored, other = [await store.open(item.info.manifest) for item in items]
        await put(stored, items[0])
        await store.commit()
        assert len(synced) == 1
        await other.release()
        await stored.release()
        assert len(synced) == 1
        stored = await store.open(items[0].info.manifest)
        assert list(stored.verified) == [0]
        await put(stored, items[0], 1)
        await stored.release()
        assert len(synced) == 2
        await store.aclose()
        assert await store.doubtful() == []
        state.close()

    items = files(2)
    trio.run(main)


async def put(stored: StoredObject, item: Content, index: int = 0) -> None:
    stored.put(index, item.piece(index))
    stored.land(index)


def test_room_is_reckoned_of_what_is_being_fetched_not_of_what_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.store.tally._FEW", 1, raising=False)
    asked: set[Claim] = set()
    promised = Claim.promised

    def noted(claim: Claim) -> int:
        asked.add(claim)
        return promised(claim)

    async def scenario(bench: room_kit.RoomBench) -> None:
        readers = [await bench.open(item) for item in room_kit.FILES]
        for reader in readers:
            await bench.have(reader, 0)
        with monkeypatch.context() as patched:
            patched.setattr(Claim, "promised", noted)
            await bench.have(readers[0], 1)
        assert len(asked) < len(readers) / 2

    room_kit.run(tmp_path, scenario, Limits(free_space=2**20))


def test_files_whose_readahead_was_used_are_not_added_up() -> None:
    async def scenario() -> None:
        account = Account(1000)
        for reader in range(MANY):
            account.ahead(reader, 10)
            account.ahead(reader, 0)
        assert account.idle
        assert account.left(MANY) == 1000

    trio.run(scenario)


def test_whether_reads_wait_for_room_is_not_asked_of_what_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(bench: room_kit.RoomBench) -> None:
        for item in room_kit.FILES:
            await bench.open(item)
        with monkeypatch.context() as patched:
            patched.setattr(Cache, "flows", lambda cache: pytest.fail("all of them are looked at"))
            assert not without_room(bench.cache, bench.room)

    room_kit.run(tmp_path, scenario, room_kit.limit(4))


def test_when_the_last_use_was_of_each_object_is_not_asked_where_all_are_open_and_none_may_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def counted(owner: type, name: str) -> None:
        function = getattr(owner, name)

        def noted(self: object) -> object:
            calls[name] += 1
            return function(self)

        monkeypatch.setattr(owner, name, noted)

    async def scenario(bench: room_kit.RoomBench) -> None:
        readers = [await bench.open(item) for item in room_kit.FILES]
        for reader in readers[:4]:
            await bench.have(reader, 0)
        counted(State, "last_used")
        counted(Evictor, "movable")
        await bench.read(readers[4], 0, 10)
        assert isinstance(bench.outcomes[-1], StoreFull)
        assert calls["movable"] > 10
        # For the reason that somebody who waits is told, and not with each look at what may go.
        assert 10 * calls["last_used"] <= calls["movable"]

    room_kit.run(tmp_path, scenario, room_kit.limit(4))
