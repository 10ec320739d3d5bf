"""What the kernel asks for by itself is told apart from what somebody reads."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachefs.guesses import PAGE, Guesses, NobodyAsked
from cachefs.window import START, Window
from tests import records_kit
from tests.mount_kit import BOTH_DRIVERS, Mount, mounted, pread
from tests.records_kit import OPEN_TOML, PIECE, data_dir, sha256, song, web

AHEAD = 128 * 1024
"""What the kernel reads ahead, in bytes."""

SONG = song(1, 12 * PIECE + 1000)

MAPPED = """
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    print(hashlib.sha256(mapped[: int(sys.argv[2])]).hexdigest())
"""


def read_to(window: Window, until: int) -> None:
    """Read the first `until` bytes in order."""
    for at in range(0, until, AHEAD):
        window.saw(at, AHEAD)


def refused(guesses: Guesses, offset: int, size: int = AHEAD) -> bool:
    assert guesses.has(offset, size) == guesses.has(offset, size), "asking changes nothing"
    if not guesses.has(offset, size):
        guesses.refuse(offset, size)
        return False
    with pytest.raises(NobodyAsked):
        guesses.refuse(offset, size)
    return True


def test_what_follows_on_a_read_is_a_guess_once_and_so_is_what_follows_on_a_guess() -> None:
    window = Window(PIECE, 100)
    guesses = Guesses(window, lambda: True)
    assert not refused(guesses, 0), "a first read is somebody's"
    window.saw(0, AHEAD)
    assert refused(guesses, AHEAD)
    assert refused(guesses, 2 * AHEAD)
    assert not refused(guesses, AHEAD), "asked for again"
    assert not refused(guesses, AHEAD + PAGE), "or a part of it"


def test_a_jump_a_single_page_and_a_read_in_order_for_long_are_no_guesses() -> None:
    window = Window(PIECE, 100)
    guesses = Guesses(window, lambda: True)
    window.saw(0, AHEAD)
    assert not refused(guesses, AHEAD, PAGE)
    assert not refused(guesses, 50 * PIECE)
    read_to(window, START + AHEAD)
    assert not refused(guesses, START + AHEAD)


def test_there_are_no_guesses_where_they_would_be_seen() -> None:
    window = Window(PIECE, 100)
    window.saw(0, AHEAD)
    assert not refused(Guesses(window, lambda: False), AHEAD)


@contextmanager
def cold_record(place: Path, *options: str) -> Iterator[tuple[Mount, Path]]:
    """A mount that shows SONG and has none of it, and its path there."""
    with web() as host:
        etcher = data_dir(place / "etcher")
        records_kit.etch(etcher, host.put("song.mp3", SONG))
        data = data_dir(place)
        shutil.copy(etcher / "records-lock.toml", data)
        shutil.copytree(etcher / "pieces", data / "pieces")
        with mounted(place, None, *options, settings=OPEN_TOML) as mount:
            yield mount, mount.mountpoint / "records" / "song.mp3"


@BOTH_DRIVERS
def test_a_read_within_a_piece_fetches_no_other(tmp_path: Path, driver: tuple[str, ...]) -> None:
    """A page more than the kernel reads ahead makes it do so, and that reaches into the next piece."""
    size = AHEAD + PAGE
    with cold_record(tmp_path, *driver) as (mount, path):
        for piece in (2, 5, 8):
            at = (piece + 1) * PIECE - size - 8 * PAGE
            assert pread(path, at, size) == SONG[at : at + size]
        assert mount.received(4 * PIECE) == 4 * PIECE, "the first piece, which opening waits for, and these three"


@BOTH_DRIVERS
def test_who_reads_on_past_the_cache_or_through_a_mapping_gets_every_byte(
    tmp_path: Path, driver: tuple[str, ...]
) -> None:
    with cold_record(tmp_path, *driver) as (_, path), path.open("rb") as file:
        # In another process: a page fault would keep this one's threads, the server's among them, from running.
        mapped = subprocess.run([sys.executable, "-c", MAPPED, path, str(3 * PIECE)], capture_output=True, check=True)
        assert mapped.stdout.decode().strip() == sha256(SONG[: 3 * PIECE])
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            buffer = mmap.mmap(-1, AHEAD)
            for at in range(4 * PIECE, 8 * PIECE, AHEAD):
                assert os.preadv(fd, [buffer], at) == AHEAD
                assert buffer[:] == SONG[at : at + AHEAD]
        finally:
            os.close(fd)
        assert file.read() == SONG


def test_readers_side_by_side_get_every_byte(tmp_path: Path) -> None:
    with cold_record(tmp_path) as (_, path), ThreadPoolExecutor(8) as pool:
        places = [random.Random(seed).randrange(len(SONG) - 3 * PIECE) for seed in range(40)]
        read = [pool.submit(pread, path, at, 3 * PIECE) for at in places]
        assert [each.result(60) for each in read] == [SONG[at : at + 3 * PIECE] for at in places]
