"""`cachefs gc` and `pieces/`: lists and torrents that nothing needs go, all others stay."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import trio

from cachefs.catalog import records
from cachefs.catalog.records import LOCK_NAME, RecordsLock
from cachefs.keeper import Collected, Keeper
from cachefs.store import ObjectStore, State
from cachefs.store.room import Room
from tests import records_kit
from tests.mount_kit import cachefs, mounted
from tests.records_kit import OPEN_TOML, PIECE, data_dir, song, web

NAMES = ["kept.mp3", "gone.mp3"]

LATER = """
import time
now = time.time
time.time = lambda: now() + 2 * 86400
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with two records, each with a list and a torrent."""
    data = data_dir(tmp_path)
    with web() as host:
        for seed, name in enumerate(NAMES):
            records_kit.etch(data, host.put(name, song(seed, 3 * PIECE)), "--swarm")
    return data


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands from here on live two days later."""
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "sitecustomize.py").write_text(LATER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "later"))


def forget(data: Path, name: str) -> None:
    def change(lock: RecordsLock) -> RecordsLock:
        return records.lock_of(record for record in lock if record.name != name)

    records.update(data / LOCK_NAME, change)


def sidecars(data: Path) -> set[str]:
    return {path.name for path in (data / "pieces").iterdir()}


def of(data: Path, name: str) -> set[str]:
    return set(records.load(data / LOCK_NAME).records[name].sidecars)


def gc(data: Path) -> str:
    done = cachefs("gc", "--data-dir", data)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("mounted_too", [True, False], ids=["mounted", "idle"])
def test_what_no_record_names_goes_and_what_is_somebody_elses_stays(
    data: Path, tmp_path: Path, mounted_too: bool
) -> None:
    kept = of(data, "kept.mp3")
    assert sidecars(data) == kept | of(data, "gone.mp3")
    forget(data, "gone.mp3")
    (data / "pieces" / "README").write_text("not ours")
    (data / "pieces" / f"{'ab' * 32}.0123abcd").write_text("left half written")
    if mounted_too:
        with mounted(tmp_path, settings=OPEN_TOML, within=("env", f"PYTHONPATH={os.environ['PYTHONPATH']}")):
            said = gc(data)
    else:
        said = gc(data)
    assert "3 piece lists and torrents of no record, 12.3 kB" in said
    assert sidecars(data) == kept | {"README"}
    assert "of no record" not in gc(data)


def test_what_is_younger_than_a_day_stays(data: Path) -> None:
    forget(data, "gone.mp3")
    before = sidecars(data)
    result = json.loads(cachefs("gc", "--json", "--data-dir", data).stdout)
    assert (len(result["nameless"]["gone"]), len(result["nameless"]["stays"])) == (0, 1)
    assert len(records_kit.stored(data)) == 2
    assert result["sidecars"] == {"gone": {}, "stays": {}}
    assert sidecars(data) == before


def test_content_whose_record_was_written_while_it_collects_stays(data: Path) -> None:
    before = records_kit.stored(data)
    content = records.load(data / LOCK_NAME).contents()

    async def collect() -> Collected:
        state = State.open(data / "state.db")
        store = ObjectStore(data / "store", state)
        in_use = {"records": {"kept.mp3": content["kept.mp3"]}}  # not yet told of gone.mp3
        keeper = Keeper(store, state, Room(store, state), lambda: in_use, lambda: time.time() + 2 * 86400)
        try:
            return await keeper.collect(lambda done, of: None)
        finally:
            state.close()

    assert not trio.run(collect).nameless.gone
    assert records_kit.stored(data) == before
    forget(data, "gone.mp3")
    assert [*trio.run(collect).nameless.gone] == [str(content["gone.mp3"])]


def test_etching_bytes_without_a_record_anew_makes_them_young_again(data: Path) -> None:
    content = records.load(data / LOCK_NAME).contents()["gone.mp3"]
    directory = data / "store" / "sha256" / content.hex[:2] / content.hex
    forget(data, "gone.mp3")
    before = directory.stat().st_ctime_ns
    with web() as host:
        records_kit.etch(data, host.put("again.mp3", song(1, 3 * PIECE)))
    assert directory.stat().st_ctime_ns > before


@pytest.mark.usefixtures("later")
def test_a_shared_lock_keeps_its_lists_without_any_content(data: Path, tmp_path: Path) -> None:
    listener = data_dir(tmp_path / "listener")
    shutil.copy(data / LOCK_NAME, listener)
    shutil.copytree(data / "pieces", listener / "pieces")
    before = sidecars(listener)
    gc(listener)
    assert sidecars(listener) == before


@pytest.mark.usefixtures("later")
def test_the_list_of_what_is_stored_stays_while_it_is(data: Path) -> None:
    lock = data / LOCK_NAME
    (listed,) = (name for name in of(data, "gone.mp3") if "." not in name)
    lines = lock.read_text().splitlines(keepends=True)
    lock.write_text("".join(line for line in lines if listed not in line and "swarm" not in line))
    gc(data)
    assert listed in sidecars(data)
    forget(data, "gone.mp3")
    gc(data)
    assert listed not in sidecars(data)


@pytest.mark.usefixtures("later")
def test_a_lock_that_is_edited_and_not_in_use_yet_or_broken_keeps_lists(data: Path, tmp_path: Path) -> None:
    lock, before = data / LOCK_NAME, sidecars(data)
    text = lock.read_text()
    with mounted(tmp_path, settings=OPEN_TOML, within=("env", f"PYTHONPATH={os.environ['PYTHONPATH']}")):
        lock.write_text(text[: text.rindex("[[record]]")])
        gc(data)
        assert sidecars(data) == before, "the mount still shows it"
        lock.write_text("[[record]")
        assert f"{data / 'pieces'} stays: {lock}:1: not TOML" in gc(data)
        assert f"{data / 'store' / 'sha256'} stays: {lock}:1: not TOML" in gc(data)
        assert (sidecars(data), len(records_kit.stored(data))) == (before, 2)


@pytest.mark.usefixtures("later")
def test_a_directory_that_is_linked_to_is_left_alone(data: Path, tmp_path: Path) -> None:
    (data / "pieces").rename(tmp_path / "shared")
    (data / "pieces").symlink_to(tmp_path / "shared")
    before = sidecars(data)
    forget(data, "gone.mp3")
    gc(data)
    assert sidecars(data) == before


def test_etching_the_same_bytes_anew_makes_their_list_young_again(data: Path) -> None:
    (listed,) = (name for name in of(data, "kept.mp3") if "." not in name)
    path = data / "pieces" / listed
    os.utime(path, (0, 0))
    with web() as host:
        records_kit.etch(data, host.put("again.mp3", song(0, 3 * PIECE)))
    assert path.stat().st_mtime > 0
