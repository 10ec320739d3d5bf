"""Starting, asking and ending a mount as its user does: commands, exit codes and messages."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cachefs import mountinfo
from tests.mount_kit import (
    BOTH_DRIVERS,
    HISTORY,
    PIECE,
    Library,
    cachefs,
    make_library,
    mount_command,
    mounted,
    pread,
    read_error,
    same,
    seeding,
    small,
    typed,
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 5, 100_000, PIECE, 3 * PIECE + 1, 6 * 2**20)


def _refused(*arguments: str | Path) -> str:
    """What a mount that must fail says: one line, and exit code 1."""
    done = cachefs(*arguments)
    assert done.returncode == 1, done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("cachefs: ")
    assert "Traceback" not in done.stderr
    return last


def test_a_second_daemon_on_a_data_directory_says_who_holds_it(library: Library, tmp_path: Path) -> None:
    with mounted(tmp_path, library.chain) as mount:
        (tmp_path / "other" / "mnt").mkdir(parents=True)
        said = _refused("mount", tmp_path / "other" / "mnt", "--data-dir", mount.data_dir)
        assert str(mount.data_dir) in said
        assert f"pid {mount.child.process.pid}" in said
        assert str(mount.mountpoint) in said
        assert mount.status()["mount"]["pid"] == mount.child.process.pid


@pytest.mark.parametrize("background", [(), ("--daemon",)], ids=["foreground", "daemon"])
def test_a_mount_point_that_is_not_there_is_refused(library: Library, tmp_path: Path, background: list[str]) -> None:
    arguments = mount_command(tmp_path, library.chain, *background)
    (tmp_path / "mnt").rmdir()
    said = _refused(*arguments)
    assert str(tmp_path / "mnt") in said
    assert "mkdir" in said


@pytest.mark.parametrize("background", [(), ("--daemon",)], ids=["foreground", "daemon"])
def test_a_data_directory_that_cannot_be_made_is_refused(
    library: Library, tmp_path: Path, background: list[str]
) -> None:
    (tmp_path / "data").touch()
    said = _refused(*mount_command(tmp_path, library.chain, "--data-dir", tmp_path / "data" / "x", *background))
    assert said == f"cachefs: {tmp_path}/data/x: can't be used as data directory: Not a directory"


def test_why_a_daemon_does_not_start_is_said_although_its_log_has_no_room(library: Library, tmp_path: Path) -> None:
    with small(tmp_path / "data"):
        said = _refused(*mount_command(tmp_path, library.chain, "--daemon"))
    assert "No space left on device" in said or "disk is full" in said


def test_a_mount_point_that_is_a_file_is_refused(library: Library, tmp_path: Path) -> None:
    arguments = mount_command(tmp_path, library.chain)
    (tmp_path / "mnt").rmdir()
    (tmp_path / "mnt").touch()
    assert "not a directory" in _refused(*arguments)


def test_a_mount_point_that_is_in_use_is_refused_and_what_is_there_goes_on(library: Library, tmp_path: Path) -> None:
    with mounted(tmp_path, library.chain, "--torrent-dir", library.products) as mount:
        said = _refused("mount", mount.mountpoint, "--data-dir", tmp_path / "other", "--chain-toml", library.chain)
        assert f"{mount.mountpoint} is mounted already" in said
        assert (mount.snapshots / HISTORY).stat().st_size == 6 * 2**20


def test_a_data_directory_inside_the_mount_point_is_refused(library: Library, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    said = _refused("mount", tmp_path / "mnt", "--data-dir", tmp_path / "mnt" / "data", "--chain-toml", library.chain)
    assert "inside the mount point" in said


def test_a_first_start_without_a_chain_toml_says_what_is_needed(tmp_path: Path) -> None:
    assert "--chain-toml" in _refused(*mount_command(tmp_path))


def test_a_data_directory_is_its_users_alone(library: Library, tmp_path: Path) -> None:
    with mounted(tmp_path, library.chain) as mount:
        assert stat.S_IMODE(mount.data_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE((mount.data_dir / "control.sock").stat().st_mode) == 0o600


def test_daemon_returns_when_the_mount_is_usable_and_umount_when_it_has_ended(library: Library, tmp_path: Path) -> None:
    options = ("--torrent-dir", library.products, "--daemon")
    with seeding(library) as box:
        started = cachefs(*mount_command(tmp_path, library.chain, *options, peers=[str(box.peer)]))
        try:
            assert (started.returncode, started.stderr) == (0, "")
            assert "; ready" in started.stdout
            assert pread(tmp_path / "mnt" / "snapshots" / HISTORY, 5, 10) == pread(library.files[HISTORY], 5, 10)
        finally:
            ended = cachefs("umount", tmp_path / "mnt")
        assert (ended.returncode, ended.stderr) == (0, "")
        assert mountinfo.mount_at(tmp_path / "mnt") is None
        assert not (tmp_path / "data" / "control.sock").exists()


def test_a_mount_on_a_link_works_and_is_found_by_it(library: Library, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "real").mkdir()
    (tmp_path / "place" / "mnt").symlink_to("real")
    with mounted(tmp_path / "place", library.chain, "--torrent-dir", library.products) as mount:
        assert (mount.snapshots / HISTORY).stat().st_size == 6 * 2**20
        assert cachefs("status", mount.mountpoint).returncode == 0
        mount.unmount()


def test_a_mount_with_names_that_need_quoting_works(library: Library, tmp_path: Path) -> None:
    place = tmp_path / "a space, a comma\\and ümlauts"
    with mounted(place, library.chain, "--torrent-dir", library.products) as mount:
        assert (mount.snapshots / HISTORY).stat().st_size == 6 * 2**20
        entry = mountinfo.mount_at(mount.mountpoint)
        assert entry is not None
        assert entry.data_dir == mount.data_dir
        mount.unmount()


@BOTH_DRIVERS
def test_a_plain_fusermount_of_an_idle_mount_ends_the_daemon_cleanly(
    library: Library, tmp_path: Path, driver: tuple[str, ...]
) -> None:
    with seeding(library) as box, mounted(tmp_path, library.chain, *driver, peers=[str(box.peer)]) as mount:
        assert same(mount, library)
        subprocess.run(["fusermount3", "-u", mount.mountpoint], check=True)
        assert mount.ended() == 0
    with mounted(tmp_path) as mount:
        assert mount.status()["store"]["complete"] == len(library.files)
        assert same(mount, library)


@BOTH_DRIVERS
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_cleanly_and_lets_a_waiting_reader_go(
    library: Library, tmp_path: Path, number: signal.Signals, driver: tuple[str, ...]
) -> None:
    torrents = ("--torrent-dir", library.products)
    with ThreadPoolExecutor(1) as pool, mounted(tmp_path, library.chain, *torrents, *driver) as mount:
        reading = pool.submit(read_error, mount.snapshots / HISTORY)
        mount.waiting(1)
        mount.child.process.send_signal(number)
        assert mount.ended() == 0
        assert reading.result(5) == "EIO"
        assert mountinfo.mount_at(mount.mountpoint) is None


def test_status_shows_who_waits_for_which_block_and_the_last_error(library: Library, tmp_path: Path) -> None:
    torrents = ("--torrent-dir", library.products)
    with ThreadPoolExecutor(1) as pool:
        with mounted(tmp_path, library.chain, *torrents, "--deadline", "6", peers=["127.0.0.1:9"]) as mount:
            assert read_error(mount.snapshots / HISTORY) == "EIO"
            reading = pool.submit(read_error, mount.snapshots / HISTORY, 2 * PIECE + 5)
            mount.waiting(1)
            raw, text = typed("status", "--json", mount.mountpoint), typed("status", mount.mountpoint)
            assert reading.result(20) == "EIO"
    told = json.loads(raw.stdout)
    assert [(w["name"], w["blocks"], w["no_room"]) for w in told["waiting"]] == [(HISTORY, [2], False)]
    assert HISTORY in told["last_error"]
    assert told["failed_reads"] >= 1
    assert "127.0.0.1:9" in told["last_error"]
    assert re.search(rf"^  {re.escape(HISTORY)}  for blocks 2, \d", text.stdout, re.MULTILINE)
    assert f"last error {told['last_error']}" in text.stdout


def test_status_shows_what_is_held_and_who_gave_it(library: Library, tmp_path: Path) -> None:
    with seeding(library) as box, mounted(tmp_path, library.chain, peers=[str(box.peer)]) as mount:
        assert same(mount, library)
        total = sum(path.stat().st_size for path in library.files.values())
        told = mount.wait_for("counted", lambda now: now["store"]["bytes"] == total and now["sources"][0]["received"])
        names = {"names": len(library.files), "shown": len(library.files)}
        assert told["catalogue"] == {"chain": "unknown", **names, "chain_toml": str(library.chain)}
        assert told["metadata"]["known"] == len(library.files)
        assert told["store"]["complete"] == len(library.files)
        assert [source["name"] for source in told["sources"]] == [str(box.peer)]


def test_status_without_a_daemon_says_so(tmp_path: Path) -> None:
    assert "no daemon answers" in _refused("status", "--data-dir", tmp_path)
