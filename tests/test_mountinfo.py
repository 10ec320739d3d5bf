"""The kernel's table of mounts, with real mounts in it: alive, dead and taken away.

fusermount3 mounts and hands over /dev/fuse; nobody answers the kernel's requests, so the mounts are never entered.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio
import trio.testing

from cachefs import mountinfo
from cachefs.cli.records import Target
from cachefs.config import Config
from cachefs.drivers import overlay, syscalls
from cachefs.errors import CachefsError
from cachefs.mountpoint import OwnMount, take_away
from tests.descriptor_kit import no_descriptor_left
from tests.mount_kit import NOBODY


class Mounts:
    """Mounts made by a test; what is left of them is taken away at its end."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def mount(self, mountpoint: Path, source: str, subtype: str = "cachefs") -> None:
        mountpoint.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        escaped = source.replace("\\", "\\\\").replace(",", "\\,")
        command = ["fusermount3", "-o", f"ro,nosuid,nodev,subtype={subtype},fsname={escaped}", "--", str(mountpoint)]
        with ours, theirs:
            environment = os.environ | {"_FUSE_COMMFD": str(theirs.fileno())}
            subprocess.run(command, env=environment, pass_fds=[theirs.fileno()], check=True)
            _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
        (fd,) = array.array("i", ancillary[0][2])
        self._open[mountpoint] = fd

    def mount_as(self, user: int, mountpoint: Path, source: str) -> None:
        """A mount as another user makes it."""
        mountpoint.mkdir()
        self._open[mountpoint] = device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={device},rootmode=40000,user_id={user},group_id={user}"
        syscalls.mount(mountinfo.TYPE, source, mountpoint, options)

    def die(self, mountpoint: Path) -> None:
        """End the daemon of a mount, as kill -9 does: its /dev/fuse is closed."""
        os.close(self._open.pop(mountpoint))

    def clear(self, below: Path) -> None:
        for mountpoint in list(self._open):
            self.die(mountpoint)
        while left := [entry.mountpoint for entry in mountinfo.mounts() if entry.mountpoint.is_relative_to(below)]:
            for mountpoint in left:
                mountinfo.unmount_lazily(mountpoint)


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[Mounts]:
    made = Mounts()
    yield made
    made.clear(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["plain", "with space", "back\\slash", "com,ma", "tab\tand\nline", "return\rand\vand\fpage", "grüße", "hash#"],
)
def test_mount_point_and_data_directory_are_read_back_whatever_they_are_called(
    tmp_path: Path, mounts: Mounts, name: str
) -> None:
    mountpoint, data_dir = tmp_path / name, tmp_path / f"{name}.data"
    mounts.mount(mountpoint, str(data_dir))
    entry = mountinfo.mount_at(mountpoint)
    assert entry is not None
    assert (entry.mountpoint, entry.data_dir) == (mountpoint, data_dir)
    assert entry.device == f"0:{entry.connection}"
    assert int(entry.connection) > 0


@pytest.mark.skipif(not syscalls.may_mount(), reason="only root can mount in another user's name")
def test_a_mount_that_another_user_calls_ours_is_never_meant_by_who_names_none(tmp_path: Path, mounts: Mounts) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    mounts.mount_as(NOBODY, tmp_path / "his", str(data_dir))
    assert Target(data_dir, Config()).mountpoint() is None
    his = mountinfo.mount_at(tmp_path / "his")
    assert his is not None
    assert his.user == NOBODY
    assert his not in mountinfo.own_mounts()
    mounts.mount_as(0, tmp_path / "roots", str(data_dir))
    roots = mountinfo.mount_at(tmp_path / "roots")
    assert roots in mountinfo.own_mounts()


def test_other_file_systems_are_not_ours(tmp_path: Path, mounts: Mounts) -> None:
    mounts.mount(tmp_path / "other", "source", subtype="sshfs")
    try:
        assert mountinfo.mount_at(tmp_path / "other") is None
        assert mountinfo.mount_at(Path("/proc")) is None
    finally:
        subprocess.run(["fusermount3", "-u", "-z", tmp_path / "other"], check=True)


def test_the_topmost_of_two_mounts_on_one_another_is_told(tmp_path: Path, mounts: Mounts) -> None:
    mountpoint = tmp_path / "mnt"
    mounts.mount(tmp_path / "beside", "/beside")
    mounts.mount(mountpoint, "/lower")
    mounts.die(mountpoint)
    mountinfo.unmount_lazily(mountpoint)
    mounts.mount(mountpoint, "/upper")
    entry = mountinfo.mount_at(mountpoint)
    assert entry is not None
    assert entry.data_dir == Path("/upper")
    assert {entry.data_dir for entry in mountinfo.mounts() if entry.mountpoint.is_relative_to(tmp_path)} == {
        Path("/upper"),
        Path("/beside"),
    }


def test_a_mount_point_is_found_by_a_relative_path_with_dots(
    tmp_path: Path, mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts.mount(tmp_path / "mnt", "/data")
    monkeypatch.chdir(tmp_path)
    assert mountinfo.mount_at(Path("other", "..", "mnt")) == mountinfo.mount_at(tmp_path / "mnt") is not None


def test_a_mount_point_is_found_through_links_also_when_its_daemon_is_gone(tmp_path: Path, mounts: Mounts) -> None:
    mountpoint = tmp_path / "real" / "mnt"
    mounts.mount(mountpoint, "/data")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "itself").symlink_to(tmp_path / "folder" / "mnt")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "folder" / "mnt", tmp_path / "itself"):
        assert mountinfo.mount_at(path) == mountinfo.mount_at(mountpoint) is not None
    assert mountinfo.mount_at(tmp_path / "loop") is None
    mounts.die(mountpoint)
    assert mountinfo.mount_at(tmp_path / "itself") is not None


def test_a_mount_whose_daemon_is_gone_is_dead_and_can_be_cleared_away(tmp_path: Path, mounts: Mounts) -> None:
    mountpoint = tmp_path / "mnt"
    mounts.mount(mountpoint, "/data")
    mounts.die(mountpoint)
    assert mountinfo.is_dead(mountpoint)
    assert mountinfo.mount_at(mountpoint) is not None
    mountinfo.unmount_lazily(mountpoint)
    assert mountinfo.mount_at(mountpoint) is None
    assert not mountinfo.is_dead(mountpoint)


def test_a_plain_or_absent_directory_is_not_dead(tmp_path: Path) -> None:
    assert not mountinfo.is_dead(tmp_path)
    assert not mountinfo.is_dead(tmp_path / "absent")


def test_unmounting_what_is_not_mounted_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CachefsError, match=f"{tmp_path}: can't be unmounted: "):
        mountinfo.unmount_lazily(tmp_path)


def test_waiting_for_a_mount_to_go_ends_when_it_goes_although_it_was_moved_and_no_descriptor_is_left(
    tmp_path: Path, mounts: Mounts
) -> None:
    mounts.mount(tmp_path / "above" / "mnt", "/data")
    mounts.mount(tmp_path / "other", "/other")
    entry = mountinfo.mount_at(tmp_path / "above" / "mnt")
    assert entry is not None
    ways = [tmp_path / "other", tmp_path / "moved" / "mnt"]
    command = ["sh", "-c", 'read go; exec fusermount3 -u -z "$0"']
    other, moved = (subprocess.Popen([*command, way], stdin=subprocess.PIPE) for way in ways)

    async def main() -> None:
        gone = trio.Event()

        async def watch(task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await mountinfo.wait_gone(entry)
            gone.set()

        async with trio.open_nursery() as nursery:
            await nursery.start(watch)
            await trio.testing.wait_all_tasks_blocked(0.2)
            (tmp_path / "above").rename(tmp_path / "moved")
            with no_descriptor_left():
                other.communicate(b"\n")
                await trio.testing.wait_all_tasks_blocked(0.2)
                assert not gone.is_set()
                moved.communicate(b"\n")
                with trio.fail_after(5):
                    await gone.wait()

    trio.run(main)


def test_waiting_for_a_mount_to_go_ends_when_it_goes_and_not_when_another_does(tmp_path: Path, mounts: Mounts) -> None:
    mountpoint, other = tmp_path / "mnt", tmp_path / "other"
    mounts.mount(mountpoint, "/data")
    mounts.mount(other, "/other")
    entry = mountinfo.mount_at(mountpoint)
    assert entry is not None

    async def main() -> None:
        gone = trio.Event()

        async def watch() -> None:
            await mountinfo.wait_gone(entry)
            gone.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.sleep(0.05)
            mountinfo.unmount_lazily(other)
            await trio.sleep(0.05)
            assert not gone.is_set()
            mountinfo.unmount_lazily(mountpoint)
            with trio.fail_after(5):
                await gone.wait()
                await mountinfo.wait_gone(entry)

    trio.run(main)


def test_a_process_without_rights_and_descriptors_takes_its_own_mount_away(
    tmp_path: Path, mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(directory: Path, flags: int = 0) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(syscalls, "umount", refused)
    with closing(OwnMount(tmp_path / "mnt")) as own:
        mounts.mount(tmp_path / "mnt", "/data")
        own.begin()
        with no_descriptor_left():
            own.leave()
    assert mountinfo.mount_at(tmp_path / "mnt") is None


def test_a_process_leaves_what_another_one_mounted_in_the_place_of_its_own(tmp_path: Path, mounts: Mounts) -> None:
    with closing(OwnMount(tmp_path / "mnt")) as own:
        mounts.mount(tmp_path / "mnt", "/first")
        own.begin()
        mounts.die(tmp_path / "mnt")
        mountinfo.unmount_lazily(tmp_path / "mnt")
        mounts.mount(tmp_path / "mnt", "/second")  # which has the first one's number now
        own.leave()
        found = mountinfo.mount_at(tmp_path / "mnt")
        assert found is not None
        assert found.data_dir == Path("/second")


def test_a_dead_mount_that_somebody_else_takes_away_meanwhile_is_taken_away(
    tmp_path: Path, mounts: Mounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts.mount(tmp_path / "mnt", "/data")
    mounts.die(tmp_path / "mnt")
    entry = mountinfo.mount_at(tmp_path / "mnt")
    assert entry is not None
    monkeypatch.setattr(overlay, "uncover", mountinfo.unmount_lazily)
    take_away(entry)
    mounts.mount(tmp_path / "mnt", "/other")
    take_away(entry)
    assert mountinfo.mount_at(tmp_path / "mnt") is not None
