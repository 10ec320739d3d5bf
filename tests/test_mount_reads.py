"""Reads through a real mount: right bytes whatever the access pattern, nothing fetched that isn't read."""

from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.counterparts import Peer
from tests.mount_kit import (
    BODIES,
    DOMAIN,
    DRIVERS,
    HISTORY,
    PIECE,
    Library,
    Mount,
    forget_pages,
    make_library,
    mounted,
    part,
    pread,
    same,
    seeding,
)

SIZES = (5, 100_000, PIECE, 3 * PIECE + 1, 40 * 2**20, 10 * 2**20)
MIDDLE = 20 * 2**20
SEED = 20260711


@dataclass(frozen=True)
class Origin:
    """A library, the peer that seeds it, and which driver the cold mounts of it are to have."""

    library: Library
    peer: Peer
    driver: tuple[str, ...] = ()

    @contextmanager
    def cold(self, place: Path, *options: str) -> Iterator[Mount]:
        """A mount that has all metadata and no byte of content."""
        torrents = ("--torrent-dir", str(self.library.products))
        with mounted(place, self.library.chain, *torrents, *self.driver, *options, peers=[self.peer]) as mount:
            mount.knows(len(self.library.files))
            yield mount


@pytest.fixture(scope="module")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    library = make_library(tmp_path_factory.mktemp("origin"), *SIZES)
    with seeding(library) as box:
        assert box.peer is not None
        yield Origin(library, box.peer)


@pytest.fixture(scope="module", params=DRIVERS)
def origin(seeded: Origin, request: pytest.FixtureRequest) -> Origin:
    """With either driver in turn: everything here holds for both."""
    return replace(seeded, driver=request.param)


@pytest.fixture(scope="module")
def warm(origin: Origin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount of which everything has been read once."""
    with origin.cold(tmp_path_factory.mktemp("warm")) as mount:
        assert same(mount, origin.library)
        yield mount


def test_cold_warm_and_restarted_reads_equal_the_originals_and_need_the_network_once(
    origin: Origin, tmp_path: Path
) -> None:
    library = origin.library
    with seeding(library) as box, mounted(tmp_path, library.chain, peers=[str(box.peer)]) as mount:
        assert same(mount, library)
        box.process.terminate()
        box.process.wait()
        for name in library.files:
            forget_pages(mount.snapshots / name)
        assert same(mount, library)
    with mounted(tmp_path) as mount:
        assert same(mount, library)
        assert mount.status()["sources"] == []


def test_the_first_byte_of_a_name_needs_no_metadata_waited_for_before(origin: Origin, tmp_path: Path) -> None:
    with mounted(tmp_path, origin.library.chain, peers=[origin.peer]) as mount:
        assert same(mount, origin.library, [HISTORY])


def test_mapped_pages_touched_at_random_equal_the_original(origin: Origin, tmp_path: Path) -> None:
    offsets = [random.Random(SEED).randrange(SIZES[4] - 100) for _ in range(200)]
    with origin.cold(tmp_path) as mount, (mount.snapshots / HISTORY).open("rb") as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as shown:
            shown.madvise(mmap.MADV_RANDOM)
            for offset in offsets:
                assert shown[offset : offset + 100] == part(origin.library.files[HISTORY], offset, 100)


def test_reads_at_random_offsets_and_past_the_end_equal_the_original(origin: Origin, tmp_path: Path) -> None:
    dice = random.Random(SEED)
    length = SIZES[3]
    spots = [(dice.randrange(length + 10), dice.choice((1, 17, 4096, 70_000, 3 * 2**20))) for _ in range(150)]
    with origin.cold(tmp_path) as mount:
        for offset, size in [*spots, (length - 1, 10), (length, 10), (0, length + 1)]:
            expected = part(origin.library.files[DOMAIN], offset, size)
            assert pread(mount.snapshots / DOMAIN, offset, size) == expected


def test_eight_readers_at_once_of_one_cold_file_all_get_its_bytes(origin: Origin, tmp_path: Path) -> None:
    expected = origin.library.files[HISTORY].read_bytes()
    with ThreadPoolExecutor(8) as pool, origin.cold(tmp_path) as mount:
        got = list(pool.map(Path.read_bytes, [mount.snapshots / HISTORY] * 8))
        assert all(data == expected for data in got)
        assert mount.received(len(expected)) < len(expected) + 2 * PIECE


def test_eight_readers_at_once_of_different_cold_files_get_their_bytes(origin: Origin, tmp_path: Path) -> None:
    names = [*origin.library.files, HISTORY]
    with ThreadPoolExecutor(8) as pool, origin.cold(tmp_path) as mount:
        got = list(pool.map(Path.read_bytes, [mount.snapshots / name for name in names]))
        assert [data == origin.library.files[name].read_bytes() for name, data in zip(names, got, strict=True)] == [
            True
        ] * len(names)


def test_a_tar_of_the_mount_equals_one_of_the_originals(origin: Origin, warm: Mount, tmp_path: Path) -> None:
    shutil.copytree(origin.library.root, tmp_path / "snapshots")
    assert _tar_digest(warm.mountpoint) == _tar_digest(tmp_path)


def _tar_digest(parent: Path) -> str:
    command = "tar --sort=name --mtime=@0 --owner=0 --group=0 --mode=0555 -cf - snapshots | sha256sum"
    return subprocess.run(command, shell=True, cwd=parent, capture_output=True, text=True, check=True).stdout


def test_sizes_folders_and_modes_are_shown_as_they_are(origin: Origin, warm: Mount) -> None:
    assert list(warm.mountpoint.iterdir()) == [warm.snapshots]
    shown = {path.relative_to(warm.snapshots).as_posix(): path.stat() for path in warm.snapshots.rglob("*")}
    files = {name: status for name, status in shown.items() if stat.S_ISREG(status.st_mode)}
    assert {name: status.st_size for name, status in files.items()} == {
        name: path.stat().st_size for name, path in origin.library.files.items()
    }
    assert {name for name in shown if name not in files} == {"domain", "history", "idx"}
    assert all(stat.S_ISDIR(shown[name].st_mode) for name in ("domain", "history", "idx"))
    assert {stat.S_IMODE(status.st_mode) for status in files.values()} == {0o444}


def test_mtimes_and_inodes_are_the_same_after_a_restart(origin: Origin, tmp_path: Path) -> None:
    def shown(mount: Mount) -> dict[str, tuple[int, int, int]]:
        paths = [mount.snapshots, *mount.snapshots.rglob("*")]
        return {str(path): ((found := path.stat()).st_mtime_ns, found.st_ino, found.st_size) for path in paths}

    with origin.cold(tmp_path) as mount:
        before = shown(mount)
        assert shown(mount) == before
    with origin.cold(tmp_path) as mount:
        assert shown(mount) == before


def _write(path: Path) -> None:
    path.open("r+b")


def _set_attribute(path: Path) -> None:
    os.setxattr(path, "user.note", b"x")


@pytest.mark.parametrize(
    "change",
    [
        _write,
        Path.unlink,
        _set_attribute,
        lambda path: path.with_name("new").touch(),
        lambda path: path.with_name("new").mkdir(),
        lambda path: path.rename(path.with_name("new")),
        lambda path: path.with_name("new").symlink_to(path),
        lambda path: path.with_name("new").hardlink_to(path),
        lambda path: path.chmod(0o644),
        lambda path: os.truncate(path, 0),
        lambda path: os.utime(path),
        lambda path: path.parent.rmdir(),
    ],
    ids=[
        "write",
        "unlink",
        "setxattr",
        "create",
        "mkdir",
        "rename",
        "symlink",
        "link",
        "chmod",
        "truncate",
        "utime",
        "rmdir",
    ],
)
def test_every_change_is_refused_as_read_only(warm: Mount, change: Callable[[Path], object]) -> None:
    with pytest.raises(OSError, match="Read-only") as caught:
        change(warm.snapshots / DOMAIN)
    assert caught.value.errno == errno.EROFS


def test_fifty_readers_of_one_cold_piece_cause_one_fetch_of_it(origin: Origin, tmp_path: Path) -> None:
    offsets = [MIDDLE + reader % 10 * 8192 for reader in range(50)]
    with ThreadPoolExecutor(50) as pool, origin.cold(tmp_path) as mount:
        got = list(pool.map(lambda offset: pread(mount.snapshots / HISTORY, offset, 4096), offsets))
        assert got == [part(origin.library.files[HISTORY], offset, 4096) for offset in offsets]
        assert PIECE <= mount.received(PIECE) < 2 * PIECE


def test_a_read_in_the_middle_of_a_cold_file_fetches_about_one_piece_and_not_the_head(
    origin: Origin, tmp_path: Path
) -> None:
    with origin.cold(tmp_path) as mount:
        assert pread(mount.snapshots / HISTORY, MIDDLE, 4096) == part(origin.library.files[HISTORY], MIDDLE, 4096)
        assert mount.received(PIECE) < 3 * PIECE
        held = mount.held_pieces(origin.library, HISTORY)
        assert MIDDLE // PIECE in held
        assert 0 not in held
        assert len(held) <= 3


def test_a_few_kilobytes_at_random_places_fetch_just_their_pieces(origin: Origin, tmp_path: Path) -> None:
    offsets = [piece * PIECE + 40_960 for piece in random.Random(SEED).sample(range(20), 5)]
    with origin.cold(tmp_path) as mount:
        for offset in offsets:
            assert pread(mount.snapshots / HISTORY, offset, 4096) == part(origin.library.files[HISTORY], offset, 4096)
        assert mount.received(5 * PIECE) < 6 * PIECE
        assert mount.held_pieces(origin.library, HISTORY) == {offset // PIECE for offset in offsets}


def test_a_scanner_that_reads_head_and_tail_of_every_file_does_not_fetch_what_is_between(
    origin: Origin, tmp_path: Path
) -> None:
    with origin.cold(tmp_path) as mount:
        for name, original in origin.library.files.items():
            length = original.stat().st_size
            for offset in (0, max(0, length - 4096)):
                assert pread(mount.snapshots / name, offset, 4096) == part(original, offset, 4096)
        assert mount.held_pieces(origin.library, HISTORY) == {0, 19}
        assert mount.held_pieces(origin.library, DOMAIN) == {0, 2, 3}  # the last piece of it is one byte
        assert mount.received() < 9 * PIECE


def test_stat_and_listing_fetch_no_content(origin: Origin, tmp_path: Path) -> None:
    with origin.cold(tmp_path) as mount:
        subprocess.run(["ls", "-lR", mount.snapshots], check=True, capture_output=True)
        assert mount.received() == 0
        assert not mount.object(origin.library, BODIES).joinpath("data").exists()
