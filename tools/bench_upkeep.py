"""The benchmark of verification: how fast a running mount hashes what it holds, over what this machine can do.

How it works: throughput is compared with `openssl speed`, which hashes the same 64 KiB over and over, and with the
disk; the slower of them is what a verification from disk can reach. One of a hot file has to read the bytes, which
`openssl speed` doesn't: what that allows is `openssl sha1` of the file itself, in as many processes as there are cores.
Processor time is taken as well, for throughput says little on a machine that does other work meanwhile.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from cachefs.control import socket as control
from tests.counterparts import cachefs_seed
from tools.bench_stage import Stage, dropped, heated, read_through, shown
from tools.benchkit import MB, Report, interleaved, is_root
from tools.mounting import Failed, Mount, output

_HOT, _COLD = "cachefs verify, page cache hot", "cachefs verify, page cache dropped"
_ALL_CORES, _DISK = "openssl speed sha1, all cores at once", "dd of the data file, page cache dropped"
_FILE = "openssl sha1 of the file, a process a core, page cache hot"
_OURS, _THEIRS = "processor time, cachefs verify", "processor time, openssl sha1 of the same file"
_GOAL = 0.9
_CORES = os.cpu_count() or 1


def verify(stage: Stage) -> Report:
    """`verify` by the daemon, over `openssl speed sha1` on all cores and over the disk."""
    with cachefs_seed(stage.origin, http=False) as box, stage.cold_mount("--peer", str(box.peer)) as mount:
        output("cmp", stage.original, shown(mount))
        data = next((mount.data_dir / "store").glob("btih/*/*/data"))
        seconds: dict[str, list[float]] = {_OURS: [], _THEIRS: []}

        def hot() -> float:
            before = _spent(mount)
            rate = stage.rate(_verify(mount, heated(data)))
            seconds[_OURS].append(_spent(mount) - before)
            seconds[_THEIRS].append(_openssl_of(data))
            return rate

        sides = {
            _HOT: hot,
            _ALL_CORES: _openssl,
            _FILE: lambda: _CORES * stage.rate(_openssl_side_by_side(heated(data))),
        }
        if is_root():
            sides[_COLD] = lambda: stage.rate(_verify(mount, dropped(data)))
            sides[_DISK] = lambda: stage.rate(read_through(dropped(data)))
        report = Report("Verification")
        report.add(interleaved(stage.runs, sides), "MB/s")
        report.compare("verify over openssl speed on all cores, page cache hot", _HOT, _ALL_CORES, _GOAL)
        report.compare("verify over openssl sha1 of the file, page cache hot", _HOT, _FILE, _GOAL)
        if is_root():
            slower = report.slower(_ALL_CORES, _DISK)
            report.compare(f"verify over {slower}", _COLD, slower, _GOAL)
        report.add(seconds, "s")
        report.compare("openssl sha1 of the same file over verify, processor time", _THEIRS, _OURS)
    return report


def _spent(mount: Mount) -> float:
    """The processor time that the daemon has used, in seconds."""
    fields = Path(f"/proc/{mount.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _openssl_of(path: Path) -> float:
    """The processor time that openssl takes to hash a file, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output("openssl", "sha1", path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _openssl_side_by_side(path: Path) -> float:
    """Seconds that openssl takes to hash a file in as many processes as there are cores, each all of it."""
    started = time.perf_counter()
    output("sh", "-c", f"yes '{path}' | head -n {_CORES} | xargs -n 1 -P {_CORES} openssl sha1")
    return time.perf_counter() - started


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
        str(_CORES),
        "-seconds",
        "2",
        "-bytes",
        "65536",
        "sha1",
    )
    found = [line for line in output(*command).splitlines() if line.startswith("+F:")]
    return float(found[-1].split(":")[-1]) / MB
