"""Bytes that went bad on disk: found by a check, doubted, never served again, and healed like any missing block."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from cachefs.content import Bitmap
from cachefs.errors import StoreFailed, StoreFull
from cachefs.store import ObjectStore, State, StoredObject, disk, places, recovery
from cachefs.store.scrub import Checked, Checker
from cachefs.store.state import ObjectRow, Seal
from tests.store_kit import BLOCK, BLOCKS, LENGTH, DyingState, content_of, piece, write

MANIFEST, DATA = content_of(1)
NO_SEAL = Seal(0, 0, 0)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[DyingState]:
    made = DyingState.open(tmp_path / "state.db")
    assert isinstance(made, DyingState)
    made.before = made.after = lambda row: None
    yield made
    made.close()


def with_object(
    root: Path, state: State, use: Callable[[ObjectStore, StoredObject], Awaitable[None]], *, blocks: int = BLOCKS
) -> None:
    """Run `use` on an object whose first `blocks` blocks are here, and committed."""

    async def main() -> None:
        store = ObjectStore(root / "store", state)
        stored = await store.open(MANIFEST)
        for index in range(blocks):
            await write(stored, index, piece(MANIFEST, DATA, index))
        await stored.commit()
        await use(store, stored)
        await store.aclose()

    trio.run(main)


def damage(stored: StoredObject, index: int) -> None:
    """Change a byte of a block so that nothing shows it but the byte."""
    status = stored.path.stat()
    stored.path.chmod(0o600)
    with stored.path.open("r+b") as file:
        offset = MANIFEST.span(index).offset
        file.seek(offset)
        file.write(bytes([DATA[offset] ^ 1]))
    stored.path.chmod(status.st_mode)
    os.utime(stored.path, ns=(status.st_atime_ns, status.st_mtime_ns))


def completed(state: State) -> float | None:
    """When the object was completed, as recorded."""
    row = state.load_object(MANIFEST.content)
    assert row is not None
    return row.completed


def durable(state: State) -> set[int]:
    row = state.load_object(MANIFEST.content)
    assert row is not None
    return set(Bitmap.from_bytes(BLOCKS, row.bitmap))


@pytest.mark.parametrize("blocks", [BLOCKS, 4], ids=["sealed", "partial"])
def test_a_damaged_block_is_found_is_served_no_more_and_loses_its_bit_for_good(
    tmp_path: Path, state: DyingState, blocks: int
) -> None:
    async def use(store: ObjectStore, stored: StoredObject) -> None:
        damage(stored, 2)
        assert await Checker().check(store, MANIFEST) == Checked(blocks, (2,))
        assert durable(state) == set(range(blocks)) - {2}
        assert not stored.sealed
        with pytest.raises(StoreFailed):
            await stored.read(2 * BLOCK + 10, 1)
        assert await stored.read(BLOCK, BLOCK) == piece(MANIFEST, DATA, 1)
        assert await Checker().check(store, MANIFEST) == Checked(blocks - 1, (), (2,))

    with_object(tmp_path, state, use, blocks=blocks)


def test_a_healed_object_is_sealed_again_and_believed_at_the_next_start(tmp_path: Path, state: DyingState) -> None:
    async def use(store: ObjectStore, stored: StoredObject) -> None:
        damage(stored, 0)
        await stored.doubt([0])
        assert completed(state) is None
        await write(stored, 0, piece(MANIFEST, DATA, 0))
        await stored.commit()
        assert (stored.sealed, stored.path.stat().st_mode & 0o777) == (True, 0o444)
        assert await stored.read(0, LENGTH) == DATA

    async def again(store: ObjectStore, stored: StoredObject) -> None:
        assert stored.sealed

    with_object(tmp_path, state, use)
    with_object(tmp_path, state, again, blocks=0)


def test_a_doubt_records_no_bit_whose_data_was_not_synced(tmp_path: Path, state: DyingState) -> None:
    async def use(store: ObjectStore, stored: StoredObject) -> None:
        await write(stored, 4, piece(MANIFEST, DATA, 4))
        await stored.doubt([1])
        assert durable(state) == {0, 2, 3}
        await stored.commit()
        assert durable(state) == {0, 2, 3, 4}

    with_object(tmp_path, state, use, blocks=4)


def test_a_doubt_that_cannot_be_recorded_is_recorded_by_the_next_commit(tmp_path: Path, state: DyingState) -> None:
    def full(row: ObjectRow) -> None:
        raise StoreFull("no room")

    async def use(store: ObjectStore, stored: StoredObject) -> None:
        state.before = full
        with pytest.raises(StoreFull):
            await stored.doubt([3])
        state.before = lambda row: None
        with pytest.raises(StoreFailed):
            await stored.read(3 * BLOCK, 1)
        await store.commit()
        assert durable(state) == set(range(BLOCKS)) - {3}

    with_object(tmp_path, state, use)


@pytest.mark.parametrize("blocks", [BLOCKS, BLOCKS - 1], ids=["a sealed object", "a part of one"])
def test_a_doubt_that_could_not_be_recorded_before_the_object_was_closed_holds_when_it_is_opened_again(
    tmp_path: Path, state: DyingState, blocks: int
) -> None:
    def full(row: ObjectRow) -> None:
        raise StoreFull("no room")

    async def use(store: ObjectStore, stored: StoredObject) -> None:
        damage(stored, 2)
        state.before = full
        with pytest.raises(StoreFull):
            await stored.doubt([2])
        for _ in range(2):
            await stored.release()
            stored = await store.open(MANIFEST)
            assert 2 not in stored.verified
            assert not stored.complete
        await write(stored, 2, piece(MANIFEST, DATA, 2))
        assert await stored.read(0, LENGTH - BLOCK) == DATA[: LENGTH - BLOCK]
        await stored.release()
        state.before = lambda row: None
        stored = await store.open(MANIFEST)
        assert set(stored.verified) == set(range(blocks))
        await stored.commit()
        assert durable(state) == set(range(blocks))

    with_object(tmp_path, state, use, blocks=blocks)


def test_a_read_that_waits_for_the_disk_while_its_block_is_doubted_gets_no_bad_bytes(
    tmp_path: Path, state: DyingState, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, doubted = threading.Event(), threading.Event()
    really = disk.read_into

    def slowly(fd: int, buffer: memoryview, offset: int) -> bool:
        whole = really(fd, buffer, offset)
        read.set()
        assert doubted.wait(20)
        return whole

    async def use(store: ObjectStore, stored: StoredObject) -> None:
        damage(stored, 2)
        monkeypatch.setattr(stored, "read_now", lambda offset, size: stored._require(offset, size))
        monkeypatch.setattr(disk, "read_into", slowly)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reading, stored)
            await trio.to_thread.run_sync(read.wait, 20)
            await stored.doubt([2])
            doubted.set()

    async def reading(stored: StoredObject) -> None:
        assert await stored.read(2 * BLOCK, BLOCK) is None

    with_object(tmp_path, state, use)


def test_a_file_that_is_also_the_users_is_never_written_to(tmp_path: Path, state: DyingState) -> None:
    async def use(store: ObjectStore, stored: StoredObject) -> None:
        (tmp_path / "mine").hardlink_to(stored.path)
        damage(stored, 5)
        mine = (tmp_path / "mine").read_bytes()
        assert await Checker().check(store, MANIFEST) == Checked(BLOCKS, (5,))
        await write(stored, 5, piece(MANIFEST, DATA, 5))
        await stored.commit()
        assert (tmp_path / "mine").read_bytes() == mine != DATA
        assert stored.path.read_bytes() == DATA
        assert await stored.read(0, LENGTH) == DATA

    with_object(tmp_path, state, use)


@pytest.mark.parametrize("how", ["emptied", "deleted", "replaced"])
def test_a_file_that_is_not_there_any_more_is_wrong_as_a_whole_and_can_be_filled_again(
    tmp_path: Path, state: DyingState, how: str
) -> None:
    async def use(store: ObjectStore, stored: StoredObject) -> None:
        if how == "emptied":
            os.truncate(stored.path, 0)
        else:
            stored.path.unlink()
        if how == "replaced":
            stored.path.write_bytes(bytes(LENGTH))
        assert await Checker().check(store, MANIFEST) == Checked(BLOCKS, tuple(range(BLOCKS)))
        for index in range(BLOCKS):
            await write(stored, index, piece(MANIFEST, DATA, index))
        await stored.commit()
        assert stored.path.read_bytes() == DATA

    with_object(tmp_path, state, use)


def test_a_file_that_was_emptied_while_it_was_closed_is_found_by_a_check(tmp_path: Path, state: DyingState) -> None:
    async def use(store: ObjectStore, stored: StoredObject) -> None:
        await stored.release()
        stored.path.chmod(0o600)
        os.truncate(stored.path, 0)
        assert await Checker().check(store, MANIFEST) == Checked(BLOCKS, tuple(range(BLOCKS)))
        assert await Checker().check(store, MANIFEST) == Checked(0, (), tuple(range(BLOCKS)))

    with_object(tmp_path, state, use)


def test_a_scrub_keeps_to_its_rate(tmp_path: Path, state: DyingState) -> None:
    async def use(store: ObjectStore, stored: StoredObject) -> None:
        hashed: list[int] = []
        started = trio.current_time()
        await Checker(from_disk=True, rate=LENGTH / 0.5).check(store, MANIFEST, hashed.append)
        assert trio.current_time() - started >= 0.5
        assert hashed == [MANIFEST.span(index).length for index in range(BLOCKS)]

    with_object(tmp_path, state, use)


def test_what_was_not_hashed_for_the_longest_time_comes_first(tmp_path: Path, state: DyingState) -> None:
    async def use(store: ObjectStore, stored: StoredObject) -> None:
        other, data = content_of(2)
        second = await store.open(other)
        await write(second, 0, piece(other, data, 0))
        await second.commit()
        assert state.longest_unread() == (other.content, 0)  # it isn't complete: nobody knows since when it is held
        state.save_scrubbed(other.content, 2e9)
        assert state.longest_unread() == (MANIFEST.content, completed(state))
        state.save_scrubbed(MANIFEST.content, 3e9)
        assert state.longest_unread() == (other.content, 2e9)
        await second.release()

    assert state.longest_unread() is None
    with_object(tmp_path, state, use)


def test_from_the_moment_that_a_block_is_doubted_the_file_is_not_given_to_others(
    tmp_path: Path, state: DyingState
) -> None:
    async def use(store: ObjectStore, stored: StoredObject) -> None:
        seen = []

        class Look(trio.abc.Instrument):
            def after_task_step(self, task: trio.lowlevel.Task) -> None:
                seen.append((stored.complete, stored.descriptor is not None))

        trio.lowlevel.add_instrument(look := Look())
        await trio.lowlevel.checkpoint()
        await stored.doubt([2])
        trio.lowlevel.remove_instrument(look)
        assert set(seen) == {(True, True), (False, False)}

    with_object(tmp_path, state, use)


@contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """A copy of a shared file that says when it is about to be made, and waits until it may."""
    begun, may = threading.Event(), threading.Event()
    really = places.take_own

    def slowly(path: Path) -> bool:
        begun.set()
        assert may.wait(20)
        return really(path)

    monkeypatch.setattr(places, "take_own", slowly)
    yield begun, may


def descriptors() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


class Watching:
    """A `Watcher` that notes what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def doubted(self) -> None:
        self.told.append("doubted")

    def mended(self) -> None:
        self.told.append("mended")


def test_nothing_is_asked_for_until_a_shared_file_has_become_a_copy(
    tmp_path: Path, state: DyingState, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(store: ObjectStore, stored: StoredObject) -> None:
        (tmp_path / "mine").hardlink_to(stored.path)
        damage(stored, 5)
        stored.watcher = watching = Watching()
        async with trio.open_nursery() as nursery:
            with held_up(monkeypatch) as (begun, may):
                nursery.start_soon(stored.doubt, [5])
                await trio.to_thread.run_sync(begun.wait, 20)
                assert stored.unfit
                with trio.move_on_after(0.1) as waiting:
                    await stored.fit()
                assert (waiting.cancelled_caught, watching.told) == (True, [])
                may.set()
                await stored.fit()
        assert (stored.unfit, watching.told) == (False, ["doubted", "mended"])
        assert not stored.path.samefile(tmp_path / "mine")

    with_object(tmp_path, state, use)


def test_what_its_owner_did_to_a_shared_file_while_it_was_copied_is_not_served(
    tmp_path: Path, state: DyingState, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(store: ObjectStore, stored: StoredObject) -> None:
        (tmp_path / "mine").hardlink_to(stored.path)
        damage(stored, 5)
        async with trio.open_nursery() as nursery:
            with held_up(monkeypatch) as (begun, may):
                nursery.start_soon(stored.doubt, [5])
                await trio.to_thread.run_sync(begun.wait, 20)
                damage(stored, 1)
                may.set()
        assert set(stored.verified) == durable(state) == {0, 2, 3, 4}

    with_object(tmp_path, state, use)


def test_a_shared_file_that_cannot_be_copied_stays_as_it_is_and_is_copied_when_there_is_room(
    tmp_path: Path, state: DyingState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(fd: int, copy: int) -> None:
        raise OSError(errno.ENOSPC, "no room")

    async def use(store: ObjectStore, stored: StoredObject) -> None:
        (tmp_path / "mine").hardlink_to(stored.path)
        damage(stored, 5)
        with monkeypatch.context() as patch:
            patch.setattr(places, "_require_room", no_room)
            checked = await Checker().check(store, MANIFEST)
            assert (checked.wrong, "no room" in checked.trouble) == ((5,), True)
            with pytest.raises(StoreFull):
                await stored.fit()
            await store.commit()
            assert stored.unfit
        await store.commit()
        assert not stored.unfit
        await write(stored, 5, piece(MANIFEST, DATA, 5))
        assert await stored.read(0, LENGTH) == DATA != (tmp_path / "mine").read_bytes()

    with_object(tmp_path, state, use)


def test_a_fetcher_that_cannot_follow_to_another_file_costs_no_descriptor_and_is_told_again(
    tmp_path: Path, state: DyingState
) -> None:
    class Stuck(Watching):
        def doubted(self) -> None:
            super().doubted()
            if len(self.told) == 1:
                raise StoreFailed("can't be opened just now")

    async def use(store: ObjectStore, stored: StoredObject) -> None:
        stored.watcher = watching = Stuck()
        before = descriptors()
        with pytest.raises(StoreFailed, match="just now"):
            await stored.doubt([1])
        assert (descriptors(), stored.unfit) == (before, True)
        await store.commit()
        assert (watching.told, stored.unfit) == (["doubted", "doubted", "mended"], False)

    with_object(tmp_path, state, use)


@pytest.mark.parametrize("put_there", [False, True], ids=["gone", "replaced"])
def test_blocks_that_came_to_a_file_that_was_taken_away_are_not_served_from_the_new_one(
    tmp_path: Path, state: DyingState, put_there: bool
) -> None:
    async def use(store: ObjectStore, stored: StoredObject) -> None:
        here = stored.verified.copy()
        stored.path.unlink()
        if put_there:
            stored.path.write_bytes(bytes(LENGTH))
        await write(stored, 3, piece(MANIFEST, DATA, 3))  # lands after somebody has looked at what is here
        stored.put(4, piece(MANIFEST, DATA, 4))  # and this lands when the file is another
        await stored.doubt(here)
        assert not stored.land(4)
        assert list(stored.verified) == []
        for index in range(BLOCKS):
            await write(stored, index, piece(MANIFEST, DATA, index))
        assert await stored.read(0, LENGTH) == DATA == stored.path.read_bytes()

    with_object(tmp_path, state, use, blocks=3)


def test_a_block_that_was_doubted_between_being_found_here_and_landing_does_not_land(
    tmp_path: Path, state: DyingState
) -> None:
    async def use(store: ObjectStore, stored: StoredObject) -> None:
        damage(stored, 2)
        stored.put(2, piece(MANIFEST, DATA, 2))  # nothing is written: it is here
        await stored.doubt([2])
        assert not stored.land(2)
        await write(stored, 2, piece(MANIFEST, DATA, 2))
        assert await stored.read(0, LENGTH) == DATA

    with_object(tmp_path, state, use)


def test_what_was_lost_on_a_full_disk_is_told_by_later_checks(tmp_path: Path, state: DyingState) -> None:
    def full(row: ObjectRow) -> None:
        raise StoreFull("no room")

    async def use(store: ObjectStore, stored: StoredObject) -> None:
        damage(stored, 3)
        state.before = full
        assert await Checker().check(store, MANIFEST) == Checked(BLOCKS, (3,), (), "no room")
        state.before = lambda row: None
        await store.commit()
        assert await Checker().check(store, MANIFEST) == Checked(BLOCKS - 1, (), (3,))

    with_object(tmp_path, state, use)


@pytest.mark.parametrize("noticed_by", ["check", "commit", "look"])
def test_a_whole_that_another_process_puts_in_the_place_of_a_part_is_used_at_once(
    tmp_path: Path, state: DyingState, noticed_by: str
) -> None:
    async def use(store: ObjectStore, stored: StoredObject) -> None:
        stored.path.rename(tmp_path / "part")
        stored.path.write_bytes(DATA)
        stored.path.chmod(0o444)
        state.save_object(MANIFEST.content, recovery.whole(MANIFEST, recovery.looks(stored.path) or NO_SEAL, 5.0))
        match noticed_by:
            case "check":
                assert await Checker().check(store, MANIFEST) == Checked(3, ())
            case "commit":
                await write(stored, 4, piece(MANIFEST, DATA, 4))
                await stored.commit()
            case _:
                await stored.look()
        assert (stored.complete, stored.sealed, completed(state)) == (True, True, 5.0)
        assert await stored.read(0, LENGTH) == DATA
        assert stored.path.stat().st_mode & 0o777 == 0o444

    with_object(tmp_path, state, use, blocks=3)
