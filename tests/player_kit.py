"""What the tests with real players share: music made by ffmpeg, mpv without a loudspeaker, and how far two are apart.

How it works: `--ao=null` makes mpv play in real time into nothing, so it reads, decodes and tells its position as
with a loudspeaker. Two players are compared by asking each where it is and noting when; a pair of answers that
took long, on a machine that is busy, says nothing and isn't counted.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

from cachefs.playhead.mpv import Mpv
from cachefs.records import MusicCache, Order, etch
from tests.records_kit import OPEN

QUIET = ("--no-config", "--no-video", "--ao=null", "--really-quiet")
"""mpv as the tests want it: nobody's configuration, no picture, no sound."""

CODECS = {"ogg": "libvorbis", "mp3": "libmp3lame", "flac": "flac", "wav": "pcm_s16le", "opus": "libopus"}
"""Each format that records come in, and ffmpeg's encoder for it."""

_QUICK = 0.01
_NEAR = 10
_SLICE = 16384


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


class SlowLink:
    """A link to a server that carries `rate` bytes a second in all, whoever asks; `carried` counts them."""

    def __init__(self, rate: float) -> None:
        self.url = ""
        self.carried = 0
        self._rate = rate
        self._free_at = 0.0
        self._turn = threading.Lock()

    def carry(self, source: socket.socket, sink: socket.socket, *, counted: bool) -> None:
        """Bytes from one end to the other, until one of them is gone."""
        with suppress(OSError):
            while data := source.recv(_SLICE):
                if counted:
                    self._wait(len(data))
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _wait(self, size: int) -> None:
        with self._turn:
            self.carried += size
            self._free_at = max(self._free_at, time.monotonic()) + size / self._rate
            ready = self._free_at
        # This is the link itself, not a wait for something to happen.
        time.sleep(max(0.0, ready - time.monotonic()))


@contextmanager
def slow_link(url: str, rate: float) -> Iterator[SlowLink]:
    """A link of `rate` bytes a second to the server at `url`; infinity only counts."""
    link, port = SlowLink(rate), int(url.rstrip("/").rpartition(":")[2])
    ends: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server, ThreadPoolExecutor(200) as threads:
        link.url = f"http://127.0.0.1:{server.getsockname()[1]}/"

        def accept() -> None:
            with suppress(OSError):
                while True:
                    near, _ = server.accept()
                    far = socket.create_connection(("127.0.0.1", port))
                    ends.extend((near, far))
                    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SLICE)
                    threads.submit(link.carry, near, far, counted=False)
                    threads.submit(link.carry, far, near, counted=True)

        threads.submit(accept)
        try:
            yield link
        finally:
            for end in (server, *ends):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
    for end in ends:
        end.close()


def cold(place: Path, urls: Mapping[str, str]) -> Path:
    """`place`/data with a record of each URL by name, piece lists and all, and none of their bytes."""
    warm, data = place / "etched", place / "data"
    data.mkdir(mode=0o700)

    async def etch_all() -> None:
        async with MusicCache.open(warm, OPEN) as cache:
            for name, url in urls.items():
                await etch(cache, Order(url, name))

    trio.run(etch_all)
    shutil.copy(warm / "records-lock.toml", data)
    shutil.copytree(warm / "pieces", data / "pieces")
    shutil.rmtree(warm)
    return data
