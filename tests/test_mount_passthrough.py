"""A mount whose complete files the kernel reads by itself: when it does, when not, and what stays true of them."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.counterparts import Seedbox
from tests.held_kit import rot, stocked
from tests.mount_kit import (
    BODIES,
    DOMAIN,
    HISTORY,
    PASSTHROUGH,
    PIECE,
    Library,
    Mount,
    cachefs,
    command_of,
    forget_pages,
    make_library,
    mount_command,
    mounted,
    part,
    pread,
    read_error,
    same,
    seeding,
)

pytestmark = PASSTHROUGH
LENGTH = 12 * 2**20
OPTION = "--passthrough"
LIBC = ctypes.CDLL(None)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 5, 100_000, PIECE, 3 * PIECE + 1, LENGTH)


@pytest.fixture(scope="module")
def box(library: Library) -> Iterator[Seedbox]:
    with seeding(library) as running:
        yield running


@contextmanager
def holding(library: Library, place: Path, *options: str, box: Seedbox | None = None) -> Iterator[Mount]:
    """A mount that holds everything; `box` is its source."""
    stocked(library, place)
    with mounted(place, None, OPTION, *options, peers=[str(box.peer)] if box else []) as mount:
        yield mount


def passed_through(mount: Mount) -> int:
    return int(mount.status()["mount"]["passed_through"])


def none_passed_through(mount: Mount) -> None:
    """Return when the daemon has heard of every close."""
    mount.wait_for("with nothing open", lambda now: now["mount"]["passed_through"] == 0)


@contextmanager
def stopped(mount: Mount) -> Iterator[None]:
    """While this lasts, the daemon can answer nothing."""
    mount.child.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        mount.child.process.send_signal(signal.SIGCONT)


def test_a_complete_file_is_read_and_mapped_without_the_daemon(library: Library, tmp_path: Path) -> None:
    original = library.files[HISTORY].read_bytes()
    with holding(library, tmp_path) as mount, (mount.snapshots / HISTORY).open("rb", buffering=0) as file:
        assert passed_through(mount) == 1
        assert "passthrough (1 open)" in cachefs("status", mount.mountpoint).stdout
        forget_pages(mount.object(library, HISTORY) / "data")
        with stopped(mount):
            assert os.pread(file.fileno(), LENGTH + 1, 0) == original
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                assert mapped[:] == original
        file.close()
        none_passed_through(mount)
        assert same(mount, library)


def test_a_cold_file_is_passed_through_once_it_is_here_and_everybody_has_closed_it(
    library: Library, tmp_path: Path, box: Seedbox
) -> None:
    options = (OPTION, "--torrent-dir", str(library.products))
    with mounted(tmp_path, library.chain, *options, peers=[str(box.peer)]) as mount:
        first = os.open(mount.snapshots / HISTORY, os.O_RDONLY)
        assert same(mount, library)
        mount.wait_for("sealed", lambda now: now["store"]["complete"] == len(library.files))
        second = os.open(mount.snapshots / HISTORY, os.O_RDONLY)
        assert passed_through(mount) == 0
        assert os.pread(second, LENGTH, 0) == library.files[HISTORY].read_bytes()
        os.close(first)
        os.close(second)
        mount.wait_for("passing it through", lambda now: _opened_through(mount, HISTORY))
        assert same(mount, library)


def _opened_through(mount: Mount, name: str) -> bool:
    with (mount.snapshots / name).open("rb"):
        return passed_through(mount) == 1


def test_opening_and_reading_at_random_while_files_arrive_never_fails(
    library: Library, tmp_path: Path, box: Seedbox
) -> None:
    names = [name for name, path in library.files.items() if path.stat().st_size > PIECE]

    def read(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            name = chance.choice(names)
            offset = chance.randrange(library.files[name].stat().st_size)
            assert pread(mount.snapshots / name, offset, 4096) == part(library.files[name], offset, 4096)

    options = (OPTION, "--torrent-dir", str(library.products))
    with (
        ThreadPoolExecutor(8) as pool,
        mounted(tmp_path, library.chain, *options, peers=[str(box.peer)]) as mount,
    ):
        for _ in pool.map(read, range(16)):
            pass
        assert same(mount, library)


def test_a_block_that_went_bad_is_mended_for_the_next_open_and_for_those_before(
    library: Library, tmp_path: Path, box: Seedbox
) -> None:
    with holding(library, tmp_path, box=box) as mount, (mount.snapshots / HISTORY).open("rb", buffering=0) as file:
        original = library.files[HISTORY].read_bytes()
        rot(mount.object(library, HISTORY) / "data", 2 * PIECE + 7)
        assert cachefs("verify", "--data-dir", mount.data_dir).returncode == 1
        assert pread(mount.snapshots / HISTORY, 0, LENGTH) == original
        assert os.pread(file.fileno(), LENGTH, 0) == original
        assert mount.received(PIECE) < 2 * PIECE


def test_a_bad_block_without_a_source_refuses_the_next_open_alone(library: Library, tmp_path: Path) -> None:
    with (
        holding(library, tmp_path, "--deadline", "1") as mount,
        (mount.snapshots / HISTORY).open("rb", buffering=0) as file,
    ):
        rot(mount.object(library, HISTORY) / "data", 2 * PIECE + 7)
        assert cachefs("verify", "--data-dir", mount.data_dir).returncode == 1
        assert read_error(mount.snapshots / HISTORY) == "EIO"
        assert os.pread(file.fileno(), PIECE, 0) == part(library.files[HISTORY], 0, PIECE)
        assert same(mount, library, [DOMAIN, BODIES])


def test_who_waits_for_a_bad_block_in_an_open_is_seen_in_the_status_and_can_be_killed(
    library: Library, tmp_path: Path
) -> None:
    with (
        holding(library, tmp_path, "--deadline", "30") as mount,
        (mount.snapshots / HISTORY).open("rb"),
    ):
        rot(mount.object(library, HISTORY) / "data", 2 * PIECE + 7)
        assert cachefs("verify", "--data-dir", mount.data_dir).returncode == 1
        with subprocess.Popen(["cat", mount.snapshots / HISTORY], stdout=subprocess.DEVNULL) as opening:
            mount.waiting(1)
            opening.kill()
            assert opening.wait(10) == -signal.SIGKILL


def test_data_that_was_replaced_is_opened_once_the_old_is_closed(
    library: Library, tmp_path: Path, box: Seedbox
) -> None:
    with holding(library, tmp_path, box=box) as mount, (mount.snapshots / HISTORY).open("rb", buffering=0) as file:
        (mount.object(library, HISTORY) / "data").unlink()
        assert cachefs("verify", "--repair", "--data-dir", mount.data_dir).returncode == 0
        assert read_error(mount.snapshots / HISTORY) == "EIO"
        assert os.pread(file.fileno(), LENGTH, 0) == library.files[HISTORY].read_bytes()
        file.close()
        none_passed_through(mount)
        assert same(mount, library)


def test_what_is_open_is_not_evicted_and_what_is_mapped_outlives_its_eviction(
    library: Library, tmp_path: Path, box: Seedbox
) -> None:
    evict = ("evict", "--mountpoint", tmp_path / "mnt", HISTORY)
    with holding(library, tmp_path, box=box) as mount:
        with (mount.snapshots / HISTORY).open("rb") as file:
            assert "open" in cachefs(*evict).stdout
            assert (mount.object(library, HISTORY) / "data").exists()
            mapped = _mapped(file.fileno())
        none_passed_through(mount)
        assert cachefs(*evict).returncode == 0
        assert not (mount.object(library, HISTORY) / "data").exists()
        assert same(mount, library, [HISTORY])
        assert mount.received(LENGTH) >= LENGTH
        assert ctypes.string_at(mapped, LENGTH) == library.files[HISTORY].read_bytes()
        LIBC.munmap(ctypes.c_void_p(mapped), ctypes.c_size_t(LENGTH))


def _mapped(fd: int) -> int:
    """The address at which the file is mapped; mmap.mmap would keep a descriptor of it."""
    LIBC.mmap.restype = ctypes.c_void_p
    length, start = ctypes.c_size_t(LENGTH), ctypes.c_long(0)
    address = LIBC.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, start)
    assert address not in (None, ctypes.c_void_p(-1).value)
    return int(address)


def test_an_open_file_goes_on_when_the_daemon_was_killed(library: Library, tmp_path: Path) -> None:
    with holding(library, tmp_path) as mount, (mount.snapshots / HISTORY).open("rb", buffering=0) as file:
        mount.kill9()
        assert os.pread(file.fileno(), LENGTH, 0) == library.files[HISTORY].read_bytes()
    with mounted(tmp_path, None, OPTION) as mount:
        assert same(mount, library)


def test_the_writable_view_passes_through_what_nobody_has_written(library: Library, tmp_path: Path) -> None:
    with holding(library, tmp_path, "--writable") as mount:
        (mount.snapshots / "new.idx").write_bytes(b"index")
        with (mount.snapshots / HISTORY).open("rb", buffering=0) as file:
            assert passed_through(mount) == 1
            with stopped(mount):
                assert os.pread(file.fileno(), LENGTH, 0) == library.files[HISTORY].read_bytes()
        assert same(mount, library)
        assert (mount.snapshots / "new.idx").read_bytes() == b"index"


def test_where_the_store_is_on_a_stacked_file_system_files_are_read_through_cachefs(
    library: Library, tmp_path: Path
) -> None:
    for folder in ("lower", "upper", "work", "data"):
        (tmp_path / folder).mkdir()
    layers = ",".join(f"{key}={tmp_path}/{key.removesuffix('dir')}" for key in ("lowerdir", "upperdir", "workdir"))
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "none", tmp_path / "data"], check=True)
    try:
        (tmp_path / "held").mkdir()
        with holding(library, tmp_path / "held") as mount:
            mount.unmount()
        subprocess.run(["cp", "-a", f"{tmp_path}/held/data/.", tmp_path / "data"], check=True)
        with mounted(tmp_path, None, OPTION) as mount:
            assert same(mount, library)
            with (mount.snapshots / HISTORY).open("rb"):
                assert passed_through(mount) == 0
            told = mount.child.printed()
            assert told.count("the kernel doesn't pass files of the store through") == 1
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "data"], check=True)


def test_without_the_right_to_it_the_mount_is_refused_with_what_to_do_and_nothing_is_touched(
    library: Library, tmp_path: Path
) -> None:
    command = command_of(mount_command(tmp_path, library.chain, OPTION))
    without = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    done = subprocess.run([*without, *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("cachefs: --passthrough: only root, or a process with CAP_SYS_ADMIN, may")
    assert not (tmp_path / "data").exists()


def test_a_large_read_past_the_page_cache_asks_for_all_of_it_at_once(library: Library, tmp_path: Path) -> None:
    def read() -> None:
        fd = os.open(mount.snapshots / HISTORY, os.O_RDONLY | os.O_DIRECT)
        with os.fdopen(fd, "rb", buffering=0) as file, pytest.raises(OSError, match="Input/output"):
            file.readinto(mmap.mmap(-1, 4 * 2**20))

    options = (OPTION, "--torrent-dir", str(library.products), "--deadline", "5")
    with ThreadPoolExecutor(1) as pool, mounted(tmp_path, library.chain, *options) as mount:
        reading = pool.submit(read)
        mount.waiting(4)
        reading.result()
