"""The seed box publishes what Erigon would, peers get it, and the command says what it does."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import libtorrent as lt
import pytest
import trio
import trio.testing
from click.testing import CliRunner

from cachefs import metainfo
from cachefs.catalog.chain import load_chain
from cachefs.cli import main
from cachefs.config.values import Peer
from cachefs.errors import ConfigError
from cachefs.origin.serving import OriginConfig, publish, serve
from tests.counterparts import (
    LOOPBACK,
    cachefs_seed,
    make_snapshots,
    silent_server,
)
from tests.origin_kit import HISTORY, PIECE, Origin, download, seeded_origin, start_download, wait_for_alert


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    with seeded_origin(tmp_path_factory.mktemp("origin")) as running_origin:
        yield running_origin


def test_the_published_info_hash_of_erigondb_toml_comes_out(origin: Origin) -> None:
    assert load_chain(origin.box.chain)["erigondb.toml"].hex.startswith("49fd7968")


def test_every_file_is_in_the_chain_under_the_hash_of_its_own_torrent(origin: Origin) -> None:
    chain = load_chain(origin.box.chain)
    assert set(chain) == set(origin.files)
    for name, path in origin.files.items():
        meta = metainfo.parse(origin.torrent(name).read_bytes())
        assert (meta.name, meta.content, meta.manifest.length) == (name, chain[name], path.stat().st_size)
        data = path.read_bytes()
        for index in range(meta.manifest.blocks):
            meta.manifest.verify(index, data[index * PIECE : (index + 1) * PIECE])


def test_the_manifest_lists_data_and_torrents_sorted(origin: Origin) -> None:
    expected = sorted([*origin.files, *(f"{name}.torrent" for name in origin.files)])
    assert (origin.root / "manifest.txt").read_text() == "".join(f"{name}\n" for name in expected)


def test_products_downloads_hidden_files_and_links_are_no_content(tmp_path: Path) -> None:
    make_snapshots(tmp_path, 100)
    for name in (".hidden", "a.seg.tmp", "a.seg.part", "a.lock", "snapshot-lock.json", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link.seg").symlink_to(tmp_path / "erigondb.toml")
    (tmp_path / "linked").symlink_to(tmp_path)
    for _ in range(2):
        published = trio.run(publish, tmp_path, tmp_path / "out")
        assert {file.name for file in published.files} == {"v1-000000-000500-headers.seg", "erigondb.toml"}


def test_what_cant_be_published_is_left_out_with_a_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    make_snapshots(tmp_path, 100)
    for name, content in (("empty.seg", b""), ("it's.seg", b"x"), (os.fsdecode(b"\xff.seg"), b"x")):
        (tmp_path / name).write_bytes(content)
    published = trio.run(publish, tmp_path)
    reasons = {skipped.name: skipped.why for skipped in published.skipped}
    assert reasons["empty.seg"] == "it is empty"
    assert "single quote" in reasons["it's.seg"]
    assert len(reasons) == 3
    assert len(published.files) == 2


def test_a_directory_that_cant_be_read_is_left_out_and_the_rest_goes_on(tmp_path: Path) -> None:
    make_snapshots(tmp_path, 100)
    (tmp_path / "lost+found").mkdir(mode=0)
    without_power = ["setpriv", "--bounding-set=-all", "--"]  # root, too, needs leave then
    command = [*without_power, sys.executable, "-m", "cachefs", "torrent-create", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)
    assert done.stderr == "cachefs: lost+found/ is left out: Permission denied\n"


def test_a_name_is_as_long_as_its_torrents_can_be_or_left_out(tmp_path: Path) -> None:
    long, longest, too_long = ("a" * length for length in (242, 247, 248))
    for name in (long, longest, too_long):
        (tmp_path / name).write_bytes(b"x")
    published = trio.run(publish, tmp_path)
    assert [file.name for file in published.files] == [long, longest]
    (skipped,) = published.skipped
    assert (skipped.name, skipped.why) == (too_long, "its .torrent can't be written: File name too long")
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_something_else_where_a_torrent_should_be_is_left_alone_and_costs_that_file(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    names = sorted(make_snapshots(tmp_path, 100))
    make(tmp_path / f"{names[0]}.torrent")
    done = subprocess.run(
        [sys.executable, "-m", "cachefs", "torrent-create", tmp_path], capture_output=True, text=True, timeout=30
    )
    assert done.stdout == f"{names[1]}.torrent\n"
    why = "its .torrent can't be written: something else has its name"
    assert (done.returncode, done.stderr) == (0, f"cachefs: {names[0]} is left out: {why}\n")
    assert not (tmp_path / f"{names[0]}.torrent").is_file()


def test_a_torrent_at_the_end_of_a_link_is_trusted(tmp_path: Path) -> None:
    (path, _) = make_snapshots(tmp_path / "data", 1000).values()
    settled(tmp_path / "data")
    torrent = path.with_name(f"{path.name}.torrent")
    torrent.rename(tmp_path / "kept.torrent")
    torrent.symlink_to(tmp_path / "kept.torrent")
    assert trio.run(publish, tmp_path / "data").hashed == 0


def test_a_directory_without_content_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file that could be seeded"):
        trio.run(publish, tmp_path)


def settled(root: Path) -> None:
    """Publish until nothing is hashed: a file younger than the clock's resolution is hashed once more."""
    while trio.run(publish, root).hashed:
        pass


def test_an_unchanged_file_is_hashed_once(tmp_path: Path) -> None:
    make_snapshots(tmp_path, 3 * PIECE, 7)
    settled(tmp_path)
    before = load_chain(tmp_path / "chain.toml")
    assert trio.run(publish, tmp_path).hashed == 0
    assert load_chain(tmp_path / "chain.toml") == before


def test_a_file_replaced_by_one_of_the_same_size_and_an_older_mtime_is_hashed_again(tmp_path: Path) -> None:
    (path, _) = make_snapshots(tmp_path, 1000).values()
    settled(tmp_path)
    new = tmp_path / "new.tmp"
    new.write_bytes(bytes(1000))
    os.utime(new, (1, 1))
    new.rename(path)
    published = trio.run(publish, tmp_path)
    assert published.hashed == 1
    (content,) = [file.content for file in published.files if file.path == path]
    assert content == metainfo.build(path.name, 1000, hashlib.sha1(bytes(1000)).digest()).content


@pytest.mark.parametrize("damage", [b"", b"d4:infoe", b"not bencoded"])
def test_a_broken_torrent_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    (path, _) = make_snapshots(tmp_path, 1000).values()
    settled(tmp_path)
    torrent = path.with_name(f"{path.name}.torrent")
    good = torrent.read_bytes()
    torrent.write_bytes(damage)
    trio.run(publish, tmp_path)
    assert torrent.read_bytes() == good


def test_a_torrent_of_the_same_hash_keeps_its_trackers_when_its_file_is_hashed_again(tmp_path: Path) -> None:
    (path, _) = make_snapshots(tmp_path, 1000).values()
    trio.run(publish, tmp_path)
    torrent = path.with_name(f"{path.name}.torrent")
    with_tracker = b"d8:announce12:udp://a.test" + torrent.read_bytes().removeprefix(b"d")
    torrent.write_bytes(with_tracker)
    path.touch()
    assert trio.run(publish, tmp_path).hashed
    assert torrent.read_bytes() == with_tracker


def test_products_go_to_out_and_nothing_is_written_beside_the_files(tmp_path: Path) -> None:
    files = make_snapshots(tmp_path / "data", 1, 1, 1, 1, 10)
    before = sorted(tmp_path.joinpath("data").rglob("*"))
    with cachefs_seed(tmp_path / "data", "--out", tmp_path / "out") as box:
        assert box.chain == tmp_path / "out" / "chain.toml"
        assert httpx.get(f"{box.url}{HISTORY}").content == files[HISTORY].read_bytes()
        meta = metainfo.parse(httpx.get(f"{box.url}{HISTORY}.torrent").content)
        assert meta.content == load_chain(box.chain)[HISTORY]
    assert sorted(tmp_path.joinpath("data").rglob("*")) == before


def test_a_plain_client_gets_the_file_from_the_seeder(origin: Origin, tmp_path: Path) -> None:
    data = download(origin.torrent(HISTORY), tmp_path, peer=origin.box.peer)
    assert data == origin.files[HISTORY].read_bytes()


def test_a_plain_client_gets_the_file_from_the_web_seed_alone(origin: Origin, tmp_path: Path) -> None:
    data = download(origin.torrent(HISTORY), tmp_path, url=f"{origin.box.url}{HISTORY}")
    assert data == origin.files[HISTORY].read_bytes()


def test_the_seeder_never_writes_to_the_files_not_even_to_a_damaged_one(tmp_path: Path) -> None:
    (path, _) = make_snapshots(tmp_path / "data", 3 * PIECE).values()
    with cachefs_seed(tmp_path / "data", http=False) as box:
        with path.open("r+b") as file:
            file.seek(PIECE)
            file.write(b"damage")
        before = path.read_bytes()
        session, _ = start_download(path.with_name(f"{path.name}.torrent"), tmp_path, peer=box.peer)
        wait_for_alert(session, lt.hash_failed_alert)
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    make_snapshots(tmp_path, 10)
    with cachefs_seed(tmp_path) as box:
        box.process.send_signal(number)
        assert box.process.wait(10) == 0


def test_an_address_that_cant_be_had_ends_it_before_anything_is_hashed(tmp_path: Path) -> None:
    make_snapshots(tmp_path, 10)
    with silent_server() as taken:
        here = Peer(LOOPBACK, taken)
        for config in (OriginConfig(tmp_path, listen=here), OriginConfig(tmp_path, http=here)):
            with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match=f"{LOOPBACK}:{taken}"), flatten_subgroups=True):
                trio.run(serve, config)
    assert not (tmp_path / "chain.toml").exists()


def test_an_error_is_one_line_that_says_what_and_where(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cachefs", "seed", str(tmp_path), "--listen", f"{LOOPBACK}:0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"cachefs: {tmp_path}: holds no file that could be seeded\n"


@pytest.mark.parametrize("address", ["0.0.0.0", ":8080", "::1:8080", "localhost:65536", "[::1]"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, address: str) -> None:
    done = CliRunner().invoke(main, ["seed", str(tmp_path), "--http", address])
    assert done.exit_code == 2
    assert address in done.output


def test_help_is_printed_without_loading_what_commands_need() -> None:
    code = (
        "import sys, cachefs.cli\n"
        "cachefs.cli.main(['--help'], standalone_mode=False)\n"
        "print(*{'trio', 'libtorrent', 'pyfuse3', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "\n")
    assert "Serve a directory" in done.stdout
