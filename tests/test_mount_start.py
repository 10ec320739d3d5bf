"""How a daemon is started and told to end, in ways that used to go wrong."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import pytest

from cachefs import mountinfo
from tests.mount_kit import BOTH_DRIVERS, cachefs, command_of, dead_chain, mount_command, mounted

CACHEFS = Path(sys.executable).with_name("cachefs")


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    dead_chain(tmp_path / "chain.toml", 3)
    return tmp_path / "chain.toml"


def test_a_daemon_runs_no_module_from_the_directory_it_is_started_in(chain: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "trio.py").write_text("raise SystemExit('not this one')")
    try:
        command = [CACHEFS, *mount_command(tmp_path, chain, "--daemon")]
        done = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    finally:
        cachefs("umount", tmp_path / "mnt")
    assert "not this one" not in (tmp_path / "data" / "cachefs.log").read_text()


def test_a_daemon_may_have_its_mount_point_named_after_two_dashes(chain: Path, tmp_path: Path) -> None:
    _, mountpoint, *options = mount_command(tmp_path, chain, "--daemon")
    started = cachefs("mount", *options, "--", mountpoint)
    assert (started.returncode, started.stderr) == (0, "")
    assert cachefs("umount", mountpoint).returncode == 0


@BOTH_DRIVERS
def test_signals_while_a_daemon_ends_do_not_break_off_what_it_writes_down(
    chain: Path, tmp_path: Path, driver: tuple[str, ...]
) -> None:
    with mounted(tmp_path, chain, *driver) as mount:
        process, end = mount.child.process, time.monotonic() + 20
        for number in cycle((signal.SIGTERM, signal.SIGINT, signal.SIGHUP)):
            process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                assert process.wait(0.002) == 0
                break
            assert time.monotonic() < end
        assert "already stopping" in mount.child.printed()
        assert "Traceback" not in mount.child.printed()


def test_of_two_that_are_started_at_once_on_one_mount_point_one_is_refused(chain: Path, tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            command_of(mount_command(tmp_path, chain, "--data-dir", tmp_path / name)),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in ("one", "two")
    ]  # fmt: skip
    end = time.monotonic() + 30
    try:
        while (refused := [process for process in both if process.poll() is not None]) == []:
            assert time.monotonic() < end
            time.sleep(0.02)
        said = refused[0].communicate()[0]
        assert refused[0].returncode == 1, said
        assert said.splitlines()[-1].startswith(f"cachefs: {tmp_path}/mnt is mounted already") or "is mounting" in said
        assert len([entry for entry in mountinfo.mounts() if entry.mountpoint == tmp_path / "mnt"]) <= 1
    finally:
        for process in both:
            process.terminate()
            process.communicate(timeout=20)
