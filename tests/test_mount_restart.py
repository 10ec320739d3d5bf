"""A mount that ended, well or badly, goes on where it was: nothing that is here is fetched again."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from cachefs import mountinfo
from tests.counterparts import nginx
from tests.mount_kit import (
    BODIES,
    HISTORY,
    PIECE,
    Library,
    Mount,
    cachefs,
    make_library,
    mount_command,
    mounted,
    read_error,
    read_only,
    same,
    seeding,
)

LENGTH = 32 * 2**20
SLOW = "limit_rate 1m;"  # for each of several connections


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 5, 100_000, PIECE, 3 * PIECE + 1, LENGTH)


def _end_in_mid_download(mount: Mount, end: Callable[[], object]) -> int:
    """Read the large file, and `end` the daemon when a part of it was committed; that part in bytes."""
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_error, mount.snapshots / HISTORY, 0, LENGTH)
        try:
            now = mount.wait_for("committed in part", lambda now: now["store"]["bytes"] >= 3 * PIECE)
        finally:
            end()
        assert reading.result() != ""
    committed: int = now["store"]["bytes"]
    assert committed < LENGTH - PIECE
    return committed


def _terminate(mount: Mount) -> None:
    mount.child.process.send_signal(signal.SIGTERM)
    assert mount.ended() == 0


@pytest.mark.parametrize("end", [Mount.kill9, _terminate], ids=["kill -9", "SIGTERM"])
def test_what_was_committed_before_the_end_in_mid_download_is_not_fetched_again(
    library: Library, tmp_path: Path, end: Callable[[Mount], None]
) -> None:
    with nginx(library.merged(tmp_path / "web"), location=SLOW) as url:
        with mounted(tmp_path, library.chain, webseeds=[url]) as mount:
            committed = _end_in_mid_download(mount, lambda: end(mount))
    with seeding(library) as box, mounted(tmp_path, peers=[str(box.peer)]) as mount:
        assert same(mount, library, [HISTORY])
        assert mount.received(PIECE) <= LENGTH - committed


def test_the_end_comes_while_a_file_is_open_that_is_being_read_ahead_from_a_web_seed(
    library: Library, tmp_path: Path
) -> None:
    with nginx(library.merged(tmp_path / "web"), location=SLOW) as url:
        with mounted(tmp_path, library.chain, webseeds=[url]) as mount:
            # Closing it fails, for the daemon is gone.
            with suppress(OSError), (mount.snapshots / HISTORY).open("rb") as file:
                file.read(2 * PIECE)
                mount.wait_for("reading ahead", lambda now: now["transfers"] and now["transfers"][0]["wanted_blocks"])
                _terminate(mount)


def test_two_kills_in_a_row_lose_nothing_that_was_committed(library: Library, tmp_path: Path) -> None:
    with nginx(library.merged(tmp_path / "web"), location=SLOW) as url:
        with mounted(tmp_path, library.chain, webseeds=[url]) as mount:
            committed = _end_in_mid_download(mount, mount.kill9)
    for _ in range(2):
        with mounted(tmp_path) as mount:
            held = mount.held_pieces(library, HISTORY)
            assert len(held) * PIECE >= committed
            assert read_error(mount.snapshots / HISTORY) == ""
            mount.kill9()


def test_the_next_start_clears_a_mount_whose_daemon_was_killed(library: Library, tmp_path: Path) -> None:
    with mounted(tmp_path, library.chain, "--torrent-dir", library.products) as mount:
        mount.kill9()
        assert mountinfo.is_dead(mount.mountpoint)
        with mounted(tmp_path) as again:
            assert (again.snapshots / HISTORY).stat().st_size == LENGTH
            assert "clearing away a mount whose daemon is gone" in again.child.printed()
            assert [entry.mountpoint for entry in mountinfo.mounts()].count(again.mountpoint) == 1


def test_umount_clears_a_mount_whose_daemon_was_killed(library: Library, tmp_path: Path) -> None:
    with mounted(tmp_path, library.chain) as mount:
        mount.kill9()
        done = cachefs("umount", mount.mountpoint)
        assert (done.returncode, done.stderr) == (0, "")
        assert mountinfo.mount_at(mount.mountpoint) is None
        assert list(mount.mountpoint.iterdir()) == []


@pytest.fixture
def filled(library: Library, tmp_path: Path) -> Path:
    """A place whose mount has read everything and is gone."""
    with seeding(library) as box, mounted(tmp_path, library.chain, peers=[str(box.peer)]) as mount:
        assert same(mount, library)
    return tmp_path


@pytest.mark.parametrize("damage", [b"garbage" * 5000, b""], ids=["garbage", "emptied"])
def test_a_state_database_of_garbage_costs_no_byte_from_the_network(
    library: Library, filled: Path, damage: bytes
) -> None:
    for leftover in (filled / "data").glob("state.db*"):
        leftover.unlink()
    (filled / "data" / "state.db").write_bytes(damage)
    with mounted(filled) as mount:
        assert same(mount, library)
        assert mount.status()["store"]["complete"] == len(library.files)


def test_bytes_that_changed_on_disk_while_the_mount_was_away_are_fetched_again(library: Library, filled: Path) -> None:
    with mounted(filled) as mount:
        data = mount.object(library, HISTORY) / "data"
    data.chmod(0o600)
    with data.open("r+b") as file:
        file.seek(2 * PIECE + 5)
        file.write(b"not what it was")
    with mounted(filled) as mount:
        assert read_error(mount.snapshots / HISTORY, PIECE) == ""
    with seeding(library) as box, mounted(filled, peers=[str(box.peer)]) as mount:
        assert same(mount, library, [HISTORY])
        assert mount.received(PIECE) < 2 * PIECE


@pytest.mark.parametrize("damage", [b"", b"d4:infod6:lengthi5", b"garbage"], ids=["empty", "torn", "garbage"])
def test_broken_metadata_in_the_store_is_fetched_again(library: Library, filled: Path, damage: bytes) -> None:
    with mounted(filled) as mount:
        manifest = mount.object(library, BODIES) / "manifest"
    manifest.write_bytes(damage)
    with seeding(library) as box, mounted(filled, peers=[str(box.peer)]) as mount:
        assert same(mount, library, [BODIES])
        assert library.content(BODIES).hex in mount.object(library, BODIES).name
        assert manifest.read_bytes() != damage
        assert mount.received() == 0  # its content was here


def test_what_is_held_on_a_disk_that_is_read_only_can_be_read(library: Library, tmp_path: Path) -> None:
    done = cachefs("adopt", library.root, "--data-dir", tmp_path / "data", "--chain-toml", library.chain)
    assert done.returncode == 0
    with read_only(tmp_path / "data"), mounted(tmp_path) as mount:
        assert same(mount, library)
        assert "commands can't reach this daemon" in mount.child.printed()
        mount.unmount()
    with read_only(tmp_path / "data"):
        started = cachefs(*mount_command(tmp_path, None, "--daemon"))
        assert (started.returncode, "the daemon's messages are lost" in started.stderr) == (0, True)
        assert cachefs("umount", tmp_path / "mnt").returncode == 0
