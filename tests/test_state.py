"""The state database: names follow the lock, and no damage to the file stops a start."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cachefs.content import ContentId
from cachefs.errors import StoreFailed
from cachefs.store.state import Counts, Info, ObjectRow, Pin, Seal, State

ONE = ContentId.btih("11" * 20)
TWO = ContentId.btih("22" * 20)
SEAL = Seal(size=100, mtime_ns=12345678901234567, inode=2**40)
ROW = ObjectRow(block_length=64, length=100, bitmap=b"\xc0", held=100, seal=SEAL, completed=9.0, last_used=10.0)
PARTIAL = ObjectRow(block_length=64, length=100, bitmap=b"\x80", held=64, seal=None, completed=None, last_used=7.0)


def test_names_follow_the_lock(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state.db")
    state.sync_names({"a": ONE, "b": TWO}, 1.0)
    state.set_lengths({"a": 100, "b": 200, "unknown": 300})
    state.save_object(ONE, ROW)
    state.sync_names({"a": ONE, "c": TWO}, 2.0)
    assert state.infos() == {
        "a": Info("a", ONE.hex, 100, 1.0, 9.0),
        "c": Info("c", TWO.hex, None, 2.0, None),
    }


def test_a_changed_hash_is_a_new_download(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state.db")
    state.sync_names({"a": ONE}, 1.0)
    state.set_lengths({"a": 100})
    state.save_object(ONE, ROW)
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
    assert state.load_object(ONE) == ROW
    loaded = state.load_object(TWO)
    assert loaded is not None
    assert loaded.seal is None
    assert loaded.last_used == 11.0
    state.forget_object(ONE)
    assert state.load_object(ONE) is None


def test_counts_are_totals_of_the_rows(tmp_path: Path) -> None:
    state = State.open(tmp_path / "state.db")
    assert state.counts() == Counts(0, 0, 0)
    state.save_object(ONE, ROW)
    state.save_object(TWO, PARTIAL)
    assert state.counts() == Counts(objects=2, complete=1, held=164)


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
def test_a_damaged_database_is_kept_aside_which_is_logged_and_a_new_one_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "state.db"
    state = State.open(path)
    state.sync_names({f"name-{n}": ContentId.btih(f"{n:040x}") for n in range(500)}, 1.0)
    state.close()
    damage(path)
    left = path.read_bytes()

    for number in (1, 2):
        path.write_bytes(left)
        state = State.open(path)
        assert state.infos() == {}
        state.sync_names({"a": ONE}, 2.0)
        state.close()
        assert path.with_name(f"state.db.broken-{number}").exists()
        assert f"kept as state.db.broken-{number}" in caplog.text
    state = State.open(path)
    assert list(state.infos()) == ["a"]


MANY = {f"history/v1-{number:06}.v": ContentId.btih(f"{number:040x}") for number in range(2**20, 2**20 + 60)}


def full_of_everything(path: Path) -> bytes:
    """A database with rows in every table; its bytes."""
    state = State.open(path)
    state.sync_names(MANY, 1.0)
    for content in list(MANY.values())[:30]:
        state.save_object(content, ROW)
        state.save_scrubbed(content, 3.0)
        state.save_losses(content, b"\x80")
    state.set_pins(Pin("snapshots", name, content) for name, content in list(MANY.items())[:10])
    state.close()
    return path.read_bytes()


def read_all(state: State) -> None:
    """Everything that can be asked of a state, and what a mount writes first."""
    state.complete_hashes(), state.seals(), state.longest_unread(), state.held(), state.last_used(), state.pins()
    state.counts(), state.infos()
    for content in MANY.values():
        state.load_object(content), state.losses(content)
    state.sync_names(MANY, 2.0)
    assert state.infos().keys() == MANY.keys()
    state.save_object(ONE, PARTIAL)
    assert state.load_object(ONE) == PARTIAL


@pytest.mark.parametrize(
    ("found", "at", "byte"),
    [
        (b"btih:" + b"0" * 34 + b"100005", 20, b"g"),  # of objects.id: no hex digit
        (b"history/v1-1048580.v", 22, b"\xff"),  # of BittorrentInfo.Hash: no UTF-8
        (b"BittorrentInfo", 5, b"\xff"),  # of the schema
        (b"SQLite format 3\0", 18, b"\x05"),  # a version that is only to be read
    ],
)
def test_one_byte_that_changed_is_enough_to_set_a_database_aside(
    tmp_path: Path, found: bytes, at: int, byte: bytes
) -> None:
    path = tmp_path / "state.db"
    raw = full_of_everything(path)
    at += raw.index(found)
    path.write_bytes(raw[:at] + byte + raw[at + 1 :])
    read_all(State.open(path))
    assert path.with_name("state.db.broken-1").exists()


def test_whatever_bytes_changed_the_state_can_be_used(tmp_path: Path) -> None:
    raw = full_of_everything(tmp_path / "state.db")
    source = random.Random(4)
    for number in range(200):
        damaged = bytearray(raw)
        for _ in range(source.choice([1, 1, 2, 8])):
            at = source.randrange(source.choice([120, 4096, len(raw)]))
            damaged[at] = source.choice([damaged[at] ^ (1 << source.randrange(8)), source.randrange(256), 0xFF])
        path = tmp_path / f"{number}" / "state.db"
        path.parent.mkdir()
        path.write_bytes(damaged)
        state = State.open(path)
        read_all(state)
        state.close()


def test_a_bit_too_many_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    state = State.open(path)
    state.save_object(ONE, PARTIAL)
    state.close()
    other = sqlite3.connect(path)
    other.execute("UPDATE objects SET bitmap = x'c0'")
    other.commit()
    other.close()
    assert State.open(path).load_object(ONE) is None


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
    assert path.with_name("state.db.broken-1").exists()
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
