"""Real players on records that aren't here yet: every format decodes, a slow source is enough, a scan stays small."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.counterparts import nginx
from tests.mount_kit import forget_pages, mounted
from tests.player_kit import CODECS, cold, make_music
from tests.records_kit import OPEN_TOML, PIECE
from tests.scan_kit import scan
from tests.slow_kit import PIECE_TIME, RATE, hear


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A song of half a minute in every format: some have pieces, some are one."""
    root = tmp_path_factory.mktemp("site")
    for suffix in CODECS:
        make_music(root / f"song.{suffix}", 30, noise=True)
    return root


def decoded(path: Path) -> str:
    """The MD5 of the sound in a file, as ffmpeg decodes it; it fails at any error."""
    command: list[str | Path] = ["ffmpeg", "-v", "error", "-xerror", "-i", path, "-f", "md5", "-"]
    return subprocess.check_output(command, text=True, timeout=60, stdin=subprocess.DEVNULL)


def probed(path: Path) -> dict[str, str]:
    """What ffprobe tells of a file's format."""
    command: list[str | Path] = [
        "ffprobe",
        "-v",
        "error",
        "-show_entries",
        "format=format_name,duration,size",
        "-of",
        "json",
        path,
    ]
    told: dict[str, str] = json.loads(subprocess.check_output(command, timeout=60))["format"]
    return told


def test_ffprobe_and_ffmpeg_read_every_format_cold_and_warm(site: Path, tmp_path: Path) -> None:
    songs = [f"song.{suffix}" for suffix in CODECS]
    with nginx(site) as url:
        cold(tmp_path, {name: url + name for name in songs})
        with mounted(tmp_path, settings=OPEN_TOML) as mount:
            shown = {name: mount.mountpoint / "records" / name for name in songs}
            for name, path in shown.items():
                assert probed(path) == probed(site / name)
                assert decoded(path) == decoded(site / name)
    with mounted(tmp_path, settings=OPEN_TOML) as mount:
        for name in songs:
            path = mount.mountpoint / "records" / name
            forget_pages(path)
            assert decoded(path) == decoded(site / name)


def test_mpv_plays_a_cold_record_from_a_slow_source_without_a_gap_and_seeks(tmp_path: Path) -> None:
    """4 Mbit/s, four times what the song takes: the long form of this is the benchmark `players`.

    A reader's jump waits for its own piece, another reader's for the one under way as well. mpv's seek waits for the
    one under way, then for what ffmpeg reads: the end, which is here by then, and 128 KiB at the place, which lie in
    one piece here. (In shorter songs it tries several places.)
    """
    heard = hear(tmp_path, length=480, playing=6)
    assert heard.underruns == 0
    assert heard.lag < 0.25
    assert heard.start < 4 * PIECE_TIME + 2
    assert heard.own_jump < PIECE_TIME + 0.4, "nothing but its own piece crosses the link"
    assert heard.jump < 2 * PIECE_TIME + 0.5
    assert heard.seek_bytes < 5 * PIECE, "two at most, and what mpv reads until its sound is noticed"
    assert heard.seek < heard.seek_bytes / RATE + PIECE_TIME + 0.5


def test_a_scan_by_mpd_finds_every_record_and_fetches_less_than_a_twentieth(tmp_path: Path) -> None:
    """The long form, of a thousand records, is the benchmark `scan`."""
    scanned = scan(tmp_path, 60)
    assert scanned.songs == 60
    assert 0 < scanned.fetched <= 3.2 * PIECE * 60, (
        "the head that MPD reads, the end, and nothing that the kernel guesses"
    )
