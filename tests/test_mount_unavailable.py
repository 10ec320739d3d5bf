"""What a reader gets when nobody delivers, through a real mount: by pattern, with errno and reason."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.counterparts import LOOPBACK, Child, free_port, nginx, running
from tests.mount_kit import (
    BODIES,
    BOTH_DRIVERS,
    DOMAIN,
    HEADERS,
    HISTORY,
    PASSTHROUGH,
    PIECE,
    Library,
    Mount,
    make_library,
    mounted,
    pread,
    read_error,
    seeding,
)

LENGTH = 6 * 2**20
STATE, SOURCE, ERROR, CHECKSUM, PROGRESS = (
    f"user.cachefs.{name}" for name in ("state", "source", "error", "checksum", "progress")
)
MODES = """
[read]
deadline = 4.0
fail_fast_after = 0.5
max_waiting = 3
[read.on_unavailable]
"snapshots/domain/*" = "fail-fast"
"snapshots/history/*" = "wait"
"""
"""The block files, which fit no pattern, have the deadline."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 5, 100_000, PIECE, 3 * PIECE + 1, LENGTH)


@contextmanager
def mount_of(
    library: Library, place: Path, settings: str = MODES, *peers: str, driver: tuple[str, ...] = ()
) -> Iterator[Mount]:
    torrents = "--torrent-dir", library.products
    with mounted(place, library.chain, *torrents, *driver, settings=settings, peers=peers) as mount:
        yield mount


def attribute(path: Path, name: str) -> str:
    return os.getxattr(path, name).decode()


def refusal(call: Callable[..., object], *arguments: object) -> int | None:
    """The errno that a system call ends with; None if it succeeds."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno
    return None


def attributes(path: Path) -> dict[str, str]:
    return {name.removeprefix("user.cachefs."): attribute(path, name) for name in os.listxattr(path)}


# What a reader gets


def test_each_catalogue_s_files_fail_when_their_pattern_says(library: Library, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        with mount_of(library, tmp_path, MODES, f"{LOOPBACK}:{free_port()}") as mount:
            start = time.monotonic()
            waiting = pool.submit(read_error, mount.snapshots / HISTORY)
            at_deadline = pool.submit(read_error, mount.snapshots / BODIES)
            assert read_error(mount.snapshots / DOMAIN) == "EIO"
            assert 0.4 < time.monotonic() - start < 3
            assert at_deadline.result(20) == "EIO"
            assert time.monotonic() - start > 3.9
            assert not waiting.done()
            assert [wait["name"] for wait in mount.waiting(1)["waiting"]] == [HISTORY]
        assert waiting.result(20) == "EIO", "the mount's end lets it go"


def test_a_reader_that_waits_for_ever_gets_its_bytes_long_after_the_deadline(library: Library, tmp_path: Path) -> None:
    port = free_port()
    settings = '[read]\ndeadline = 0.5\non_unavailable = "wait"\n'
    with ThreadPoolExecutor(1) as pool:
        with mount_of(library, tmp_path, settings, f"{LOOPBACK}:{port}") as mount:
            reading = pool.submit(pread, mount.snapshots / HISTORY, 5, 1000)
            mount.wait_for("past the deadline", lambda now: now["waiting"] and now["waiting"][0]["seconds"] > 1.5)
            assert not reading.done()
            with seeding(library, "--listen", f"{LOOPBACK}:{port}"):
                assert reading.result(30) == pread(library.files[HISTORY], 5, 1000)


def test_a_quick_failure_comes_only_when_nothing_moves(library: Library, tmp_path: Path) -> None:
    settings = '[read]\nfail_fast_after = 1.0\nreadahead_blocks = 0\non_unavailable = "fail-fast"\n'
    torrents = ("--torrent-dir", library.products)
    with nginx(library.root, location="limit_rate 700k;") as url:
        with mounted(tmp_path, library.chain, *torrents, settings=settings, webseeds=[url]) as mount:
            start = time.monotonic()
            assert read_error(mount.snapshots / HISTORY) == ""
            assert time.monotonic() - start > 1.5, "it took longer than a failure would have"


def test_more_readers_than_may_wait_are_refused_at_once(library: Library, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        with mount_of(library, tmp_path) as mount:
            reads = [pool.submit(read_error, mount.snapshots / HISTORY, at * PIECE) for at in range(3)]
            mount.waiting(3)
            start = time.monotonic()
            assert read_error(mount.snapshots / HEADERS) == "EIO"
            assert time.monotonic() - start < 2
            told = mount.waiting(3)
            assert not any(name == HEADERS for name in (wait["name"] for wait in told["waiting"]))
            assert told["last_error"] == f"{HEADERS}: 3 reads wait already ([read] max_waiting)"
            assert attribute(mount.snapshots / HEADERS, ERROR) == told["last_error"]
    assert {read.result(20) for read in reads} == {"EIO"}


# A reader that is killed


_READER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print("reads", flush=True)
os.pread(fd, 4096, int(sys.argv[2]))
"""


@contextmanager
def reader(path: Path, offset: int) -> Iterator[Child]:
    with running("a reader", [sys.executable, "-c", _READER, path, str(offset)]) as child:
        child.wait_until("reading", lambda: "reads" in child.printed())
        yield child


@BOTH_DRIVERS
@pytest.mark.parametrize("mode", ["wait", "deadline"])
def test_a_reader_that_is_killed_while_it_waits_is_let_go_and_its_place_is_free(
    library: Library, tmp_path: Path, mode: str, driver: tuple[str, ...]
) -> None:
    settings = f'[read]\ndeadline = 300.0\non_unavailable = "{mode}"\n'
    with (
        mount_of(library, tmp_path, settings, driver=driver) as mount,
        reader(mount.snapshots / HISTORY, PIECE) as child,
    ):
        mount.waiting(1)
        child.process.kill()
        assert child.process.wait(10) == -signal.SIGKILL
        mount.wait_for("nobody waiting", lambda now: not now["waiting"])
        mount.wait_for("nothing wanted", lambda now: not now["transfers"])


def test_a_killed_reader_takes_nobody_with_it(library: Library, tmp_path: Path) -> None:
    port = free_port()
    settings = '[read]\non_unavailable = "wait"\n'
    with ThreadPoolExecutor(1) as pool, mount_of(library, tmp_path, settings, f"{LOOPBACK}:{port}") as mount:
        other = pool.submit(pread, mount.snapshots / HISTORY, PIECE + 100_000, 1000)
        with reader(mount.snapshots / HISTORY, PIECE) as child:
            mount.waiting(2)
            child.process.kill()
            assert child.process.wait(10) == -signal.SIGKILL
            mount.wait_for("one waiting", lambda now: len(now["waiting"]) == 1)
        with seeding(library, "--listen", f"{LOOPBACK}:{port}"):
            assert other.result(30) == pread(library.files[HISTORY], PIECE + 100_000, 1000)


_HEIR = """
import os, signal, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
child = os.fork()
if child == 0:
    os.pread(fd, 4096, int(sys.argv[2]))
    os._exit(1)
print("reads", child, flush=True)
os.waitpid(child, 0)
print("gone", flush=True)
signal.pause()
"""


@PASSTHROUGH
def test_a_killed_reader_that_has_the_file_from_another_process_is_let_go(library: Library, tmp_path: Path) -> None:
    settings = "[read]\ndeadline = 300.0\n"
    with (
        mount_of(library, tmp_path, settings, driver=("--passthrough",)) as mount,
        running("two", [sys.executable, "-c", _HEIR, mount.snapshots / HISTORY, str(PIECE)]) as opener,
    ):
        mount.waiting(1)
        opener.wait_until("reading", lambda: "reads" in opener.printed())
        os.kill(int(opener.printed().split()[1]), signal.SIGKILL)
        opener.wait_until("gone", lambda: "gone" in opener.printed())
        mount.wait_for("nobody waiting", lambda now: not now["waiting"])


# Extended attributes


@BOTH_DRIVERS
def test_a_file_s_attributes_are_listed_and_a_folder_has_none(
    library: Library, tmp_path: Path, driver: tuple[str, ...]
) -> None:
    with mount_of(library, tmp_path, driver=driver) as mount:
        assert sorted(os.listxattr(mount.snapshots / HISTORY)) == sorted([STATE, SOURCE, ERROR, CHECKSUM, PROGRESS])
        assert os.listxattr(mount.snapshots) == []
        for path, name in ((mount.snapshots / HISTORY, "user.other"), (mount.snapshots, STATE)):
            assert refusal(os.getxattr, path, name) == errno.ENODATA
        assert refusal(os.setxattr, mount.snapshots / HISTORY, STATE, b"complete") in (errno.EROFS, errno.ENOTSUP)


def test_attributes_follow_a_file_from_absent_to_complete_and_name_its_source(library: Library, tmp_path: Path) -> None:
    with seeding(library) as box, mount_of(library, tmp_path, "", str(box.peer)) as mount:
        path, checksum = mount.snapshots / HISTORY, str(library.content(HISTORY))
        absent = {"state": "absent", "progress": f"0/{LENGTH}", "source": "", "error": "", "checksum": checksum}
        assert attributes(path) == absent
        pread(path, 0, 10)
        with path.open("rb"):
            held, _, length = attribute(path, PROGRESS).partition("/")
            assert (attribute(path, STATE), length) == ("partial", str(LENGTH))
            assert int(held) in range(PIECE, LENGTH, PIECE)
            assert attribute(path, SOURCE) == "torrent"
        assert read_error(path, 0, LENGTH) == ""
        assert (attribute(path, STATE), attribute(path, PROGRESS)) == ("complete", f"{LENGTH}/{LENGTH}")


def test_attributes_tell_why_a_read_failed_until_one_succeeds(library: Library, tmp_path: Path) -> None:
    port = free_port()
    settings = "[read]\ndeadline = 1.0\n"
    with mount_of(library, tmp_path, settings, f"{LOOPBACK}:{port}") as mount:
        path = mount.snapshots / HISTORY
        assert read_error(path) == "EIO"
        assert attribute(path, ERROR) == mount.status()["last_error"]
        assert attribute(path, ERROR).startswith(f"{HISTORY}: nothing after 1.")
        assert (attribute(path, STATE), attribute(mount.snapshots / DOMAIN, ERROR)) == ("absent", "")
        with seeding(library, "--listen", f"{LOOPBACK}:{port}"):
            mount.child.wait_until("readable", lambda: read_error(path) == "")
        assert attribute(path, ERROR) == ""


def test_attributes_of_a_file_whose_size_nobody_knows_can_not_be_reached_by_a_look_up_but_do_not_hang(
    library: Library, tmp_path: Path
) -> None:
    with mounted(tmp_path, library.chain, settings="[read]\nmetadata_timeout = 1.0\n") as mount:
        start = time.monotonic()
        assert refusal(os.getxattr, mount.snapshots / HISTORY, STATE) == errno.EIO
        assert time.monotonic() - start < 3


@BOTH_DRIVERS
def test_what_the_kernel_asks_of_its_own_is_answered_with_no_such_attribute(
    library: Library, tmp_path: Path, driver: tuple[str, ...]
) -> None:
    with mount_of(library, tmp_path, driver=driver) as mount:
        done = subprocess.run(["getcap", mount.snapshots / HISTORY], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
