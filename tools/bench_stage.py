"""The benchmarks' stage: one large file with its torrent, fresh folders and mounts, and the readers that are timed.

How it works: every cold run gets a folder of its own, deleted with it, and a mount that has its sizes already (from a
directory of .torrent files, which the others are given, too): what is timed is content alone. The readers are
other people's programs, so that nothing of ours is in the loop: dd with 1 MiB reads, fio, curl, aria2c.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from cachefs.origin.torrents import publish
from tests.counterparts import Peer, free_port, nginx
from tools import mounting
from tools.benchkit import MB, drop_caches, settle, timed
from tools.mounting import Failed, Mount, mounted, output

NAME = "v1-000000-000500-transactions.seg"
CATALOGUE = "snapshots"
CHAIN = ("--chain", "bench")
_REFERENCE = Path(__file__).with_name("bench_reference.py")
_TEN_LINES = Path(__file__).with_name("bench_ten_lines.py")


@dataclass(frozen=True, slots=True)
class Stage:
    """Where it all happens: the folder, the large file's size in bytes, and how often everything is run."""

    folder: Path
    size: int
    runs: int

    @property
    def origin(self) -> Path:
        """The directory that sources serve."""
        return self.folder / "origin"

    @property
    def original(self) -> Path:
        return self.origin / NAME

    @property
    def torrent(self) -> Path:
        return self.origin / f"{NAME}.torrent"

    def rate(self, seconds: float) -> float:
        """MB/s for the whole file."""
        return self.size / MB / seconds

    def settle(self, *held: Path) -> None:
        """Make a timed run start like the others; no disk is read in it for what a source serves, or for `held`."""
        settle(self.folder)
        for path in (self.original, *held):
            heated(path)

    @contextmanager
    def fresh_folder(self) -> Iterator[Path]:
        """An empty folder that is deleted afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    @contextmanager
    def cold_mount(self, *sources: str, within: Sequence[str] = ()) -> Iterator[Mount]:
        """A mount that holds nothing yet, and whose sizes are known; `within` comes before its command."""
        known = ("--chain-toml", self.origin / "chain.toml", "--torrent-dir", self.origin)
        with self.fresh_folder() as folder, mounted(folder, *known, *CHAIN, *sources, within=within) as mount:
            if shown(mount).stat().st_size != self.size:
                raise Failed(f"{shown(mount)} has {shown(mount).stat().st_size} bytes, not {self.size}")
            self.settle()
            yield mount


def prepare(folder: Path, size: int, runs: int) -> Stage:
    """Make the large file and its torrent."""
    stage = Stage(folder, size, runs)
    mounting.fill(stage.original, size)
    published(stage.origin)
    return stage


def published(directory: Path) -> Path:
    """Make the .torrent files of a directory and its chain.toml; the latter's path."""
    made = trio.run(publish, directory, None, None)
    return made.chain


def shown(mount: Mount) -> Path:
    """The large file in the mount."""
    return mount.path / CATALOGUE / NAME


def sealed(mount: Mount) -> None:
    """Return when what was read is durable: from then on the kernel may be given it."""
    while not mount.status()["store"]["complete"]:
        time.sleep(0.1)


def read_through(path: Path) -> float:
    """Read a file once with dd; seconds."""
    return timed("dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none")


def first_bytes(path: Path, offset: int) -> float:
    """Milliseconds from opening to having the first 4 KiB at `offset`."""
    started = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        got = os.pread(descriptor, 4096, offset)
        seconds = time.perf_counter() - started
    finally:
        os.close(descriptor)
    if len(got) != 4096:
        raise Failed(f"{path}: {len(got)} bytes at {offset}, not 4096")
    return seconds * 1000


def random_reads(path: Path, count: int) -> float:
    """4 KiB reads a second by fio, at the same `count` random offsets whenever it is called."""
    told = output(
        *("fio", "--name=random", f"--filename={path}", "--readonly", "--allow_file_create=0", "--rw=randread"),
        *("--bs=4k", "--ioengine=psync", f"--number_ios={count}", "--randrepeat=1", "--invalidate=0"),
        "--output-format=json",
        cwd=path.parent,
    )
    return float(json.loads(told)["jobs"][0]["read"]["iops"])


def dropped(path: Path) -> Path:
    """The same path, with nothing of it in the page cache."""
    drop_caches()
    return path


def heated(path: Path) -> Path:
    """The same path, with all of it in the page cache."""
    read_through(path)
    return path


def forgotten(path: Path) -> Path:
    """The same path in a mount, with nothing of it in the page cache; what the daemon reads it from stays there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return path


def bare(stage: Stage, disk: str, kind: str, source: str, piece: int | None = None) -> float:
    """Seconds of a bare libtorrent download (see bench_reference.py)."""
    with stage.fresh_folder() as folder:
        stage.settle()
        only = [] if piece is None else [str(piece)]
        return float(output(sys.executable, _REFERENCE, stage.torrent, folder, disk, kind, source, *only))


def ten_lines(stage: Stage, kind: str, source: str) -> float:
    """Seconds of a download with libtorrent's defaults (see bench_ten_lines.py)."""
    with stage.fresh_folder() as folder:
        stage.settle()
        return float(output(sys.executable, _TEN_LINES, stage.torrent, folder, kind, source))


def bare_beside(stage: Stage, held: Mount, disk: str, kind: str, source: str) -> float:
    """Seconds of a bare download while as many bytes are read that `held` has, or of that reading if it takes longer.

    Nothing that downloads and serves on this machine can be faster than these two that don't wait for each other.
    """
    data = next((held.data_dir / "store").glob("btih/*/*/data"))
    with stage.fresh_folder() as folder, ThreadPoolExecutor() as threads:
        stage.settle(data)
        reading = threads.submit(read_through, forgotten(shown(held)))
        seconds = float(output(sys.executable, _REFERENCE, stage.torrent, folder, disk, kind, source))
        return max(seconds, reading.result())


ARIA2_OPTIONS = (
    *("--no-conf", "--quiet", "--seed-time=0", "--file-allocation=none", "--summary-interval=0"),
    *("--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false", "--enable-peer-exchange=false"),
)


@contextmanager
def tracker(stage: Stage, peer: Peer) -> Iterator[str]:
    """A tracker that answers everybody with this one peer: aria2c takes no peer's address by itself.

    The answer (BEP 23) is a file that nginx hands out.
    """
    address = bytes(map(int, peer.host.split("."))) + peer.port.to_bytes(2, "big")
    with stage.fresh_folder() as folder:
        (folder / "announce").write_bytes(b"d8:intervali1800e5:peers6:" + address + b"e")
        with nginx(folder) as url:
            yield f"{url}announce"


def aria2(stage: Stage, announce: str) -> float:
    """Seconds of a download with aria2c from the peer that the tracker names."""
    with stage.fresh_folder() as folder:
        stage.settle()
        own = (f"--dir={folder}", f"--listen-port={free_port()}", f"--bt-tracker={announce}")
        seconds = timed("aria2c", *ARIA2_OPTIONS, *own, stage.torrent)
        if (folder / NAME).stat().st_size != stage.size:
            raise Failed("aria2c downloaded something else")
        return seconds


def curl_sha1(stage: Stage, url: str) -> float:
    """Seconds of `curl | openssl sha1`."""
    stage.settle()
    return timed("sh", "-c", f"curl -sf '{url}' | openssl sha1")
