"""A writable mount as a node and its operator meet it: what is written, what is not, and how it ends."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachefs import mountinfo
from cachefs.catalog.snapshots import LOCK_NAME
from tests.counterparts import Seedbox
from tests.mount_kit import (
    BODIES,
    BOTH_DRIVERS,
    DOMAIN,
    HEADERS,
    HISTORY,
    NOBODY,
    PIECE,
    TRANSACTIONS,
    Library,
    Mount,
    cachefs,
    command_of,
    differs,
    make_library,
    mount_command,
    mounted,
    read_error,
    same,
    seeding,
)

NODE = Path(__file__).with_name("node.py").read_text()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 5, 100_000, PIECE, 3 * PIECE + 1, 12 * 2**20)


@pytest.fixture(scope="module")
def box(library: Library) -> Iterator[Seedbox]:
    with seeding(library) as running:
        yield running


@contextmanager
def writable(place: Path, library: Library, *options: str | Path, box: Seedbox | None = None) -> Iterator[Mount]:
    """A writable mount; the sizes are known, and `box` has the content."""
    options = ("--writable", "--torrent-dir", library.products, *options)
    with mounted(place, library.chain, *options, peers=[str(box.peer)] if box else []) as mount:
        yield mount


def _below(mount: Mount) -> list[Path]:
    """The mounts at or below the mount point, in the order in which they were made."""
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    return [path for path in (Path(line.split()[4]) for line in table) if path.is_relative_to(mount.mountpoint)]


def _upper(mount: Mount) -> dict[str, bytes]:
    """The regular files of the upper layer, the lock left out."""
    folder = mount.data_dir / "snapshots"
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != LOCK_NAME}


@BOTH_DRIVERS
@pytest.mark.parametrize("user", [0, NOBODY], ids=["as root", "as another user"])
def test_what_a_node_does_succeeds_and_the_layers_below_stay_as_they_were(
    library: Library, tmp_path: Path, box: Seedbox, user: int, driver: tuple[str, ...]
) -> None:
    options = (*driver, *(("--owner", "nobody") if user else ()))
    with writable(tmp_path, library, *options, box=box) as mount:
        lock = mount.lock.read_bytes()
        # /usr/bin's, because every user may run it; the working directory is entered before root's rights are given up.
        done = subprocess.run(
            ["/usr/bin/python3", "-c", NODE, TRANSACTIONS, HISTORY, HEADERS], cwd=mount.snapshots,
            user=user, group=user, extra_groups=[], capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        hashes = [hashlib.sha256(library.files[name].read_bytes()).hexdigest() for name in (TRANSACTIONS, HISTORY)]
        assert done.stdout.splitlines()[:2] == [f"{TRANSACTIONS} {hashes[0]}", f"{HISTORY} {hashes[1]}"]
        assert done.stdout.splitlines()[2].startswith("done ")
        mount.unmount()
        assert _upper(mount) == {
            f"{TRANSACTIONS}i": TRANSACTIONS.encode() * 1000,
            f"{HISTORY}i": HISTORY.encode() * 1000,
            "merged-parts/part": b"Pammap",
            HEADERS.replace("v1-", "v2-"): b"a merged segment",
        }
        assert mount.lock.read_bytes() == lock
    with mounted(tmp_path, peers=[str(box.peer)]) as mount:
        assert same(mount, library)
        assert sorted(path.name for path in (mount.snapshots / "history").iterdir()) == [HISTORY.partition("/")[2]]


def test_what_was_written_and_deleted_is_as_it_was_after_a_restart(
    library: Library, tmp_path: Path, box: Seedbox
) -> None:
    with writable(tmp_path, library, box=box) as mount:
        (mount.snapshots / "written").write_text("kept")
        (mount.snapshots / HEADERS).unlink()
        mount.unmount()
        assert _below(mount) == []
    with writable(tmp_path, library, box=box) as mount:
        assert (mount.snapshots / "written").read_text() == "kept"
        assert not (mount.snapshots / HEADERS).exists()
        assert same(mount, library, [BODIES, DOMAIN])


def test_after_a_kill_the_next_start_clears_both_mounts_away_and_nothing_written_is_lost(
    library: Library, tmp_path: Path, box: Seedbox
) -> None:
    with writable(tmp_path, library, box=box) as mount:
        with (mount.snapshots / "open").open("w", buffering=1) as file:
            file.write("before\n")
            mount.kill9()
            assert len(_below(mount)) == 2
            with writable(tmp_path, library, box=box) as again:
                assert _below(again) == [again.mountpoint, again.snapshots]
                assert f"taken away from process {os.getpid()} (" in again.child.printed()
                assert same(again, library, [DOMAIN])
                file.write("after\n")
                assert (again.snapshots / "open").read_text() == "before\nafter\n"


def test_umount_clears_both_mounts_of_a_daemon_that_was_killed(library: Library, tmp_path: Path) -> None:
    with writable(tmp_path, library) as mount:
        mount.kill9()
        done = cachefs("umount", mount.mountpoint)
        assert (done.returncode, done.stderr) == (0, "")
        assert _below(mount) == []
        assert list(mount.mountpoint.iterdir()) == []


@pytest.mark.parametrize("end", ["umount", "SIGTERM"])
def test_ending_takes_both_mounts_away_and_lets_a_waiting_reader_and_a_writer_go(
    library: Library, tmp_path: Path, end: str
) -> None:
    with ThreadPoolExecutor(1) as pool, writable(tmp_path, library) as mount:
        with (mount.snapshots / "open").open("w") as file:
            reading = pool.submit(read_error, mount.snapshots / HISTORY)
            mount.waiting(1)
            start = time.monotonic()
            if end == "umount":
                mount.unmount()
            else:
                mount.child.process.send_signal(signal.SIGTERM)
                assert mount.ended() == 0
            assert time.monotonic() - start < 5
            assert reading.result(5) in ("EIO", "ENOTCONN")
            assert _below(mount) == []
            file.write("to the end")
        assert _upper(mount) == {"open": b"to the end"}


@pytest.mark.parametrize("command", [["umount", "snapshots"], ["fusermount3", "-u", "-z", "."], ["umount", "-R", "."]])
def test_taking_either_mount_away_by_hand_ends_the_daemon_and_both_mounts(
    library: Library, tmp_path: Path, command: list[str]
) -> None:
    with writable(tmp_path, library) as mount:
        *words, place = command
        done = subprocess.run([*words, mount.mountpoint / place], capture_output=True, text=True, check=False)
        # With one of the two gone the daemon takes the other away: `umount -R` may find that it is too late.
        assert done.returncode == 0 or "not mounted" in done.stderr
        assert mount.ended() == 0
        assert _below(mount) == []


def test_the_mount_below_is_busy_as_long_as_the_writable_view_lies_over_it(library: Library, tmp_path: Path) -> None:
    with writable(tmp_path, library) as mount:
        refused = subprocess.run(["fusermount3", "-u", mount.mountpoint], capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert "busy" in refused.stderr
        assert mount.status()["mount"]["writable"] is True
        assert ", snapshots writable" in cachefs("status", mount.mountpoint).stdout


def test_a_local_file_is_shown_in_place_of_a_virtual_one_by_the_writable_view_alone(
    library: Library, tmp_path: Path, box: Seedbox
) -> None:
    local = tmp_path / "data" / "snapshots" / BODIES
    local.parent.mkdir(parents=True)
    local.write_bytes(b"mine")
    with writable(tmp_path, library, box=box) as mount:
        assert (mount.snapshots / BODIES).read_bytes() == b"mine"
    with mounted(tmp_path, peers=[str(box.peer)]) as mount:
        assert same(mount, library, [BODIES])
    assert local.read_bytes() == b"mine"


def test_changing_a_virtual_file_copies_it_whole_and_leaves_the_one_below_as_it_was(
    library: Library, tmp_path: Path, box: Seedbox
) -> None:
    with writable(tmp_path, library, box=box) as mount:
        with (mount.snapshots / DOMAIN).open("r+b") as file:
            file.seek(PIECE)
            file.write(b"changed")
        original = library.files[DOMAIN].read_bytes()
        changed = original[:PIECE] + b"changed" + original[PIECE + 7 :]
        assert (mount.snapshots / DOMAIN).read_bytes() == changed
    assert (tmp_path / "data" / "snapshots" / DOMAIN).read_bytes() == changed
    with mounted(tmp_path) as mount:
        assert differs(library.files[DOMAIN], mount.snapshots / DOMAIN) == ""


def test_changing_a_virtual_file_that_cannot_be_had_fails_and_leaves_nothing(library: Library, tmp_path: Path) -> None:
    with writable(tmp_path, library, "--deadline", "1") as mount:
        with pytest.raises(OSError, match="Input/output error"):
            (mount.snapshots / DOMAIN).open("r+b")
        assert _upper(mount) == {}
        (mount.snapshots / "domain" / "new").write_text("goes on")


def test_without_the_right_to_mount_it_is_refused_with_what_to_do_and_nothing_is_touched(
    library: Library, tmp_path: Path
) -> None:
    command = command_of(mount_command(tmp_path, library.chain, "--writable"))
    without = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    done = subprocess.run([*without, *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("cachefs: --writable: only root may mount an overlayfs. Start it with sudo")
    assert not (tmp_path / "data").exists()
    assert mountinfo.mount_at(tmp_path / "mnt") is None


def test_an_owner_of_a_mount_that_is_not_writable_is_refused(library: Library, tmp_path: Path) -> None:
    done = cachefs(*mount_command(tmp_path, library.chain, "--owner", "nobody"))
    assert done.returncode == 1
    assert "--owner: is for a writable mount" in done.stderr
