"""One daemon for each data directory: who has it, who is kept out, and how."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cachefs.errors import DataDirBusy
from cachefs.store import DataDirLock
from cachefs.store.lock import holder


def test_one_daemon_a_data_directory_and_the_second_is_told_who(tmp_path: Path) -> None:
    with (
        DataDirLock(tmp_path / "data", Path("/mnt/cachefs")),
        pytest.raises(DataDirBusy, match=rf"pid {os.getpid()} \(mounted at /mnt/cachefs\)"),
    ):
        DataDirLock(tmp_path / "data").acquire()
    with DataDirLock(tmp_path / "data"):
        assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_a_killed_daemon_leaves_no_lock_behind(tmp_path: Path) -> None:
    code = "import sys, pathlib; from cachefs.store import DataDirLock as L; L(pathlib.Path(sys.argv[1])).acquire()"
    program = [sys.executable, "-c", f"{code}; print('held', flush=True); sys.stdin.read()", str(tmp_path)]
    child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(DataDirBusy, match=f"pid {child.pid}"):
            DataDirLock(tmp_path).acquire()
        child.kill()
        child.wait()
    DataDirLock(tmp_path).acquire()


def test_deleting_the_locks_file_lets_no_second_daemon_in(tmp_path: Path) -> None:
    with DataDirLock(tmp_path):
        (tmp_path / "lock").unlink()
        with pytest.raises(DataDirBusy):
            DataDirLock(tmp_path).acquire()
        assert holder(tmp_path)
    assert not holder(tmp_path)
    with DataDirLock(tmp_path):
        pass
    with DataDirLock(tmp_path), pytest.raises(DataDirBusy, match=f"pid {os.getpid()}"):
        DataDirLock(tmp_path).acquire()


def test_where_directories_cannot_be_locked_the_file_alone_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def as_on_nfs(fd: int, how: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    with DataDirLock(tmp_path), pytest.raises(DataDirBusy):
        DataDirLock(tmp_path).acquire()
    assert not holder(tmp_path)
