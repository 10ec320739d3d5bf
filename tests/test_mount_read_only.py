"""A mount whose data directory is on a read-only file system: what is cached can be read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachefs import mountinfo
from cachefs.catalog import records
from cachefs.catalog.records import LOCK_NAME
from tests import records_kit
from tests.counterparts import failing_disk
from tests.mount_kit import Mount, cachefs, mounted, read_error, read_only
from tests.records_kit import data_dir, song, web

SONG = song(1, 700_000)


@contextmanager
def two_records(tmp_path: Path, settings: str = "") -> Iterator[tuple[Mount, Path, Callable[[], None]]]:
    """A mount of here.mp3 and there.mp3 on a disk of its own, the data directory, and what has the disk fail."""
    (tmp_path / "data").mkdir()
    with failing_disk(tmp_path / "data", 32 * 2**20) as fail, web() as host:
        data = data_dir(tmp_path)
        records_kit.etch(data, host.put("here.mp3", SONG))
        records_kit.etch(data, host.put("there.mp3", song(2, 700_000)))
        assert cachefs("pin", "records/there.mp3", "--data-dir", data).returncode == 0
        with mounted(tmp_path, settings=settings) as mount:
            yield mount, data, fail


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory that has the record here.mp3, and cold.mp3 without its bytes."""
    with web() as host:
        data = data_dir(tmp_path)
        records_kit.etch(data, host.put("here.mp3", SONG))
        records_kit.etch(data, host.put("cold.mp3", song(2, 700_000)))
    content = records.load(data / LOCK_NAME).records["cold.mp3"].content
    assert content is not None
    shutil.rmtree(data / "store" / "sha256" / content.hex[:2])
    return data


def test_cached_records_are_read_and_the_mount_is_taken_away_as_any_other(data: Path, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    with read_only(data):
        done = cachefs(
            "mount", tmp_path / "mnt", "--data-dir", data, "--daemon", "--offline-discovery", "--listen", "127.0.0.1:0"
        )
        assert done.returncode == 0, done.stderr
        try:
            assert done.stdout == f"{tmp_path}/mnt: 2 records; ready\n"  # and no word about snapshots
            assert (tmp_path / "mnt" / "records" / "here.mp3").read_bytes() == SONG
            assert cachefs("play", "here.mp3", "--data-dir", data).returncode == 0
            assert read_error(tmp_path / "mnt" / "records" / "cold.mp3") == "EIO"
            assert os.getxattr(tmp_path / "mnt/records/cold.mp3", "user.cachefs.error").endswith(
                b"Read-only file system"
            )
        finally:
            ended = cachefs("umount", tmp_path / "mnt")
        assert ended.returncode == 0, ended.stderr
        assert mountinfo.mount_at(tmp_path / "mnt") is None


@pytest.mark.parametrize("command", ["pin", "unpin"])
def test_a_pin_that_could_not_be_kept_is_refused(data: Path, command: str) -> None:
    assert cachefs("pin", "records/here.mp3", "--data-dir", data).returncode == 0
    with read_only(data):
        done = cachefs(command, "records/here.mp3", "--data-dir", data)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"cachefs: {data} can't be written to: pins stay as they are there\n"
        assert cachefs("pin", "--data-dir", data).stdout == "records/here.mp3\n"


def test_a_disk_that_turns_read_only_under_a_mount_leaves_what_is_cached_and_its_commands(tmp_path: Path) -> None:
    with two_records(tmp_path) as (mount, data, fail):
        assert (mount.mountpoint / "records" / "here.mp3").read_bytes() == SONG
        fail()
        assert (mount.mountpoint / "records" / "there.mp3").read_bytes() == song(2, 700_000)
        assert "2 names held" in done("verify", "--data-dir", data)
        assert done("pin", "--data-dir", data) == "records/there.mp3\n"
        assert "here.mp3 stays" in done("evict", "records/here.mp3", "--data-dir", data)
        assert "0 without a name" in done("gc", "--data-dir", data)
        mount.unmount()
        assert "Traceback" not in mount.child.printed()
    assert mountinfo.mount_at(tmp_path / "mnt") is None


def test_a_disk_that_an_error_made_read_only_can_be_mounted_from(tmp_path: Path) -> None:
    with two_records(tmp_path) as (mount, data, fail):
        mount.unmount()
        fail()
        with mounted(tmp_path) as again:
            assert (again.mountpoint / "records" / "here.mp3").read_bytes() == SONG
            assert cachefs("verify", "--data-dir", data).returncode == 0
            again.unmount()


def test_a_scrub_that_can_not_be_written_down_pauses_and_says_so_in_a_sentence(tmp_path: Path) -> None:
    with two_records(tmp_path, "[scrub]\ninterval = 0.5\n") as (mount, _data, fail):
        fail()
        mount.child.wait_until("pausing the scrub", lambda: "the scrub pauses" in mount.child.printed())
        mount.unmount()
        assert "the scrub pauses for an hour: state.db: " in mount.child.printed()
        assert "Traceback" not in mount.child.printed()


def done(*arguments: str | Path) -> str:
    ended = cachefs(*arguments)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout
