"""How a mount ends when somebody does to it what nobody should, or ends it in the midst of everything."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachefs import mountinfo
from tests.held_kit import rot, stocked
from tests.mount_kit import (
    BODIES,
    BOTH_DRIVERS,
    DOMAIN,
    HEADERS,
    TRANSACTIONS,
    Library,
    Mount,
    cachefs,
    command_of,
    make_library,
    mounted,
    read_error,
)
from tests.test_interrupting import at_work_on

FOR_EVER = '[read]\non_unavailable = "wait"\n'
READERS = 200
CUT = {"EIO", "ENOTCONN", "ECONNABORTED"}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 100_000, 2**20, READERS * 2**17, 2**20)


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


def large_local_file(folder: Path, name: str) -> Path:
    """A file that takes longer to be hashed than a test takes: it is a hole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    os.truncate(folder / name, 2**39)
    return folder / name


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


@contextmanager
def commands(*commands: Sequence[str | Path]) -> Iterator[list[subprocess.Popen[str]]]:
    """Commands of `cachefs` that run meanwhile."""
    running = [
        subprocess.Popen(command_of(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.communicate()


@BOTH_DRIVERS
def test_the_end_in_the_midst_of_everything_takes_seconds_and_whoever_waits_is_told(
    library: Library, tmp_path: Path, driver: tuple[str, ...]
) -> None:
    rot(stocked(library, tmp_path)[HEADERS], 5)
    local = large_local_file(tmp_path / "adopted", BODIES)
    with ThreadPoolExecutor(READERS) as pool, unavailable(tmp_path, library, *driver) as mount:
        assert cachefs("evict", TRANSACTIONS, DOMAIN, "--data-dir", mount.data_dir).returncode == 0
        places = [number * 2**17 for number in range(READERS)]
        reading = [pool.submit(read_error, mount.snapshots / TRANSACTIONS, place) for place in places]
        at = ("--data-dir", mount.data_dir)
        with commands(
            ["verify", "--repair", HEADERS, *at], ["prefetch", DOMAIN, *at], ["adopt", local.parent, *at]
        ) as clients:  # fmt: skip
            wanted = {HEADERS, DOMAIN}
            mount.wait_for("at work", lambda now: wanted <= {each["name"] for each in now["transfers"]})
            mount.child.wait_until("adopting", lambda: mount.child.process.pid in at_work_on(local))
            mount.waiting(READERS)
            start = time.monotonic()
            mount.child.process.send_signal(signal.SIGTERM)
            assert mount.ended() == 0
            took = time.monotonic() - start
            said = [client.communicate(timeout=10)[0] for client in clients]
        assert {read.result(5) for read in reading} <= CUT
        assert "Traceback" not in mount.child.printed()
    assert [client.returncode for client in clients] == [1, 1, 1]
    # In what a command has to report, or in place of it, if there was no time for that.
    assert ["the mount is being stopped" in each for each in said] == [True, True, True], said
    assert took < 10


def test_a_command_is_told_when_its_daemon_is_killed(library: Library, tmp_path: Path) -> None:
    prefetch: list[str | Path] = ["prefetch", DOMAIN, "--data-dir", tmp_path / "data"]
    with unavailable(tmp_path, library) as mount, commands(prefetch) as clients:
        mount.wait_for("fetching", lambda now: now["transfers"])
        mount.kill9()
        said = clients[0].communicate(timeout=10)[0]
        assert said == f"cachefs: the daemon of {mount.data_dir} ended before it had answered\n"
        assert clients[0].returncode == 1


def test_a_mount_ends_at_once_also_while_a_reload_hashes_local_files(library: Library, tmp_path: Path) -> None:
    with unavailable(tmp_path, library) as mount:
        before = mount.lock.read_text()
        mount.lock.write_text(before.replace(f"{BODIES}", f"new-{BODIES}"))
        local = large_local_file(mount.lock.parent, f"new-{BODIES}")
        with commands(["reload", mount.mountpoint]) as clients:
            mount.child.wait_until("hashing", lambda: mount.child.process.pid in at_work_on(local))
            mount.child.process.send_signal(signal.SIGHUP)  # and another one that waits for it
            start = time.monotonic()
            mount.child.process.send_signal(signal.SIGTERM)
            assert mount.ended() == 0
            assert time.monotonic() - start < 10
            assert clients[0].communicate(timeout=10)[0] == "cachefs: the mount is being stopped\n"
            assert clients[0].returncode == 1
        assert "Traceback" not in mount.child.printed()
        assert mountinfo.mount_at(mount.mountpoint) is None
        local.unlink()
        with unavailable(tmp_path, library) as again:
            assert (again.snapshots / f"new-{BODIES}").exists()
            again.unmount()
