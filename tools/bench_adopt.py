"""The benchmarks of files that are here already: adopting a directory, and starting on a store that is full.

How it works: adopting reads and hashes everything once and copies nothing, so it is compared with what this machine
hashes of the same files when nothing else is done: `openssl sha1`, a process a core. The full store consists of sparse
files, for a start looks at files and doesn't read them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cachefs import metainfo
from cachefs.catalog.chain import format_chain
from cachefs.content import ContentId
from cachefs.metainfo import ERIGON_PIECE_LENGTH, Metainfo
from cachefs.store import State, disk, recovery
from tools import mounting
from tools.bench_stage import CATALOGUE, CHAIN, Stage, published
from tools.benchkit import MB, Report, Series, interleaved, say
from tools.mounting import Failed, mounted, output

FILES = 500
OBJECTS, OBJECT_LENGTH = 5_000, 4 * 2**20
_WITHIN = 30.0


def adopt(stage: Stage) -> Report:
    """A snapshots directory of 500 files is taken over."""
    size = stage.size * 5 // 2 // FILES * FILES
    report = Report(f"Adopting {FILES} files, {size / 1e9:.1f} GB")
    with stage.fresh_folder() as folder:
        root, products = folder / "root", folder / "products"
        for number in range(FILES):
            mounting.fill(root / f"v1-{number * 500:06}-{(number + 1) * 500:06}-headers.seg", size // FILES)
        chain = published(root).rename(folder / "chain.toml")
        products.mkdir()
        for torrent in root.glob("*.torrent"):
            torrent.rename(products / torrent.name)
        sides = {
            "cachefs adopt": lambda: size / MB / _adopted(Path(tempfile.mkdtemp(dir=folder)), root, chain),
            "openssl sha1, a process a core": lambda: size / MB / _openssl(root),
        }
        report.add(interleaved(stage.runs, sides), "MB/s")
    ours, theirs = sides
    report.compare("adopt over openssl", ours, theirs)
    report.notes.append("By hard link, without .torrent files; the start of the command is part of the time.")
    return report


def _adopted(data: Path, root: Path, chain: Path) -> float:
    """Seconds that it takes. `data` stays: ext4 shuns inodes deleted lately, and takes long to find others."""
    started = time.perf_counter()
    told = json.loads(output("cachefs", "adopt", root, "--data-dir", data, "--chain-toml", chain, "--json"))
    seconds = time.perf_counter() - started
    if len(told["taken"]) != FILES or told["missing"]:
        raise Failed(f"{len(told['taken'])} of {FILES} files were taken over")
    return seconds


def _openssl(root: Path) -> float:
    started = time.perf_counter()
    output("sh", "-c", f"find '{root}' -type f -print0 | xargs -0 -n 10 -P {os.cpu_count() or 1} openssl sha1")
    return time.perf_counter() - started


def restart(stage: Stage) -> Report:
    """A start on many complete objects, and one after a file was touched."""
    report = Report(f"A start with {OBJECTS:,} complete objects, {OBJECTS * OBJECT_LENGTH / 1e9:.0f} GB")
    seconds: dict[str, list[float]] = {}
    with stage.fresh_folder() as place:
        objects = _full_store(place)
        for run in range(stage.runs):
            say(f"  run {run + 1} of {stage.runs}")
            for what, value in _starts(place, objects[run]):
                seconds.setdefault(what, []).append(value)
    report.add(seconds, "s")
    usable = next(series for series in report.series if series.name == "to a usable mount")
    report.series[0] = Series(f"{usable.name} (2 s are aimed at)", usable.values, usable.unit)
    report.notes.append("No object is hashed at a start; after one was touched, that one alone.")
    return report


def _full_store(place: Path) -> list[Path]:
    """Complete objects of zeros below `place`/data, and a chain.toml; their data files."""
    digest = hashlib.sha1(bytes(ERIGON_PIECE_LENGTH), usedforsecurity=False).digest()
    names = [f"v1-{number:06}-{number + 1:06}-bodies.seg" for number in range(OBJECTS)]
    infos = [metainfo.build(name, OBJECT_LENGTH, digest * (OBJECT_LENGTH // ERIGON_PIECE_LENGTH)) for name in names]
    (place / "chain.toml").write_text(format_chain({info.name: info.content for info in infos}))
    (place / "data").mkdir(mode=0o700)
    state = State.open(place / "data" / "state.db")
    try:
        state.sync_names({info.name: info.content for info in infos}, time.time())
        return [_complete(place / "data" / "store", state, info) for info in infos]
    finally:
        state.close()


def _complete(root: Path, state: State, info: Metainfo) -> Path:
    disk.save_manifest(root, info.content, info.raw)
    path = disk.directory_of(root, info.content) / "data"
    path.touch(0o444)
    os.truncate(path, info.manifest.length)
    seal = recovery.looks(path)
    if seal is None:
        raise Failed(f"{path} is gone")
    state.save_object(info.content, recovery.whole(info.manifest, seal, time.time()))
    state.set_lengths({info.name: info.manifest.length})
    return path


def _starts(place: Path, touched: Path) -> Iterator[tuple[str, float]]:
    """What a start takes, and how long after the next one a touched file is verified and nothing else."""
    started = time.perf_counter()
    with mounted(place, "--chain-toml", place / "chain.toml", *CHAIN) as mount:
        yield "to a usable mount", time.perf_counter() - started
        listed = sum(entry.stat().st_size for entry in os.scandir(mount.path / CATALOGUE))
        yield "and ls -l of all of it", time.perf_counter() - started
        if listed != OBJECTS * OBJECT_LENGTH:
            raise Failed(f"{listed} bytes are shown")
    log_file = place / "data" / "cachefs.log"
    if "checking" in log_file.read_text():
        raise Failed(f"something was hashed: see {log_file}")
    touched.touch()
    started = time.perf_counter()
    with mounted(place, *CHAIN) as mount:
        _wait_verified(mount.data_dir, touched)
        yield "one file touched: until it is verified", time.perf_counter() - started
    if log_file.read_text().count("checking") != 1:
        raise Failed(f"more than the touched file was hashed: {log_file.read_text()[-3000:]}")
    log_file.unlink()


def _wait_verified(data_dir: Path, touched: Path) -> None:
    content, deadline = ContentId.btih(touched.parent.name), time.monotonic() + _WITHIN
    while time.monotonic() < deadline:
        state = State.look(data_dir / "state.db")
        row = state.load_object(content)
        state.close()
        if row is not None and row.seal == recovery.looks(touched):
            return
        time.sleep(0.01)
    raise Failed(f"{touched} wasn't verified within {_WITHIN:.0f} s")
