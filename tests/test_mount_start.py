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
from cachefs.cli import INTERRUPTED, TERMINATED
from cachefs.store.lock import holder
from tests.counterparts import LOOPBACK, running, silent_server
from tests.mount_kit import BOTH_DRIVERS, cachefs, cleared, command_of, dead_chain, mount_command, mounted

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


def test_a_mount_that_can_not_print_that_it_is_ready_comes_up_all_the_same(chain: Path, tmp_path: Path) -> None:
    command = command_of(mount_command(tmp_path, chain))
    with running("cachefs mount", ["sh", "-c", 'exec "$@" >/dev/full', "sh", *command], signal.SIGTERM) as child:
        child.wait_until("up", lambda: "that it is ready can't be printed: No space left on device" in child.printed())
        assert cachefs("status", tmp_path / "mnt").returncode == 0
        assert cachefs("umount", tmp_path / "mnt").returncode == 0
        assert child.process.wait(20) == 0
        assert "Traceback" not in child.printed()


@BOTH_DRIVERS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_at_the_moment_of_the_mount_leaves_no_dead_one(
    chain: Path, tmp_path: Path, driver: tuple[str, ...], number: signal.Signals
) -> None:
    command = command_of(mount_command(tmp_path, chain, *driver))
    claim = f":{(tmp_path / 'mnt').stat().st_ino} "
    with cleared(tmp_path / "mnt"), running("cachefs mount", command, signal.SIGTERM) as child:
        while claim not in Path("/proc/locks").read_text() and mountinfo.mount_at(tmp_path / "mnt") is None:
            assert child.process.poll() is None, child.printed()
        child.process.send_signal(number)
        if number == signal.SIGHUP:
            child.wait_until("reloaded", lambda: "reload: " in child.printed())
        child.process.send_signal(number if number != signal.SIGHUP else signal.SIGTERM)
        assert child.process.wait(20) in (0, INTERRUPTED, TERMINATED)
        assert "Traceback" not in child.printed()
        assert mountinfo.mount_at(tmp_path / "mnt") is None


@BOTH_DRIVERS
def test_a_mount_that_is_aborted_in_its_first_moment_ends_with_a_word(
    chain: Path, tmp_path: Path, driver: tuple[str, ...]
) -> None:
    command = command_of(mount_command(tmp_path, chain, *driver))
    with cleared(tmp_path / "mnt"), running("cachefs mount", command, signal.SIGTERM) as child:
        while (entry := mountinfo.mount_at(tmp_path / "mnt")) is None:
            assert child.process.poll() is None, child.printed()
        Path(f"/sys/fs/fuse/connections/{entry.connection}/abort").write_text("1")
        code = child.process.wait(20)
        assert code == (0 if "; ready" in child.printed() else 1)
        told = ("the connection to the kernel was aborted", f"{tmp_path}/mnt: can't be mounted (No such device)")
        assert any(words in child.printed() for words in told), child.printed()
        assert "Traceback" not in child.printed()
        assert mountinfo.mount_at(tmp_path / "mnt") is None


def test_a_mount_is_terminated_also_while_it_waits_for_the_lock_to_come(tmp_path: Path) -> None:
    with silent_server() as port:
        url = f"http://{LOOPBACK}:{port}/chain.toml"
        command = mount_command(tmp_path, None, "--chain-toml", url, "--chain", "one")
        with running("cachefs mount", command_of(command)) as child:
            child.wait_until("asking", lambda: connected(port))
            child.process.send_signal(signal.SIGTERM)
            assert child.process.wait(5) == TERMINATED
    assert not (tmp_path / "data" / "snapshots").exists()
    assert holder(tmp_path / "data") == ""


def connected(port: int) -> bool:
    """Whether anybody has a connection to this loopback port."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return any(row[2] == f"0100007F:{port:04X}" for row in rows)


@pytest.mark.parametrize("shared", ["mnt", "data"])
def test_of_two_that_are_started_at_once_on_one_mount_point_or_data_directory_one_is_refused(
    chain: Path, tmp_path: Path, shared: str
) -> None:
    both = [
        subprocess.Popen(
            command_of(mount_command(tmp_path / name, chain, *options)),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name, options in {
            "mnt": [("one", ("--data-dir", tmp_path / "1")), ("one", ("--data-dir", tmp_path / "2"))],
            "data": [("one", ("--data-dir", tmp_path / "1")), ("two", ("--data-dir", tmp_path / "1"))],
        }[shared]
    ]  # fmt: skip
    end = time.monotonic() + 30
    try:
        while (refused := [process for process in both if process.poll() is not None]) == []:
            assert time.monotonic() < end
            time.sleep(0.02)
        said = refused[0].communicate()[0].splitlines()[-1]
        assert refused[0].returncode == 1, said
        in_the_way = {"mnt": ("is mounted already", "is mounting"), "data": ("is in use by pid",)}
        assert any(words in said for words in in_the_way[shared])
        assert len([entry for entry in mountinfo.mounts() if entry.mountpoint.is_relative_to(tmp_path)]) <= 1
    finally:
        for process in both:
            process.terminate()
            process.communicate(timeout=20)
