"""BittorrentInfo through a mount's life: what it tells, when a row is reset, and that it may be lost."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.mount_kit import (
    BODIES,
    DOMAIN,
    HISTORY,
    PIECE,
    Library,
    Mount,
    dead_chain,
    make_library,
    mounted,
    read_error,
    read_only,
    same,
    seeding,
    typed,
)

FIELDS = ["Name", "Hash", "Length", "Created", "Completed"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 5, 100_000, PIECE, 3 * PIECE + 1, 5 * 2**20)


def show(data_dir: Path, *names: str) -> list[dict[str, Any]]:
    done = typed("db", "--data-dir", data_dir, "show", "--json", *names)
    assert (done.returncode, done.stderr) == (0, "")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def row(data_dir: Path, name: str) -> dict[str, Any]:
    (found,) = show(data_dir, name)
    return found


def completed(mount: Mount) -> set[str]:
    return {each["Name"] for each in show(mount.data_dir) if each["Completed"] is not None}


def _filled(library: Library, place: Path) -> None:
    """A data directory that has everything."""
    done = typed("adopt", library.root, "--data-dir", place / "data", "--chain-toml", library.chain)
    assert done.returncode == 0, done.stderr


def test_a_row_has_the_five_fields_and_says_what_is_not_known_and_not_complete(
    library: Library, tmp_path: Path
) -> None:
    names = dead_chain(tmp_path / "chain.toml", 3)
    with mounted(tmp_path, tmp_path / "chain.toml") as mount:
        rows = show(mount.data_dir)
        assert [list(each) for each in rows] == [FIELDS] * 3
        assert [each["Name"] for each in rows] == names
        assert {(each["Length"], each["Completed"]) for each in rows} == {(None, None)}
        lock = json.loads(mount.lock.read_text())["downloads"]
        assert {each["Name"]: each["Hash"] for each in rows} == lock
        assert {datetime.fromisoformat(each["Created"]).timestamp() for each in rows} == {
            int(mount.lock.stat().st_mtime)
        }


def test_length_comes_with_metadata_and_completed_with_the_last_byte(library: Library, tmp_path: Path) -> None:
    with seeding(library) as box, mounted(tmp_path, library.chain, peers=[str(box.peer)]) as mount:
        mount.knows(len(library.files))
        mount.child.wait_until("sized", lambda: row(mount.data_dir, HISTORY)["Length"] is not None)
        assert row(mount.data_dir, HISTORY)["Length"] == 5 * 2**20
        assert row(mount.data_dir, HISTORY)["Completed"] is None
        assert read_error(mount.snapshots / HISTORY) == ""
        assert same(mount, library, [BODIES])
        mount.child.wait_until("complete", lambda: completed(mount) == {BODIES})


def test_the_table_for_people_has_the_same_and_an_unknown_name_is_an_error(library: Library, tmp_path: Path) -> None:
    _filled(library, tmp_path)
    done = typed("db", "--data-dir", tmp_path / "data", "show")
    heads, *lines = done.stdout.splitlines()
    assert heads.split() == FIELDS
    assert [line.split()[:3] for line in lines] == [
        [name, library.content(name).hex, str(library.files[name].stat().st_size)] for name in sorted(library.files)
    ]
    assert "'x': not in BittorrentInfo" in typed("db", "--data-dir", tmp_path / "data", "show", "x").stderr
    assert typed("db", "show", "--data-dir", tmp_path).stderr.startswith(f"cachefs: {tmp_path}/state.db isn't there")
    assert f"{tmp_path}/x: there is no such directory" in typed("db", "show", "--data-dir", tmp_path / "x").stderr


def test_the_table_is_shown_from_a_disk_that_is_read_only(library: Library, tmp_path: Path) -> None:
    _filled(library, tmp_path)
    expected = typed("db", "show", "--data-dir", tmp_path / "data")
    with read_only(tmp_path / "data"):
        assert typed("db", "show", "--data-dir", tmp_path / "data") == expected


def test_a_changed_hash_makes_a_new_download_of_the_row_and_of_no_other(library: Library, tmp_path: Path) -> None:
    _filled(library, tmp_path)
    before = {each["Name"]: each for each in show(tmp_path / "data")}
    with mounted(tmp_path) as mount:
        os.utime(mount.lock, (0, 0))  # so that the next writing of the lock is at another second
        assert typed("lock", "--mount", mount.mountpoint, "set", DOMAIN, "12" * 20).returncode == 0
        after = {each["Name"]: each for each in show(mount.data_dir)}
        created = int(mount.lock.stat().st_mtime)
    changed = after.pop(DOMAIN)
    assert (changed["Hash"], changed["Length"], changed["Completed"]) == ("12" * 20, None, None)
    assert datetime.fromisoformat(changed["Created"]).timestamp() == created
    del before[DOMAIN]
    assert after == before


def test_a_lost_database_is_rebuilt_from_the_store_without_anybody_reading(library: Library, tmp_path: Path) -> None:
    _filled(library, tmp_path)
    before = show(tmp_path / "data")
    for path in (tmp_path / "data").glob("state.db*"):
        path.unlink()
    with mounted(tmp_path) as mount:
        mount.child.wait_until("rebuilt", lambda: completed(mount) == set(library.files))
        mount.child.wait_until("sized", lambda: all(each["Length"] for each in show(mount.data_dir)))
        after = show(mount.data_dir)
    for then, now in zip(before, after, strict=True):
        assert {field: now[field] for field in FIELDS[:4]} == {field: then[field] for field in FIELDS[:4]}


def test_a_digit_that_changed_in_the_database_costs_no_mount_and_is_told(library: Library, tmp_path: Path) -> None:
    _filled(library, tmp_path)
    path = tmp_path / "data" / "state.db"
    id_of = f"btih:{library.content(DOMAIN).hex}".encode()
    path.write_bytes(path.read_bytes().replace(id_of, id_of[:-1] + b"g"))
    with mounted(tmp_path) as mount:
        mount.child.wait_until("rebuilt", lambda: completed(mount) == set(library.files))
        assert "kept as state.db.broken-1" in mount.child.printed()
        assert same(mount, library)
        mount.unmount()


def test_a_verification_without_a_mount_rebuilds_a_lost_database_too(library: Library, tmp_path: Path) -> None:
    _filled(library, tmp_path)
    before = show(tmp_path / "data")
    (tmp_path / "data" / "state.db").write_bytes(b"garbage")
    assert typed("verify", "--data-dir", tmp_path / "data").returncode == 0
    after = show(tmp_path / "data")
    assert [(row["Name"], row["Hash"]) for row in after] == [(row["Name"], row["Hash"]) for row in before]
    assert all(row["Completed"] for row in after)


def test_a_restart_hashes_nothing_and_after_one_file_was_touched_that_one_alone(
    library: Library, tmp_path: Path
) -> None:
    _filled(library, tmp_path)
    with mounted(tmp_path) as mount:
        assert same(mount, library)
        assert "checking" not in mount.child.printed()
    touched = mount.object(library, DOMAIN) / "data"
    os.utime(touched, ns=(0, 0))
    with mounted(tmp_path) as mount:
        mount.child.wait_until("verified", lambda: f"{touched}: checking" in mount.child.printed())
        mount.child.wait_until("complete", lambda: completed(mount) == set(library.files))
        assert same(mount, library)
        assert mount.child.printed().count("checking") == 1


def test_a_file_with_another_byte_loses_its_completion_by_itself(library: Library, tmp_path: Path) -> None:
    local = make_library(tmp_path / "own", 5, 100_000, PIECE, 3 * PIECE + 1, 5 * 2**20)
    _filled(local, tmp_path)
    with local.files[DOMAIN].open("r+b") as file:
        file.seek(PIECE + 5)
        file.write(b"\x01\x02")
    changed = local.files[DOMAIN].read_bytes()
    with mounted(tmp_path) as mount:
        mount.child.wait_until("found", lambda: completed(mount) == set(library.files) - {DOMAIN})
    with seeding(library) as box, mounted(tmp_path, peers=[str(box.peer)]) as mount:
        assert same(mount, library, [DOMAIN])
        assert mount.received(PIECE) < 2 * PIECE
    assert local.files[DOMAIN].read_bytes() == changed
