"""What `cachefs etch` is told: which name the record gets, and local files in the place of a download."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachefs.catalog import records
from cachefs.catalog.records import LOCK_NAME, Record
from tests import records_kit
from tests.records_kit import PIECE, data_dir, leftovers, refused, sha256, song, stored, web

SONG = song(1, 3 * PIECE + 1000)
OTHER = song(2, len(SONG))
URL = "https://example.org/music/Fast%20Car.flac"


def lock_of(data: Path) -> dict[str, Record]:
    return dict(records.load(data / LOCK_NAME).records)


def test_a_name_that_is_another_records_is_refused(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        records_kit.etch(data, host.put("song.mp3", SONG))
        url = host.put("new/song.mp3", song(2, 1000))
        assert "is the name of another record" in refused(data, url)
        assert host.asked_for("new/song.mp3") == []
        records_kit.etch(data, url, "--name", "new song.mp3")
    assert list(lock_of(data)) == ["song.mp3", "new song.mp3"]


@pytest.mark.parametrize(("first", "second"), [("a", "a/b.mp3"), ("a/b.mp3", "a")])
def test_a_name_that_clashes_with_a_folder_is_refused_before_anything_is_downloaded(
    tmp_path: Path, first: str, second: str
) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        records_kit.etch(data, host.put("song.mp3", SONG), "--name", first)
        error = refused(data, host.put("other.mp3", OTHER), "--name", second)
        assert host.asked_for("other.mp3") == []
    assert "'a' is a file here, and a directory in 'a/b.mp3'; give another name" in error
    assert stored(data) == [sha256(SONG)]


def test_etching_a_url_again_means_the_record_that_has_it(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        url = host.put("song.mp3", SONG)
        records_kit.etch(data, url, "--name", "mine.mp3")
        host.put("song.mp3", OTHER)
        records_kit.etch(data, url, "--again")
        assert {name: str(record.content) for name, record in lock_of(data).items()} == {
            "mine.mp3": f"sha256:{sha256(OTHER)}"
        }
        records_kit.etch(data, url, "--name", "also.mp3")
        assert "say which: --name 'mine.mp3' or 'also.mp3'" in refused(data, url, "--again")


def test_a_local_file_is_etched_under_its_url_without_a_download(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    (tmp_path / "mine.flac").write_bytes(b"fLaC" + SONG)
    printed = records_kit.etch(data, str(tmp_path / "mine.flac"), "--url", "https://example.org/music/Fast%20Car.flac")
    assert 'name = "Fast Car.flac"' in printed
    assert lock_of(data)["Fast Car.flac"].media == "audio/flac"
    assert stored(data) == [sha256(b"fLaC" + SONG)]


def test_a_local_file_with_other_bytes_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    data, mine = data_dir(tmp_path), tmp_path / "mine.flac"
    mine.write_bytes(SONG)
    first = records_kit.etch(data, str(mine), "--url", URL)
    assert records_kit.etch(data, str(mine), "--url", URL) == first
    for other in (OTHER, OTHER[:-1], OTHER + b"x"):
        mine.write_bytes(other)
        error = refused(data, str(mine), "--url", URL)
        assert str(mine) in error
        assert "etch --again" in error
    assert stored(data) == [sha256(SONG)]
    assert leftovers(data) == []
    mine.write_bytes(OTHER)
    assert sha256(OTHER) in records_kit.etch(data, str(mine), "--url", URL, "--again")


def test_a_local_file_needs_a_url_and_has_to_be_a_file(tmp_path: Path) -> None:
    data, mine = data_dir(tmp_path), tmp_path / "mine.flac"
    mine.write_bytes(SONG)
    assert "it is a local file; say which URL it stands for: --url URL" in refused(data, str(mine))
    for endless in ("/dev/zero", str(tmp_path)):
        assert f"{endless}: is not a file" in refused(data, endless, "--url", URL)
    assert "No such file" in refused(data, f"{mine}.gone", "--url", URL)
    assert stored(data) == leftovers(data) == []


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    error = refused(tmp_path / "file" / "data", "https://example.org/song.mp3")
    assert error == f"cachefs: {tmp_path}/file/data/state.db: Not a directory"


def test_a_url_with_spaces_and_letters_beyond_ascii_is_encoded(tmp_path: Path) -> None:
    data = data_dir(tmp_path)
    with web() as host:
        encoded = host.put("S%C3%B6ngs/My%20Song%20%231.mp3", SONG)
        records_kit.etch(data, f"{host.url}Söngs/My Song%20%231.mp3")
        assert "control characters" in refused(data, f"{host.url}tab\t.mp3")
    assert {name: record.url for name, record in lock_of(data).items()} == {"My Song #1.mp3": encoded}


def test_a_url_without_a_name_needs_one(tmp_path: Path) -> None:
    assert "the URL has no name in it; give one: --name NAME" in refused(tmp_path / "data", "https://example.org/")


def test_a_name_that_cannot_be_is_refused(tmp_path: Path) -> None:
    assert "give another: --name NAME" in refused(
        tmp_path / "data", "https://example.org/song.mp3", "--name", "../song"
    )
