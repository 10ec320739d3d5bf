"""The store while it works: what is served, what is made durable and when, and what a full disk does."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from cachefs.content import Bitmap, ContentId
from cachefs.errors import BlockInvalid, Stopping, StoreFailed, StoreFull
from cachefs.store import ObjectStore, State, StoredObject
from cachefs.store.state import ObjectRow
from tests.store_kit import BLOCK, BLOCKS, LENGTH, content_of, piece, put, write

MANIFEST, DATA = content_of(1)


class Bench:
    """A store on a directory, with a clock that is set by hand and a count of its syncs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 1000.0
        self.clock = trio.testing.MockClock()
        self.synced = 0
        self.sync_error: int | None = None
        self.state = State.open(root / "state.db")
        self.store = ObjectStore(root / "store", self.state, clock=lambda: self.now, sync=self._sync)

    def _sync(self, fd: int) -> None:
        self.synced += 1
        if self.sync_error is not None:
            raise OSError(self.sync_error, os.strerror(self.sync_error))

    async def pass_time(self, seconds: float) -> None:
        """Move the committer's clock, and let everyone react."""
        await trio.testing.wait_all_tasks_blocked()
        self.clock.jump(seconds)
        await trio.testing.wait_all_tasks_blocked()

    def durable(self) -> set[int]:
        """The blocks whose bits are in the state."""
        row = self.state.load_object(MANIFEST.content)
        return set() if row is None else set(Bitmap.from_bytes(BLOCKS, row.bitmap))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.state.close()


async def until(holds: Callable[[], bool]) -> None:
    """Let threads run until `holds`; bounded by real time, for the clock of the test stands still."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "what was waited for didn't come"
        await trio.to_thread.run_sync(time.sleep, 0.001)


def with_object(bench: Bench, use: Callable[[StoredObject], Awaitable[None]], *, blocks: int = 0) -> None:
    """Run `use` on the object, its first `blocks` blocks written, with the committer at work on `bench.clock`."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(bench.store.run)
            stored = await bench.store.open(MANIFEST)
            for index in range(blocks):
                await write(stored, index, piece(MANIFEST, DATA, index))
            await use(stored)
            await bench.store.aclose()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=bench.clock)


def test_a_new_object_is_a_sparse_file_of_the_full_length_for_the_owner_alone(bench: Bench) -> None:
    async def use(stored: StoredObject) -> None:
        hexdigest = MANIFEST.content.hex
        assert stored.path == bench.root / "store" / "btih" / hexdigest[:2] / hexdigest / "data"
        assert stored.path.stat().st_size == LENGTH
        assert stat.S_IMODE(stored.path.stat().st_mode) == 0o600
        folders = [stored.directory, *stored.directory.parents[:3]]
        assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
        assert stored.allocated == stored.held == 0
        assert not stored.complete

    with_object(bench, use)


def test_a_landed_block_is_served_at_once_and_durable_within_a_second(bench: Bench) -> None:
    async def use(stored: StoredObject) -> None:
        put(stored, DATA, 2)
        assert stored.land(2)
        assert not stored.land(2)
        assert await stored.read(2 * BLOCK + 5, 100) == DATA[2 * BLOCK + 5 : 2 * BLOCK + 105]
        assert bench.durable() == set()
        await trio.testing.wait_all_tasks_blocked()
        await bench.pass_time(0.9)
        assert bench.durable() == set()
        await bench.pass_time(0.2)
        await until(lambda: bench.durable() == {2})
        assert stored.held == BLOCK
        assert stored.allocated >= BLOCK

    with_object(bench, use)


def test_a_burst_is_committed_after_five_seconds_not_in_its_midst(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefs.store.objects.BURST_BYTES", 2 * BLOCK)

    async def use(stored: StoredObject) -> None:
        await trio.testing.wait_all_tasks_blocked()
        await bench.pass_time(1.1)
        await trio.testing.wait_all_tasks_blocked()
        await bench.pass_time(3.8)
        assert bench.durable() == set()
        await bench.pass_time(0.2)
        await until(lambda: bench.durable() == {0, 1})

    with_object(bench, use, blocks=2)


def test_an_idle_store_syncs_nothing(bench: Bench) -> None:
    async def use(stored: StoredObject) -> None:
        await bench.pass_time(1)
        await until(lambda: bench.durable() == {0})
        before = bench.synced
        await bench.pass_time(3600)
        assert bench.synced == before

    with_object(bench, use, blocks=1)


def test_a_block_that_lands_during_the_sync_waits_for_the_next_commit(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    during: list[Callable[[], object]] = []

    def sync(fd: int) -> None:
        while during:
            trio.from_thread.run_sync(during.pop())

    bench.store = ObjectStore(tmp_path / "store", bench.state, sync=sync)

    async def main() -> None:
        stored = await bench.store.open(MANIFEST)
        put(stored, DATA, 0)
        put(stored, DATA, 1)
        stored.land(0)
        during.append(lambda: stored.land(1))
        await stored.commit()
        assert bench.durable() == {0}
        await stored.commit()
        assert bench.durable() == {0, 1}
        await stored.release()

    trio.run(main)


def test_only_verified_blocks_are_written_or_read(bench: Bench) -> None:
    async def use(stored: StoredObject) -> None:
        with pytest.raises(BlockInvalid):
            await write(stored, 1, piece(MANIFEST, DATA, 2))
        with pytest.raises(BlockInvalid):
            await write(stored, 1, piece(MANIFEST, DATA, 1)[:-1])
        with pytest.raises(IndexError):
            await write(stored, BLOCKS, b"")
        with pytest.raises(StoreFailed, match="block 1"):
            stored.read_now(BLOCK - 1, 2)
        with pytest.raises(StoreFailed, match="block 1"):
            await stored.read(BLOCK, 1)
        assert stored.allocated == BLOCK
        assert bytes(stored.read_now(BLOCK - 1, 1) or b"") == DATA[BLOCK - 1 : BLOCK]

    with_object(bench, use, blocks=1)


def test_a_read_gives_all_that_was_asked_for_up_to_the_end(bench: Bench) -> None:
    async def use(stored: StoredObject) -> None:
        assert stored.complete
        assert await stored.read(0, LENGTH) == DATA
        assert await stored.read(LENGTH - 10, 100) == DATA[-10:]
        assert await stored.read(LENGTH, 1) == await stored.read(LENGTH + 5000, 1) == b""
        assert bytes(stored.read_now(LENGTH - 10, 100) or b"") == DATA[-10:]

    with_object(bench, use, blocks=BLOCKS)


def test_a_read_over_the_buffer_or_from_a_cold_page_cache_goes_through_a_thread(tmp_path: Path) -> None:
    manifest, data = content_of(3, length=3 * 2**20, block=2**20)

    async def main() -> None:
        store = ObjectStore(tmp_path / "store", State.open(tmp_path / "state.db"))
        stored = await store.open(manifest)
        for index in range(manifest.blocks):
            await write(stored, index, piece(manifest, data, index))
        assert stored.read_now(0, 2**20 + 1) is None
        assert await stored.read(0, 3 * 2**20) == data
        await stored.commit()
        with stored.path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert await stored.read(2**20, 2**20) == data[2**20 : 2**21]
        await store.aclose()

    trio.run(main)


def test_a_file_cut_short_under_a_reader_is_an_error_never_a_short_read(bench: Bench) -> None:
    async def use(stored: StoredObject) -> None:
        os.truncate(stored.path, LENGTH - 10)
        with pytest.raises(StoreFailed, match="data"):
            await stored.read(LENGTH - 20, 20)
        assert stored.read_now(LENGTH - 20, 20) is None

    with_object(bench, use, blocks=BLOCKS)


def test_a_complete_object_is_sealed_and_its_names_completed(bench: Bench) -> None:
    bench.state.sync_names({"a": MANIFEST.content}, 1.0)

    async def use(stored: StoredObject) -> None:
        await bench.pass_time(1)
        await until(lambda: stored.sealed)
        assert stat.S_IMODE(stored.path.stat().st_mode) == 0o444
        assert bench.state.infos()["a"].completed == 1000.0

    with_object(bench, use, blocks=BLOCKS)
    assert bench.state.counts().held == LENGTH


def test_opened_twice_is_one_object_and_the_last_release_closes_it(bench: Bench) -> None:
    async def use(stored: StoredObject) -> None:
        again: list[StoredObject] = []

        async def open_it() -> None:
            again.append(await bench.store.open(MANIFEST))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(open_it)
        assert {id(each) for each in again} == {id(stored)}
        for each in again:
            await each.release()
        assert bench.store.opened() == [stored]
        await stored.release()
        assert bench.store.opened() == []

    with_object(bench, use, blocks=2)
    assert bench.durable() == {0, 1}


def test_an_open_that_races_a_close_gets_a_working_object(bench: Bench) -> None:
    async def use(stored: StoredObject) -> None:
        for index in range(1, 30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stored.release)
                if index % 2:
                    await trio.lowlevel.checkpoint()
                stored = await bench.store.open(MANIFEST)
            assert await stored.read(0, 10) == DATA[:10]

    with_object(bench, use, blocks=1)


def test_nothing_is_opened_after_the_store_is_closed(bench: Bench) -> None:
    async def main() -> None:
        stored = await bench.store.open(MANIFEST)
        await write(stored, 0, piece(MANIFEST, DATA, 0))
        await bench.store.aclose()
        with pytest.raises(Stopping):
            await bench.store.open(MANIFEST)
        await stored.release()
        with pytest.raises(StoreFailed):
            await stored.read(0, 1)

    trio.run(main)


def test_an_open_that_the_closing_overtakes_leaves_nothing_open(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state.db")

    def sync(fd: int) -> None:
        if closing:
            trio.from_thread.run(closing.pop().aclose)

    closing: list[ObjectStore] = []

    async def main() -> None:
        store = ObjectStore(tmp_path / "store", state, sync=sync)
        stored = await store.open(MANIFEST)
        put(stored, DATA, 0)
        await stored.release()
        state.forget_object(MANIFEST.content)
        closing.append(store)
        with pytest.raises(Stopping):  # block 0 is hashed, and before that comes a sync
            await store.open(MANIFEST)
        assert store.opened() == []

    trio.run(main)


def test_a_full_disk_is_store_full_with_the_path(bench: Bench) -> None:
    async def use(stored: StoredObject) -> None:
        bench.sync_error = errno.ENOSPC
        with pytest.raises(StoreFull, match="data"):
            await stored.commit()

    with_object(bench, use, blocks=1)


def test_a_failed_sync_is_said_once_and_makes_nothing_durable_until_the_next_open(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)

    async def use(stored: StoredObject) -> None:
        bench.sync_error = errno.EIO
        await bench.pass_time(1)
        await until(lambda: bool(caplog.records))
        bench.sync_error = None  # the kernel reports a failed write-back once, then forgets it
        await write(stored, 3, piece(MANIFEST, DATA, 3))
        await bench.pass_time(1)
        await bench.pass_time(10)
        assert stored.frozen
        assert bench.durable() == set()
        assert await stored.read(0, 10) == DATA[:10]
        assert len(caplog.records) == 1
        await stored.release()
        again = await bench.store.open(MANIFEST)
        assert set(again.verified) == bench.durable() == {0, 1, 3}

    with_object(bench, use, blocks=2)


class FullState(State):
    """A state whose disk is full when that is said."""

    full = False

    def save_object(self, content: ContentId, row: ObjectRow) -> None:
        if self.full:
            raise StoreFull("state.db: database or disk is full")
        super().save_object(content, row)


def full_state(root: Path) -> FullState:
    state = FullState.open(root / "state.db")
    assert isinstance(state, FullState)
    return state


def test_an_object_that_was_closed_on_a_full_disk_while_others_are_committed_ends_nothing(tmp_path: Path) -> None:
    state, leaving = full_state(tmp_path), list[StoredObject]()
    other, bytes_of_other = content_of(2)

    def sync(fd: int) -> None:
        os.fdatasync(fd)
        if leaving:
            trio.from_thread.run(leaving.pop().release)

    async def main() -> None:
        store = ObjectStore(tmp_path / "store", state, sync=sync)
        stays, goes = await store.open(MANIFEST), await store.open(other)
        await write(stays, 0, piece(MANIFEST, DATA, 0))
        await write(goes, 0, piece(other, bytes_of_other, 0))
        state.full = True
        leaving.append(goes)
        await store.commit()
        assert store.opened() == [stays]
        state.full = False
        await store.commit()
        assert await (await store.open(other)).read(0, 10) == bytes_of_other[:10]
        await store.aclose()

    trio.run(main)
    row = state.load_object(MANIFEST.content)
    assert row is not None
    assert set(Bitmap.from_bytes(BLOCKS, row.bitmap)) == {0}
    state.close()


def test_a_state_that_cannot_be_written_stops_no_reader_and_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench, state = Bench(tmp_path), full_state(tmp_path)
    bench.state = state
    bench.store = ObjectStore(tmp_path / "store", state)

    async def use(stored: StoredObject) -> None:
        state.full = True
        await write(stored, 0, piece(MANIFEST, DATA, 0))
        await bench.pass_time(3)
        await until(lambda: bool(caplog.records))
        assert bench.durable() == set()
        assert await stored.read(0, 10) == DATA[:10]
        state.full = False
        await bench.pass_time(1)
        await until(lambda: bench.durable() == {0})

    with_object(bench, use)


def test_manifests_are_kept_and_found_by_looking_at_the_directories(bench: Bench) -> None:
    others = [content_of(seed)[0].content for seed in range(2, 5)]
    assert bench.store.manifest(MANIFEST.content) is None
    assert list(bench.store.known()) == []
    for content in others:
        bench.store.save_manifest(content, b"old")
        bench.store.save_manifest(content, str(content).encode())
    (bench.root / "store" / "btih" / "zz" / "junk").mkdir(parents=True)
    (bench.root / "store" / "btih" / "zz" / "junk" / "manifest").touch()
    assert sorted(bench.store.known()) == sorted(others)
    assert bench.store.manifest(others[0]) == str(others[0]).encode()
    assert [path.name for path in bench.root.glob("store/btih/*/*/*") if path.parent.name != "junk"] == ["manifest"] * 3


def test_a_manifest_emptied_by_a_power_cut_is_absent(bench: Bench) -> None:
    bench.store.save_manifest(MANIFEST.content, b"whole")
    path = next(bench.root.glob("store/*/*/*/manifest"))
    path.write_bytes(b"")
    assert bench.store.manifest(MANIFEST.content) is None


def _linked(bench: Bench, name: str, secret: bytes) -> Path:
    bench.store.save_manifest(MANIFEST.content, b"raw")
    (bench.root / "secret").write_bytes(secret)
    path = next(bench.root.glob("store/*/*/*/manifest")).with_name(name)
    path.unlink(missing_ok=True)
    path.symlink_to(bench.root / "secret")
    return bench.root / "secret"


def test_a_manifest_that_is_a_symbolic_link_is_refused(bench: Bench) -> None:
    _linked(bench, "manifest", b"secret")
    with pytest.raises(StoreFailed, match="manifest"):
        bench.store.manifest(MANIFEST.content)


@pytest.mark.parametrize("secret", [b"secret", bytes(MANIFEST.length)], ids=["other size", "same size"])
def test_data_that_is_a_symbolic_link_to_other_bytes_is_not_served_and_nothing_is_written_there(
    bench: Bench, secret: bytes
) -> None:
    async def use(stored: StoredObject) -> None:
        assert len(stored.verified) == 0
        await write(stored, 0, piece(MANIFEST, DATA, 0))
        assert await stored.read(0, 10) == DATA[:10]

    path = _linked(bench, "data", secret)
    with_object(bench, use)
    assert path.read_bytes() == secret
