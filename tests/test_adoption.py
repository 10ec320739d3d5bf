"""Taking over a directory of snapshots: what is recognised, what is reported, and that nothing is touched."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from cachefs import metainfo
from cachefs.adoption.hashing import seal_of
from cachefs.adoption.memory import Memory
from cachefs.adoption.offline import adopt
from cachefs.adoption.takeover import MEMORY_NAME, Adoption
from cachefs.catalog.chain import format_chain
from cachefs.catalog.snapshots import SnapshotLock
from cachefs.cli import main
from cachefs.config import Config, Snapshots
from cachefs.content import ContentId
from cachefs.errors import ConfigError, DataDirBusy
from cachefs.locks import LockFile
from cachefs.store import DataDirLock, State
from cachefs.store.places import How
from tests.mount_kit import BODIES, DOMAIN, HEADERS, HISTORY, PIECE, Library, make_library, read_only

SIZES = (5, 100_000, PIECE, 3 * PIECE + 1, 2 * PIECE)


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return make_library(tmp_path / "library", *SIZES)


class Bench:
    """A library's directory that is adopted again and again into one data directory."""

    def __init__(self, library: Library, data_dir: Path) -> None:
        self.library = library
        self.data_dir = data_dir
        self.hashed = 0

    def adopt(self, root: Path | None = None, chain: Path | str | None = None) -> Adoption:
        self.hashed = 0

        def report(done: int, total: int) -> None:
            self.hashed = done

        config = Config(snapshots=Snapshots(chain_toml=str(chain or "")))
        return trio.run(adopt, config, self.data_dir, root or self.library.root, report)

    def rows(self) -> Mapping[str, tuple[int | None, bool]]:
        state = State.open(self.data_dir / "state.db")
        try:
            return {info.name: (info.length, info.completed is not None) for info in state.infos().values()}
        finally:
            state.close()


@pytest.fixture
def bench(library: Library, tmp_path: Path) -> Bench:
    return Bench(library, tmp_path / "data")


def _looks(library: Library) -> dict[str, tuple[int, int, int, bytes]]:
    statuses = {name: path.stat() for name, path in library.files.items()}
    return {
        name: (s.st_mtime_ns, s.st_ino, s.st_mode, hashlib.sha256(library.files[name].read_bytes()).digest())
        for name, s in statuses.items()
    }


def test_every_file_that_is_the_locks_is_held_and_none_is_touched(bench: Bench) -> None:
    before = _looks(bench.library)
    adoption = bench.adopt(chain=bench.library.chain)
    assert adoption.taken == dict.fromkeys(bench.library.files, How.HARD_LINK)
    assert (adoption.others, adoption.failed, adoption.missing) == ([], {}, [])
    assert adoption.size == bench.hashed == sum(path.stat().st_size for path in bench.library.files.values())
    assert bench.rows() == {name: (path.stat().st_size, True) for name, path in bench.library.files.items()}
    assert _looks(bench.library) == before


def test_adopting_again_hashes_nothing(bench: Bench) -> None:
    bench.adopt(chain=bench.library.chain)
    adoption = bench.adopt()
    assert set(adoption.taken.values()) == {How.HELD}
    assert bench.hashed == 0


def test_a_file_that_changed_is_hashed_again_and_no_other(bench: Bench) -> None:
    bench.adopt(chain=bench.library.chain)
    os.utime(bench.library.files[BODIES], ns=(0, 0))
    adoption = bench.adopt()
    assert set(adoption.taken) == set(bench.library.files)
    assert bench.hashed == SIZES[1]


def test_a_file_of_another_hash_is_told_with_both_and_left_alone(bench: Bench) -> None:
    with bench.library.files[DOMAIN].open("r+b") as file:
        file.seek(2 * PIECE + 5)
        file.write(b"\x00\x01")
    adoption = bench.adopt(chain=bench.library.chain)
    (other,) = adoption.others
    assert (other.name, other.expected) == (DOMAIN, bench.library.content(DOMAIN))
    pieces = b"".join(hashlib.sha1(part).digest() for part in _pieces(bench.library.files[DOMAIN].read_bytes()))
    assert other.found == metainfo.build(DOMAIN, SIZES[3], pieces).content
    assert adoption.missing == [DOMAIN]
    assert f'"{DOMAIN}":"{other.found.hex}"' in "".join(other.lines())
    assert bench.library.files[DOMAIN].stat().st_nlink == 1
    assert set(adoption.taken) == set(bench.library.files) - {DOMAIN}


def _pieces(data: bytes) -> list[bytes]:
    return [data[at : at + PIECE] for at in range(0, len(data), PIECE)]


def test_with_a_torrent_beside_it_the_wrong_pieces_are_told(bench: Bench) -> None:
    shutil.copytree(bench.library.products, bench.library.root, dirs_exist_ok=True)
    with bench.library.files[DOMAIN].open("r+b") as file:
        file.seek(2 * PIECE + 5)
        file.write(b"\x00\x01")
    (other,) = bench.adopt(chain=bench.library.chain).others
    assert (other.wrong, other.pieces) == ((2,), 4)
    assert "1 of 4 pieces differ: 2" in other.lines()[0]
    assert bench.adopt().others == [other]
    assert bench.hashed == 0, "told again from memory"


def test_the_directorys_own_lock_decides_when_there_is_no_other(bench: Bench) -> None:
    entries = {name: bench.library.content(name) for name in (HEADERS, BODIES)}
    SnapshotLock("mainnet", entries).save(bench.library.root / "snapshot-lock.json")
    adoption = bench.adopt()
    assert set(adoption.taken) == {HEADERS, BODIES}
    assert sorted(adoption.unnamed) == sorted(set(bench.library.files) - {HEADERS, BODIES})
    lock = LockFile(bench.data_dir).load()
    assert (lock.chain, lock.downloads) == ("mainnet", entries)


def test_without_any_lock_it_is_said_what_is_needed(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="--chain-toml"):
        bench.adopt()


def test_a_hash_with_pieces_of_64_mib_is_recognised(bench: Bench, tmp_path: Path) -> None:
    data = bench.library.files[HISTORY].read_bytes()
    info = metainfo.build(HISTORY, len(data), hashlib.sha1(data).digest(), metainfo.LARGE_PIECE_LENGTH)
    chain = tmp_path / "chain.toml"
    chain.write_text(format_chain({HISTORY: info.content, HEADERS: ContentId("btih", bytes(20))}))
    adoption = bench.adopt(chain=chain)
    assert adoption.taken == {HISTORY: How.HARD_LINK}
    assert adoption.others[0].found == bench.library.content(HEADERS), "told with the usual piece length"


def test_files_behind_links_are_found_under_the_names_they_have_there(bench: Bench, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (bench.library.root / "domain").rename(elsewhere)
    (bench.library.root / "domain").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(bench.library.root)
    (elsewhere / "itself").symlink_to(elsewhere / "itself")
    (elsewhere / "nowhere").symlink_to(elsewhere / "absent")
    assert set(bench.adopt(chain=bench.library.chain).taken) == set(bench.library.files)


def test_an_empty_file_is_told_and_left(bench: Bench) -> None:
    bench.library.files[HEADERS].write_bytes(b"")
    assert bench.adopt(chain=bench.library.chain).failed == {HEADERS: "it is empty"}


def test_a_data_directory_that_is_in_use_is_refused(bench: Bench) -> None:
    with DataDirLock(bench.data_dir), pytest.raises(DataDirBusy):
        bench.adopt(chain=bench.library.chain)


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"a": 5}', b'{"/a": [1, 2, 3, 4, "zz"]}'])
def test_a_broken_memory_costs_hashing_alone(bench: Bench, damage: bytes) -> None:
    bench.adopt(chain=bench.library.chain)
    (bench.data_dir / MEMORY_NAME).write_bytes(damage)
    assert set(bench.adopt().taken.values()) == {How.HELD}
    assert bench.hashed == sum(SIZES) + bench.library.files["erigondb.toml"].stat().st_size


def test_memories_of_two_processes_are_merged(bench: Bench) -> None:
    bench.adopt(chain=bench.library.chain)
    path = bench.data_dir / MEMORY_NAME
    before = Memory(path)
    os.utime(bench.library.files[BODIES], ns=(0, 0))
    bench.adopt()
    known = before.recall(bench.library.files[HEADERS].resolve(), seal_of(bench.library.files[HEADERS]))
    assert known is not None
    before.note(Path("/other"), known)
    before.save()
    assert Memory(path).recall(bench.library.files[HEADERS].resolve(), known.seal) == known
    assert Memory(path).recall(Path("/other"), known.seal) == known


def test_the_command_reports_and_its_exit_code_says_whether_all_was_right(bench: Bench) -> None:
    words = ["adopt", str(bench.library.root), "--data-dir", str(bench.data_dir)]
    words += ["--chain-toml", str(bench.library.chain)]
    done = CliRunner().invoke(main, words)
    assert (done.exit_code, done.stdout) == (0, "6 files match, 12.7 MB (6 hard link)\n")
    bench.library.files[BODIES].write_bytes(bytes(5))
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert f"{BODIES}: the file has " in done.stdout
    assert "1 are something else" in done.stdout


def test_a_folder_that_cannot_be_read_is_told_and_the_others_are_taken(bench: Bench) -> None:
    (bench.library.root / "domain").chmod(0)
    words = ["adopt", str(bench.library.root), "--data-dir", str(bench.data_dir)]
    words += ["--chain-toml", str(bench.library.chain)]
    without_power = ["setpriv", "--bounding-set=-all", "--"]  # root, too, needs leave then
    command = [*without_power, sys.executable, "-m", "cachefs", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (bench.library.root / "domain").chmod(0o755)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[:2] == [
        "domain/: can't be read: Permission denied",
        "5 files match, 6.4 MB (5 hard link)",
    ]


def test_one_folder_too_high_is_noticed(bench: Bench) -> None:
    outside = bench.library.root.parent
    assert bench.library.root.name == "root"
    said = list(bench.adopt(outside, chain=bench.library.chain).lines())
    assert said[0] == "no file matches; names of the lock are in its folder root: is that meant?"


def test_names_of_any_bytes_are_told_on_one_line(bench: Bench) -> None:
    (bench.library.root / "a\nb\udcff\x1b").touch()
    told = bench.adopt(chain=bench.library.chain)
    assert "1 have no name in the lock: a\\nb\\udcff\\x1b" in list(told.lines())


def test_a_data_directory_that_is_read_only_is_refused_before_anything_is_hashed(bench: Bench) -> None:
    bench.adopt(chain=bench.library.chain)
    with read_only(bench.data_dir), pytest.raises(ConfigError, match="it is read-only"):
        bench.adopt()
