"""Listening together through real mounts: two daemons, two players, one record that only its origin has."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from cachefs.playhead.mpv import attached, command_line
from tests.counterparts import nginx, running
from tests.mount_kit import Mount, cachefs, command_of, mounted
from tests.player_kit import QUIET, cold, make_music, together, worst
from tests.records_kit import OPEN_TOML, song, web

SONG = "Fast Car.flac"
CLOSE = 0.05
TOKEN = "a-secret-that-is-long-enough"


@contextmanager
def two_mounts(place: Path, url: str) -> Iterator[tuple[Mount, Mount]]:
    """Two daemons with the same lock and no bytes; the second follows the first one's playheads."""
    data = cold(place / "one", {SONG: url + SONG.replace(" ", "%20")})
    shutil.copytree(data, place / "two" / "data")
    decides = f'{OPEN_TOML}[playhead]\nserve = "127.0.0.1:0"\ntoken = "{TOKEN}"\n'
    with mounted(place / "one", settings=decides) as one:
        follows = f'{OPEN_TOML}[playhead]\nfollow = "{one.status()["playhead"]["served"]}"\ntoken = "{TOKEN}"\n'
        with mounted(place / "two", settings=follows) as two:
            two.wait_for("following", lambda now: now["playhead"]["connected"])
            yield one, two


@contextmanager
def listening(mount: Mount, ipc: Path) -> Iterator[None]:
    """An mpv on the mount's record, and `cachefs playhead NAME mpv` that drives it."""
    song = mount.mountpoint / "records" / SONG
    drive = command_of(["playhead", "--data-dir", mount.data_dir, "--ipc", ipc, SONG, "mpv"])
    with running("mpv", [str(word) for word in command_line(song, ipc, *QUIET)], signal.SIGTERM):
        with running("cachefs playhead", drive, signal.SIGTERM) as driving:
            driving.wait_until("listening", lambda: driving.printed() == f"{SONG}: listening\n")
            yield


def test_19_two_mpv_on_two_mounts_stay_within_50_ms(tmp_path: Path) -> None:
    """Promise 19, with promise 18: what is started on one machine is fetched on the other, too."""
    (tmp_path / "one").mkdir()
    song = make_music(tmp_path / "site.flac", 60)
    (tmp_path / "site").mkdir()
    song.rename(tmp_path / "site" / SONG)
    with nginx(tmp_path / "site") as url, two_mounts(tmp_path, url) as (one, two):
        with listening(one, tmp_path / "one.ipc"), listening(two, tmp_path / "two.ipc"):
            _say(two, "play")
            assert worst(trio.run(_distances, tmp_path)) <= CLOSE
            _say(one, "seek", "0:40")
            assert worst(trio.run(_distances, tmp_path)) <= CLOSE
            assert _say(two, "pause").endswith("revision 3\n")


async def _distances(place: Path) -> list[float]:
    async with attached(place / "one.ipc") as one, attached(place / "two.ipc") as two:
        return await together((one, two), CLOSE, 30)


def _say(mount: Mount, *words: str) -> str:
    done = cachefs("playhead", "--data-dir", mount.data_dir, f"records/{SONG}", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_name_that_no_record_here_has_is_told_and_played_all_the_same(tmp_path: Path) -> None:
    """Others may have it, or play a file that each names to his mpv."""
    with web() as host:
        cold(tmp_path, {SONG: host.put("song.flac", song(1, 1000))})
        with mounted(tmp_path, settings=OPEN_TOML) as mount:
            assert _say(mount, "play").startswith(f"{SONG}: playing")
            done = cachefs("playhead", "--data-dir", mount.data_dir, "nix.mp3", "play")
    assert (done.returncode, done.stdout[:17]) == (0, "nix.mp3: playing ")
    assert done.stderr == "nix.mp3: no record here has that name; its playhead is for those who have one\n"


def test_18_a_record_that_is_started_anywhere_is_fetched_by_every_daemon_that_follows(tmp_path: Path) -> None:
    """Promise 18: prefetch when the record is picked up. Nobody reads it here."""
    (tmp_path / "one").mkdir()
    (tmp_path / "site").mkdir()
    make_music(tmp_path / "site" / SONG, 20, noise=True)
    with nginx(tmp_path / "site") as url, two_mounts(tmp_path, url) as (one, two):
        _say(one, "play")
        for mount in (one, two):
            mount.wait_for("complete", lambda now: now["store"]["complete"] == 1)
    shown = two.data_dir / "store"
    assert [path.read_bytes() for path in shown.glob("sha256/*/*/data")] == [(tmp_path / "site" / SONG).read_bytes()]
