"""A music server scanning a library of cold records: how much of the library it fetches.

How it works: the library is made without writing it. Each record has the same true head of a FLAC and is zeros from
there on, a hole on the origin's disk, but for its last bytes; so one hash of what they share, continued with each
record's end, gives every checksum, and gigabytes of records take seconds. The records go into a lock as they would
come from an etch, with their piece lists, and MPD scans the mount.
"""

from __future__ import annotations

import hashlib
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cachefs.catalog.records import LOCK_NAME, Pieces, Record, lock_of
from cachefs.content import ContentId
from tests.counterparts import Child, nginx, running
from tests.mount_kit import mounted
from tests.player_kit import make_music
from tests.records_kit import OPEN_TOML, PIECE

SIZE = 24 * 2**20
"""Bytes of a record: some three minutes of FLAC."""

_ETCHED = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Scanned:
    """What came of a scan: songs that the server found, bytes that were fetched and that the library has, seconds."""

    songs: int
    fetched: int
    library: int
    seconds: float


def scan(place: Path, records: int) -> Scanned:
    """Have MPD scan a library of so many cold records."""
    site, data = place / "site", place / "data"
    (data / "pieces").mkdir(parents=True)
    site.mkdir()
    with nginx(site) as url:
        _make_library(site, data, url, records)
        with mounted(place, settings=OPEN_TOML) as mount:
            songs, seconds = _scanned_by_mpd(place, mount.mountpoint / "records")
            return Scanned(songs, mount.received(PIECE), records * SIZE, seconds)


def _make_library(site: Path, data: Path, url: str, records: int) -> None:
    music = make_music(site / "head.flac", 3).read_bytes()
    shared = music + bytes(SIZE - PIECE - len(music))
    begun = hashlib.sha256(shared)
    listed = b"".join(hashlib.sha256(shared[at : at + PIECE]).digest() for at in range(0, len(shared), PIECE))
    lock = []
    for number in range(records):
        end = bytes(PIECE - 4) + number.to_bytes(4, "big")
        whole = begun.copy()
        whole.update(end)
        pieces = listed + hashlib.sha256(end).digest()
        (data / "pieces" / hashlib.sha256(pieces).hexdigest()).write_bytes(pieces)
        with (site / f"{number}.flac").open("wb") as file:
            file.write(music)
            file.seek(SIZE - 4)
            file.write(end[-4:])
        content = ContentId("sha256", whole.digest())
        named = Pieces(PIECE, hashlib.sha256(pieces).digest())
        name = f"Artist {number % 20:02}/Song {number:04}.flac"
        lock.append(Record(name, f"{url}{number}.flac", content, SIZE, pieces=named, etched_at=_ETCHED))
    lock_of(lock).save(data / LOCK_NAME)


def _scanned_by_mpd(place: Path, music: Path) -> tuple[int, float]:
    """How many songs MPD has found when its scan is over, and how many seconds that took."""
    socket, settings = place / "mpd.sock", place / "mpd.conf"
    settings.write_text(
        f'music_directory "{music}"\ndb_file "{place / "mpd.db"}"\nbind_to_address "{socket}"\n'
        'zeroconf_enabled "no"\naudio_output {\ntype "null"\nname "none"\n}\n'
    )
    with running("mpd", ["mpd", "--no-daemon", "--stderr", settings]) as child:
        child.wait_until("listening", socket.exists)
        began = time.monotonic()
        _mpc(child, socket, "update", "--wait")
        seconds = time.monotonic() - began
        return len(_mpc(child, socket, "listall").splitlines()), seconds


def _mpc(child: Child, socket: Path, *words: str) -> str:
    done = subprocess.run(["mpc", "--host", socket, *words], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr + child.printed()
    return done.stdout
