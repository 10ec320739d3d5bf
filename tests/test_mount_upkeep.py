"""Verifying and scrubbing under a real mount: bytes that went bad on disk are found, never served, and healed."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from cachefs.catalog.snapshots import LOCK_NAME
from tests.counterparts import small_disk
from tests.held_kit import rot, stocked
from tests.mount_kit import (
    BODIES,
    DOMAIN,
    HEADERS,
    HISTORY,
    PIECE,
    Library,
    Mount,
    cachefs,
    forget_pages,
    make_library,
    mounted,
    part,
    pread,
    read_error,
    same,
    seeding,
)

LENGTH = 12 * 2**20
NO_SCRUB = "[scrub]\ninterval = 0\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 5, 100_000, PIECE, 3 * PIECE + 1, LENGTH)


@contextmanager
def healable(library: Library, place: Path) -> Iterator[Mount]:
    """A mount that holds everything, and whose source is there."""
    stocked(library, place)
    with seeding(library) as box, mounted(place, peers=[str(box.peer)]) as mount:
        assert same(mount, library)
        assert mount.received() == 0
        yield mount


def data_of(mount: Mount, library: Library, name: str) -> Path:
    return mount.object(library, name) / "data"


def test_a_flipped_bit_is_reported_for_that_file_alone_and_repaired_with_its_piece_alone(
    library: Library, tmp_path: Path
) -> None:
    with healable(library, tmp_path) as mount:
        before = mount.received()
        rot(data_of(mount, library, HISTORY), 2 * PIECE + 7)
        found = cachefs("verify", "--data-dir", mount.data_dir)
        assert (found.returncode, found.stderr) == (1, "")
        assert found.stdout.splitlines()[0] == f"{HISTORY}: 1 of 6 blocks wrong (2)"
        assert len(found.stdout.splitlines()) == 2
        assert mount.status()["store"]["complete"] == len(library.files) - 1
        assert same(mount, library)
        assert before + PIECE <= mount.received(before + PIECE) < before + 2 * PIECE
        mount.wait_for("sealed again", lambda now: now["store"]["complete"] == len(library.files))
        assert data_of(mount, library, HISTORY).stat().st_mode & 0o777 == 0o444
        assert cachefs("verify", "--data-dir", mount.data_dir).returncode == 0


def test_repair_fetches_the_wrong_piece_and_seals_the_file_before_it_returns(library: Library, tmp_path: Path) -> None:
    with healable(library, tmp_path) as mount:
        before = mount.received()
        rot(data_of(mount, library, HISTORY), 5)
        done = cachefs("verify", "--repair", "--data-dir", mount.data_dir)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[0] == f"{HISTORY}: 1 of 6 blocks wrong (0); fetched again"
        wrong = cachefs("verify", mount.mountpoint)
        assert (wrong.returncode, f"--mountpoint {mount.mountpoint}" in wrong.stderr) == (2, True)
        for command in (("verify", "--mountpoint", mount.mountpoint), ("scrub", "--rate", "0", mount.mountpoint)):
            told = json.loads(cachefs(*command, "--json").stdout)
            assert (told["names"], told["good"], told["verdicts"]) == (len(library.files), True, [])
        assert mount.status()["store"]["complete"] == len(library.files)
        assert mount.status()["upkeep"]["mended"] == 1
        assert before + PIECE <= mount.received(before + PIECE) < before + 2 * PIECE
        assert data_of(mount, library, HISTORY).read_bytes() == library.files[HISTORY].read_bytes()
        assert same(mount, library)
        mount.unmount()
    with mounted(tmp_path) as mount:  # nothing is hashed or fetched again
        assert same(mount, library)
        assert "checking" not in mount.child.printed()


def test_a_mount_is_verified_by_its_daemon_whatever_became_of_the_locks_file(library: Library, tmp_path: Path) -> None:
    with healable(library, tmp_path) as mount:
        (mount.data_dir / "snapshots" / LOCK_NAME).write_text("not a lock")
        done = cachefs("verify", "--data-dir", mount.data_dir)
        assert (done.returncode, done.stderr) == (0, "")


def test_what_an_earlier_verification_found_is_told_until_it_is_repaired(library: Library, tmp_path: Path) -> None:
    rot(stocked(library, tmp_path)[HISTORY], PIECE + 5)
    assert cachefs("verify", "--data-dir", tmp_path / "data").returncode == 1
    again = cachefs("verify", "--data-dir", tmp_path / "data")
    assert (again.returncode, again.stdout.splitlines()[0]) == (1, f"{HISTORY}: 1 missing that was wrong before (1)")
    with seeding(library) as box, mounted(tmp_path, peers=[str(box.peer)], settings=NO_SCRUB) as mount:
        assert cachefs("verify", "--data-dir", mount.data_dir).stdout == again.stdout
        done = cachefs("verify", "--repair", "--data-dir", mount.data_dir)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[0] == f"{HISTORY}: 1 missing that was wrong before (1); fetched again"
        assert mount.status()["store"]["complete"] == len(library.files)
        assert mount.received(PIECE) == PIECE
        assert len(cachefs("verify", "--data-dir", mount.data_dir).stdout.splitlines()) == 1


def test_what_a_start_found_changed_is_told_and_repaired_by_a_verification(library: Library, tmp_path: Path) -> None:
    path = stocked(library, tmp_path)[HISTORY]
    rot(path, 2 * PIECE)
    os.utime(path)
    with seeding(library) as box, mounted(tmp_path, peers=[str(box.peer)], settings=NO_SCRUB) as mount:
        mount.child.wait_until("found", lambda: "1 blocks are gone or wrong" in mount.child.printed())
        assert cachefs("verify", "--data-dir", mount.data_dir).returncode == 1
        done = cachefs("verify", "--repair", "--data-dir", mount.data_dir)
        assert (done.returncode, done.stdout.splitlines()[0].endswith("(2); fetched again")) == (0, True)
        assert mount.received(PIECE) == PIECE


def test_a_bad_block_that_cannot_be_healed_is_an_error_for_its_readers_and_for_nobody_else(
    library: Library, tmp_path: Path
) -> None:
    stocked(library, tmp_path)
    with mounted(tmp_path, None, "--deadline", "1") as mount:
        rot(data_of(mount, library, HISTORY), PIECE + 5)
        done = cachefs("verify", "--repair", "--data-dir", mount.data_dir)
        assert done.returncode == 1
        assert f"{HISTORY}: 1 of 6 blocks wrong (1); {HISTORY}: nothing after" in done.stdout
        assert read_error(mount.snapshots / HISTORY, PIECE) == "EIO"
        assert pread(mount.snapshots / HISTORY, 0, PIECE) == part(library.files[HISTORY], 0, PIECE)
        assert same(mount, library, [BODIES, DOMAIN, HEADERS])
    with seeding(library) as box, mounted(tmp_path, peers=[str(box.peer)]) as mount:
        assert same(mount, library)
        assert mount.received() < 2 * PIECE


def test_bad_bytes_that_were_served_leave_the_page_cache_and_mapped_memory(library: Library, tmp_path: Path) -> None:
    shown, at = HISTORY, PIECE + 5
    with healable(library, tmp_path) as mount, (mount.snapshots / shown).open("rb") as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            good = library.files[shown].read_bytes()[at]
            forget_pages(mount.snapshots / shown)
            rot(data_of(mount, library, shown), at)
            assert mapped[at] == good ^ 1  # nobody can know yet
            assert cachefs("verify", "--repair", "--data-dir", mount.data_dir).returncode == 0
            assert mapped[at] == good
            assert os.pread(file.fileno(), 1, at) == bytes([good])
        assert same(mount, library)


def test_a_reader_that_waits_for_another_block_keeps_no_bad_bytes_alive(library: Library, tmp_path: Path) -> None:
    path = stocked(library, tmp_path)[HISTORY]
    with ThreadPoolExecutor(2) as pool, mounted(tmp_path, None, "--deadline", "60") as mount:
        shown = mount.snapshots / HISTORY
        rot(path, 0)
        assert cachefs("verify", "--data-dir", mount.data_dir).returncode == 1
        waiting = pool.submit(read_error, shown)
        mount.waiting(1)
        good = pread(shown, 4 * PIECE, 4096)
        rot(path, 4 * PIECE + 5)
        forget_pages(shown)
        assert pread(shown, 4 * PIECE, 4096) != good  # nobody can know yet
        started = time.monotonic()
        assert cachefs("verify", "--data-dir", mount.data_dir).returncode == 1
        assert time.monotonic() - started < 9
        second = pool.submit(read_error, shown, 4 * PIECE)
        mount.waiting(2)
        mount.unmount()
        assert [waiting.result(), second.result()] == ["EIO", "EIO"]


@pytest.mark.parametrize("kept_open", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("how", ["hard link", "in place"])
def test_of_an_adopted_directory_the_wrong_piece_alone_is_fetched_and_no_file_of_it_changes(
    library: Library, tmp_path: Path, how: str, kept_open: bool
) -> None:
    mine = Path(shutil.copytree(library.root, tmp_path / "mine"))
    done = cachefs("adopt", mine, "--data-dir", tmp_path / "data", "--chain-toml", library.chain)
    assert done.returncode == 0
    if how == "in place":  # as from another file system
        for data in (tmp_path / "data" / "store").glob("btih/*/*/data"):
            original = next(name for name in library.files if (mine / name).samefile(data))
            data.unlink()
            data.symlink_to(mine / original)
    with seeding(library) as box, mounted(tmp_path, peers=[str(box.peer)]) as mount:
        assert same(mount, library)
        rot(mine / HISTORY, 3 * PIECE)
        rotten = (mine / HISTORY).read_bytes()
        with (mount.snapshots / HISTORY).open("rb") if kept_open else nullcontext():
            done = cachefs("verify", "--repair", "--data-dir", mount.data_dir)
        assert done.stdout.splitlines()[0] == f"{HISTORY}: 1 of 6 blocks wrong (3); fetched again"
        assert len(done.stdout.splitlines()) == 2
        assert same(mount, library)
        assert mount.received(PIECE) == PIECE
        assert (mine / HISTORY).read_bytes() == rotten != library.files[HISTORY].read_bytes()


def test_where_there_is_no_room_to_mend_an_adopted_file_in_a_copy_it_is_left_alone_until_there_is(
    library: Library, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    settings = NO_SCRUB + "[torrent]\nseed = false\n"  # nothing but its readers has the file open
    with small_disk(disk, 28 * 2**20) as resize:
        mine = Path(shutil.copytree(library.root, disk / "mine"))
        adopted = cachefs("adopt", mine, "--data-dir", disk / "data", "--chain-toml", library.chain)
        assert adopted.returncode == 0
        with seeding(library) as box, mounted(disk, peers=[str(box.peer)], settings=settings) as mount:
            with (mount.snapshots / HISTORY).open("rb"):
                rot(mine / HISTORY, 3 * PIECE)
                rotten, touched = (mine / HISTORY).read_bytes(), (mine / HISTORY).stat().st_mtime_ns
                done = cachefs("verify", "--repair", "--data-dir", mount.data_dir)
                assert (done.returncode, "No space left on device" in done.stdout) == (1, True)
                assert read_error(mount.snapshots / HISTORY, 3 * PIECE) == "ENOSPC"
                assert mount.received() == 0
                resize(64 * 2**20)
                mount.child.wait_until("mended", lambda: not read_error(mount.snapshots / HISTORY, 3 * PIECE))
            assert same(mount, library)
        assert ((mine / HISTORY).read_bytes(), (mine / HISTORY).stat().st_mtime_ns) == (rotten, touched)


def test_zeroed_and_emptied_data_after_a_crash_is_found_and_fetched_again(library: Library, tmp_path: Path) -> None:
    with healable(library, tmp_path) as mount:
        assert read_error(mount.snapshots / HISTORY) == ""
        zeroed, emptied = data_of(mount, library, HISTORY), data_of(mount, library, DOMAIN)
        mount.kill9()
    for path in (zeroed, emptied):
        path.chmod(0o600)
    with zeroed.open("r+b") as file:
        file.seek(PIECE)
        file.write(bytes(PIECE))
    os.truncate(emptied, 0)
    with seeding(library) as box, mounted(tmp_path, peers=[str(box.peer)]) as mount:
        assert same(mount, library)
        fetched = PIECE + library.files[DOMAIN].stat().st_size
        assert fetched <= mount.received(fetched) < fetched + PIECE
        mount.wait_for("sealed again", lambda now: now["store"]["complete"] == len(library.files))


def test_a_block_of_zeros_under_a_seal_that_still_holds_is_found_by_verify(library: Library, tmp_path: Path) -> None:
    rot(stocked(library, tmp_path)[HISTORY], 2 * PIECE, zeros=PIECE)
    done = cachefs("verify", "--data-dir", tmp_path / "data")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[0] == f"{HISTORY}: 1 of 6 blocks wrong (2)"
    with seeding(library) as box, mounted(tmp_path, peers=[str(box.peer)]) as mount:
        assert same(mount, library)
        assert PIECE <= mount.received(PIECE) < 2 * PIECE


def empty(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, 0)


def test_verify_finds_every_file_that_was_emptied(library: Library, tmp_path: Path) -> None:
    for path in stocked(library, tmp_path).values():
        empty(path)
    done = cachefs("verify", "--data-dir", tmp_path / "data")
    assert (done.returncode, done.stderr) == (1, "")
    assert [line.partition(":")[0] for line in done.stdout.splitlines()[:-1]] == sorted(library.files)


def test_verify_finds_every_file_that_was_emptied_under_a_mount(library: Library, tmp_path: Path) -> None:
    paths = stocked(library, tmp_path)
    with mounted(tmp_path, None, "--deadline", "1") as mount:
        mount.wait_for("offering all it has", lambda now: now["store"]["open"] == len(library.files))
        for path in paths.values():
            empty(path)
        done = cachefs("verify", "--data-dir", mount.data_dir)
        assert (done.returncode, done.stderr) == (1, "")
        assert [line.partition(":")[0] for line in done.stdout.splitlines()[:-1]] == sorted(library.files)
        assert read_error(mount.snapshots / HISTORY) == "EIO"
    with seeding(library) as box, mounted(tmp_path, peers=[str(box.peer)]) as mount:
        assert same(mount, library)


def test_scrub_reads_the_disk_and_mends_what_is_wrong(library: Library, tmp_path: Path) -> None:
    with healable(library, tmp_path) as mount:
        rot(data_of(mount, library, HISTORY), 3 * PIECE)
        rot(data_of(mount, library, DOMAIN), 3 * PIECE)
        done = cachefs("scrub", "--rate", "100M", mount.mountpoint)
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.partition(":")[0] for line in done.stdout.splitlines()[:-1]] == sorted([HISTORY, DOMAIN])
        assert all("fetched again" in line for line in done.stdout.splitlines())
        assert same(mount, library)
        assert "2 blocks were wrong, 2 fetched again" in cachefs("status", mount.mountpoint).stdout


def test_the_daemon_scrubs_by_itself_what_it_has_not_read_for_the_interval(library: Library, tmp_path: Path) -> None:
    settings = "[scrub]\ninterval = 0.5\nrate = 0\n"
    path = stocked(library, tmp_path)[HISTORY]
    with seeding(library) as box, mounted(tmp_path, peers=[str(box.peer)], settings=settings) as mount:
        rot(path, PIECE)
        mount.wait_for("mended", lambda now: now["upkeep"]["mended"] == 1)
        assert path.read_bytes() == library.files[HISTORY].read_bytes()
        assert f"{HISTORY}: block 1 wrong on disk" in mount.child.printed()


def test_the_scrub_mends_what_was_found_wrong_while_no_source_was_there(library: Library, tmp_path: Path) -> None:
    path = stocked(library, tmp_path)[HISTORY]
    rot(path, PIECE)
    assert cachefs("verify", "--data-dir", tmp_path / "data").returncode == 1
    with seeding(library) as box, mounted(tmp_path, peers=[str(box.peer)]) as mount:
        mount.wait_for("mended", lambda now: now["upkeep"]["mended"] == 1)
        assert path.read_bytes() == library.files[HISTORY].read_bytes()


@pytest.mark.parametrize(("rate", "taken"), [("1.5MiB", True), ("50M", True), ("52428800", True), ("50X", False)])
def test_a_rate_is_a_size_as_in_the_settings(tmp_path: Path, rate: str, taken: bool) -> None:
    said = cachefs("scrub", "--rate", rate, "--data-dir", tmp_path).stderr
    assert ("is it mounted?" in said, "not bytes per second" in said) == (taken, not taken)


def test_verify_takes_names_and_patterns_and_stops_at_the_first_if_told(library: Library, tmp_path: Path) -> None:
    paths = stocked(library, tmp_path)
    for name in (HISTORY, DOMAIN):
        rot(paths[name], 0)
    assert cachefs("verify", "--data-dir", tmp_path / "data", HEADERS, "v1-*-bodies.seg").returncode == 0
    none = cachefs("verify", "--data-dir", tmp_path / "data", "v9-*")
    assert (none.returncode, "v9-*: no name in the lock" in none.stderr) == (1, True)
    first = cachefs("verify", "--data-dir", tmp_path / "data", "--fail-fast", HISTORY)
    assert (first.returncode, first.stdout.count("blocks wrong (")) == (1, 1)
    refused = cachefs("verify", "--data-dir", tmp_path / "data", "--repair")
    assert (refused.returncode, "is it mounted?" in refused.stderr) == (1, True)
