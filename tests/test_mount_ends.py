"""How a mount ends when somebody does to it what nobody should, or ends it in the midst of everything."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachefs import mountinfo
from tests.mount_kit import BOTH_DRIVERS, HEADERS, Library, Mount, cachefs, make_library, mounted, read_error

FOR_EVER = '[read]\non_unavailable = "wait"\n'
CUT = {"EIO", "ENOTCONN", "ECONNABORTED"}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 100_000, 2**20, 2**20, 2**20)


@contextmanager
def unavailable(place: Path, library: Library, *options: str) -> Iterator[Mount]:
    """A mount whose sizes are known, and whose readers wait for ever."""
    options = ("--torrent-dir", str(library.products), *options)
    with mounted(place, library.chain, *options, peers=["127.0.0.1:1"], settings=FOR_EVER) as mount:
        yield mount


@contextmanager
def covered(place: Path) -> Iterator[Path]:
    """A file on a tmpfs that lies over a directory. For root alone."""
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        (place / "mine").touch()
        yield place / "mine"
    finally:
        subprocess.run(["umount", place], check=True)


@BOTH_DRIVERS
def test_a_mount_whose_connection_is_aborted_lets_its_readers_go_and_ends(
    library: Library, tmp_path: Path, driver: tuple[str, ...]
) -> None:
    with ThreadPoolExecutor(1) as pool, unavailable(tmp_path, library, *driver) as mount:
        reading = pool.submit(read_error, mount.snapshots / HEADERS)
        mount.waiting(1)
        entry = mountinfo.mount_at(mount.mountpoint)
        assert entry is not None
        Path(f"/sys/fs/fuse/connections/{entry.connection}/abort").write_text("1")
        assert mount.ended() == 0
        assert reading.result(5) in CUT
        assert mountinfo.mount_at(mount.mountpoint) is None
        assert "stopping: the connection to the kernel was aborted" in mount.child.printed()


@BOTH_DRIVERS
def test_a_mount_that_another_file_system_covers_ends_and_leaves_that_alone(
    library: Library, tmp_path: Path, driver: tuple[str, ...]
) -> None:
    with ThreadPoolExecutor(1) as pool, unavailable(tmp_path, library, *driver) as mount:
        reading = pool.submit(read_error, mount.snapshots / HEADERS)
        mount.waiting(1)
        with covered(mount.mountpoint) as mine:
            mount.child.process.send_signal(signal.SIGTERM)
            assert mount.ended() == 0
            assert reading.result(5) in CUT
            assert mine.exists()
            said = mount.child.printed()
            assert f"{mount.mountpoint}: another file system (tmpfs) lies over the mount" in said
            assert "Traceback" not in said
        assert mountinfo.is_dead(mount.mountpoint)
        assert cachefs("umount", mount.mountpoint).returncode == 0
        assert list(mount.mountpoint.iterdir()) == []


def test_the_writable_view_of_a_mount_that_is_covered_is_left_below_with_it(library: Library, tmp_path: Path) -> None:
    with unavailable(tmp_path, library, "--writable") as mount:
        (mount.snapshots / "written").touch()
        with covered(mount.mountpoint) as mine:
            (mount.snapshots / "theirs").mkdir(parents=True)
            with covered(mount.snapshots) as inner:
                mount.child.process.send_signal(signal.SIGTERM)
                assert mount.ended() == 0
                assert mine.exists()
                assert inner.exists()
                assert mount.child.printed().count("WARNING") == 1
        with unavailable(tmp_path, library, "--writable") as again:
            assert (again.snapshots / "written").exists()
            again.unmount()
        assert list(mount.mountpoint.iterdir()) == []
