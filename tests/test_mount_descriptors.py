"""A daemon and its file descriptors: as many as there may be, none left, and the standard ones closed."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from cachefs import mountinfo
from tests.counterparts import running
from tests.descriptor_kit import none_left_to
from tests.mount_kit import (
    BOTH_DRIVERS,
    Library,
    cachefs,
    command_of,
    make_library,
    mount_command,
    mounted,
    same,
    seeding,
)

LIMITED = ("prlimit", "--nofile=256:1000")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 100_000)


def test_a_mount_and_a_seed_box_may_open_as_many_files_as_the_hard_limit_lets_them(
    library: Library, tmp_path: Path
) -> None:
    with seeding(library, within=LIMITED) as box, mounted(tmp_path, library.chain, within=LIMITED) as mount:
        for process in (box.process, mount.child.process):
            assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (1000, 1000)


@BOTH_DRIVERS
def test_a_daemon_without_a_descriptor_left_outlives_a_change_of_the_mount_table_and_ends_cleanly(
    library: Library, tmp_path: Path, driver: tuple[str, ...]
) -> None:
    with seeding(library) as box, mounted(tmp_path, library.chain, *driver, peers=[str(box.peer)]) as mount:
        assert same(mount, library)
        with none_left_to(mount.child.process.pid):
            with mounted(tmp_path / "other", library.chain) as other:
                other.unmount()
        assert same(mount, library)
        with none_left_to(mount.child.process.pid):
            mount.child.process.send_signal(signal.SIGTERM)
            assert mount.ended() == 0, mount.child.printed()
    assert mountinfo.mount_at(tmp_path / "mnt") is None


def test_a_daemon_without_a_descriptor_left_takes_its_writable_view_away(library: Library, tmp_path: Path) -> None:
    with mounted(tmp_path, library.chain, "--writable") as mount:
        (mount.snapshots / "written").touch()
        with none_left_to(mount.child.process.pid):
            mount.child.process.send_signal(signal.SIGTERM)
            assert mount.ended() == 0, mount.child.printed()
        assert "Traceback" not in mount.child.printed()
    assert list((tmp_path / "mnt").iterdir()) == []


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_a_daemon_starts_whichever_standard_descriptors_are_closed(
    library: Library, tmp_path: Path, closed: str
) -> None:
    command = command_of(mount_command(tmp_path, library.chain, "--daemon"))
    try:
        done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *command], timeout=60, check=False)
        assert done.returncode == 0
        assert cachefs("status", tmp_path / "mnt").returncode == 0
    finally:
        assert cachefs("umount", tmp_path / "mnt").returncode == 0


def test_no_file_of_a_mount_takes_the_place_of_a_closed_standard_descriptor(library: Library, tmp_path: Path) -> None:
    command = command_of(mount_command(tmp_path, library.chain))
    with running("cachefs mount", ["sh", "-c", 'exec "$@" <&- >&-', "sh", *command], signal.SIGTERM) as child:
        child.wait_until("mounted", lambda: (tmp_path / "data" / "control.sock").exists())
        for number in (0, 1):
            assert Path(os.readlink(f"/proc/{child.process.pid}/fd/{number}")) == Path(os.devnull)  # noqa: PTH115
        assert cachefs("umount", tmp_path / "mnt").returncode == 0
