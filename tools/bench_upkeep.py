"""The benchmark of verification: how fast a running mount hashes what it holds, over what this machine can do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from cachefs.control import socket as control
from tests.counterparts import cachefs_seed
from tools.bench_stage import Stage, dropped, heated, read_through, shown
from tools.benchkit import MB, Report, interleaved, is_root
from tools.mounting import Failed, Mount, output

_ALL_CORES, _DISK = "openssl speed sha1, all cores at once", "dd of the data file, page cache dropped"
_GOAL = 0.9


def verify(stage: Stage) -> Report:
    """`verify` by the daemon, over `openssl speed sha1` on all cores and over the disk."""
    with cachefs_seed(stage.origin, http=False) as box, stage.cold_mount("--peer", str(box.peer)) as mount:
        output("cmp", stage.original, shown(mount))
        data = next((mount.data_dir / "store").glob("btih/*/*/data"))
        sides: dict[str, Callable[[], float]] = {
            "cachefs verify, page cache hot": lambda: stage.rate(_verify(mount, heated(data))),
            _ALL_CORES: _openssl,
        }
        if is_root():
            sides["cachefs verify, page cache dropped"] = lambda: stage.rate(_verify(mount, dropped(data)))
            sides[_DISK] = lambda: stage.rate(read_through(dropped(data)))
        report = Report("Verification")
        report.add(interleaved(stage.runs, sides), "MB/s")
        report.compare(
            "verify over openssl on all cores, page cache hot", "cachefs verify, page cache hot", _ALL_CORES, _GOAL
        )
        if is_root():
            slower = report.slower(_ALL_CORES, _DISK)
            report.compare(f"verify over {slower}, dropped", "cachefs verify, page cache dropped", slower, _GOAL)
    return report


def _verify(mount: Mount, data: Path) -> float:
    """Seconds that the daemon takes to verify all it holds."""
    started = time.perf_counter()
    answer = control.follow(mount.data_dir, "verify", lambda progress: None)
    seconds = time.perf_counter() - started
    if not answer["good"] or answer["bytes"] < data.stat().st_size:
        raise Failed(f"verify: {answer}")
    return seconds


def _openssl() -> float:
    """The MB/s that openssl hashes in pieces of 64 KiB, one process a core."""
    command = (
        "openssl",
        "speed",
        "-mr",
        "-multi",
        str(os.cpu_count() or 1),
        "-seconds",
        "2",
        "-bytes",
        "65536",
        "sha1",
    )
    found = [line for line in output(*command).splitlines() if line.startswith("+F:")]
    return float(found[-1].split(":")[-1]) / MB
