"""Files that the store takes over: served like any other, never written to, and guarded against their owners.

A second file system is /dev/shm, which is memory. The file systems here have no reflinks, so a copy stands for one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import pytest
import trio

from cachefs.errors import StoreFailed
from cachefs.store import ObjectStore, State, StoredObject, disk, places
from cachefs.store.guard import Guard
from cachefs.store.places import How
from cachefs.store.state import Seal
from tests.store_kit import BLOCK, BLOCKS, LENGTH, content_of, piece, write

MANIFEST, DATA = content_of(1)
ALL = set(range(BLOCKS))
T = TypeVar("T")


class Bench:
    """A user's file on the store's file system, or on another one, and the store."""

    def __init__(self, root: Path, user: Path) -> None:
        self.root = root
        self.file = user / "v1-000000-000500-headers.seg"
        self.file.write_bytes(DATA)
        self.file.chmod(0o644)
        self.hashed = 0
        self.when_hashed: Callable[[], None] = lambda: None

    @property
    def data(self) -> Path:
        return disk.directory_of(self.root / "store", MANIFEST.content) / "data"

    def daemon(self, use: Callable[[ObjectStore], Awaitable[T]]) -> T:
        """Run `use` in one daemon's life; `hashed` counts how often it hashed something."""

        def sync(fd: int) -> None:
            self.hashed += 1
            if self.hashed == 1:
                self.when_hashed()

        async def main() -> T:
            state = State.open(self.root / "state.db")
            store = ObjectStore(self.root / "store", state, sync=sync)
            try:
                return await use(store)
            finally:
                await store.aclose()
                state.close()

        self.hashed = 0
        return trio.run(main)

    def adopt(self, seal: Seal | None = None) -> How:
        return self.daemon(lambda store: store.adopt(MANIFEST, self.file, seal or seal_of(self.file)))

    def held(self) -> set[int]:
        """The blocks that the next daemon has, each read and compared."""

        async def use(store: ObjectStore) -> set[int]:
            stored = await store.open(MANIFEST)
            for index in stored.verified:
                span = MANIFEST.span(index)
                assert await stored.read(span.offset, span.length) == piece(MANIFEST, DATA, index)
            return set(stored.verified)

        return self.daemon(use)

    def fetch(self, *blocks: int) -> None:
        async def use(store: ObjectStore) -> None:
            stored = await store.open(MANIFEST)
            for index in blocks:
                await write(stored, index, piece(MANIFEST, DATA, index))

        self.daemon(use)


def seal_of(path: Path) -> Seal:
    status = path.stat()
    return Seal(status.st_size, status.st_mtime_ns, status.st_ino)


def flip(path: Path, offset: int) -> bytes:
    """Change one byte in place, at a later time; what the file holds then."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes([DATA[offset] ^ 1]))
    touch(path)
    return path.read_bytes()


def touch(path: Path) -> None:
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))


@pytest.fixture(params=[How.HARD_LINK, How.IN_PLACE], ids=["hard link", "in place"])
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A file that was taken over by this means."""
    elsewhere = "/dev/shm" if request.param is How.IN_PLACE else tmp_path
    with TemporaryDirectory(dir=elsewhere) as user:
        made = Bench(tmp_path, Path(user))
        assert made.adopt() is request.param
        yield made


def test_it_is_served_without_hashing_and_the_file_is_as_it_was(bench: Bench) -> None:
    assert bench.held() == ALL
    assert bench.hashed == 0
    assert bench.file.read_bytes() == DATA
    assert stat.S_IMODE(bench.file.stat().st_mode) == 0o644
    assert bench.data.stat().st_ino == bench.file.stat().st_ino
    assert bench.data.lstat().st_blocks * 512 < 2 * LENGTH


def test_taking_it_over_again_finds_it_held(bench: Bench) -> None:
    assert bench.adopt() is How.HELD


def test_a_file_that_was_touched_is_verified_once_and_goes_on_being_served_as_it_is(bench: Bench) -> None:
    touch(bench.file)
    assert bench.held() == ALL
    assert bench.hashed
    assert bench.held() == ALL
    assert bench.hashed == 0
    assert places.is_shared(bench.data)
    assert bench.data.stat().st_ino == bench.file.stat().st_ino


def test_a_file_that_is_touched_while_it_is_hashed_costs_a_copy_and_no_block(bench: Bench) -> None:
    touch(bench.file)
    bench.when_hashed = lambda: touch(bench.file)
    assert bench.held() == ALL
    assert not places.is_shared(bench.data)
    assert bench.file.read_bytes() == DATA


def test_after_one_changed_byte_one_block_is_missing_and_what_is_fetched_never_gets_into_the_users_file(
    bench: Bench,
) -> None:
    changed = flip(bench.file, 2 * BLOCK + 5)
    assert bench.held() == ALL - {2}
    bench.fetch(2)
    assert bench.held() == ALL
    assert not places.is_shared(bench.data)
    assert bench.file.read_bytes() == changed


def test_of_what_is_changed_while_it_is_open_only_what_is_right_is_served(bench: Bench) -> None:
    async def use(store: ObjectStore) -> None:
        stored = await store.open(MANIFEST)
        assert await stored.read(0, 100) == DATA[:100]
        flip(bench.file, 5)
        assert stored.read_now(0, 100) is None
        for _ in range(2):
            with pytest.raises(StoreFailed, match="changed under another name"):
                await stored.read(0, 100)
            assert await stored.read(BLOCK, 100) == DATA[BLOCK : BLOCK + 100]
        await stored.release()
        again = await store.open(MANIFEST)
        assert set(again.verified) == ALL - {0}

    bench.daemon(use)


def test_a_file_that_is_touched_while_it_is_open_is_served_on_and_not_verified_again_at_the_next_start(
    bench: Bench,
) -> None:
    async def use(store: ObjectStore) -> None:
        stored = await store.open(MANIFEST)
        touch(bench.file)
        for index in range(BLOCKS):
            span = MANIFEST.span(index)
            assert await stored.read(span.offset, span.length) == piece(MANIFEST, DATA, index)

    bench.daemon(use)
    assert bench.held() == ALL
    assert bench.hashed == 0


def test_a_change_between_hashing_and_serving_is_noticed(bench: Bench) -> None:
    guard = Guard(bench.data, MANIFEST)
    fd = disk.open_sealed(bench.data)
    assert fd is not None
    try:
        look = guard.require(fd, seal_of(bench.file), [])
        guard.require_still(fd, look)
        flip(bench.file, 5)
        with pytest.raises(StoreFailed, match="being changed"):
            guard.require_still(fd, look)
    finally:
        os.close(fd)


def test_a_lost_database_costs_hashing_and_no_copy(bench: Bench) -> None:
    for path in bench.root.glob("state.db*"):
        path.unlink()
    assert bench.held() == ALL
    assert bench.data.stat().st_ino == bench.file.stat().st_ino


def test_a_file_that_got_longer_is_not_cut(bench: Bench) -> None:
    with bench.file.open("ab") as file:
        file.write(b"more")
    have = bench.held()
    bench.fetch(*ALL - have)
    assert bench.held() == ALL
    assert bench.file.read_bytes() == DATA + b"more"


def test_a_file_that_its_owner_deleted_is_served_from_a_hard_link_and_missing_in_place(bench: Bench) -> None:
    in_place = bench.data.is_symlink()
    bench.file.unlink()
    assert bench.held() == (set() if in_place else ALL)
    bench.fetch(*ALL)
    assert bench.held() == ALL


def test_a_file_that_its_owner_replaced_is_not_served_in_its_stead(bench: Bench) -> None:
    in_place = bench.data.is_symlink()
    new = bench.file.with_name("new")
    new.write_bytes(bytes(LENGTH))
    new.replace(bench.file)
    assert bench.held() == (set() if in_place else ALL)
    bench.fetch(*ALL)
    assert bench.held() == ALL
    assert bench.file.read_bytes() == bytes(LENGTH)


def test_doubtful_are_those_that_changed_or_have_no_row(bench: Bench) -> None:
    def doubtful() -> list[object]:
        return list(bench.daemon(ObjectStore.doubtful))

    assert doubtful() == []
    touch(bench.file)
    assert doubtful() == [MANIFEST.content]
    bench.held()
    assert doubtful() == []
    for path in bench.root.glob("state.db*"):
        path.unlink()
    assert doubtful() == [MANIFEST.content]


def test_a_file_that_changed_since_it_was_verified_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    bench = Bench(tmp_path, tmp_path)
    seal = seal_of(bench.file)
    flip(bench.file, 5)
    with pytest.raises(StoreFailed, match="was changed"):
        bench.adopt(seal)
    assert list(bench.data.parent.iterdir()) == []
    assert bench.file.stat().st_nlink == 1


def test_what_was_fetched_of_it_before_gives_way_unless_it_is_being_read(tmp_path: Path) -> None:
    bench = Bench(tmp_path, tmp_path)

    async def use(store: ObjectStore) -> How:
        stored: StoredObject = await store.open(MANIFEST)
        await write(stored, 0, piece(MANIFEST, DATA, 0))
        with pytest.raises(StoreFailed, match="being fetched"):
            await store.adopt(MANIFEST, bench.file, seal_of(bench.file))
        await stored.release()
        return await store.adopt(MANIFEST, bench.file, seal_of(bench.file))

    assert bench.daemon(use) is How.HARD_LINK
    assert bench.held() == ALL


def test_by_reflink_the_store_has_a_file_of_its_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path, tmp_path)
    ways = [(How.REFLINK, lambda source, made: shutil.copyfile(source, made))]
    how, seal = places.take(bench.file, bench.data, seal_of(bench.file), ways)
    assert how is How.REFLINK
    assert seal == seal_of(bench.data)
    assert not places.is_shared(bench.data)
    assert stat.S_IMODE(bench.data.stat().st_mode) == 0o444
    assert bench.data.read_bytes() == DATA


def test_a_copy_of_its_own_keeps_the_holes(tmp_path: Path) -> None:
    sparse, link = tmp_path / "sparse", tmp_path / "link"
    with sparse.open("wb") as file:
        for at in (0, 2**20, 3 * 2**20):
            file.seek(at)
            file.write(b"data")
        file.truncate(5 * 2**20)
    os.link(sparse, link)
    places.take_own(link)
    assert link.read_bytes() == sparse.read_bytes()
    assert link.stat().st_blocks == sparse.stat().st_blocks
    assert not places.is_shared(link)


def test_who_keeps_count_is_told_of_files_taken_over_and_of_copies_made(tmp_path: Path) -> None:
    bench = Bench(tmp_path, tmp_path)

    async def use(store: ObjectStore) -> None:
        await store.adopt(MANIFEST, bench.file, seal_of(bench.file))
        assert store.brought == {MANIFEST.content}
        store.brought.clear()
        flip(bench.file, 5)
        await store.open(MANIFEST)
        assert store.brought == {MANIFEST.content}

    bench.daemon(use)


def test_a_file_system_without_reflinks_is_asked_once_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time costs a file that is made and deleted."""
    asked: list[int] = []

    def ioctl(fd: int, request: int, argument: int) -> int:
        asked.append(request)
        raise OSError(errno.EOPNOTSUPP, "no reflinks here")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    with TemporaryDirectory(dir="/dev/shm") as elsewhere:  # where nobody asked before
        for number in range(3):
            source = Path(elsewhere) / f"file{number}"
            source.write_bytes(b"x")
            how, _ = places.take(source, Path(elsewhere) / f"object{number}" / "data", seal_of(source))
            assert how is How.HARD_LINK
    assert len(asked) <= 1, "none, if another test asked before"
