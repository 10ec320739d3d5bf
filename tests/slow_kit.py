"""An mpv on a cold record behind a slow link: when the sound begins, whether it ever stops, what a jump costs.

How it works: a song is etched over a fast link; then its bytes are forgotten and its URL is made one behind a link
that carries 4 Mbit/s. mpv plays it through a mount, in real time. Its position is compared with the clock: a song
that lags behind has stopped for a while, whatever mpv says of it, and mpv's own log is looked at for underruns.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from cachefs.playhead.mpv import Mpv, attached, command_line
from tests.counterparts import nginx
from tests.mount_kit import mounted, pread
from tests.player_kit import QUIET, SlowLink, cold, make_music, slow_link
from tests.records_kit import OPEN_TOML, PIECE

RATE = 500_000
"""Bytes a second: 4 Mbit/s."""

_READ = 2**17

PIECE_TIME = PIECE / RATE
"""Seconds in which one piece crosses the link."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of it; times in seconds.

    start: from mpv's start to the first sound; lag: by how much the song fell behind the clock, at worst; underruns:
    how often mpv's log says that it had nothing to play; seek: from the seek's order to the sound, for which
    `seek_bytes` crossed the link; jump: how long a lone read far from everything took while mpv filled its cache;
    own_jump: how long the first read at another place takes a reader who read in order until then.
    """

    size: int
    start: float
    lag: float
    underruns: int
    seek: float
    seek_bytes: int
    jump: float
    own_jump: float


def hear(place: Path, length: float, playing: float) -> Heard:
    """Play `playing` seconds of a song of `length` seconds, seek to three quarters of it, and play on."""
    (place / "site").mkdir()
    song = make_music(place / "site" / "song.flac", length, noise=True)
    other = place / "site" / "other.bin"
    other.write_bytes(os.urandom(32 * PIECE))
    with nginx(place / "site") as url, slow_link(url, RATE) as link:
        lock = cold(place, {file.name: url + file.name for file in (song, other)}) / "records-lock.toml"
        lock.write_text(lock.read_text().replace(url, link.url))
        with mounted(place, settings=OPEN_TOML) as mount:
            shown = mount.mountpoint / "records" / song.name
            size = shown.stat().st_size
            heard = trio.run(_hear, place, shown, size, link, length, playing)
            own_jump = _own_jump(shown.with_name(other.name))
    underruns = (place / "mpv.log").read_text().count("underrun detected")
    return replace(heard, underruns=underruns, own_jump=own_jump)


def _own_jump(path: Path) -> float:
    """Read a little in order, then a page elsewhere: how long that takes."""
    with path.open("rb", buffering=0) as file:
        for at in range(0, 6 * PIECE, _READ):
            os.pread(file.fileno(), _READ, at)
        jumping = time.monotonic()
        os.pread(file.fileno(), 4096, 20 * PIECE)
        return time.monotonic() - jumping


async def _hear(place: Path, song: Path, size: int, link: SlowLink, length: float, playing: float) -> Heard:
    command = command_line(song, place / "ipc", *QUIET, f"--log-file={place / 'mpv.log'}")
    began = time.monotonic()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.run_process, command, check=False, stdout=subprocess.DEVNULL))
        async with attached(place / "ipc") as mpv:
            await mpv.set("pause", False)
            await _sounding(mpv, 0.0)
            start = time.monotonic() - began
            lag = await _lag(mpv, playing)
            jumping = time.monotonic()
            await trio.to_thread.run_sync(pread, song, size * 7 // 8, 4096)
            jump = time.monotonic() - jumping
            lag = max(lag, await _lag(mpv, 4 * PIECE_TIME))  # what this read took from mpv's own is behind it then
            carried, sought = link.carried, time.monotonic()
            await mpv.command("seek", 0.75 * length, "absolute+exact")
            await _sounding(mpv, 0.75 * length)
            seek, seek_bytes = time.monotonic() - sought, link.carried - carried
            lag = max(lag, await _lag(mpv, 2.0))
        nursery.cancel_scope.cancel()
    return Heard(size, start, lag, 0, seek, seek_bytes, jump, 0.0)


async def _sounding(mpv: Mpv, position: float) -> None:
    """Return when mpv plays, from `position` on."""
    with trio.fail_after(30):
        while True:
            now = await mpv.seconds("audio-pts")
            if now is not None and now > position and not await mpv.get("core-idle"):
                return
            await trio.sleep(0.01)


async def _lag(mpv: Mpv, seconds: float) -> float:
    """By how much the song falls behind the clock within so many seconds, at worst."""
    began, first, worst = time.monotonic(), await mpv.seconds("audio-pts"), 0.0
    assert first is not None
    while (elapsed := time.monotonic() - began) < seconds:
        position = await mpv.seconds("audio-pts")
        if position is not None:
            worst = max(worst, elapsed - (position - first))
        await trio.sleep(0.05)
    return worst
