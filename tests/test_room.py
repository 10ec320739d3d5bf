"""The limit under readers: it holds at every moment, what is old goes first, and what is in use stays."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio

from cachefs import window
from cachefs.errors import StoreFailed, StoreFull
from cachefs.filesystem import errno_of
from cachefs.store import space
from cachefs.store.claims import GRACE
from cachefs.store.eviction import Bounds, Limits
from cachefs.store.state import Pin
from tests.room_kit import BLOCK, FILES, METADATA, RoomBench, limit, run

ONE, TWO, THREE, FOUR, FIVE = FILES[:5]


def test_the_least_recently_used_goes_first_and_the_limit_is_never_exceeded(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        for item in (ONE, TWO, THREE):
            await bench.fill(item)
        reader = await bench.open(ONE)  # used again: now TWO is the oldest
        await bench.shut(reader)
        await bench.fill(FOUR)
        assert bench.held(ONE, TWO, THREE, FOUR) == [True, False, True, True]
        await bench.fill(FIVE)
        assert bench.held(ONE, TWO, THREE, FOUR, FIVE) == [True, False, False, True, True]
        assert bench.taken() <= 12 * BLOCK

    run(tmp_path, scenario, limit(12))


def test_a_block_is_demanded_only_once_there_is_room_for_it(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        most = 0
        for item in FILES:
            reader = await bench.open(item)
            await bench.start_read(reader, 0, item.blocks * BLOCK)
            for index in range(item.blocks):
                await bench.granted(reader, index)
                download = bench.download(reader)
                to_come = download.job.have.missing(download.urgent | download.ahead)
                most = max(most, bench.taken() + len(to_come) * BLOCK)
                bench.download(reader).land(index)
            await bench.settled()
            await bench.shut(reader)
        assert 0 < most <= 6 * BLOCK
        assert not [outcome for outcome in bench.outcomes if not isinstance(outcome, bytes)]

    run(tmp_path, scenario, limit(6))


def test_open_files_stay_and_the_reader_is_told_why_there_is_no_room(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        first, second = await bench.open(ONE), await bench.open(TWO)
        for index in range(4):
            await bench.have(first, index)
        bench.outcomes.clear()
        await bench.read(second, 0, 10)
        assert isinstance(bench.error, StoreFull)
        assert errno_of(bench.error) == errno.ENOSPC
        assert "limit" in str(bench.error)
        assert "open" in str(bench.error)
        assert bench.held(ONE, TWO) == [True, False]
        await bench.read(first, 3 * BLOCK, 10)
        await bench.shut(first)
        await bench.have(second, 0)
        assert bench.held(ONE, TWO) == [False, True]

    run(tmp_path, scenario, limit(4))


def test_pinned_files_stay_and_go_once_they_are_unpinned(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        await bench.fill(ONE)
        bench.room.evictor.pinned.add(ONE.info.content)
        reader = await bench.open(TWO)
        bench.outcomes.clear()
        await bench.read(reader, 0, 10)
        assert isinstance(bench.error, StoreFull)
        assert "pinned" in str(bench.error)
        assert bench.held(ONE) == [True]
        bench.room.evictor.pinned.clear()
        await bench.have(reader, 0)
        assert bench.held(ONE) == [False]

    run(tmp_path, scenario, limit(4))


def test_pins_are_kept_across_starts(tmp_path: Path) -> None:
    async def pin(bench: RoomBench) -> None:
        bench.state.set_pins([Pin("snapshots", "a", ONE.info.content)])

    async def again(bench: RoomBench) -> None:
        assert bench.room.evictor.pinned == {ONE.info.content}
        assert (await bench.room.evictor.evict(ONE.info.content)).stays == "pinned"
        bench.state.drop_pins(bench.state.pins())
        assert bench.state.pins() == []

    run(tmp_path, pin, limit(4))
    run(tmp_path, again, limit(4))


def test_what_is_only_seeded_is_evicted(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        await bench.fill(ONE)
        await bench.cache.seed(ONE.item)
        assert bench.store.opened()
        await bench.fill(TWO)
        assert bench.held(ONE, TWO) == [False, True]

    run(tmp_path, scenario, limit(4))


def test_reopening_a_file_that_is_being_evicted_reads_the_right_bytes(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        for turn in range(8):
            await bench.fill(ONE)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bench.room.evictor.evict, ONE.info.content)
                for _ in range(turn):
                    await trio.lowlevel.checkpoint()
                reader = await bench.open(ONE)
            for index in range(ONE.blocks):
                if index in reader.flow.stored.verified:
                    await bench.read(reader, index * BLOCK, BLOCK)  # compares
                else:
                    await bench.have(reader, index)
            await bench.shut(reader)
        assert all(isinstance(outcome, bytes) for outcome in bench.outcomes)

    run(tmp_path, scenario, limit(8))


def test_a_file_that_is_being_read_is_not_evicted_on_demand_either(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        reader = await bench.open(ONE)
        await bench.have(reader, 0)
        assert (await bench.room.evictor.evict(ONE.info.content)).stays == "open"
        await bench.read(reader, 0, BLOCK)
        assert isinstance(bench.outcomes[-1], bytes)
        await bench.shut(reader)
        assert (await bench.room.evictor.evict(ONE.info.content)).freed >= BLOCK
        assert bench.taken() == 0

    run(tmp_path, scenario, limit(8))


def test_readahead_shrinks_to_the_room_there_is_and_evicts_nothing_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "START", BLOCK // 2)
    monkeypatch.setattr(window, "SLACK", 0)

    async def scenario(bench: RoomBench) -> None:
        other = await bench.open(TWO)
        await bench.have(other, 0)
        reader = await bench.open(ONE)
        await bench.have(reader, 0)
        await bench.read(reader, 10, BLOCK - 20)
        await bench.start_read(reader, BLOCK - 10, BLOCK)
        assert bench.download(reader).urgent == {1}
        assert bench.download(reader).ahead == set(), "one block of room is for whoever waits"
        bench.download(reader).land(1)
        await bench.settled()
        assert isinstance(bench.outcomes[-1], bytes)
        assert bench.held(ONE, TWO) == [True, True]

    run(tmp_path, scenario, limit(3))


def test_readahead_gets_what_room_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "START", BLOCK // 2)
    monkeypatch.setattr(window, "SLACK", 0)

    async def scenario(bench: RoomBench) -> None:
        reader = await bench.open(ONE)
        await bench.have(reader, 0)
        await bench.read(reader, 10, BLOCK - 20)
        await bench.start_read(reader, BLOCK - 10, BLOCK)
        assert bench.download(reader).urgent == {1}
        assert bench.download(reader).ahead == {2}
        bench.download(reader).land(1, 2)

    run(tmp_path, scenario, limit(3))


def test_what_was_asked_for_and_is_not_wanted_any_more_counts_until_it_cannot_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "START", BLOCK // 2)
    monkeypatch.setattr(window, "SLACK", 0)

    async def scenario(bench: RoomBench) -> None:
        reader = await bench.open(ONE)
        await bench.have(reader, 0)
        await bench.read(reader, 10, BLOCK - 20)
        assert bench.download(reader).ahead == {1, 2}
        await bench.read(reader, 0, 10)
        other = await bench.open(TWO)
        began = trio.current_time()
        await bench.start_read(other, 0, 10)
        assert not bench.download(reader).ahead
        assert not bench.download(other).urgent
        bench.clock.jump(GRACE - 1)
        await bench.settled()
        assert not bench.download(other).urgent
        await bench.granted(other, 0)
        assert trio.current_time() - began >= GRACE

    run(tmp_path, scenario, limit(3))


def test_space_to_leave_free_on_disk_counts_what_is_promised(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        bench.disk = 10 * BLOCK
        reader = await bench.open(ONE)
        await bench.start_read(reader, 0, 2 * BLOCK)
        await bench.granted(reader, 0)  # once the store was looked at
        assert bench.download(reader).urgent == {0, 1}
        await bench.read(reader, 3 * BLOCK, 10)
        assert isinstance(bench.error, StoreFull)
        assert "free on disk" in str(bench.error)
        bench.disk += BLOCK
        await bench.start_read(reader, 3 * BLOCK, 10)
        await bench.granted(reader, 3)

    run(tmp_path, scenario, Limits(free_space=8 * BLOCK))


def test_what_nobody_used_for_too_long_goes_by_itself(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        await bench.fill(ONE)
        bench.clock.jump(3000)
        await bench.fill(TWO)
        reader = await bench.open(THREE)
        await bench.have(reader, 0)
        bench.clock.jump(1000)
        await bench.until(lambda: bench.held(ONE) == [False])
        assert bench.held(TWO, THREE) == [True, True]
        bench.clock.jump(3600)
        await bench.until(lambda: bench.held(TWO) == [False])
        assert bench.held(THREE) == [True], "open"

    run(tmp_path, scenario, Limits(Bounds(age=3600)))


def test_a_store_that_exceeds_a_lowered_limit_is_trimmed_at_the_start(tmp_path: Path) -> None:
    async def fill(bench: RoomBench) -> None:
        for item in FILES:
            await bench.fill(item)

    async def trimmed(bench: RoomBench) -> None:
        await bench.until(lambda: bench.taken() <= 8 * BLOCK)
        assert bench.held(*FILES[:10]) == [False] * 10
        assert bench.held(*FILES[10:]) == [True] * 2

    run(tmp_path, fill, limit(100))
    run(tmp_path, trimmed, limit(8))


def test_a_catalogue_keeps_to_its_own_bounds_at_its_own_cost(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        records = FILES[6:9]
        bench.catalogues.update((item.info.content, "records") for item in records)
        await bench.fill(ONE)
        for item in records:
            await bench.fill(item)
        assert bench.held(ONE, *records) == [True, False, False, True]
        assert bench.taken() <= 8 * BLOCK

    run(tmp_path, scenario, Limits(Bounds(size=100 * BLOCK), catalogues={"records": Bounds(size=4 * BLOCK)}))


def test_a_catalogue_keeps_no_more_objects_than_it_may(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        records = FILES[6:9]
        bench.catalogues.update((item.info.content, "records") for item in records)
        for item in (ONE, *records):
            await bench.fill(item)
        bench.clock.jump(61)
        await bench.until(lambda: bench.held(records[0]) == [False])
        assert bench.held(ONE, *records) == [True, False, True, True]

    run(tmp_path, scenario, Limits(catalogues={"records": Bounds(count=2)}))


def test_metadata_counts_and_pushes_data_out(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        await bench.fill(ONE)
        await bench.fill(TWO)
        for item in FILES[2:]:
            bench.store.save_manifest(item.info.content, bytes(METADATA // 8))
        bench.clock.jump(61)
        await bench.until(lambda: bench.held(ONE) == [False])
        assert bench.held(TWO) == [True]

    run(tmp_path, scenario, limit(8))


def test_a_file_that_somebody_else_has_too_counts_nothing_and_stays(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        await bench.fill(ONE)
        data = bench.path(ONE)
        (tmp_path / "mine").hardlink_to(data)
        await bench.room.look()
        await bench.fill(TWO)
        assert bench.held(TWO) == [True]
        assert data.read_bytes() == (tmp_path / "mine").read_bytes() == ONE.data

    run(tmp_path, scenario, limit(4))


def test_room_for_what_comes_whole_is_made_held_and_given_back(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        await bench.fill(ONE)
        held = trio.Event()

        async def come() -> None:
            async with bench.room.holding(4 * BLOCK):
                held.set()
                await trio.sleep(1000)

        bench.nursery.start_soon(come)
        await bench.until(held.is_set)
        assert bench.held(ONE) == [False]
        reader = await bench.open(TWO)
        bench.outcomes.clear()
        await bench.read(reader, 0, 10)
        assert isinstance(bench.error, StoreFull)
        bench.clock.jump(1000)
        await bench.have(reader, 0)
        assert bench.held(TWO) == [True]

    run(tmp_path, scenario, limit(4))


def test_what_came_whole_counts_and_more_than_there_can_be_room_for_is_refused(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        (tmp_path / "whole").write_bytes(ONE.data)
        async with bench.room.holding(len(ONE.data)):
            await bench.store.take(ONE.item.manifest, tmp_path / "whole")
        refused: list[StoreFull] = []

        async def come() -> None:
            try:
                async with bench.room.holding(5 * BLOCK):
                    pass
            except StoreFull as error:
                refused.append(error)

        bench.nursery.start_soon(come)
        await bench.until(lambda: bool(refused))
        assert bench.held(ONE) == [True], "it would have gone in vain"
        await bench.fill(TWO)
        assert bench.held(ONE, TWO) == [False, True]

    run(tmp_path, scenario, limit(4))


def test_a_reader_waits_a_moment_for_what_is_being_closed(tmp_path: Path) -> None:
    async def scenario(bench: RoomBench) -> None:
        first, second = await bench.open(ONE), await bench.open(TWO)
        for index in range(4):
            await bench.have(first, index)
        await bench.start_read(second, 0, 10)
        assert not bench.download(second).urgent
        await bench.shut(first)
        await bench.granted(second, 0)
        bench.download(second).land(0)
        await bench.settled()
        assert all(isinstance(outcome, bytes) for outcome in bench.outcomes)

    run(tmp_path, scenario, limit(4))


def test_an_object_that_cannot_be_deleted_keeps_no_other_from_going(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(bench: RoomBench) -> None:
        await bench.fill(ONE)
        await bench.fill(TWO)

        def stubborn(directory: Path) -> int:
            if directory == bench.path(ONE).parent:
                raise StoreFailed(f"{directory}: Operation not permitted")
            return remove_data(directory)

        remove_data = space.remove_data
        monkeypatch.setattr(space, "remove_data", stubborn)
        await bench.fill(THREE)
        assert bench.held(ONE, TWO, THREE) == [True, False, True]

    run(tmp_path, scenario, limit(8))
