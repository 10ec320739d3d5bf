"""What a user may type to mean a record, and what `cachefs play` says when it can't be played.

The numbers are those of the promises in docs/records.md.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from cachefs.catalog import records
from cachefs.catalog.records import LOCK_NAME, Record
from cachefs.content import ContentId
from cachefs.errors import CachefsError
from cachefs.records.lists import playlist
from cachefs.records.naming import Meant, in_playlist, meant, names_in
from tests import records_kit
from tests.mount_kit import Mount, cachefs, mounted
from tests.records_kit import OPEN_TOML, Host, data_dir, sha256, song, web

SONG = song(1, 100_000)
NAMES = ("a.ogg", "sub/b.ogg", "sub/c.ogg", "Söng #1.ogg", "end ", "u\u2028v.ogg")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a lock of NAMES, at https://e.org."""
    content = ContentId("sha256", bytes(32))
    listed = [Record(name, f"https://e.org/{number}", content, 5) for number, name in enumerate(NAMES)]
    (tmp_path / "data").mkdir()
    records.lock_of(listed).save(tmp_path / "data" / LOCK_NAME)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("a.ogg", ["a.ogg"]),
        ("records/a.ogg", ["a.ogg"]),
        ("{mnt}/records/sub/b.ogg", ["sub/b.ogg"]),
        ("Söng #1.ogg", ["Söng #1.ogg"]),
        ("https://e.org/2", ["sub/c.ogg"]),
        ("HTTPS://e.org/2", ["sub/c.ogg"]),
        ("../mnt/records/a.ogg", ["a.ogg"]),
        ("sub", ["sub/b.ogg", "sub/c.ogg"]),
        ("records/sub/", ["sub/b.ogg", "sub/c.ogg"]),
        ("{mnt}/records/sub", ["sub/b.ogg", "sub/c.ogg"]),
    ],
)
def test_a_record_is_meant_by_name_path_url_or_folder(
    data: Path, word: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    mountpoint = data.parent / "mnt"
    assert meant(word.format(mnt=mountpoint), data, mountpoint).names == tuple(names)


STRANGE = ("http://[::1/x.mp3", "//[Album]/x.mp3", "{mnt}/records/../x", "/etc/passwd", "sub/d.ogg", "https://e.org/9")


@pytest.mark.parametrize("word", [*STRANGE, "", "..", "gone.m3u", f"{'a' * 300}.m3u"])
def test_what_is_no_record_is_refused(data: Path, word: str) -> None:
    with pytest.raises(CachefsError, match="no such record"):
        meant(word.format(mnt=data.parent / "mnt"), data, data.parent / "mnt")
    with pytest.raises(CachefsError, match=r"did you mean a\.ogg\?"):
        meant("b.ogg", data, None)


def test_a_playlist_names_records_by_mounted_path_by_url_and_by_name(data: Path, tmp_path: Path) -> None:
    known = records.load(data / LOCK_NAME)
    mountpoint = tmp_path / "mnt"
    (tmp_path / "list.m3u").write_text(f"{mountpoint}/records/sub/b.ogg\nhttps://e.org/0\nsub/c.ogg\nmissing.ogg\n")
    found = names_in(tmp_path / "list.m3u", known, mountpoint)
    assert (found.names, found.strange) == (("sub/b.ogg", "a.ogg", "sub/c.ogg"), ("missing.ogg",))
    assert in_playlist(str(tmp_path / "list.m3u"), data, mountpoint) == found
    (tmp_path / "mnt.pls").write_text("[playlist]\nFile1=mnt/records/a.ogg\nFile2=/etc/passwd\n")
    found = names_in(tmp_path / "mnt.pls", known, mountpoint)
    assert (found.names, found.strange) == (("a.ogg",), ("/etc/passwd",))
    (tmp_path / "strange.m3u").write_text("\n".join((*STRANGE, "a.ogg")))
    assert names_in(tmp_path / "strange.m3u", known, mountpoint) == Meant((known.records["a.ogg"],), STRANGE)


@pytest.mark.parametrize(
    ("word", "entry"),
    [
        ("{here}/lists/x.m3u", "../mnt/records/a.ogg"),
        ("x.m3u", "mnt/records/a.ogg"),
        ("lists/x.pls", "file:../mnt/records/a.ogg"),
    ],
)
def test_paths_in_a_playlist_start_from_it_however_it_is_called(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, entry: str
) -> None:
    (tmp_path / "lists").mkdir()
    monkeypatch.chdir(tmp_path)
    path = Path(word.format(here=tmp_path))
    path.write_text(f"[playlist]\nFile1={entry}\n" if path.suffix == ".pls" else entry)
    assert meant(str(path), data, tmp_path / "mnt").names == ("a.ogg",)


def test_an_exported_playlist_is_one_of_the_same_records_and_blanks_that_strayed_into_one_do_no_harm(
    data: Path, tmp_path: Path
) -> None:
    known = records.load(data / LOCK_NAME)
    (tmp_path / "all.m3u").write_text(playlist(known, tmp_path / "mnt"))
    assert names_in(tmp_path / "all.m3u", known, tmp_path / "mnt").names == NAMES
    (tmp_path / "own.m3u").write_bytes(b"  #EXTM3U\r\n a.ogg \r\n\t\r\nend \r\rsub/b.ogg\t")
    found = names_in(tmp_path / "own.m3u", known, None)
    assert (found.names, found.strange) == (("a.ogg", "end ", "sub/b.ogg"), ())


def listener(place: Path, host: Host) -> Path:
    """A cold data directory of the records good.mp3, which is SONG, and gone.mp3, which isn't there any more."""
    etcher = data_dir(place / "etcher")
    records_kit.etch(etcher, host.put("good.mp3", SONG))
    records_kit.etch(etcher, host.put("gone.mp3", song(2, 100_000)))
    host.put("gone.mp3", b"", status=404)
    data = data_dir(place)
    shutil.copy(etcher / LOCK_NAME, data)
    shutil.copytree(etcher / "pieces", data / "pieces")
    return data


def said(mount: Mount, *words: str | Path) -> str:
    """`cachefs play`, which must fail; what it said."""
    done = cachefs("play", *words, "--data-dir", mount.data_dir)
    assert done.returncode == 1, done.stdout
    return done.stderr


def test_12_play_tells_why_whether_it_waits_or_runs_a_player(tmp_path: Path) -> None:
    with web() as host:
        data = listener(tmp_path, host)
        with mounted(tmp_path, settings=OPEN_TOML) as mount:
            assert "gone.mp3: HTTP 404" in said(mount, "gone.mp3", "--wait")
            assert "gone.mp3: HTTP 404" in said(mount, "gone.mp3", "--player", f"touch {tmp_path}/played")
            assert "no-such-player: can't be run: No such file" in said(mount, "good.mp3", "--player", "no-such-player")
            (tmp_path / "all.m3u").write_text("gone.mp3\ngood.mp3\nother.mp3\n")
            played = cachefs("play", tmp_path / "all.m3u", "--wait", "--player", "sha256sum", "--data-dir", data)
    assert played.returncode == 1
    assert "gone.mp3: HTTP 404" in played.stderr, "and what can be had is played"
    assert played.stdout.split()[0] == sha256(SONG)
    assert "other.mp3: no record here, passed over" in played.stderr
    assert not (tmp_path / "played").exists()


def test_a_pattern_that_forgets_the_folder_is_told_what_could_be_meant(data: Path) -> None:
    missed = cachefs("pin", "a.ogg", "--data-dir", data)
    assert (missed.returncode, missed.stderr) == (1, "cachefs: no name matches a.ogg; did you mean records/a.ogg?\n")
    assert cachefs("pin", "records/a.ogg", "--data-dir", data).returncode == 0


def test_12_a_player_that_keeps_to_a_playhead_is_not_started_on_what_cannot_be_played(tmp_path: Path) -> None:
    with web() as host:
        data = listener(tmp_path, host)
        with mounted(tmp_path, settings=OPEN_TOML):
            for name, why in (("gone.mp3", "gone.mp3: HTTP 404"), ("none.mp3", "the mount doesn't show it")):
                done = cachefs("playhead", name, "mpv", "--data-dir", data)
                assert (done.returncode, done.stdout) == (1, "")
                assert why in done.stderr


def test_play_on_a_mount_whose_daemon_died_says_so(tmp_path: Path) -> None:
    with web() as host:
        data = listener(tmp_path, host)
        with mounted(tmp_path, settings=OPEN_TOML) as mount:
            assert cachefs("play", "good.mp3", "--data-dir", data).returncode == 0
            os.kill(mount.child.process.pid, signal.SIGKILL)
            mount.child.process.wait()
            assert "the daemon of this mount is gone" in said(mount, "good.mp3")
            assert f"cachefs umount {mount.mountpoint}" in said(mount, "good.mp3")


def test_a_data_directory_that_is_not_there_is_not_made_to_play_or_export(tmp_path: Path) -> None:
    for command in (("play", "a.mp3"), ("export", "sums")):
        done = cachefs(*command, "--data-dir", tmp_path / "typo")
        assert done.returncode == 1
        assert str(tmp_path / "typo" / LOCK_NAME) in done.stderr
    assert not (tmp_path / "typo").exists()
