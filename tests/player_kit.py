"""What the tests with real players share: music made by ffmpeg, mpv without a loudspeaker, and how far two are apart.

How it works: `--ao=null` makes mpv play in real time into nothing, so it reads, decodes and tells its position as
with a loudspeaker. Two players are compared by asking each where it is and noting when; a pair of answers that
took long, on a machine that is busy, says nothing and isn't counted.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import trio

from cachefs.playhead.mpv import Mpv

QUIET = ("--no-config", "--no-video", "--ao=null", "--really-quiet")
"""mpv as the tests want it: nobody's configuration, no picture, no sound."""

CODECS = {"ogg": "libvorbis", "mp3": "libmp3lame", "flac": "flac", "wav": "pcm_s16le", "opus": "libopus"}
"""Each format that records come in, and ffmpeg's encoder for it."""

_QUICK = 0.01
_NEAR = 10


def make_music(path: Path, seconds: float, *, noise: bool = False) -> Path:
    """A piece of stereo music in the format that the name's suffix says; noise doesn't compress, a tone does."""
    source = "anoisesrc=color=pink:seed=7" if noise else "sine=frequency=440:sample_rate=44100"
    coded = ("-ac", "2", "-c:a", CODECS[path.suffix[1:]])
    command: list[str | Path] = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-t", f"{seconds}", *coded, path]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


async def apart(one: Mpv, other: Mpv) -> float | None:
    """By how many seconds one player is ahead of the other now; None if it can't be told."""
    first, second = await _place(one), await _place(other)
    if first is None or second is None:
        return None
    return (first[1] - second[1]) - (first[0] - second[0])


async def _place(mpv: Mpv) -> tuple[float, float] | None:
    before = time.monotonic()
    position = await mpv.seconds("audio-pts")
    after = time.monotonic()
    return None if position is None or after - before > _QUICK else ((before + after) / 2, position)


async def together(players: tuple[Mpv, Mpv], within: float, looks: int) -> list[float]:
    """The distances of `looks` looks, 50 ms apart, from when they have been `within` so many seconds of each other.

    Near for half a second, that is: one that passes the other isn't with it. AssertionError if that doesn't come.
    """
    distances: list[float] = []
    with trio.move_on_after(30):
        while len(distances) < _NEAR + looks:
            distance = await apart(*players)
            if distance is not None:
                distances.append(distance)
                if len(distances) <= _NEAR and abs(distance) > within:
                    distances.clear()
            await trio.sleep(0.05)
        return distances[_NEAR:]
    raise AssertionError(f"not together within 30 s; last {distances}")


def worst(distances: Iterable[float]) -> float:
    return max(map(abs, distances))
