"""Erigon's commands on directories and .torrent files: the formats its operators know, sorted, the same every time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import libtorrent as lt
import pytest
import tomli

from cachefs import metainfo
from cachefs.catalog.chain import format_chain, load_chain
from cachefs.metainfo import Bencodable, bdecode, bencode
from tests.counterparts import make_snapshots, nginx
from tests.mount_kit import (
    BODIES,
    DOMAIN,
    HEADERS,
    PIECE,
    Library,
    cachefs,
    command_of,
    make_library,
    mounted,
)
from tests.records_kit import web
from tests.terminal_kit import on_a_terminal, shown_until


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return make_library(tmp_path_factory.mktemp("library"), 5, 100_000, PIECE, 2 * PIECE + 1)


def test_torrent_hashes_prints_the_chain_toml_and_writes_nothing(library: Library) -> None:
    before = sorted(library.root.rglob("*"))
    first, second = (cachefs("torrent-hashes", library.root) for _ in range(2))
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == second.stdout == library.chain.read_text()
    assert sorted(library.root.rglob("*")) == before


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["torrent-hashes", "manifest", "--help"])
def test_what_cant_be_printed_for_a_full_disk_is_one_line_and_a_failure(
    library: Library, monkeypatch: pytest.MonkeyPatch, command: str, unbuffered: str
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    arguments = command_of([command] if command == "--help" else [command, library.root])
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (1, "cachefs: what it prints can't be written: No space left on device\n")


def test_torrent_hashes_says_what_it_leaves_out(tmp_path: Path) -> None:
    make_snapshots(tmp_path, 100)
    (tmp_path / "empty.seg").touch()
    done = cachefs("torrent-hashes", tmp_path)
    assert (done.returncode, done.stderr) == (0, "cachefs: empty.seg is left out: it is empty\n")
    assert "empty.seg" not in done.stdout


def test_torrent_create_writes_a_torrent_beside_every_file_once(tmp_path: Path) -> None:
    files = make_snapshots(tmp_path, 100, PIECE + 1, 3, 4)
    first, second = (cachefs("torrent-create", tmp_path) for _ in range(2))
    assert first.stdout.splitlines() == sorted(f"{name}.torrent" for name in files)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    for name in files:
        info = metainfo.parse((tmp_path / f"{name}.torrent").read_bytes())
        assert (info.name, info.content) == (name, load_chain_of(tmp_path)[name])
    assert not (tmp_path / "chain.toml").exists()


def load_chain_of(directory: Path) -> dict[str, object]:
    out = directory.with_name("printed.toml")
    out.write_text(cachefs("torrent-hashes", directory).stdout)
    return dict(load_chain(out))


def extended(torrent: Path, extra: dict[bytes, Bencodable]) -> bytes:
    """The .torrent with more beside its info dictionary."""
    outer = bdecode(torrent.read_bytes())
    assert isinstance(outer, dict)
    return bencode(outer | extra)


def test_torrent_cat_prints_toml_that_says_what_libtorrent_reads(library: Library, tmp_path: Path) -> None:
    extra: dict[bytes, Bencodable] = {
        b"announce": b"udp://tracker:1/a",
        b"announce-list": [[b"udp://tracker:1/a"], [b"http://other/"]],
        b"url-list": [b"http://seed/a b"],
    }
    (tmp_path / "t.torrent").write_bytes(extended(library.torrent(DOMAIN), extra))
    done = cachefs("torrent-cat", tmp_path / "t.torrent")
    info = lt.torrent_info(str(library.torrent(DOMAIN)))
    assert done.stdout.splitlines()[0] == f"InfoHash = '{info.info_hashes().v1}'"
    assert tomli.loads(done.stdout) == {
        "InfoHash": str(info.info_hashes().v1),
        "Name": DOMAIN,
        "Length": info.total_size(),
        "PieceLength": info.piece_length(),
        "Pieces": info.num_pieces(),
        "AnnounceList": ["udp://tracker:1/a", "http://other/"],
        "UrlList": ["http://seed/a b"],
    }


def test_torrent_magnet_prints_what_libtorrent_understands(library: Library, tmp_path: Path) -> None:
    extra: dict[bytes, Bencodable] = {b"announce": b"udp://t:1/a?b=c", b"url-list": b"http://s/&"}
    (tmp_path / "t.torrent").write_bytes(extended(library.torrent(DOMAIN), extra))
    done = cachefs("torrent-magnet", tmp_path / "t.torrent", library.torrent(HEADERS))
    first, second = done.stdout.splitlines()
    read = lt.parse_magnet_uri(first)
    assert (str(read.info_hashes.v1), read.name) == (library.content(DOMAIN).hex, DOMAIN)
    assert (read.trackers, read.url_seeds) == (["udp://t:1/a?b=c"], ["http://s/&"])
    assert second == f"magnet:?xt=urn:btih:{library.content(HEADERS).hex}&dn={HEADERS}"


@pytest.mark.parametrize("command", ["torrent-cat", "torrent-magnet"])
def test_a_broken_torrent_is_an_error_that_names_the_file(tmp_path: Path, command: str) -> None:
    (tmp_path / "broken.torrent").write_bytes(b"d4:info")
    done = cachefs(command, tmp_path / "broken.torrent")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"cachefs: {tmp_path}/broken.torrent: ")


def test_manifest_prints_what_a_seed_box_publishes(library: Library, tmp_path: Path) -> None:
    done = cachefs("manifest", library.merged(tmp_path))
    assert done.stdout == (library.products / "manifest.txt").read_text()


def test_manifest_leaves_out_names_that_would_be_two_lines(library: Library, tmp_path: Path) -> None:
    (library.merged(tmp_path) / "new\nline.seg").touch()
    done = cachefs("manifest", tmp_path)
    assert done.stdout == (library.products / "manifest.txt").read_text()
    assert done.stderr == "cachefs: 'new\\nline.seg' is left out: holds a control character or a backslash\n"


def test_manifest_of_a_mount_lists_every_name_and_waits_for_no_size(library: Library, tmp_path: Path) -> None:
    with mounted(tmp_path, library.chain, "--deadline", "1") as mount:  # nobody to ask
        done = cachefs("manifest", mount.snapshots)
    assert done.stdout == "".join(f"{name}\n" for name in sorted(library.files))


def test_manifest_verify_finds_nothing_wrong_with_a_right_web_seed(library: Library, tmp_path: Path) -> None:
    with nginx(library.merged(tmp_path)) as url:
        done = cachefs("manifest-verify", url, "--chain-toml", library.chain)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{url}: {len(library.files)} names, 0 faults\n"


def test_manifest_verify_shows_on_a_terminal_how_far_it_is(library: Library, tmp_path: Path) -> None:
    with nginx(library.merged(tmp_path)) as url:
        with on_a_terminal("manifest-verify", url) as (process, terminal):
            shown_until(terminal, f"{len(library.files)}/{len(library.files)}".encode())
            assert process.wait(20) == 0


def test_manifest_verify_names_every_fault_and_fails(library: Library, tmp_path: Path) -> None:
    web = library.merged(tmp_path / "web")
    names = sorted(library.files)
    (web / HEADERS).unlink()
    (web / BODIES).unlink()
    (web / BODIES).write_bytes(b"short")
    (web / f"{DOMAIN}.torrent").unlink()
    (web / f"{DOMAIN}.torrent").write_bytes(library.torrent(HEADERS).read_bytes())
    (web / "manifest.txt").unlink()
    listed = [*names, *(f"{name}.torrent" for name in names if name != "erigondb.toml"), "gone.seg.torrent"]
    (web / "manifest.txt").write_text("".join(f"{name}\n" for name in listed))
    chain = tmp_path / "chain.toml"
    chain.write_text(format_chain(load_chain(library.chain) | {"v1-missing.seg": library.content(DOMAIN)}))
    with nginx(web) as url:
        first, second = (cachefs("manifest-verify", url, "--chain-toml", chain) for _ in range(2))
    assert (first.returncode, first.stderr) == (1, "")
    assert first.stdout == second.stdout
    length = library.files[BODIES].stat().st_size
    assert first.stdout.splitlines() == [
        f"{url}{DOMAIN}: its .torrent is of {HEADERS}",
        f"{url}erigondb.toml: its .torrent is not listed",
        f"{url}gone.seg: its .torrent is listed, and it isn't",
        f"{url}{BODIES}: 5 bytes long, its .torrent says {length}",
        f"{url}{HEADERS}: HTTP 404",
        f"{url}v1-missing.seg: is not listed",
        f"{url}: {len(names)} names, 6 faults",
    ]


@pytest.mark.parametrize("told", [f"bytes 0-0/{'9' * 5000}", "bytes 0-0/*", "bytes 1-1/5", "none"])
def test_manifest_verify_tells_of_a_range_that_says_no_length(library: Library, told: str) -> None:
    with web() as host:
        host.put("manifest.txt", f"{BODIES}\n{BODIES}.torrent\n".encode())
        host.put(f"{BODIES}.torrent", library.torrent(BODIES).read_bytes())
        host.put(BODIES, library.files[BODIES].read_bytes(), headers={"Content-Range": told})
        done = cachefs("manifest-verify", host.url)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[0] == f"{host.url}{BODIES}: ranges of it are not answered"


def test_manifest_verify_tells_another_hash_than_the_chains(library: Library, tmp_path: Path) -> None:
    chain = tmp_path / "chain.toml"
    chain.write_text(format_chain(load_chain(library.chain) | {HEADERS: library.content(DOMAIN)}))
    with nginx(library.merged(tmp_path / "web")) as url:
        done = cachefs("manifest-verify", url, "--chain-toml", chain)
    assert done.returncode == 1
    hashes = f"info-hash {library.content(HEADERS).hex}, chain.toml says {library.content(DOMAIN).hex}"
    assert done.stdout.splitlines()[0] == f"{url}{HEADERS}: its .torrent has {hashes}"


def test_manifest_verify_checks_every_url_even_if_one_host_is_gone(library: Library, tmp_path: Path) -> None:
    with nginx(library.merged(tmp_path)) as url:
        done = cachefs("manifest-verify", "http://127.0.0.1:9/x", url)
    assert done.returncode == 1
    assert done.stdout.startswith("http://127.0.0.1:9/x/manifest.txt: ")
    assert done.stdout.endswith(f"{url}: {len(library.files)} names, 0 faults\n")


def test_manifest_verify_gives_up_on_a_host_that_answers_no_more(tmp_path: Path) -> None:
    names = [f"v1-{number:06}.seg" for number in range(500)]
    (tmp_path / "manifest.txt").write_text("".join(f"{name}\n{name}.torrent\n" for name in names))
    with nginx(tmp_path, location="if ($uri != /manifest.txt) { return 444; }") as url:
        done = cachefs("manifest-verify", url)
    assert done.returncode == 1
    assert f"{url}manifest.txt: the host doesn't answer any more; the rest isn't checked" in done.stdout
    assert len(done.stdout.splitlines()) < 100


@pytest.mark.parametrize("command", ["adopt", "lock", "manifest", "mount", "torrent_hashes"])
def test_a_command_that_serves_nothing_loads_nothing_that_serves(command: str) -> None:
    """Loading libtorrent and an HTTP client would be a third of its start; a mount leaves that to its daemon."""
    check = f"import sys, cachefs.cli.{command}; print({{'libtorrent', 'httpx'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "set()\n"
