"""A mount whose data directory is on a read-only file system: what is cached can be read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cachefs import mountinfo
from cachefs.catalog import records
from cachefs.catalog.records import LOCK_NAME
from tests import records_kit
from tests.mount_kit import cachefs, read_error, read_only
from tests.records_kit import data_dir, song, web

SONG = song(1, 700_000)


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
