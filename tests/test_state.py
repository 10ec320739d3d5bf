"""The state database: names follow the lock, and no damage to the file stops a start."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cachefs.content import ContentId
from cachefs.errors import StoreFailed
from cachefs.store.state import Counts, Info, ObjectRow, Seal, State

ONE = ContentId.btih("11" * 20)
TWO = ContentId.btih("22" * 20)
SEAL = Seal(size=100, mtime_ns=12345678901234567, inode=2**40)
ROW = ObjectRow(block_length=64, length=100, bitmap=b"\xc0", held=100, seal=SEAL, completed=9.0, last_used=10.0)
PARTIAL = ObjectRow(block_length=64, length=100, bitmap=b"\x80", held=64, seal=None, completed=None, last_used=7.0)


def test_names_follow_the_lock(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state.db")
    state.sync_names({"a": ONE, "b": TWO}, 1.0)
    state.set_lengths({"a": 100, "b": 200, "unknown": 300})
    state.set_completed(ONE, 5.0)
    state.sync_names({"a": ONE, "c": TWO}, 2.0)
    assert state.infos() == {
        "a": Info("a", ONE.hex, 100, 1.0, 5.0),
        "c": Info("c", TWO.hex, None, 2.0, None),
    }


def test_a_changed_hash_is_a_new_download(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state.db")
    state.sync_names({"a": ONE}, 1.0)
    state.set_lengths({"a": 100})
    state.set_completed(ONE.hex, 5.0)
    state.sync_names({"a": TWO}, 2.0)
    assert state.infos()["a"] == Info("a", TWO.hex, None, 2.0, None)


def test_a_new_name_for_content_already_here_is_sized_and_completed_at_once(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state.db")
    state.save_object(ONE, ROW)
    state.sync_names({"a": ONE}, 1.0)
    assert state.infos()["a"] == Info("a", ONE.hex, 100, 1.0, 9.0)


def test_every_name_of_a_content_is_completed_with_its_object_and_not_after_it_is_forgotten(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state.db")
    state.sync_names({"a": ONE, "b": ONE, "c": TWO}, 1.0)
    state.save_object(ONE, ROW)
    assert [info.completed for info in state.infos().values()] == [9.0, 9.0, None]
    state.forget_object(ONE)
    assert [info.completed for info in state.infos().values()] == [None, None, None]


def test_an_object_is_remembered_across_starts(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state.db")
    state.save_object(ONE, ROW)
    state.save_object(TWO, PARTIAL)
    state.touch_object(TWO, 11.0)
    state.close()
    state = State.open(tmp_path / "state.db")
    assert not state.rebuilt
    assert state.load_object(ONE) == ROW
    loaded = state.load_object(TWO)
    assert loaded is not None
    assert loaded.seal is None
    assert loaded.last_used == 11.0
    state.forget_object(ONE)
    assert state.load_object(ONE) is None


def test_counts_are_totals_of_the_rows(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state.db")
    assert state.counts() == Counts(0, 0, 0, 0, 0, 0)
    state.sync_names({"a": ONE, "b": TWO, "c": TWO}, 1.0)
    state.set_lengths({"b": 100})
    state.save_object(ONE, ROW)
    state.save_object(TWO, PARTIAL)
    assert state.counts() == Counts(names=3, sized=1, completed=1, objects=2, complete=1, held=164)


def test_syncing_a_mainnet_lock_is_quick_when_nothing_changed(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state.db")
    entries = {f"v1-{n:06}-bodies.seg": ContentId.btih(f"{n:040x}") for n in range(17_628)}
    state.sync_names(entries, 1.0)
    began = time.perf_counter()
    state.sync_names(entries, 2.0)
    assert time.perf_counter() - began < 0.3
    assert {info.created for info in state.infos().values()} == {1.0}


def garbage(path: Path) -> None:
    path.write_bytes(b"\xa5" * 20_000)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 100])


def one_page_overwritten(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[3 * 4096 : 4 * 4096] = b"\x5a" * 4096
    path.write_bytes(raw)


def of_another_program(path: Path) -> None:
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE BittorrentInfo (Name TEXT)")
    other.close()


@pytest.mark.parametrize("damage", [garbage, emptied, cut_short, one_page_overwritten, of_another_program])
def test_a_damaged_database_is_kept_aside_and_a_new_one_serves(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "state.db"
    state = State.open(path)
    state.sync_names({f"name-{n}": ContentId.btih(f"{n:040x}") for n in range(500)}, 1.0)
    state.close()
    damage(path)
    left = path.read_bytes()

    for number in (1, 2):
        path.write_bytes(left)
        state = State.open(path)
        assert state.rebuilt
        assert state.infos() == {}
        state.sync_names({"a": ONE}, 2.0)
        state.close()
        assert path.with_name(f"state.db.broken-{number}").exists()
    state = State.open(path)
    assert not state.rebuilt
    assert list(state.infos()) == ["a"]


def test_a_left_over_log_is_not_replayed_into_the_new_database(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    state = State.open(path)
    state.sync_names({f"name-{n}": ContentId.btih(f"{n:040x}") for n in range(500)}, 1.0)
    state.close()
    state = State.open(path)  # a log with a few pages only: one with all of them would heal the database
    state.set_lengths({"name-7": 100})
    log = path.with_name("state.db-wal").read_bytes()
    assert log
    state.close()
    garbage(path)
    path.with_name("state.db-wal").write_bytes(log)
    state = State.open(path)
    assert state.rebuilt
    assert state.infos() == {}


def test_a_database_that_cannot_be_opened_is_an_error_not_a_reason_to_start_anew(tmp_path: Path) -> None:
    (tmp_path / "state.db").mkdir()
    with pytest.raises(StoreFailed, match=r"state\.db"):
        State.open(tmp_path / "state.db")
    assert (tmp_path / "state.db").is_dir()


def test_a_failed_call_names_the_database_and_leaves_it_usable(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state.db")
    state.sync_names({"a": ONE}, 1.0)
    with pytest.raises(StoreFailed, match=r"state\.db"):
        state.sync_names({"b": TWO}, float("nan"))  # SQLite stores NaN as NULL, which Created refuses
    assert list(state.infos()) == ["a"]
    state.sync_names({"b": TWO}, 2.0)
    assert list(state.infos()) == ["b"]
