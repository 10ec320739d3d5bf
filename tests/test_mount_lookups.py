"""Names whose size isn't known yet, through a real mount: who waits for it, and who must not."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cachefs.catalog import chain
from cachefs.catalog.chain import format_chain
from tests.counterparts import nginx, silent_server
from tests.mount_kit import (
    BODIES,
    BOTH_DRIVERS,
    DOMAIN,
    DRIVERS,
    HISTORY,
    PIECE,
    TRANSACTIONS,
    Library,
    Mount,
    dead_chain,
    make_library,
    mounted,
    part,
    same,
    typed,
)

SIZES = (5, 100_000, PIECE, 3 * PIECE + 1, 5 * 2**20)
ALL_VIEWS = pytest.mark.parametrize("options", [*DRIVERS, pytest.param(("--writable",), id="writable")])


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), *SIZES)


@contextmanager
def dead_mount(
    library: Library, place: Path, *options: str, count: int = 300, patience: float = 15.0
) -> Iterator[tuple[Mount, list[str]]]:
    """A mount of a library whose .torrent files are here, and of dead names that a silent web seed is asked for."""
    names = dead_chain(place / "dead.toml", count)
    both = chain.load_chain(library.chain) | chain.load_chain(place / "dead.toml")
    (place / "chain.toml").write_text(format_chain(both))
    settings = f"[read]\nmetadata_timeout = {patience}\n"
    options = ("--torrent-dir", str(library.products), *options)
    with silent_server() as port:
        seed = f"http://127.0.0.1:{port}"
        with mounted(place, place / "chain.toml", *options, webseeds=[seed], settings=settings) as mount:
            yield mount, names


def listed(mount: Mount) -> set[str]:
    return {path.name for path in mount.snapshots.iterdir()}


def errno_of_stat(path: Path) -> int:
    try:
        path.stat()
    except OSError as error:
        return error.errno or 0
    return 0


@contextmanager
def waited_for(mount: Mount, names: list[str]) -> Iterator[list[Future[int]]]:
    """A thread for each name that looks at it, once all of them wait."""
    with ThreadPoolExecutor(len(names)) as pool:
        looking = [pool.submit(errno_of_stat, mount.snapshots / name) for name in names]
        mount.wait_for(
            "looked at", lambda now: {wait["name"] for wait in now["waiting"] if wait["for"] == "metadata"} >= {*names}
        )
        yield looking


@ALL_VIEWS
def test_while_somebody_waits_for_a_size_others_list_look_up_read_and_reload(
    library: Library, tmp_path: Path, options: tuple[str, ...]
) -> None:
    with dead_mount(library, tmp_path, *options) as (mount, dead):
        with waited_for(mount, dead[:1]) as looking:
            assert (mount.snapshots / BODIES).stat().st_size == 100_000
            assert listed(mount) > {*dead, BODIES}
            assert (mount.snapshots / DOMAIN).stat().st_size == 3 * PIECE + 1
            assert not (mount.snapshots / "absent").exists()
            mount.lock.write_text(mount.lock.read_text().replace(f'"{dead[1]}"', '"v1-moved.seg"'))
            assert typed("reload", mount.mountpoint).returncode == 0
            assert "v1-moved.seg" in listed(mount)
            assert dead[1] not in listed(mount)
            assert not looking[0].done()
            mount.unmount()


@ALL_VIEWS
def test_a_size_that_nobody_tells_is_waited_for_as_long_as_is_set_and_is_then_eio(
    library: Library, tmp_path: Path, options: tuple[str, ...]
) -> None:
    with dead_mount(library, tmp_path, *options, patience=2.0) as (mount, dead):
        listed(mount)
        start = time.monotonic()
        assert errno_of_stat(mount.snapshots / dead[0]) == errno.EIO
        assert time.monotonic() - start > 1.9
        told = mount.wait_for("told why", lambda now: now["metadata"]["failed"])
        assert told["metadata"]["last_error"]
        with pytest.raises(OSError, match="Input/output error"):
            (mount.snapshots / dead[0]).open("rb")


@pytest.mark.parametrize(
    "options", [*DRIVERS, pytest.param(("--writable",), id="writable"),
                pytest.param(("--writable", "--passthrough"), id="writable devfuse", marks=DRIVERS[1].marks)]
)  # fmt: skip
def test_what_was_looked_up_before_its_size_was_known_is_used_with_the_right_one(
    library: Library, tmp_path: Path, options: tuple[str, ...]
) -> None:
    torrents = tmp_path / "torrents"
    torrents.mkdir()
    settings = "[read]\nmetadata_timeout = 0.5\nfailure_memory = 0.1\n[fetch]\nrebuild_limit = 0\n"
    more = ("--torrent-dir", str(torrents), *options)
    with (
        nginx(library.root) as url,
        mounted(tmp_path, library.chain, *more, webseeds=[url], settings=settings) as mount,
    ):
        held = [os.open(mount.snapshots / name, os.O_PATH) for name in library.files]
        try:
            for name in library.files:
                assert errno_of_stat(mount.snapshots / name) == errno.EIO
            shutil.copytree(library.products, torrents, dirs_exist_ok=True)
            mount.knows(len(library.files))
            # Each way to use a file comes first, with no fstat before it.
            for name, use in USES.items():
                fd = os.open(mount.snapshots / name, os.O_RDONLY)
                try:
                    use(fd, library.files[name], mount.snapshots if "--writable" in options else tmp_path)
                    assert os.fstat(fd).st_size == library.files[name].stat().st_size
                finally:
                    os.close(fd)
            assert same(mount, library)
        finally:
            for fd in held:
                os.close(fd)


def mapped_end(fd: int, original: Path, place: Path) -> None:
    size, page = original.stat().st_size, mmap.PAGESIZE
    start = (size - 1) // page * page
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(page), mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(start))
    assert ctypes.string_at(address, size - start) == part(original, start, size - start)
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(page))


def sent(fd: int, original: Path, place: Path) -> None:
    with (place / "sent").open("wb") as file:
        assert os.sendfile(file.fileno(), fd, 0, 2**24) == original.stat().st_size


def copied(fd: int, original: Path, place: Path) -> None:
    got = -1
    with (place / "copied").open("wb") as file, suppress(OSError):  # EXDEV: not from one file system to another
        got = os.copy_file_range(fd, file.fileno(), 2**24)
    assert got != 0


def at_end(fd: int, original: Path, place: Path) -> None:
    assert os.lseek(fd, -3, os.SEEK_END) == original.stat().st_size - 3
    assert os.read(fd, 10) == original.read_bytes()[-3:]


def plain(fd: int, original: Path, place: Path) -> None:
    assert os.pread(fd, 2**24, 0) == original.read_bytes()


USES = {DOMAIN: mapped_end, BODIES: sent, TRANSACTIONS: copied, HISTORY: at_end, "erigondb.toml": plain}


@BOTH_DRIVERS
def test_two_thousand_who_wait_for_sizes_leave_the_mount_to_others(
    library: Library, tmp_path: Path, driver: tuple[str, ...]
) -> None:
    before = threading.stack_size(2**18)
    try:
        with dead_mount(library, tmp_path, *driver, count=2100, patience=120.0) as (mount, dead):
            listed(mount)
            with ThreadPoolExecutor(len(dead)) as pool, ThreadPoolExecutor(1) as others:
                looking = [pool.submit(errno_of_stat, mount.snapshots / name) for name in dead]
                mount.child.wait_until(
                    "all asked", lambda: sum(each.done() for each in looking) + waiting(mount) >= len(dead)
                )
                assert others.submit(os.statvfs, mount.mountpoint).result(30).f_namemax == 255
                assert others.submit(errno_of_stat, mount.snapshots / BODIES).result(30) == 0
                assert not all(each.done() for each in looking)
                mount.unmount()
            assert {each.result() for each in looking} <= {errno.EIO, errno.ENOTCONN, errno.ECONNABORTED}
    finally:
        threading.stack_size(before)


def waiting(mount: Mount) -> int:
    return sum(wait["for"] == "metadata" for wait in mount.status()["waiting"])


@BOTH_DRIVERS
def test_a_name_that_is_too_long_is_told_so(library: Library, tmp_path: Path, driver: tuple[str, ...]) -> None:
    with mounted(tmp_path, library.chain, "--torrent-dir", library.products, *driver) as mount:
        for length, number in ((255, errno.ENOENT), (256, errno.ENAMETOOLONG), (1000, errno.ENAMETOOLONG)):
            assert errno_of_stat(mount.snapshots / ("n" * length)) == number
        assert errno_of_stat(mount.snapshots / ("ö" * 128)) == errno.ENAMETOOLONG
