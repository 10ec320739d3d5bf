"""Local files in place of downloads, through a real mount that has no source unless it is said."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cachefs.store.places import is_shared
from tests.counterparts import free_port
from tests.mount_kit import (
    BODIES,
    DOMAIN,
    HEADERS,
    HISTORY,
    PIECE,
    Library,
    cachefs,
    forget_pages,
    make_library,
    mount_command,
    mounted,
    part,
    read_error,
    same,
    seeding,
    typed,
)

SIZES = (5, 100_000, PIECE, 3 * PIECE + 1, 2 * PIECE + 5)
QUICK = ("--deadline", "2")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), *SIZES)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("other"), *(size + 7 for size in SIZES), seed=2)


@pytest.fixture(params=["hard link", "in place"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on the data directory's file system, or on another."""
    with TemporaryDirectory(dir=tmp_path if request.param == "hard link" else "/dev/shm") as directory:
        yield Path(directory)


def put(mount_place: Path, library: Library, name: str) -> Path:
    """A copy of the library's file as a local one, in the data directory."""
    path = mount_place / "data" / "snapshots" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(library.files[name], path)
    return path


def copy(library: Library, name: str, to: Path) -> Path:
    return Path(shutil.copyfile(library.files[name], to / "replacement"))


def test_an_adopted_directory_is_mounted_with_nothing_fetched_and_seeded_to_others(
    library: Library, elsewhere: Path, tmp_path: Path
) -> None:
    node = Path(shutil.copytree(library.root, elsewhere / "snapshots"))
    done = typed("adopt", node, "--data-dir", tmp_path / "data", "--chain-toml", library.chain, "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["taken"]) == set(library.files)
    port = free_port()
    with mounted(tmp_path, None, "--listen", f"127.0.0.1:{port}") as mount:
        assert same(mount, library)
        told = mount.status()
        assert told["store"]["complete"] == len(library.files)
        assert told["sources"] == []
        with mounted(tmp_path / "neighbour", library.chain, peers=[f"127.0.0.1:{port}"]) as neighbour:
            assert same(neighbour, library, [DOMAIN, BODIES])
    for name, path in library.files.items():
        assert (node / name).read_bytes() == path.read_bytes()


def test_a_directory_is_adopted_while_it_is_mounted_and_files_that_are_open_go_on(
    library: Library, tmp_path: Path
) -> None:
    few = library.only(tmp_path / "few", HEADERS, BODIES, DOMAIN)
    with mounted(tmp_path, library.chain, *QUICK, "--torrent-dir", library.products) as mount:
        fd = os.open(mount.snapshots / BODIES, os.O_RDONLY)
        try:
            done = typed("adopt", few.root, "--data-dir", mount.data_dir)
            assert f"{BODIES}: " in done.stdout
            assert "is being fetched and read" in done.stdout
            assert done.returncode == 1
        finally:
            os.close(fd)
        assert same(mount, library, [HEADERS, DOMAIN])
        again = ("adopt", few.root, "--data-dir", mount.data_dir)
        mount.child.wait_until("closed", lambda: typed(*again).returncode == 0)
        assert same(mount, library, [HEADERS, DOMAIN, BODIES])


def test_what_a_mount_shows_is_not_taken_over_which_would_fetch_it(library: Library, tmp_path: Path) -> None:
    with mounted(tmp_path, library.chain, *QUICK, "--torrent-dir", library.products) as mount:
        for command in (
            ("adopt", mount.snapshots, "--data-dir", mount.data_dir),
            ("adopt", mount.snapshots / "domain", "--data-dir", tmp_path / "other", "--chain-toml", library.chain),
            ("lock", "override", HEADERS, mount.snapshots / DOMAIN, "--data-dir", mount.data_dir),
        ):
            done = typed(*command)
            assert (done.returncode, "a cachefs mount shows this" in done.stderr) == (1, True)
        assert mount.status()["last_error"] == ""


def test_a_file_that_its_owner_changed_is_an_error_that_says_so(library: Library, tmp_path: Path) -> None:
    local = put(tmp_path, library, DOMAIN)
    with mounted(tmp_path, library.chain, *QUICK) as mount, (mount.snapshots / DOMAIN).open("rb"):
        with local.open("r+b") as file:
            file.seek(PIECE + 5)
            file.write(b"\x01\x02")
        forget_pages(mount.snapshots / DOMAIN)
        assert read_error(mount.snapshots / DOMAIN, PIECE, PIECE) == "EIO"
        why = os.getxattr(mount.snapshots / DOMAIN, "user.cachefs.error").decode()
        assert "was changed under another name, and isn't right any more" in why
        assert mount.status()["last_error"] == why


def test_a_local_file_whose_hash_is_the_locks_is_used_with_no_download(library: Library, tmp_path: Path) -> None:
    local = put(tmp_path, library, DOMAIN)
    before = local.stat()
    with mounted(tmp_path, library.chain, *QUICK) as mount:
        assert same(mount, library, [DOMAIN])
        assert is_shared(mount.object(library, DOMAIN) / "data")
        assert read_error(mount.snapshots / BODIES) == "EIO"
    after = local.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_mode) == (before.st_ino, before.st_mtime_ns, before.st_mode)
    assert local.read_bytes() == library.files[DOMAIN].read_bytes()


def test_a_local_file_of_another_hash_is_told_ready_to_paste_and_used_once_the_lock_says_so(
    library: Library, other: Library, tmp_path: Path
) -> None:
    local = put(tmp_path, other, DOMAIN)
    with mounted(tmp_path, library.chain, *QUICK) as mount:
        said = mount.child.printed()
        assert (
            f"{DOMAIN}: the file has {other.content(DOMAIN).hex}, the lock says {library.content(DOMAIN).hex}" in said
        )
        pasted = re.findall(r"put this into the lock: (.*)", said)
        assert pasted == [f'"{DOMAIN}":"{other.content(DOMAIN).hex}"']
        assert read_error(mount.snapshots / DOMAIN) == "EIO"
        text = mount.lock.read_text()
        assert f'"{DOMAIN}":"{library.content(DOMAIN).hex}"' in text
        mount.lock.write_text(text.replace(f'"{DOMAIN}":"{library.content(DOMAIN).hex}"', pasted[0]))
        assert typed("reload", mount.mountpoint).returncode == 0
        assert same(mount, other, [DOMAIN])
    assert local.read_bytes() == other.files[DOMAIN].read_bytes()
    with mounted(tmp_path) as mount:
        assert "the lock says" not in mount.child.printed()
        assert same(mount, other, [DOMAIN])


def test_a_name_whose_hash_is_changed_in_the_lock_is_fetched_anew(
    library: Library, other: Library, tmp_path: Path
) -> None:
    with seeding(library) as one, seeding(other) as two:
        with mounted(tmp_path, library.chain, peers=[str(one.peer), str(two.peer)]) as mount:
            assert same(mount, library, [BODIES, DOMAIN])
            done = typed("lock", "--mount", mount.mountpoint, "set", BODIES, other.content(BODIES).hex)
            assert done.returncode == 0
            assert same(mount, other, [BODIES])
            assert same(mount, library, [DOMAIN])


def test_lock_override_uses_a_file_as_it_is_while_open_handles_keep_the_old_bytes(
    library: Library, other: Library, elsewhere: Path, tmp_path: Path
) -> None:
    replacement = copy(other, HISTORY, elsewhere)
    local = put(tmp_path, library, HISTORY)
    with mounted(tmp_path, library.chain, *QUICK) as mount:
        fd = os.open(mount.snapshots / HISTORY, os.O_RDONLY)
        try:
            command = ("lock", "--mount", mount.mountpoint, "override", HISTORY, replacement)
            refused = typed(*command)
            assert refused.returncode == 1
            assert f"{local}: another file is in the place" in refused.stderr
            local.unlink()
            done = typed(*command)
            assert (done.returncode, done.stderr) == (0, "")
            assert f"~ {HISTORY}  {library.content(HISTORY).hex} -> {other.content(HISTORY).hex}" in done.stdout
            assert same(mount, other, [HISTORY])
            assert os.pread(fd, 100, PIECE) == part(library.files[HISTORY], PIECE, 100)
        finally:
            os.close(fd)
        back = typed("lock", "rollback", "--mountpoint", mount.mountpoint)
        assert f"{HISTORY}: the file has {other.content(HISTORY).hex}, the lock says" in back.stdout
        assert back.stdout.splitlines()[-1] == "in use"
        assert typed("lock", "rollback", "--mountpoint", mount.mountpoint).returncode == 0
        assert typed("lock", "--mount", mount.mountpoint, "override", "x.seg", replacement).returncode == 1
    assert replacement.read_bytes() == other.files[HISTORY].read_bytes()
    with mounted(tmp_path, None, *QUICK) as mount:
        assert same(mount, other, [HISTORY])


def test_lock_override_works_before_it_is_mounted(library: Library, other: Library, tmp_path: Path) -> None:
    with mounted(tmp_path, library.chain):
        pass
    done = typed("lock", "--data-dir", tmp_path / "data", "override", HEADERS, other.files[HEADERS])
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "not mounted: the next mount uses it")
    with mounted(tmp_path) as mount:
        assert same(mount, other, [HEADERS])


def test_remarks_on_local_files_are_shown_by_a_daemons_start_too(
    library: Library, other: Library, tmp_path: Path
) -> None:
    put(tmp_path, other, HEADERS)
    started = cachefs(*mount_command(tmp_path, library.chain, "--daemon"))
    try:
        assert started.returncode == 0
        assert f'"{HEADERS}":"{other.content(HEADERS).hex}"' in started.stdout
    finally:
        cachefs("umount", tmp_path / "mnt")
