"""The lock's file through its life: made, edited, rolled back; and the versions that are kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

from cachefs.catalog.chain import format_chain
from cachefs.catalog.difference import Difference
from cachefs.catalog.history import KEPT, History
from cachefs.config import Config, Snapshots
from cachefs.content import ContentId
from cachefs.errors import CatalogError, ConfigError
from cachefs.locks import LockFile


def entry(number: int) -> ContentId:
    return ContentId("btih", bytes([number]) * 20)


@pytest.fixture
def lock_file(tmp_path: Path) -> LockFile:
    """A lock of one name, `a.seg`, whose content is entry 0."""
    chain = tmp_path / "mainnet.toml"
    chain.write_text(format_chain({"a.seg": entry(0)}))
    made = LockFile(tmp_path / "data")
    _load(made, chain)
    return made


def _load(lock_file: LockFile, chain: Path | str = "") -> float:
    config = Config(snapshots=Snapshots(chain_toml=str(chain)))
    return trio.run(lock_file.load_or_make, config, config.snapshots.chain_name)[1]


def _set(lock_file: LockFile, number: int) -> Difference:
    return lock_file.edit(lambda entries: {**entries, "a.seg": entry(number)})


def test_a_lock_is_made_from_chain_toml_and_written_as_erigon_writes_it(lock_file: LockFile) -> None:
    assert lock_file.path.read_text() == f'{{"chain":"mainnet","downloads":{{"a.seg":"{"00" * 20}"}}}}'


def test_without_lock_and_chain_toml_it_is_said_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--chain-toml"):
        _load(LockFile(tmp_path))


def test_an_edit_says_what_it_changed_and_is_in_the_file(lock_file: LockFile) -> None:
    assert _set(lock_file, 1).changed == {"a.seg": (entry(0), entry(1))}
    assert lock_file.load().downloads == {"a.seg": entry(1)}


def test_each_write_keeps_the_last_ten_locks(lock_file: LockFile) -> None:
    for number in range(1, 16):
        _set(lock_file, number)
    versions = [version.text() for version in lock_file.history.versions()]
    assert len(versions) == KEPT + 1 == 11
    assert [text.split('"')[9] for text in versions] == [entry(number).hex for number in range(15, 4, -1)]


def test_a_rollback_puts_back_the_lock_before_and_is_undone_by_another(lock_file: LockFile) -> None:
    original = lock_file.path.read_bytes()
    _set(lock_file, 1)
    edited = lock_file.path.read_bytes()
    assert lock_file.roll_back(1).changed == {"a.seg": (entry(1), entry(0))}
    assert lock_file.path.read_bytes() == original
    lock_file.roll_back(1)
    assert lock_file.path.read_bytes() == edited


def test_a_rollback_goes_as_many_locks_back_as_asked_and_no_further_than_they_are_kept(lock_file: LockFile) -> None:
    for number in (1, 2, 3):
        _set(lock_file, number)
    assert lock_file.roll_back(2).changed == {"a.seg": (entry(3), entry(1))}
    with pytest.raises(CatalogError, match="not 9"):
        lock_file.roll_back(9)
    assert lock_file.load().downloads == {"a.seg": entry(1)}


@pytest.mark.parametrize("damage", [b'{"chain":', None], ids=["torn", "deleted"])
def test_a_rollback_mends_a_lock_that_is_broken_or_gone(lock_file: LockFile, damage: bytes | None) -> None:
    original = lock_file.path.read_bytes()
    lock_file.path.unlink() if damage is None else lock_file.path.write_bytes(damage)
    lock_file.roll_back(1)
    assert lock_file.path.read_bytes() == original


def test_a_lock_edited_by_hand_and_never_used_is_kept_by_the_next_write_too(lock_file: LockFile) -> None:
    lock_file.path.write_text(lock_file.path.read_text().replace("00" * 20, "07" * 20))
    _set(lock_file, 1)
    assert lock_file.roll_back(1).changed == {"a.seg": (entry(1), entry(7))}


@pytest.mark.parametrize("name", ["../a.seg", "b/", "a.seg/b"])
def test_an_edit_that_makes_a_bad_lock_writes_nothing(lock_file: LockFile, name: str) -> None:
    before = lock_file.path.read_bytes()
    with pytest.raises(CatalogError):
        lock_file.edit(lambda entries: {**entries, name: entry(1)})
    assert lock_file.path.read_bytes() == before
    assert len(lock_file.history.versions()) == 1


def test_edits_at_the_same_time_lose_none(lock_file: LockFile) -> None:
    def add(number: int) -> None:
        lock_file.edit(lambda entries: {**entries, f"{number}.seg": entry(number)})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    assert len(lock_file.load().downloads) == 9


def test_a_lock_that_is_used_again_as_it_was_makes_no_new_version(lock_file: LockFile) -> None:
    _load(lock_file)
    assert len(lock_file.history.versions()) == 1


def test_a_history_that_cannot_be_written_keeps_no_lock_from_use(lock_file: LockFile) -> None:
    (version,) = lock_file.history.versions()
    version.path.unlink()
    lock_file.history.directory.rmdir()
    lock_file.history.directory.touch()
    assert _load(lock_file) == lock_file.path.stat().st_mtime


def test_files_that_are_not_versions_are_left_alone(tmp_path: Path) -> None:
    history = History(tmp_path)
    (tmp_path / "notes.json").touch()
    for number in range(15):
        history.keep(str(number))
    assert (tmp_path / "notes.json").exists()
    assert len(history.versions()) == KEPT + 1


def test_a_difference_tells_each_name_once_and_sorted() -> None:
    old = {"same": entry(0), "gone": entry(1), "other": entry(2)}
    new = {"same": entry(0), "come": entry(3), "other": entry(4)}
    difference = Difference.of(old, new)
    assert list(difference.lines()) == [
        f"+ come  {entry(3).hex}",
        f"- gone  {entry(1).hex}",
        f"~ other  {entry(2).hex} -> {entry(4).hex}",
    ]
    assert difference.summary() == "1 added, 1 removed, 1 changed, 1 unchanged"
    assert difference.gone == {"gone", "other"}
    assert not Difference.of(old, old)
