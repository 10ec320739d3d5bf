"""Mounts in odd places, dead, hanging, covered or moved: what is refused, and that each can be taken away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachefs import mountinfo, mountpoint
from tests.mount_kit import Mount, cachefs, command_of, dead_chain, mount_command, mounted

CACHEFS = Path(sys.executable).with_name("cachefs")


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    dead_chain(tmp_path / "chain.toml", 3)
    return tmp_path / "chain.toml"


@contextmanager
def stopped(mount: Mount) -> Iterator[None]:
    """While this lasts, the daemon hangs."""
    mount.child.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        mount.child.process.send_signal(signal.SIGCONT)


def test_umount_takes_the_mount_of_a_hanging_daemon_away_and_returns_when_that_has_ended(
    chain: Path, tmp_path: Path
) -> None:
    with mounted(tmp_path, chain) as mount:
        with (
            stopped(mount),
            subprocess.Popen(command_of(["umount", mount.mountpoint]), stderr=subprocess.PIPE, text=True) as umount,
        ):
            mount.child.wait_until("unmounted", lambda: mountinfo.mount_at(mount.mountpoint) is None)
            assert umount.poll() is None
            mount.child.process.send_signal(signal.SIGCONT)
            said = umount.communicate(timeout=30)[1]
        assert (umount.returncode, "doesn't answer within 5 s; its mount is taken away" in said) == (0, True)
        assert mount.ended() == 0


def test_a_mount_whose_daemon_hangs_is_mounted_and_not_dead(chain: Path, tmp_path: Path) -> None:
    with mounted(tmp_path, chain) as mount:
        entry = mountinfo.mount_at(mount.mountpoint)
        assert entry is not None
        with stopped(mount):
            done = cachefs("mount", mount.mountpoint, "--data-dir", tmp_path / "other", "--chain-toml", chain)
            assert done.returncode == 1
            assert f"{mount.mountpoint} is mounted already" in done.stderr
            assert not mountpoint.is_dead(entry)
        mount.kill9()
        assert mountpoint.is_dead(entry)
        with mounted(tmp_path / "elsewhere", None, "--data-dir", mount.data_dir):
            assert mountpoint.is_dead(entry)


@pytest.mark.parametrize("background", [(), ("--daemon",)], ids=["foreground", "daemon"])
def test_a_data_directory_that_a_link_leads_into_the_mount_point_is_refused(
    chain: Path, tmp_path: Path, background: tuple[str, ...]
) -> None:
    (tmp_path / "link").symlink_to("mnt")
    done = cachefs(*mount_command(tmp_path, chain, "--data-dir", tmp_path / "link" / "data", *background))
    assert done.returncode == 1
    assert "inside the mount point" in done.stderr
    assert list((tmp_path / "mnt").iterdir()) == []


def test_a_data_directory_whose_path_is_not_utf_8_is_refused_also_where_only_its_name_was_given(
    chain: Path, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    command = command_of(mount_command(tmp_path, chain, "--data-dir", "data"))
    done = subprocess.run(command, cwd=odd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "data_dir: expected a path in UTF-8" in done.stderr
    assert list(odd.iterdir()) == []


def test_a_dead_mount_is_taken_away_through_a_link_and_by_a_name_like_an_option(chain: Path, tmp_path: Path) -> None:
    with mounted(tmp_path, chain) as mount:
        mount.kill9()
        (tmp_path / "link").symlink_to("mnt")
        done = cachefs("umount", tmp_path / "link")
        assert (done.returncode, done.stderr) == (0, "")
        assert mountinfo.mount_at(mount.mountpoint) is None
    (tmp_path / "mnt").rename(tmp_path / "-x")
    (tmp_path / "mnt").symlink_to("-x")
    with mounted(tmp_path, None) as mount:
        mount.kill9()
        command = command_of(["umount", "./-x"])
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_umount_and_the_next_mount_leave_what_another_lays_over_a_mount(chain: Path, tmp_path: Path) -> None:
    """For root alone, who may mount a tmpfs."""
    with mounted(tmp_path, chain) as mount:
        subprocess.run(["mount", "-t", "tmpfs", "none", mount.mountpoint], check=True)
        try:
            (mount.mountpoint / "mine").touch()
            done = cachefs("umount", mount.mountpoint)
            assert done.returncode == 1
            assert "another file system (tmpfs) lies over the mount" in done.stderr
            assert f"take that away first: umount {mount.mountpoint}\n" in done.stderr
            assert (mount.mountpoint / "mine").exists()
            assert mount.status()["mount"]["mountpoint"] == str(mount.mountpoint)
            mount.kill9()
            done = cachefs("mount", mount.mountpoint, "--data-dir", tmp_path / "other", "--chain-toml", chain)
            assert done.returncode == 1
            assert f"take that away first: umount {mount.mountpoint}\n" in done.stderr
        finally:
            subprocess.run(["umount", mount.mountpoint], check=True)
        with mounted(tmp_path, chain) as mount:
            mount.unmount()


def test_a_mount_whose_place_is_renamed_goes_on_and_ends_where_it_is(chain: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved" / "mnt"
    try:
        with mounted(tmp_path / "above", chain, "--data-dir", tmp_path / "data") as mount:
            (tmp_path / "above").rename(tmp_path / "moved")
            with mounted(tmp_path / "other", chain) as other:
                other.unmount()
            assert cachefs("status", moved).returncode == 0
            assert cachefs("umount", moved).returncode == 0
            assert mount.ended() == 0
        assert mountinfo.mount_at(moved) is None
    finally:
        if mountinfo.mount_at(moved) is not None:
            mountinfo.unmount_lazily(moved)


def test_in_a_directory_whose_mount_is_gone_absolute_paths_work_and_others_are_refused(
    chain: Path, tmp_path: Path
) -> None:
    arguments = mount_command(tmp_path, chain, "--daemon")
    commands: list[list[str | Path]] = [
        ["umount", ".."],
        ["status", "."],
        ["mount", "mnt", "--data-dir", "data", "--daemon"],
    ]
    with mounted(tmp_path, chain) as mount:
        waiting = [
            subprocess.Popen(
                ["sh", "-c", 'read go; exec "$@"', "sh", CACHEFS, *command], cwd=mount.snapshots,
                stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for command in [*commands, arguments]
        ]  # fmt: skip
        mount.kill9()
        mountinfo.unmount_lazily(mount.mountpoint)
    for process in waiting[:-1]:
        said = process.communicate("go\n", timeout=30)[1]
        assert process.returncode == 1
        assert said.startswith("cachefs: the working directory is gone")
        assert "Traceback" not in said
    said = waiting[-1].communicate("go\n", timeout=30)[1]
    try:
        assert (waiting[-1].returncode, said) == (0, "")
    finally:
        cachefs("umount", tmp_path / "mnt")
