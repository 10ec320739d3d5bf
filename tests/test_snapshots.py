"""snapshot-lock.json decides once it is there, is never written over, and only supported versions are shown."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefs.catalog.snapshots import SnapshotLock, Version, load, load_or_create, parse_lock, shown
from cachefs.content import ContentId
from cachefs.errors import CatalogError

HASH = "e9b5c5d1885ee3c6ab6005919e511e1e04c7e34e"
NAME = "v1-000000-000500-bodies.seg"
TEXT = f'{{"chain":"mainnet","downloads":{{"{NAME}":"{HASH}"}}}}'
LOCK = SnapshotLock("mainnet", {NAME: ContentId.btih(HASH)})

names = st.text(st.characters(codec="utf-8", categories=["L", "N", "S"]), min_size=1, max_size=8)
ids = st.binary(min_size=20, max_size=20).map(lambda digest: ContentId("btih", digest))


def never() -> Mapping[str, ContentId]:
    raise AssertionError("chain.toml was read although there is a lock")


def refusal(text: str, chain: str | None = "mainnet") -> CatalogError:
    with pytest.raises(CatalogError) as caught:
        parse_lock(text, Path("lock.json"), chain)
    return caught.value


def test_the_lock_is_written_as_erigon_writes_it() -> None:
    assert LOCK.dump() == TEXT
    assert parse_lock(TEXT, Path("lock.json"), "mainnet") == LOCK


@given(st.text("abc", min_size=1), st.dictionaries(names, ids, min_size=1))
def test_what_was_written_is_read_again(chain: str, downloads: dict[str, ContentId]) -> None:
    lock = SnapshotLock(chain, downloads)
    assert parse_lock(lock.dump(), Path("lock.json"), chain) == lock


@given(
    st.text()
    | st.text('{}[]":,0a\\ \n')
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["chain", "downloads", "a"]), inner),
    ).map(json.dumps)
)
def test_no_text_raises_anything_but_a_catalogue_error(text: str) -> None:
    with suppress(CatalogError):
        assert parse_lock(text, Path("lock.json"), None).downloads


@given(st.data())
def test_a_damaged_lock_raises_nothing_but_a_catalogue_error(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(TEXT)))
    until = data.draw(st.integers(at, min(at + 5, len(TEXT))))
    damaged = TEXT[:at] + data.draw(st.text(max_size=3)) + TEXT[until:]
    with suppress(CatalogError):
        assert parse_lock(damaged, Path("lock.json"), "mainnet").chain == "mainnet"


def test_invalid_json_names_the_line_and_the_way_out() -> None:
    error = refusal('{"chain": "mainnet",\n "downloads": {\n')
    assert error.line is not None
    assert re.search(r"not JSON: .* \(column [0-9]+\); ", str(error))
    assert "delete it and it is made again" in str(error)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "null", "[]", '"x"', "", "\ufeff{}"])
def test_what_is_not_an_object_is_refused(text: str) -> None:
    refusal(text)


def test_a_name_given_twice_is_refused_with_its_second_line() -> None:
    error = refusal(f'{{"chain":"mainnet","downloads":{{\n"a":"{HASH}",\n"b":"{HASH}",\n"a":"{HASH}"}}}}')
    assert (error.line, error.key) == (4, "a")
    assert "twice" in str(error)


def test_a_top_level_key_given_twice_is_refused() -> None:
    assert refusal(TEXT[:-1] + ',"chain":"mainnet"}').key == "chain"


def test_another_chains_lock_is_refused_with_both_names_and_the_way_out() -> None:
    message = str(refusal(TEXT, "sepolia"))
    assert "'mainnet'" in message
    assert "'sepolia'" in message
    assert "--chain mainnet" in message


def test_when_no_chain_is_asked_for_the_locks_own_is_taken() -> None:
    assert parse_lock(TEXT, Path("lock.json"), None).chain == "mainnet"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("{}", "chain"),
        ('{"chain":"mainnet"}', "downloads"),
        ('{"downloads":{}}', "chain"),
        ('{"chain":5,"downloads":{}}', "chain"),
        ('{"chain":"","downloads":{}}', "chain"),
        ('{"chain":"mainnet","downloads":[]}', "downloads"),
        (TEXT[:-1] + ',"notes":"mine"}', "notes"),
        (TEXT.replace(HASH, HASH.upper()), NAME),
        (TEXT.replace(HASH, HASH[:-1]), NAME),
        (TEXT.replace(f'"{HASH}"', "{}"), NAME),
        (TEXT.replace(f'"{HASH}"', "null"), NAME),
        (TEXT.replace(NAME, "../a"), "../a"),
        (TEXT.replace(f'"{NAME}"', f'"a/b":"{HASH}","a"'), "a"),
    ],
)
def test_a_wrong_lock_is_refused_with_the_key(text: str, key: str) -> None:
    assert refusal(text).key == key


def test_a_lock_that_names_nothing_is_refused() -> None:
    assert "names nothing" in str(refusal('{"chain":"mainnet","downloads":{}}'))


def test_the_first_start_makes_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "snapshot-lock.json"
    assert load_or_create(path, "mainnet", lambda: LOCK.downloads) == LOCK
    assert path.read_text() == TEXT
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_lock_made_without_a_chains_name_says_so(tmp_path: Path) -> None:
    path = tmp_path / "snapshot-lock.json"
    assert load_or_create(path, None, lambda: LOCK.downloads).chain == "unknown"
    assert load(path, None).downloads == LOCK.downloads


def test_a_lock_that_is_there_is_used_instead_of_chain_toml(tmp_path: Path) -> None:
    path = tmp_path / "snapshot-lock.json"
    LOCK.save(path)
    assert load_or_create(path, "mainnet", never) == LOCK


@pytest.mark.parametrize("text", ["", "{", TEXT.replace("mainnet", "sepolia"), '{"chain":"mainnet","downloads":{}}'])
def test_a_bad_lock_is_never_written_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / "snapshot-lock.json"
    path.write_text(text)
    with pytest.raises(CatalogError):
        load_or_create(path, "mainnet", never)
    assert path.read_text() == text


def test_a_lock_that_is_a_broken_link_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "snapshot-lock.json"
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(CatalogError, match="can't be read"):
        load_or_create(path, "mainnet", never)
    assert path.is_symlink()


def test_a_lock_that_can_not_be_written_is_a_catalogue_error(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="can't be written: No such file"):
        LOCK.save(tmp_path / "missing" / "snapshot-lock.json")


def test_a_failed_save_keeps_the_old_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "snapshot-lock.json"
    (path / "occupied").mkdir(parents=True)
    with pytest.raises(CatalogError, match="can't be written"):
        LOCK.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert (path / "occupied").is_dir()


def test_saving_replaces_the_whole_lock(tmp_path: Path) -> None:
    path = tmp_path / "snapshot-lock.json"
    path.write_text("x" * 100_000)
    LOCK.save(path)
    assert load(path, "mainnet") == LOCK


OLD, MIDDLE, NEW = (f"{version}-000000-000500-bodies.seg" for version in ("v1", "v1.1", "v2.0"))
INDEX = "v1-000000-000500-bodies.idx"
STATE = ["accessor/v1.0-code.0-64.vi", "accessor/v1.1-code.0-64.vi", "caplin/v1.1-000000-000050-BlockRoot.seg"]
OTHERS = ["salt-blocks.txt", "erigondb.toml"]


def test_the_highest_version_of_each_block_file_is_shown() -> None:
    assert shown([OLD, MIDDLE, NEW, INDEX]) == [NEW, INDEX]


def test_versions_are_compared_as_numbers() -> None:
    assert shown(["v9.0-0-1-a.seg", "v10.0-0-1-a.seg", "v2.9-0-1-b.seg", "v2.10-0-1-b.seg"]) == [
        "v10.0-0-1-a.seg",
        "v2.10-0-1-b.seg",
    ]


def test_only_versions_within_the_bounds_are_shown() -> None:
    every = [OLD, MIDDLE, NEW]
    assert shown(every, current=Version(1, 1)) == [MIDDLE]
    assert shown(every, current=Version(1)) == [OLD]
    assert shown(every, minimum=Version(3)) == []
    assert shown(every, minimum=Version(1, 1), all_versions=True) == [MIDDLE, NEW]


def test_state_files_and_everything_else_are_all_shown() -> None:
    every = STATE + OTHERS
    assert shown(every, minimum=Version(9), current=Version(9)) == every


def test_all_versions_shows_all() -> None:
    assert shown([OLD, NEW, *STATE], all_versions=True) == [OLD, NEW, *STATE]


@given(st.permutations([OLD, MIDDLE, NEW, INDEX, "v1.0-000000-000500-bodies.idx", *STATE]))
def test_the_order_of_the_names_decides_nothing(order: list[str]) -> None:
    assert set(shown(order)) == {NEW, "v1.0-000000-000500-bodies.idx", *STATE}


@given(st.lists(st.from_regex(r"\Av[12](\.[012])?-0-[12]-[ab]\.seg\Z"), unique=True))
def test_every_segment_is_shown_exactly_once(order: list[str]) -> None:
    def segments(chosen: list[str]) -> list[str]:
        return sorted(name.partition("-")[2] for name in chosen)

    assert segments(shown(order)) == sorted(set(segments(order)))
