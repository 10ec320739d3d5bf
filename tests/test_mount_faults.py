"""Sources that lie, fall silent or are gone, through a real mount: right bytes, or an error in time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cachefs import mountinfo
from tests.counterparts import LOOPBACK, free_port, nginx, silent_server
from tests.mount_kit import (
    BODIES,
    BOTH_DRIVERS,
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
    pread,
    read_error,
    same,
    seeding,
    source_in,
)

READERS = 200
LENGTH = 12 * 2**20
ELSEWHERE = "127.0.0.2"
"""Another address, for libtorrent bans an address, not a port: good peers would be banned with the liar."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 5, 100_000, PIECE, 3 * PIECE + 1, LENGTH)


def test_a_peer_that_sends_wrong_bytes_beside_a_good_one_reaches_no_reader_and_holds_nobody_up(
    library: Library, tmp_path: Path
) -> None:
    torrents, good = ("--torrent-dir", library.products), f"{ELSEWHERE}:{free_port()}"
    with seeding(library.corrupted(tmp_path / "bad")) as bad, seeding(library, "--listen", good):
        with mounted(tmp_path, library.chain, *torrents, "--deadline", "20", peers=[str(bad.peer), good]) as mount:
            assert same(mount, library)


def test_a_peer_that_sends_wrong_bytes_is_named_and_a_waiting_reader_gets_the_right_ones_of_another(
    library: Library, tmp_path: Path
) -> None:
    torrents, later = ("--torrent-dir", library.products), f"{ELSEWHERE}:{free_port()}"
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        bad = stack.enter_context(seeding(library.corrupted(tmp_path / "bad")))
        mount = stack.enter_context(mounted(tmp_path, library.chain, *torrents, peers=[str(bad.peer), later]))
        reading = pool.submit(same, mount, library, [HISTORY])
        mount.wait_for("naming the liar", lambda now: "wrong bytes" in source_in(now, bad.peer)["last_error"])
        assert mount.status()["store"]["bytes"] == 0
        stack.enter_context(seeding(library, "--listen", later))
        assert reading.result(30)


def test_a_web_seed_that_sends_wrong_bytes_is_named_and_a_waiting_reader_gets_the_right_ones_of_a_peer(
    library: Library, tmp_path: Path
) -> None:
    later, wrong = f"{ELSEWHERE}:{free_port()}", library.corrupted(tmp_path / "bad")
    with ExitStack() as stack:
        pool, bad = stack.enter_context(ThreadPoolExecutor(1)), stack.enter_context(nginx(wrong.root))
        torrents = ("--torrent-dir", library.products)
        mount = stack.enter_context(mounted(tmp_path, library.chain, *torrents, peers=[later], webseeds=[bad]))
        reading = pool.submit(same, mount, library, [HISTORY])
        mount.wait_for("naming the liar", lambda now: "banned" in source_in(now, bad)["last_error"])
        assert mount.status()["store"]["bytes"] == 0
        stack.enter_context(seeding(library, "--listen", later))
        assert reading.result(30)


def test_wrong_bytes_alone_end_in_eio_and_reach_neither_reader_nor_store(library: Library, tmp_path: Path) -> None:
    torrents, port = ("--torrent-dir", library.products), free_port()
    listening = ("--listen", f"{LOOPBACK}:{port}")
    with mounted(tmp_path, library.chain, *torrents, "--deadline", "3", peers=[f"{LOOPBACK}:{port}"]) as mount:
        with seeding(library.corrupted(tmp_path / "bad"), *listening):
            start = time.monotonic()
            assert read_error(mount.snapshots / HISTORY, PIECE) == "EIO"
            assert 2.5 < time.monotonic() - start < 5
            assert mount.status()["store"]["bytes"] == 0
            assert f":{port}" in mount.status()["last_error"]
        with seeding(library, *listening):
            _heals(mount, library)


def test_a_lying_web_seed_that_was_mended_is_used_again_without_a_remount(library: Library, tmp_path: Path) -> None:
    torrents, port = ("--torrent-dir", library.products), free_port()
    url = f"http://{LOOPBACK}:{port}/"
    with mounted(tmp_path, library.chain, *torrents, "--deadline", "3", webseeds=[url]) as mount:
        with nginx(library.corrupted(tmp_path / "bad").root, port=port):
            assert read_error(mount.snapshots / HISTORY, PIECE) == "EIO"
            assert mount.status()["store"]["bytes"] == 0
        with nginx(library.root, port=port):
            _heals(mount, library)


def _heals(mount: Mount, library: Library) -> None:
    """The next read after a source was mended gets its bytes, in the same mount."""
    assert read_error(mount.snapshots / HISTORY, PIECE) == ""
    assert same(mount, library)


@pytest.mark.parametrize("kind", ["--webseed", "--peer"])
def test_a_silent_source_of_content_ends_a_read_in_eio_at_the_deadline(
    library: Library, tmp_path: Path, kind: str
) -> None:
    torrents = ("--torrent-dir", library.products)
    with silent_server() as port:
        silent = (kind, f"http://{LOOPBACK}:{port}/" if kind == "--webseed" else f"{LOOPBACK}:{port}")
        with mounted(tmp_path, library.chain, *torrents, *silent, "--deadline", "2") as mount:
            start = time.monotonic()
            assert read_error(mount.snapshots / HISTORY) == "EIO"
            assert 1.5 < time.monotonic() - start < 3.5


def test_a_silent_peer_beside_a_good_one_delays_nobody(library: Library, tmp_path: Path) -> None:
    with silent_server() as port, seeding(library) as good:
        peers = [f"{LOOPBACK}:{port}", str(good.peer)]
        with mounted(tmp_path, library.chain, "--deadline", "10", peers=peers) as mount:
            assert same(mount, library)


def test_a_source_that_went_away_and_came_back_is_used_again(library: Library, tmp_path: Path) -> None:
    torrents, port = ("--torrent-dir", library.products), free_port()
    listening = ("--listen", f"{LOOPBACK}:{port}")
    with mounted(tmp_path, library.chain, *torrents, "--deadline", "2", peers=[f"{LOOPBACK}:{port}"]) as mount:
        with seeding(library, *listening):
            assert same(mount, library, [DOMAIN])
        assert read_error(mount.snapshots / HISTORY) == "EIO"
        with seeding(library, *listening):
            assert same(mount, library)


def test_a_read_waits_for_a_source_that_comes_within_its_deadline(library: Library, tmp_path: Path) -> None:
    torrents, port = ("--torrent-dir", library.products), free_port()
    with ThreadPoolExecutor(1) as pool:
        with mounted(tmp_path, library.chain, *torrents, peers=[f"{LOOPBACK}:{port}"]) as mount:
            reading = pool.submit(read_error, mount.snapshots / HISTORY, 0, LENGTH)
            mount.waiting(1)
            with seeding(library, "--listen", f"{LOOPBACK}:{port}"):
                assert reading.result(30) == ""


@contextmanager
def two_hundred_waiting(library: Library, place: Path, *options: str) -> Iterator[tuple[Mount, list[str]]]:
    """A mount with cached files, and a dead one that 200 readers wait for; the list gets the readers' errnos."""
    errors: list[str] = []
    with seeding(library.only(place / "alive", HEADERS, BODIES, DOMAIN)) as box:
        with mounted(place, library.chain, "--torrent-dir", library.products, peers=[str(box.peer)]) as mount:
            assert same(mount, library, [HEADERS, BODIES, DOMAIN])
    with ThreadPoolExecutor(READERS) as pool:
        with mounted(place, library.chain, "--torrent-dir", library.products, *options) as mount:
            offsets = [reader * 49_152 for reader in range(READERS)]
            reads = [pool.submit(read_error, mount.snapshots / HISTORY, offset) for offset in offsets]
            mount.waiting(READERS)
            yield mount, errors
            errors += [read.result(30) for read in reads]
    assert len(errors) == READERS


@BOTH_DRIVERS
def test_two_hundred_readers_of_a_dead_file_hold_up_nobody_else_and_umount_lets_them_go(
    library: Library, tmp_path: Path, driver: tuple[str, ...]
) -> None:
    with two_hundred_waiting(library, tmp_path, *driver) as (mount, errors):
        for _ in range(3):
            start = time.monotonic()
            assert (mount.snapshots / DOMAIN).stat().st_size == 3 * PIECE + 1
            subprocess.run(["ls", "-lR", mount.snapshots], check=True, capture_output=True)
            forget_pages(mount.snapshots / DOMAIN)
            assert same(mount, library, [HEADERS, BODIES, DOMAIN])
            assert time.monotonic() - start < 3
        mount.waiting(READERS)
        start = time.monotonic()
        mount.unmount()
        assert time.monotonic() - start < 5
    assert set(errors) == {"EIO"}


@BOTH_DRIVERS
def test_a_lazy_unmount_while_readers_wait_ends_the_daemon_and_lets_them_go(
    library: Library, tmp_path: Path, driver: tuple[str, ...]
) -> None:
    with two_hundred_waiting(library, tmp_path, *driver) as (mount, errors):
        mountinfo.unmount_lazily(mount.mountpoint)
        assert mount.ended() == 0, mount.child.printed()
    assert set(errors) <= {"EIO", "ENOTCONN", "ECONNABORTED"}


def test_a_plain_unmount_is_refused_as_busy_while_somebody_reads_and_done_when_nobody_does(
    library: Library, tmp_path: Path
) -> None:
    torrents = ("--torrent-dir", library.products)
    with ThreadPoolExecutor(1) as pool, mounted(tmp_path, library.chain, *torrents, "--deadline", "3") as mount:
        reading = pool.submit(read_error, mount.snapshots / HISTORY)
        mount.waiting(1)
        refused = _fusermount(mount)
        assert refused.returncode == 1
        assert "busy" in refused.stderr
        assert pread(mount.mountpoint / "snapshots" / HISTORY, LENGTH, 1) == b""  # it is still mounted
        assert reading.result(10) == "EIO"
        done = _fusermount(mount)
        assert (done.returncode, done.stderr) == (0, "")
        assert mount.ended() == 0


def _fusermount(mount: Mount) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["fusermount3", "-u", mount.mountpoint], capture_output=True, text=True, check=False)


def test_umount_says_what_is_not_mounted(tmp_path: Path) -> None:
    done = cachefs("umount", tmp_path)
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
