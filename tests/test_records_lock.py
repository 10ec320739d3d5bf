"""records-lock.toml: what is written is what is read, what can't be taken is refused by line and key, and no
change of many at once is lost."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from cachefs.catalog import records
from cachefs.catalog.records import LOCK_NAME, Pieces, Record, RecordsLock, lock_of, parse
from cachefs.content import ContentId
from cachefs.errors import CatalogError

SONG = Record(
    name='Fast "Car" - é.mp3',
    url="https://example.org/fastcar.mp3",
    content=ContentId("sha256", bytes(range(32))),
    size=5_242_880,
    mirrors=("https://mirror.example.org/fastcar.mp3", "rclone://music/fastcar.mp3"),
    pieces=Pieces(262_144, bytes(range(32, 64))),
    swarm=ContentId("btih", bytes(20)),
    media="audio/mpeg",
    etched_at=datetime(2026, 1, 1, tzinfo=UTC),
)
IMPORTED = Record("old.mp3", "https://example.org/old.mp3", None, None, md5=bytes(16))
HEX = "ab" * 32


def entry(*lines: str) -> str:
    """A lock whose second record has `lines` beside its name, URL and checksum; they begin on line 9."""
    first = f'[[record]]\nname = "a.mp3"\nurl = "https://h/a"\nhashes = {{ sha256 = "{HEX}" }}\n'
    second = f'[[record]]\nname = "b.mp3"\nurl = "https://h/b"\nhashes = {{ sha256 = "{HEX}" }}\n'
    return first + second + "\n".join(lines) + "\n"


def refusal(text: str) -> CatalogError:
    with pytest.raises(CatalogError) as raised:
        parse(text, "lock.toml")
    return raised.value


def test_what_is_written_is_what_is_read() -> None:
    lock = lock_of([SONG, IMPORTED])
    assert parse(lock.dump(), "here") == lock
    assert parse(lock.dump(), "here").dump() == lock.dump()


def test_the_example_of_the_format_is_read(tmp_path: Path) -> None:
    lock = parse(
        f"""
[[record]]
name = "Fast Car.mp3"
url = "https://example.org/fastcar.mp3"
mirrors = []
size = 5242880
hashes = {{ sha256 = "{HEX}" }}
pieces = {{ algorithm = "sha256", length = 262144, list = "sha256:{HEX}" }}
media = {{ type = "audio/mpeg" }}
etched_at = 2026-01-01T00:00:00Z
""",
        tmp_path,
    )
    song = lock.records["Fast Car.mp3"]
    assert (song.size, song.media, song.mtime) == (5_242_880, "audio/mpeg", 1_767_225_600.0)
    assert song.content == ContentId("sha256", bytes.fromhex(HEX))
    assert song.pieces == Pieces(262_144, bytes.fromhex(HEX))


def test_only_a_record_with_checksum_and_size_stands_for_content() -> None:
    assert list(lock_of([SONG, IMPORTED]).ready()) == [SONG.name]


@pytest.mark.parametrize(
    ("line", "key", "said"),
    [
        ('url = "ftp://h/b"', "url", "begins with https://"),
        ("siez = 3", "siez", "did you mean size?"),
        ("size = 0", "size", "a size from 1"),
        ("size = true", "size", "a size from 1"),
        ('mirrors = "https://h/m"', "mirrors", "a list of URLs"),
        ('mirrors = ["gopher://h/m"]', "mirrors", "begins with"),
        ('pieces = { algorithm = "md5", length = 262144, list = "x" }', "pieces", "algorithm"),
        (f'pieces = {{ algorithm = "sha256", length = 7, list = "sha256:{HEX}" }}', "pieces", "16 KiB to 64 MiB"),
        ('swarm = { btih = "12" }', "swarm", "40 hex digits"),
        ('media = { type = "music" }', "media", "like audio/mpeg"),
        ("etched_at = 2026-01-01T00:00:00", "etched_at", "with its zone"),
    ],
)
def test_a_wrong_value_is_refused_by_line_and_key(line: str, key: str, said: str) -> None:
    text = entry(line)
    if key == "url":
        text = text.replace('url = "https://h/b"\n', "")
    error = refusal(text)
    assert (error.key, error.line) == (key, text.splitlines().index(line) + 1)
    assert said in str(error)
    assert "b.mp3" in str(error)


@pytest.mark.parametrize("name", ["../b", "/b", "a\\u0007b", "", "-b", "a.mp3", "a.mp3/b", "x/../y"])
def test_a_name_that_cannot_be_shown_or_clashes_is_refused(name: str) -> None:
    error = refusal(entry().replace('name = "b.mp3"', f'name = "{name}"'))
    assert error.line in (5, 6) or error.key == "a.mp3"


def test_a_scheme_is_read_in_lower_case() -> None:
    lock = parse(entry('mirrors = ["HTTPS://h/B", "Magnet:?xt=X"]').replace('"https://h/b"', '"HTTP://h/B"'), "here")
    assert lock.records["b.mp3"].urls == ("http://h/B", "https://h/B", "magnet:?xt=X")


def test_a_hash_that_is_no_sha256_is_refused() -> None:
    assert refusal(entry().replace(HEX, HEX[:-1])).key == "hashes"
    assert refusal(entry("size = 3").replace("sha256", "md5").replace(HEX, HEX[:32])).key == "hashes"


def test_text_that_is_not_toml_or_of_another_version_is_refused() -> None:
    assert refusal("[[record]\n").line == 1
    assert refusal('lock-version = "2.0"\n').key == "lock-version"
    assert refusal('recrod = "x"\n').key == "recrod"
    assert refusal('record = "x"\n').key == "record"


def test_no_lock_is_an_empty_lock(tmp_path: Path) -> None:
    assert records.load(tmp_path / LOCK_NAME) == RecordsLock()


def test_a_change_that_fails_leaves_the_lock_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / LOCK_NAME
    records.update(path, lambda lock: lock.with_record(SONG))
    before = path.read_bytes()

    def change(lock: RecordsLock) -> RecordsLock:
        return lock.with_record(Record(SONG.name + "/x", SONG.url, SONG.content, SONG.size))

    with pytest.raises(CatalogError, match="is a file here"):
        records.update(path, change)
    assert path.read_bytes() == before


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / LOCK_NAME
    records.update(path, lambda lock: lock.with_record(IMPORTED))
    before = path.read_bytes()
    for wrong in (replace(SONG, media="music"), replace(SONG, size=0), replace(SONG, url="gopher://h/x")):
        with pytest.raises(CatalogError, match=f"{LOCK_NAME}: .*not written.*record {SONG.name}: expected"):
            records.update(path, partial(RecordsLock.with_record, record=wrong))
    assert path.read_bytes() == before


def test_a_record_replaces_the_one_of_its_name_in_its_place() -> None:
    lock = lock_of([SONG, IMPORTED])
    changed = lock.with_record(Record(SONG.name, "https://other.example/x", SONG.content, SONG.size))
    assert [record.url for record in changed] == ["https://other.example/x", IMPORTED.url]


def _add(path: Path, number: int) -> None:
    for part in range(5):
        record = Record(f"{number}-{part}.mp3", "https://h/x", SONG.content, 1)
        records.update(path, partial(RecordsLock.with_record, record=record))


@pytest.mark.parametrize("linked", [False, True])
def test_changes_of_many_processes_are_all_kept_also_by_links_of_many_directories(tmp_path: Path, linked: bool) -> None:
    path = tmp_path / LOCK_NAME
    records.update(path, lambda lock: lock)
    paths = [path] * 6
    for number in range(1, 6) if linked else ():
        paths[number] = tmp_path / str(number) / LOCK_NAME
        paths[number].parent.mkdir()
        paths[number].symlink_to(path)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add, args=each) for each in zip(paths, range(6), strict=True)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert len(records.load(path)) == 30
    assert not list(tmp_path.rglob(".*.flock"))
