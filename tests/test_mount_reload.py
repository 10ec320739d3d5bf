"""A lock that is edited while it is mounted: one moment the old names and bytes, the next the new, and never a mix."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachefs.catalog import chain
from cachefs.catalog.chain import format_chain
from tests.counterparts import Peer
from tests.mount_kit import (
    BODIES,
    BOTH_DRIVERS,
    DOMAIN,
    HEADERS,
    HISTORY,
    PIECE,
    Library,
    Mount,
    dead_chain,
    make_library,
    mounted,
    part,
    same,
    seeding,
    typed,
)

SIZES = (5, 100_000, PIECE, 3 * PIECE + 1, 3 * 2**20)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("old"), *SIZES)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("new"), *(size + 7 for size in SIZES), seed=2)


@pytest.fixture(scope="module")
def peers(old: Library, new: Library) -> Iterator[list[Peer | str]]:
    with seeding(old) as first, seeding(new) as second:
        yield [str(first.peer), str(second.peer)]


def edit(mount: Mount, change: Callable[[dict[str, str]], object]) -> None:
    """What a person does with an editor."""
    lock = json.loads(mount.lock.read_text())
    change(lock["downloads"])
    mount.lock.write_text(json.dumps(lock, indent=2))


def reload(mount: Mount) -> str:
    done = typed("reload", mount.mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def entries(directory: int) -> list[str]:
    with os.scandir(directory) as listing:
        return [entry.name for entry in listing]


def some_entries(directory: int, room: int = 2048) -> list[str]:
    """The next names of a directory: those that one getdents64 gives, of which scandir takes a mebibyte at a time."""
    names, buffer, libc = [], ctypes.create_string_buffer(room), ctypes.CDLL(None)
    filled = libc.getdents64(directory, buffer, ctypes.c_size_t(room))
    assert filled >= 0
    left = buffer.raw[:filled]
    while left:
        length = int.from_bytes(left[16:18], sys.byteorder)
        names.append(left[19:length].partition(b"\0")[0].decode())
        left = left[length:]
    return names


def errno_of_open(path: Path) -> str:
    try:
        path.open("rb").close()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def hang_up(mount: Mount) -> None:
    before = mount.child.printed().count("reload: ")
    mount.child.process.send_signal(signal.SIGHUP)
    mount.child.wait_until("reloaded", lambda: mount.child.printed().count("reload: ") > before)


@contextmanager
def mapped(path: Path) -> Iterator[tuple[int, mmap.mmap]]:
    fd = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as pages:
            yield fd, pages
    finally:
        os.close(fd)


@pytest.mark.parametrize("take", [reload, hang_up], ids=["cachefs reload", "SIGHUP"])
def test_an_open_handle_keeps_its_bytes_and_a_new_one_has_the_new_ones(
    old: Library, new: Library, peers: list[Peer | str], tmp_path: Path, take: Callable[[Mount], object]
) -> None:
    with mounted(tmp_path, old.chain, peers=peers) as mount, mapped(mount.snapshots / DOMAIN) as (fd, pages):
        assert pages[:10] == part(old.files[DOMAIN], 0, 10)
        edit(mount, lambda names: names.update({DOMAIN: new.content(DOMAIN).hex}))
        take(mount)
        assert same(mount, new, [DOMAIN])
        assert (mount.snapshots / DOMAIN).stat().st_size == SIZES[3] + 7
        assert pages[:] == old.files[DOMAIN].read_bytes()
        assert os.pread(fd, 100, 2 * PIECE) == part(old.files[DOMAIN], 2 * PIECE, 100)
        assert os.fstat(fd).st_size == SIZES[3]
        assert os.fstat(fd).st_ino != (mount.snapshots / DOMAIN).stat().st_ino
        assert same(mount, old, [HEADERS])


@BOTH_DRIVERS
def test_a_reload_shows_the_difference_and_names_come_and_go(
    old: Library, peers: list[Peer | str], tmp_path: Path, driver: tuple[str, ...]
) -> None:
    few = tmp_path / "chain.toml"
    few.write_text(format_chain({name: old.content(name) for name in (HEADERS, BODIES, HISTORY)}))
    with mounted(tmp_path, few, *driver, peers=peers) as mount:
        assert same(mount, old, [HISTORY, HEADERS])
        assert not (mount.snapshots / DOMAIN).exists()
        edit(mount, lambda names: [names.pop(HISTORY), names.update({DOMAIN: old.content(DOMAIN).hex})])
        assert reload(mount).splitlines() == [
            f"+ {DOMAIN}  {old.content(DOMAIN).hex}",
            f"- {HISTORY}  {old.content(HISTORY).hex}",
            "1 added, 1 removed, 0 changed, 2 unchanged",
        ]
        assert {path.name for path in mount.snapshots.iterdir()} == {"domain", HEADERS, BODIES}
        assert not (mount.snapshots / HISTORY).exists()
        assert not (mount.snapshots / HISTORY).parent.exists()
        assert same(mount, old, [DOMAIN, HEADERS, BODIES])
        assert mount.status()["catalogue"]["names"] == 3
        assert reload(mount) == "no difference in 3 names\n"


@BOTH_DRIVERS
def test_a_listing_that_a_reload_comes_into_shows_every_name_that_is_in_both_locks(
    tmp_path: Path, driver: tuple[str, ...]
) -> None:
    names = dead_chain(tmp_path / "chain.toml", 3000)
    gone, added = set(names[:50]), "v1-000000-000000-added.seg"
    with mounted(tmp_path, tmp_path / "chain.toml", *driver) as mount:
        directory = os.open(mount.snapshots, os.O_RDONLY)
        try:
            seen = some_entries(directory)
            assert len(seen) < len(gone)
            edit(mount, lambda table: [table.update({added: table[names[0]]}), *map(table.pop, gone)])
            reload(mount)
            while more := some_entries(directory):
                seen += more
        finally:
            os.close(directory)
        assert sorted(seen) == sorted({*seen})
        assert {*seen} >= {*names} - gone
        assert {path.name for path in mount.snapshots.iterdir()} == {*names, added} - gone


@BOTH_DRIVERS
def test_what_is_open_when_its_name_goes_has_its_attributes_and_a_directory_is_empty_then(
    old: Library, tmp_path: Path, driver: tuple[str, ...]
) -> None:
    with mounted(tmp_path, old.chain, "--torrent-dir", old.products, *driver) as mount:
        file = os.open(mount.snapshots / DOMAIN, os.O_RDONLY)
        directory = os.open((mount.snapshots / DOMAIN).parent, os.O_RDONLY)
        try:
            assert entries(directory) == [Path(DOMAIN).name]
            edit(mount, lambda table: table.pop(DOMAIN))
            reload(mount)
            assert not (mount.snapshots / DOMAIN).parent.exists()
            assert os.getxattr(file, "user.cachefs.progress") == b"0/%d" % SIZES[3]
            assert "user.cachefs.error" in os.listxattr(file)
            assert os.fstat(file).st_size == SIZES[3]
            assert entries(directory) == []
            assert os.listxattr(directory) == []
            assert stat.S_ISDIR(os.fstat(directory).st_mode)
        finally:
            os.close(directory)
            os.close(file)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: text.replace('"downloads"', '"downloads', 1), ":3: not JSON"),
        (lambda text: text.replace(HISTORY, "../" + HISTORY), f":5: '../{HISTORY}'"),
        (lambda text: text.replace(HISTORY, BODIES), f": '{BODIES}': given twice"),
        (lambda text: text.replace('"chain": "unknown"', '"chain": "mainnet"'), "'mainnet'"),
    ],
    ids=["torn", "bad name", "twice", "another chain"],
)
def test_a_bad_edit_changes_nothing_and_says_where_it_is_wrong(
    old: Library, tmp_path: Path, damage: Callable[[str], str], told: str
) -> None:
    with mounted(tmp_path, old.chain, "--torrent-dir", old.products) as mount:
        edit(mount, lambda names: names.pop(DOMAIN))
        mount.lock.write_text(damage(mount.lock.read_text()))
        done = typed("reload", mount.mountpoint)
        assert done.returncode == 1
        assert done.stderr.startswith(f"cachefs: {mount.lock}")
        assert told in done.stderr
        hang_up(mount)
        assert "nothing has changed" in mount.child.printed()
        assert (mount.snapshots / DOMAIN).stat().st_size == SIZES[3]
        assert mount.status()["catalogue"]["names"] == len(old.files)


@BOTH_DRIVERS
def test_whoever_stats_and_opens_while_locks_are_switched_never_fails(
    old: Library, new: Library, tmp_path: Path, driver: tuple[str, ...]
) -> None:
    torrents = Path(shutil.copytree(old.products, tmp_path / "torrents"))
    stop = threading.Event()
    with mounted(tmp_path, old.chain, "--torrent-dir", torrents, *driver) as mount:
        shown = mount.snapshots / HEADERS

        def use(library: Library) -> None:
            edit(mount, lambda names: names.update({HEADERS: library.content(HEADERS).hex}))
            hang_up(mount)

        def look() -> int:
            looks = 0
            while not stop.is_set() or looks < 100:
                assert shown.stat().st_size in (SIZES[0], SIZES[0] + 7)
                os.close(os.open(shown, os.O_RDONLY))
                looks += 1
            return looks

        assert shown.stat().st_size == SIZES[0]
        shutil.copy(new.torrent(HEADERS), torrents / f"{HEADERS}.torrent")
        with ThreadPoolExecutor(2) as pool:
            looking = [pool.submit(look) for _ in range(2)]
            try:
                for turn in range(1, 20):
                    use((old, new)[turn % 2])
            finally:
                stop.set()
            assert all(each.result(20) >= 100 for each in looking)


def test_a_lock_that_is_deleted_while_mounted_is_made_again_and_only_changed_hashes_are_fetched_anew(
    old: Library, new: Library, peers: list[Peer | str], tmp_path: Path
) -> None:
    published = tmp_path / "chain.toml"
    published.write_bytes(old.chain.read_bytes())
    with mounted(tmp_path, published, peers=peers) as mount:
        assert same(mount, old)
        kept = {name: (mount.object(old, name) / "data").stat() for name in old.files}
        published.write_text(format_chain(chain.load_chain(old.chain) | {BODIES: new.content(BODIES)}))
        assert reload(mount).startswith("no difference")
        mount.lock.unlink()
        assert f"~ {BODIES}  {old.content(BODIES).hex} -> {new.content(BODIES).hex}" in reload(mount)
        assert same(mount, new, [BODIES])
        assert same(mount, old, set(old.files) - {BODIES})
        for name, before in kept.items():
            now = (mount.object(old, name) / "data").stat()
            assert (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_pin_goes_over_to_the_content_that_the_lock_gives_its_name(
    old: Library, new: Library, peers: list[Peer | str], tmp_path: Path
) -> None:
    with mounted(tmp_path, old.chain, peers=peers) as mount:
        assert typed("pin", BODIES, "--data-dir", mount.data_dir).returncode == 0
        edit(mount, lambda names: names.update({BODIES: new.content(BODIES).hex}))
        reload(mount)
        assert same(mount, new, [BODIES])
        assert f"{BODIES} stays: pinned" in typed("evict", BODIES, "--data-dir", mount.data_dir).stdout


def test_a_writable_view_shows_the_new_names_at_once_and_that_of_an_open_file_when_it_is_closed(
    old: Library, new: Library, peers: list[Peer | str], tmp_path: Path
) -> None:
    with mounted(tmp_path, old.chain, "--writable", peers=peers) as mount:
        assert same(mount, old)
        assert not (mount.snapshots / "domain" / "new.kv").exists()
        (mount.snapshots / "written").write_text("kept")
        with mapped(mount.snapshots / DOMAIN) as (_, pages):
            changed = {name: new.content(name).hex for name in (BODIES, DOMAIN, HISTORY)}
            edit(mount, lambda table: table.update(changed | {"domain/new.kv": table.pop(HEADERS)}))
            reload(mount)
            assert same(mount, new, [BODIES, HISTORY])
            assert not (mount.snapshots / HEADERS).exists()
            assert (mount.snapshots / "domain" / "new.kv").stat().st_size == SIZES[0]
            assert (mount.snapshots / "written").read_text() == "kept"
            assert pages[:] == old.files[DOMAIN].read_bytes()
            assert errno_of_open(mount.snapshots / DOMAIN) == "ESTALE"
        mount.child.wait_until("fresh", lambda: errno_of_open(mount.snapshots / DOMAIN) == "")
        assert same(mount, new, [DOMAIN])
        assert (mount.snapshots / mount.lock.name).read_bytes() == mount.lock.read_bytes()


def test_a_reload_leaves_what_another_lays_over_a_writable_view(
    old: Library, new: Library, peers: list[Peer | str], tmp_path: Path
) -> None:
    with mounted(tmp_path, old.chain, "--writable", peers=peers) as mount:
        subprocess.run(["mount", "-t", "tmpfs", "none", mount.snapshots], check=True)
        try:
            before = os.statvfs(mount.snapshots).f_flag
            edit(mount, lambda table: table.update({"domain/new.kv": table.pop(HEADERS)}))
            assert "domain/new.kv" in reload(mount)
            assert os.statvfs(mount.snapshots).f_flag == before
            assert "can't be refreshed: another file system lies over it" in mount.child.printed()
        finally:
            subprocess.run(["umount", mount.snapshots], check=True)
