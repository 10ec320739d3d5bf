"""Long work shows how far it is; Ctrl-C in its midst gives a word and an exit code, and leaves nobody at it.

How it works: a file that consists of a hole is large enough to be hashed for minutes. A command is at work on it when
it has it open.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from cachefs import mountinfo
from cachefs.catalog.chain import format_chain
from cachefs.cli import TERMINATED
from cachefs.content import ContentId
from tests.counterparts import running
from tests.mount_kit import cachefs, command_of, mount_command, mounted
from tests.terminal_kit import on_a_terminal, shown_until

LARGE, LENGTH = "v1-000000-000500-bodies.seg", 2**39
INTERRUPTED = 130
"""What a shell has for a program that Ctrl-C ended."""


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A directory with one file, too large to be hashed while a test runs."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / LARGE).touch()
    os.truncate(tmp_path / "files" / LARGE, LENGTH)
    (tmp_path / "chain.toml").write_text(format_chain({LARGE: ContentId.btih("12" * 20)}))
    return tmp_path / "files"


def at_work_on(file: Path) -> list[int]:
    """The processes that have a file open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(entry.samefile(file) for entry in (process / "fd").iterdir() if entry.exists()):
                found.append(int(process.name))
        except OSError:  # it ended meanwhile
            continue
    return found


@pytest.mark.parametrize("command", ["torrent-hashes", "torrent-create", "adopt", "mount"])
def test_a_command_that_is_interrupted_says_so_and_no_more(large: Path, tmp_path: Path, command: str) -> None:
    arguments: list[str | Path] = [command, large]
    if command == "adopt":
        arguments += ["--data-dir", tmp_path / "data", "--chain-toml", tmp_path / "chain.toml"]
    if command == "mount":
        local_file(large, tmp_path)
        arguments = mount_command(tmp_path, tmp_path / "chain.toml")
    with running(command, command_of(arguments)) as child:
        child.wait_until("hashing", lambda: child.process.pid in at_work_on(large / LARGE))
        child.process.send_signal(signal.SIGINT)
        assert child.process.wait(20) == INTERRUPTED
        assert child.printed().splitlines()[-1] == "cachefs: interrupted"
        assert "Traceback" not in child.printed()


def local_file(large: Path, place: Path) -> None:
    """Put the large file to where a start looks for local ones."""
    (place / "data" / "snapshots").mkdir(parents=True, exist_ok=True)
    os.link(large / LARGE, place / "data" / "snapshots" / LARGE)


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, INTERRUPTED, "interrupted"),
        (signal.SIGTERM, TERMINATED, "ended by SIGTERM before the mount was usable"),
    ],
)
def test_whoever_ends_a_daemons_start_by_a_signal_ends_the_daemon(
    large: Path, tmp_path: Path, number: signal.Signals, code: int, words: str
) -> None:
    local_file(large, tmp_path)
    arguments = mount_command(tmp_path, tmp_path / "chain.toml", "--daemon")
    with running("mount --daemon", command_of(arguments)) as child:
        child.wait_until("hashing", lambda: bool(at_work_on(large / LARGE)))
        child.process.send_signal(number)
        assert child.process.wait(20) == code
        assert child.printed() == f"cachefs: {words}\n"
        assert at_work_on(large / LARGE) == []
        assert mountinfo.mount_at(tmp_path / "mnt") is None
    assert "Traceback" not in (tmp_path / "data" / "cachefs.log").read_text()


def test_a_mount_that_is_terminated_while_it_starts_says_so_and_leaves_nothing(large: Path, tmp_path: Path) -> None:
    local_file(large, tmp_path)
    with running("mount", command_of(mount_command(tmp_path, tmp_path / "chain.toml"))) as child:
        child.wait_until("hashing", lambda: child.process.pid in at_work_on(large / LARGE))
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(20) == TERMINATED
        assert child.printed().splitlines()[-1] == "cachefs: ended by SIGTERM before the mount was usable"
        assert "Traceback" not in child.printed()
    assert mountinfo.mount_at(tmp_path / "mnt") is None
    (tmp_path / "data" / "snapshots" / LARGE).unlink()
    with mounted(tmp_path) as mount:
        mount.unmount()


def test_a_mount_that_is_hung_up_while_it_starts_goes_on(large: Path, tmp_path: Path) -> None:
    local_file(large, tmp_path)
    with running("mount", command_of(mount_command(tmp_path, tmp_path / "chain.toml"))) as child:
        child.wait_until("hashing", lambda: child.process.pid in at_work_on(large / LARGE))
        child.process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            child.process.wait(0.5)
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(20) == TERMINATED


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_who_starts_a_daemon_is_told_by_which_signal_it_ended(
    large: Path, tmp_path: Path, number: signal.Signals
) -> None:
    local_file(large, tmp_path)
    arguments = mount_command(tmp_path, tmp_path / "chain.toml", "--daemon")
    with running("mount --daemon", command_of(arguments)) as child:
        child.wait_until("hashing", lambda: bool(at_work_on(large / LARGE)))
        (daemon,) = at_work_on(large / LARGE)
        os.kill(daemon, number)
        assert child.process.wait(20) == 1
        assert f"cachefs: the daemon was ended by {number.name} before the mount was usable" in child.printed()
    assert mountinfo.mount_at(tmp_path / "mnt") is None


def test_a_daemons_start_shows_how_far_the_hashing_of_local_files_is(large: Path, tmp_path: Path) -> None:
    local_file(large, tmp_path)
    with on_a_terminal(*mount_command(tmp_path, tmp_path / "chain.toml", "--daemon")) as (process, terminal):
        shown_until(terminal, b"hashing local files")
        shown_until(terminal, b"/549.8 GB")
        said = cachefs("status", "--data-dir", tmp_path / "data").stderr
        assert re.fullmatch(f"cachefs: {tmp_path}/data: pid [0-9]+ .*: it is still coming up, or going down\n", said)
        process.send_signal(signal.SIGINT)
        shown_until(terminal, b"cachefs: interrupted")
        assert process.wait(20) == INTERRUPTED
    assert at_work_on(large / LARGE) == []


def test_a_reload_shows_how_far_hashing_is_and_an_interrupted_one_changes_nothing(large: Path, tmp_path: Path) -> None:
    with mounted(tmp_path, tmp_path / "chain.toml") as mount:
        local_file(large, tmp_path)
        mount.lock.write_text(mount.lock.read_text().replace(LARGE, f"new-{LARGE}"))
        (tmp_path / "data" / "snapshots" / LARGE).rename(tmp_path / "data" / "snapshots" / f"new-{LARGE}")
        with on_a_terminal("reload", mount.mountpoint) as (process, terminal):
            shown_until(terminal, b"/549.8 GB")
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == INTERRUPTED
        mount.child.wait_until("not hashing", lambda: at_work_on(large / LARGE) == [])
        assert [path.name for path in mount.snapshots.iterdir()] == [LARGE]


def test_a_daemon_whose_starter_is_gone_comes_up_all_the_same(tmp_path: Path) -> None:
    """A closed terminal ends who waited for the mount, and nothing else."""
    chain = tmp_path / "chain.toml"
    chain.write_text(format_chain({LARGE: ContentId.btih("12" * 20)}))
    reading, writing = os.pipe()
    os.close(reading)
    arguments = mount_command(tmp_path, chain, "--ready-fd", str(writing))
    with subprocess.Popen(command_of(arguments), pass_fds=[writing]) as process:
        os.close(writing)
        try:
            while mountinfo.mount_at(tmp_path / "mnt") is None or not (tmp_path / "data" / "control.sock").exists():
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.05)
            assert cachefs("status", tmp_path / "mnt").returncode == 0
            assert cachefs("umount", tmp_path / "mnt").returncode == 0
            assert process.wait(20) == 0
        finally:
            process.kill()
            if mountinfo.mount_at(tmp_path / "mnt") is not None:
                mountinfo.unmount_lazily(tmp_path / "mnt")
