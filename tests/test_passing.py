"""What a record's server sends unasked, since it knows no ranges: it is kept where there is room, and nowhere else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachefs.errors import RecordMismatch, StoreFull
from cachefs.fetch.base import Claim, Item
from cachefs.fetch.ranges.fetcher import RangeFetcher
from cachefs.flow import Reader
from tests import room_kit
from tests.fakes import BLOCK, Content
from tests.mount_kit import Mount, cachefs, mounted, pread
from tests.player_kit import cold, slow_link
from tests.records_kit import OPEN_TOML, PIECE, Host, song, web
from tests.room_kit import FILES, RoomBench, limit
from tests.test_range_answers import ALL, FILE, Collected, Reading, fetched
from tests.test_records_room import bytes_on_disk

ONE, TWO, THREE = FILES[:3]
SPARE = 2**20
"""Bytes for what the data directory holds beside contents."""


# Who is asked for room


async def passed(bench: RoomBench, reader: Reader, item: Content, *blocks: int) -> list[int]:
    """Have these blocks pass by; those that were kept."""
    kept = []
    for index in blocks:
        if reader.flow.has_room(index):
            await reader.flow.deliver(index, memoryview(item.piece(index)))
            kept.append(index)
        await bench.settled()
    return kept


def test_what_passes_by_is_kept_up_to_the_limit(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        other, reader = await bench.open(TWO), await bench.open(ONE)
        for index in range(3):
            await bench.have(other, index)
        await bench.have(reader, 3)
        assert await passed(bench, reader, ONE, 0, 1, 2) == [0, 1]
        assert bench.taken() <= 6 * room_kit.BLOCK
        bench.outcomes.clear()
        await bench.read(other, 3 * room_kit.BLOCK, 10)
        assert isinstance(bench.error, StoreFull), "it is charged"

    room_kit.run(tmp_path, scenario, limit(6))


def test_what_is_old_makes_room_for_what_passes_by(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        for item in FILES[1:]:
            await bench.fill(item)
        reader = await bench.open(ONE)
        await bench.have(reader, 3)
        assert bench.held(TWO) == [True]
        assert await passed(bench, reader, ONE, 0) == []
        await bench.until(lambda: (bench.room.taken() or 0) < 44 * room_kit.BLOCK)
        assert bench.held(TWO) == [False]
        assert await passed(bench, reader, ONE, 1, 2) == [1, 2]
        await bench.have(reader, 0)
        assert bench.held(THREE) == [True]

    room_kit.run(tmp_path, scenario, limit(45))


def test_nothing_that_passes_by_takes_the_room_that_somebody_waits_for(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        other, reader, third = await bench.open(TWO), await bench.open(ONE), await bench.open(THREE)
        for index in range(4):
            await bench.have(other, index)
        await bench.have(reader, 3)
        await bench.start_read(third, 0, 4 * room_kit.BLOCK)
        assert bench.room.lacking() == {THREE.info.content: {3}}
        await bench.shut(other)
        assert await passed(bench, reader, ONE, 0) == []
        await bench.granted(third, 3)
        assert await passed(bench, reader, ONE, 0) == [0]

    room_kit.run(tmp_path, scenario, limit(8))


def test_of_what_can_never_be_here_whole_nothing_is_kept_that_nobody_asked_for(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        reader = await bench.open(ONE)
        await bench.have(reader, 3)
        assert await passed(bench, reader, ONE, 0, 1) == []
        for index in (2, 1):
            await bench.have(reader, index)

    room_kit.run(tmp_path, scenario, limit(3))


# Who asks for it


class Choosy(Collected):
    """A sink with room for some blocks; `alone` if nobody else may be writing, so that threads may."""

    def __init__(self, item: Item, room: set[int], *, alone: bool) -> None:
        super().__init__(item)
        self.written: list[int] = []
        self.asked: list[int] = []
        self._room, self._alone = room, alone

    def claim(self, blocks: range) -> Claim:
        return super().claim(blocks) if self._alone else None  # type: ignore[return-value]  # as a `Taker` may say

    def write(self, index: int, data: memoryview) -> None:
        super().write(index, data)
        self.written.append(index)

    def has_room(self, index: int) -> bool:
        assert threading.current_thread() is threading.main_thread(), "it is the event loop's to say"
        self.asked.append(index)
        return index in self._room


@pytest.mark.parametrize("alone", [True, False])
def test_of_a_whole_file_what_is_wanted_is_taken_and_what_there_is_room_for(alone: bool) -> None:
    async def scenario(fetcher: RangeFetcher, host: Host) -> None:
        url = host.put("song.mp3", FILE.data, ranges=False)
        reading = Reading(fetcher, url, sink=lambda item: Choosy(item, {2, 3, 9}, alone=alone))
        sink = reading.sink
        assert isinstance(sink, Choosy)
        await reading.want(15)
        await reading.ended()
        assert sink.written == [2, 3, 9, 15]
        assert sink.asked[:16] == [*range(15), 16]
        assert alone or len(sink.asked) == 16, "it ends where there is no room; a thread may hear so a block late"
        sink.asked.clear()
        await reading.want(16, 17)
        await reading.ended()
        assert sink.written[4:] == [16, 17], "what is here isn't written again"
        assert sink.asked[:13] == [index for index in range(15) if index not in {2, 3, 9}] + [18]
        assert alone or len(sink.asked) == 13

    fetched(scenario)


@pytest.mark.parametrize("alone", [True, False])
def test_what_follows_is_taken_as_well_so_that_all_of_it_is_asked_for_once(alone: bool) -> None:
    async def scenario(fetcher: RangeFetcher, host: Host) -> None:
        url = host.put("song.mp3", FILE.data, ranges=False)
        reading = Reading(fetcher, url, sink=lambda item: Choosy(item, set(ALL), alone=alone))
        await reading.want(0)
        await reading.ended()
        assert not reading.sink.have.missing(ALL)
        assert len(host.asked_for("song.mp3")) == 1

    fetched(scenario)


def test_what_follows_is_left_where_the_server_says_that_it_knows_ranges() -> None:
    async def scenario(fetcher: RangeFetcher, host: Host) -> None:
        url = host.put("song.mp3", FILE.data, ranges=False, headers={"Accept-Ranges": "bytes"})
        reading = Reading(fetcher, url, sink=lambda item: Choosy(item, set(ALL), alone=True))
        await reading.want(3)
        await reading.ended()
        assert set(reading.sink.have) == {0, 1, 2, 3}

    fetched(scenario)


@pytest.mark.parametrize("alone", [True, False])
def test_a_wrong_block_is_noticed_also_where_it_only_passes_by(alone: bool) -> None:
    async def scenario(fetcher: RangeFetcher, host: Host) -> None:
        wrong = FILE.data[: 5 * BLOCK] + bytes(BLOCK) + FILE.data[6 * BLOCK :]
        url = host.put("song.mp3", wrong, ranges=False)
        reading = Reading(fetcher, url, sink=lambda item: Choosy(item, set(), alone=alone))
        assert isinstance(await reading.failure(15), RecordMismatch)

    fetched(scenario)


# In a mount


@contextmanager
def watched(data: Path) -> Iterator[list[int]]:
    """How much contents take on disk, many times a second."""
    seen, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(bytes_on_disk(data))
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


@contextmanager
def playing(place: Path, size: int, *lengths: int) -> Iterator[tuple[Mount, Host, list[bytes]]]:
    """A mount that keeps to `size`, of records called 0, 1 and so on, at a server that knows no ranges."""
    bodies = [song(number, length) for number, length in enumerate(lengths)]
    with web() as host:
        cold(place, {str(n): host.put(f"{n}.mp3", body, ranges=False) for n, body in enumerate(bodies)})
        host.sent = 0
        with mounted(place, settings=f"{OPEN_TOML}[limits]\nsize = {size}\n") as mount:
            mount.wait_for("looked at", lambda now: now["limits"]["taken"] is not None)
            yield mount, host, bodies


def record(mount: Mount, number: int) -> Path:
    return mount.mountpoint / "records" / str(number)


def test_a_record_that_is_larger_than_the_limit_is_read_anywhere_and_the_limit_holds(tmp_path: Path) -> None:
    size = 20 * PIECE
    with playing(tmp_path, size, 60 * PIECE) as (mount, _, (body,)), watched(mount.data_dir) as seen:
        for at in (58, 30, 45):
            assert pread(record(mount, 0), at * PIECE, 1000) == body[at * PIECE :][:1000]
    assert max(seen) <= 5 * PIECE


def test_a_record_that_others_leave_too_little_room_for_is_read_anywhere_and_the_limit_holds(tmp_path: Path) -> None:
    size = 40 * PIECE + SPARE
    with playing(tmp_path, size, 30 * PIECE, 38 * PIECE) as (mount, _, bodies):
        assert record(mount, 0).read_bytes() == bodies[0]
        assert cachefs("pin", "records/0", "--mountpoint", mount.mountpoint).returncode == 0
        with watched(mount.data_dir) as seen:
            assert pread(record(mount, 1), 37 * PIECE, 1000) == bodies[1][37 * PIECE :][:1000]
        assert 31 * PIECE < max(seen) <= size


def test_a_record_that_is_read_in_order_is_fetched_once(tmp_path: Path) -> None:
    with playing(tmp_path, 400 * PIECE, 200 * PIECE) as (mount, host, (body,)):
        assert record(mount, 0).read_bytes() == body
        assert len(host.asked_for("0.mp3")) == 2, "by the etch, and by the mount"


def test_nothing_is_received_of_a_record_that_nobody_reads_any_more(tmp_path: Path) -> None:
    body = song(1, 40 * PIECE)
    with web() as host:
        host.put("0.mp3", body, ranges=False)
        with slow_link(host.url, PIECE / 0.2) as link:
            cold(tmp_path, {"0": f"{host.url}0.mp3"})
            lock = tmp_path / "data" / "records-lock.toml"
            lock.write_text(lock.read_text().replace(host.url, link.url))
            with mounted(tmp_path, settings=OPEN_TOML) as mount:
                assert pread(record(mount, 0), 0, 1000) == body[:1000]
                mount.wait_for("left", lambda now: not now["transfers"])
                assert 0 < bytes_on_disk(mount.data_dir) < len(body) / 2


def test_what_passes_by_is_fetched_once_where_there_is_room(tmp_path: Path) -> None:
    with playing(tmp_path, 80 * PIECE, 40 * PIECE) as (mount, host, (body,)):
        path = record(mount, 0)
        assert pread(path, 39 * PIECE, 1000) == body[39 * PIECE :][:1000]
        sent = host.sent
        assert path.read_bytes() == body
        assert host.sent == sent
        mount.wait_for("complete", lambda now: now["store"]["complete"] == 1)


def test_a_full_store_makes_room_for_what_is_played_and_the_limit_holds(tmp_path: Path) -> None:
    size = 120 * PIECE
    with playing(tmp_path, size, *[20 * PIECE] * 5, 40 * PIECE) as (mount, host, bodies):
        for number in range(5):
            assert record(mount, number).read_bytes() == bodies[number]
        mount.wait_for("complete", lambda now: now["store"]["complete"] == 5)
        host.sent = 0
        with watched(mount.data_dir) as seen:
            assert pread(record(mount, 5), 39 * PIECE, 1000) == bodies[5][39 * PIECE :][:1000]
            assert record(mount, 5).read_bytes() == bodies[5]
        assert max(seen) <= size
        assert host.sent < 5 * len(bodies[5])
        mount.wait_for("complete", lambda now: now["store"]["complete"] >= 4)
