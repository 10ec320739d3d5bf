"""Limits through a real mount: they hold while readers run, and a store or disk that is full harms nobody else."""

from __future__ import annotations

import mmap
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.counterparts import nginx, small_disk
from tests.mount_kit import PIECE, Library, Mount, forget_pages, make_library, mounted, part, read_error, same, seeding

LENGTH = 8 * 2**20 - 5
LIMIT = 3 * 2**23


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Four times the limit, in files of a third of it."""
    return make_library(tmp_path_factory.mktemp("library"), *[LENGTH] * 12)


@pytest.fixture(scope="module")
def names(library: Library) -> list[str]:
    """The large ones."""
    return sorted(name for name, path in library.files.items() if path.stat().st_size == LENGTH)


@contextmanager
def limited(library: Library, place: Path, **limits: object) -> Iterator[Mount]:
    settings = "[limits]\n" + "\n".join(f"{key} = {value}" for key, value in limits.items())
    torrents = ("--torrent-dir", library.products, "--deadline", "20")
    with seeding(library) as box:
        with mounted(place, library.chain, *torrents, peers=[str(box.peer)], settings=settings) as mount:
            mount.knows(len(library.files))
            yield mount


def taken(mount: Mount, *patterns: str) -> int:
    """What the store, or all that matches, takes on disk, as du counts."""
    found = [path for pattern in patterns or ["store/**/*"] for path in mount.data_dir.glob(pattern)]
    files = {(status := path.stat(follow_symlinks=False)).st_ino: status for path in found if path.exists()}.values()
    return sum(status.st_blocks * 512 for status in files)


class Watch:
    """Looks at the store every few milliseconds while it is entered; `most` is the most it ever took."""

    def __init__(self, mount: Mount, beside: str = "") -> None:
        self.most = 0
        self._mount = mount
        self._patterns = ["store/**/*", *filter(None, [beside])]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._ended.wait(0.01):
            try:
                self.most = max(self.most, taken(self._mount, *self._patterns))
            except FileNotFoundError:  # evicted as we looked
                continue

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def read_through(mount: Mount, library: Library, names: list[str], seed: int) -> int:
    """Read every file, in an order of one's own, one half whole and the other in places; how many reads were right."""
    chance = random.Random(seed)
    right = 0
    for name in chance.sample(names, len(names)):
        fd = os.open(mount.snapshots / name, os.O_RDONLY)
        try:
            places = range(0, LENGTH, 2**18) if chance.random() < 0.5 else [chance.randrange(LENGTH) for _ in range(3)]
            for offset in places:
                assert os.pread(fd, 2**18, offset) == part(library.files[name], offset, 2**18)
                right += 1
        finally:
            os.close(fd)
    return right


def test_filling_past_the_limit_with_readers_running_the_limit_holds_and_every_byte_is_right(
    library: Library, names: list[str], tmp_path: Path
) -> None:
    with ThreadPoolExecutor(2) as pool, limited(library, tmp_path, size=LIMIT) as mount, Watch(mount) as watch:
        reads = [pool.submit(read_through, mount, library, names, seed) for seed in range(4)]
        assert all(read.result(100) > len(names) for read in reads)
    assert LIMIT - LENGTH < watch.most <= LIMIT + PIECE


def test_files_that_are_open_stay_beyond_the_limit_in_enospc_and_the_mount_goes_on(
    library: Library, names: list[str], tmp_path: Path
) -> None:
    with limited(library, tmp_path, size=LIMIT) as mount:
        held = [(mount.snapshots / name).open("rb", buffering=0) for name in names[:3]]
        try:
            errors = [read_error(mount.snapshots / name, 0, LENGTH) for name in names[:3]]
            assert errors == ["", "", "ENOSPC"]
            status = mount.status()
            assert "open" in status["last_error"]
            assert "limit" in status["last_error"]
            assert taken(mount) <= LIMIT + PIECE
            forget_pages(mount.snapshots / names[0])
            assert same(mount, library, names[:2]), "what is here is read"
            assert (mount.snapshots / names[5]).stat().st_size == LENGTH
            assert read_error(mount.snapshots / names[5], PIECE) == "ENOSPC"
        finally:
            for file in held:
                file.close()
        assert same(mount, library, [names[5], names[2]]), "there is room again"
        assert taken(mount) <= LIMIT + PIECE


def test_reads_that_wait_for_room_in_vain_are_no_outage(library: Library, names: list[str], tmp_path: Path) -> None:
    with limited(library, tmp_path, size=LIMIT) as mount:
        held = [(mount.snapshots / name).open("rb", buffering=0) for name in names[:3]]
        try:
            assert [read_error(mount.snapshots / name, 0, LENGTH) for name in names[:3]] == ["", "", "ENOSPC"]
            for name in names[3:7]:  # each waits for a second or more before it is refused
                assert read_error(mount.snapshots / name) == "ENOSPC"
        finally:
            for file in held:
                file.close()
        assert "nothing comes" not in mount.child.printed()


def test_a_mapped_file_whose_eviction_is_tried_is_read_to_its_end_with_the_right_bytes(
    library: Library, names: list[str], tmp_path: Path
) -> None:
    with limited(library, tmp_path, size=LIMIT) as mount:
        with (mount.snapshots / names[0]).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        original = library.files[names[0]].read_bytes()
        with mapped:
            for step, name in enumerate(names[1:8]):
                offset = step * 2**20
                assert mapped[offset : offset + 2**20] == original[offset : offset + 2**20]
                assert same(mount, library, [name])
            mapped.madvise(mmap.MADV_DONTNEED)
            forget_pages(mount.snapshots / names[0])
            assert mapped[:] == original


def test_a_disk_that_is_full_is_enospc_the_mount_lives_and_goes_on_when_there_is_room_again(
    library: Library, names: list[str], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "data", 12 * 2**20) as resize, limited(library, tmp_path) as mount:
        assert same(mount, library, names[:1])
        assert read_error(mount.snapshots / names[1], 0, LENGTH) == "ENOSPC"
        forget_pages(mount.snapshots / names[0])
        assert same(mount, library, names[:1])
        assert (mount.snapshots / names[2]).stat().st_size == LENGTH
        resize(64 * 2**20)
        # An error from before may still be on its way, so the first try may fail once more.
        mount.child.wait_until("reading again", lambda: same(mount, library, names[1:3]))


def test_room_is_made_before_the_disk_is_full_where_some_is_to_be_left_free(
    library: Library, names: list[str], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "data", 24 * 2**20), limited(library, tmp_path, free_space=2**22) as mount:
        with Watch(mount) as watch:
            assert same(mount, library, names)
    assert watch.most <= 20 * 2**20 + PIECE


def test_files_that_come_whole_because_nobody_has_their_torrent_keep_to_the_limit(
    library: Library, names: list[str], tmp_path: Path
) -> None:
    settings = f"[limits]\nsize = {LIMIT}\n"
    with nginx(library.root) as host, mounted(tmp_path, library.chain, webseeds=[host], settings=settings) as mount:
        with Watch(mount, "rclone/*.rebuild") as watch:
            assert same(mount, library, names[:6])
    assert LIMIT - LENGTH < watch.most <= LIMIT + PIECE
