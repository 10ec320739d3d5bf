"""Names and metadata through a real mount: where metadata may come from, and what a start refuses to take."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from cachefs import metainfo
from cachefs.catalog.chain import format_chain
from tests.counterparts import nginx, silent_server
from tests.mount_kit import (
    BODIES,
    DOMAIN,
    HISTORY,
    PIECE,
    Library,
    cachefs,
    dead_chain,
    make_library,
    mount_command,
    mounted,
    read_error,
    same,
    seeding,
    source_in,
)

QUICK = "[read]\nmetadata_timeout = 1.0\n"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 5, 100_000, PIECE, 3 * PIECE + 1, 5 * 2**20)


def test_metadata_comes_from_a_directory_of_torrent_files(library: Library, tmp_path: Path) -> None:
    with mounted(tmp_path, library.chain, "--torrent-dir", library.products) as mount:
        mount.knows(len(library.files))
        assert (mount.snapshots / DOMAIN).stat().st_size == 3 * PIECE + 1


def test_metadata_comes_from_web_seeds(library: Library, tmp_path: Path) -> None:
    with nginx(library.merged(tmp_path / "web")) as url, mounted(tmp_path, library.chain, webseeds=[url]) as mount:
        mount.knows(len(library.files))
        assert (mount.snapshots / DOMAIN).stat().st_size == 3 * PIECE + 1


def test_metadata_comes_from_a_peer_by_info_hash_alone(library: Library, tmp_path: Path) -> None:
    with seeding(library) as box, mounted(tmp_path, library.chain, peers=[str(box.peer)]) as mount:
        mount.knows(len(library.files))
        assert (mount.snapshots / DOMAIN).stat().st_size == 3 * PIECE + 1


def test_metadata_of_another_info_hash_is_refused_and_named_and_the_next_source_is_used(
    library: Library, tmp_path: Path
) -> None:
    wrong = library.merged(tmp_path / "wrong")
    other = metainfo.build(DOMAIN, 10, bytes(20))
    (wrong / f"{DOMAIN}.torrent").unlink()
    (wrong / f"{DOMAIN}.torrent").write_bytes(other.raw)
    with ExitStack() as stack:
        bad, good = stack.enter_context(nginx(wrong)), stack.enter_context(nginx(library.merged(tmp_path / "good")))
        mount = stack.enter_context(mounted(tmp_path, library.chain, webseeds=[bad, good]))
        mount.knows(len(library.files))
        assert same(mount, library, [DOMAIN])
        told = source_in(mount.status(), bad)
        assert told["failures"] >= 1
        assert str(other.content) in told["last_error"]
        assert str(library.content(DOMAIN)) in told["last_error"]


@pytest.mark.parametrize("damage", [b"garbage", b"", metainfo.build(DOMAIN, 10, bytes(20)).raw])
def test_a_bad_file_in_the_directory_of_torrents_is_passed_over_for_the_next_source(
    library: Library, tmp_path: Path, damage: bytes
) -> None:
    torrents = Path(shutil.copytree(library.products, tmp_path / "torrents"))
    (torrents / f"{DOMAIN}.torrent").write_bytes(damage)
    with seeding(library) as box:
        with mounted(tmp_path, library.chain, "--torrent-dir", torrents, peers=[str(box.peer)]) as mount:
            assert same(mount, library)


def test_without_a_source_names_are_listed_and_stat_fails_at_once(tmp_path: Path) -> None:
    names = dead_chain(tmp_path / "chain.toml", 400)
    with mounted(tmp_path, tmp_path / "chain.toml") as mount:
        found = subprocess.run(["find", ".", "-type", "f"], cwd=mount.snapshots, capture_output=True, text=True)
        assert sorted(found.stdout.split()) == sorted(f"./{name}" for name in names)
        assert found.stderr == ""
        start = time.monotonic()
        assert read_error(mount.snapshots / names[0]) == "EIO"
        listing = _long_listing(mount.snapshots)
        assert time.monotonic() - start < 5
        assert listing.stderr.count("Input/output error") == len(names)


def test_without_a_source_the_status_and_the_log_say_so_once(library: Library, tmp_path: Path) -> None:
    with mounted(tmp_path, library.chain) as mount:
        assert [read_error(mount.snapshots / name) for name in library.files] == ["EIO"] * len(library.files)
        assert mount.status()["metadata"]["last_error"].startswith("no source is configured: give --webseed")
        assert "last: no source is configured" in cachefs("status", mount.mountpoint).stdout
        assert mount.child.printed().count("no source is configured") == 1


def _long_listing(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ls", "-l", directory], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("kind", ["webseed", "peer"])
def test_a_listing_with_a_silent_source_takes_one_timeout_not_one_for_each_name(tmp_path: Path, kind: str) -> None:
    dead_chain(tmp_path / "chain.toml", 300)
    with silent_server() as port:
        source = f"http://127.0.0.1:{port}" if kind == "webseed" else f"127.0.0.1:{port}"
        with mounted(tmp_path, tmp_path / "chain.toml", f"--{kind}", source, settings=QUICK) as mount:
            start = time.monotonic()
            assert _long_listing(mount.snapshots).stderr.count("Input/output error") == 300
            assert time.monotonic() - start < 4
            told = mount.wait_for("told why", lambda now: now["metadata"]["failed"])
            assert told["metadata"]["last_error"]
            assert any(str(port) in each["name"] for each in told["sources"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("'v1-000000-000500-bodies.seg' = 'e9b5c5d1'\n", ["chain.toml:1", "v1-000000-000500-bodies.seg"]),
        ("a = \n", ["chain.toml:1"]),
        (f"'../x' = '{'0' * 40}'\n", ["chain.toml:1", "../x"]),
    ],
    ids=["short hash", "not TOML", "bad name"],
)
def test_a_bad_chain_toml_is_refused_by_file_line_and_key(tmp_path: Path, text: str, told: list[str]) -> None:
    chain = tmp_path / "chain.toml"
    chain.write_text(text)
    done = cachefs(*mount_command(tmp_path, chain))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("cachefs: ")
    assert all(word in done.stderr for word in told)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data" / "snapshots" / "snapshot-lock.json").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"chain":"x","downloads":{"a.seg":"zz"}}', ["snapshot-lock.json", "a.seg"]),
        ('{"chain":"x","downl', ["snapshot-lock.json:1", "not JSON"]),
        ('{"chain":"x"}', ["snapshot-lock.json", "downloads"]),
    ],
    ids=["bad hash", "torn", "no names"],
)
def test_a_bad_lock_is_refused_and_left_as_it_is(library: Library, tmp_path: Path, text: str, told: list[str]) -> None:
    lock = tmp_path / "data" / "snapshots" / "snapshot-lock.json"
    lock.parent.mkdir(parents=True)
    lock.write_text(text)
    done = cachefs(*mount_command(tmp_path, library.chain))
    assert done.returncode == 1
    assert all(word in done.stderr for word in told)
    assert "Traceback" not in done.stderr
    assert lock.read_text() == text


def test_the_lock_of_the_first_start_is_used_when_chain_toml_has_changed(library: Library, tmp_path: Path) -> None:
    chain = tmp_path / "chain.toml"
    shutil.copy(library.chain, chain)
    with seeding(library) as box:
        with mounted(tmp_path, chain, peers=[str(box.peer)]) as mount:
            before = mount.lock.read_bytes()
            assert json.loads(before)["downloads"][HISTORY] == library.content(HISTORY).hex
        chain.write_text(format_chain({"other.seg": library.content(BODIES)}))
        with mounted(tmp_path, chain, peers=[str(box.peer)]) as mount:
            assert same(mount, library)
            assert mount.lock.read_bytes() == before


def test_a_deleted_lock_is_made_again_from_the_present_chain_toml(library: Library, tmp_path: Path) -> None:
    chain = tmp_path / "chain.toml"
    shutil.copy(library.chain, chain)
    with mounted(tmp_path, chain) as mount:
        mount.lock.unlink()
    chain.write_text(format_chain({"other.seg": library.content(BODIES)}))
    with mounted(tmp_path, chain) as mount:
        assert [path.name for path in mount.snapshots.iterdir()] == ["other.seg"]
