"""The benchmarks of content: cold from a peer and from a web seed, warm, random, and the first byte."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from cachefs.metainfo import ERIGON_PIECE_LENGTH
from tests.counterparts import cachefs_seed, nginx
from tests.mount_kit import passes_through
from tools.bench_stage import (
    ARIA2_OPTIONS,
    NAME,
    Stage,
    aria2,
    bare,
    bare_beside,
    curl_sha1,
    dropped,
    first_bytes,
    heated,
    random_reads,
    read_through,
    sealed,
    shown,
    ten_lines,
    tracker,
)
from tools.benchkit import Report, filesystem, interleaved, is_root
from tools.mounting import output

BESIDE = "the latter, beside it a mount that serves as much"
MOUNT, ARIA2, CURL = "through the mount, dd bs=1M", "aria2c", "curl | openssl sha1"
TEN_LINES = "ten lines of libtorrent, all its defaults"
DISKS = {"bare libtorrent in a hurry, default disk": "default", "bare libtorrent in a hurry, pread disk": "pread"}
_COLD_READS, _HOT_READS = 8_192, 200_000
_NO_PASSTHROUGH = "Passthrough is left out: it needs root and Linux 6.9."
_ROOT_ONLY = "Not root: the page cache can't be dropped, so those figures are left out."


def cold_peer(stage: Stage) -> Report:
    """A first sequential read from one torrent peer, over plain downloads of the same torrent from the same peer."""
    with cachefs_seed(stage.origin, http=False) as box:
        assert box.peer is not None
        peer = str(box.peer)
        with tracker(stage, box.peer) as announce:
            extra = {ARIA2: lambda: stage.rate(aria2(stage, announce))}
            return _cold(stage, "from one torrent peer (cachefs seed)", "--peer", peer, 0.95, extra)


def cold_web(stage: Stage) -> Report:
    """A first sequential read from a web seed, over plain downloads from the same nginx."""
    with nginx(stage.origin) as url:
        extra = {CURL: lambda: stage.rate(curl_sha1(stage, f"{url}{NAME}"))}
        return _cold(stage, "from a web seed (nginx)", "--webseed", url, 0.9, extra)


def _cold(
    stage: Stage, source: str, option: str, address: str, goal: float, extra: dict[str, Callable[[], float]]
) -> Report:
    memory: dict[str, list[float]] = {"daemon's resident memory after the read": [], "the most it had": []}

    def through_the_mount() -> float:
        with stage.cold_mount(option, address) as mount:
            seconds = read_through(shown(mount))
            for series, key in zip(memory.values(), ("VmRSS", "VmHWM"), strict=True):
                series.append(mount.memory(key))
            return stage.rate(seconds)

    kind, whole = ("--peer", address) if option == "--peer" else ("--url", f"{address}{NAME}")
    plain = {name: _plainly(stage, disk, kind, whole) for name, disk in DISKS.items()}
    report = Report(f"Cold sequential read {source}")
    with stage.cold_mount(option, address) as held:
        read_through(shown(held))
        plain[BESIDE] = lambda: stage.rate(bare_beside(stage, held, "pread", kind, whole))
        sides = {MOUNT: through_the_mount, TEN_LINES: lambda: stage.rate(ten_lines(stage, kind, whole))}
        report.add(interleaved(stage.runs, sides | plain | extra), "MB/s")
    best = report.faster(*DISKS)
    report.compare(f"mount over {TEN_LINES}", MOUNT, TEN_LINES, goal)
    report.compare(f"mount over {best} (the faster)", MOUNT, best)
    report.compare("mount over what the processors allow who download and serve", MOUNT, BESIDE)
    for other in extra:
        report.compare(f"mount over {other}", MOUNT, other)
    report.add(memory, "MB")
    if ARIA2 in extra:
        report.notes.append(f"aria2c {' '.join(ARIA2_OPTIONS)}, and the peer from a tracker.")
    return report


def _plainly(stage: Stage, disk: str, kind: str, source: str) -> Callable[[], float]:
    return lambda: stage.rate(bare(stage, disk, kind, source))


def warm(stage: Stage) -> Report:
    """A sequential read of what is there, over the same read of the same bytes in a plain file."""
    return _warm(stage, "Warm sequential read", "MB/s", lambda path: stage.rate(read_through(path)))


def random_4k(stage: Stage) -> Report:
    """Random 4 KiB reads of what is there, over the same in a plain file."""
    hot, cold = (lambda path, n=count: random_reads(path, n) for count in (_HOT_READS, _COLD_READS))
    return _warm(stage, "Warm random 4 KiB reads (fio, psync, one job)", "reads/s", hot, cold)


def _warm(
    stage: Stage, title: str, unit: str, hot: Callable[[Path], float], cold: Callable[[Path], float] | None = None
) -> Report:
    """`hot` and `cold` measure a file whose bytes are in the page cache, or not; `cold` is `hot` if not given."""
    report, plain, by_cold = Report(title), filesystem(stage.original), cold or hot
    kinds = {"mount": (), "mount --passthrough": ("--passthrough",)} if passes_through() else {"mount": ()}
    with cachefs_seed(stage.origin, http=False) as box, ExitStack() as mounts:
        files = {}
        for kind, options in kinds.items():
            mount = mounts.enter_context(stage.cold_mount("--peer", str(box.peer), *options))
            output("cmp", stage.original, shown(mount))
            sealed(mount)
            files[kind] = shown(mount)
        files[plain] = stage.original
        ways = {"page cache dropped": lambda path: by_cold(dropped(path))} if is_root() else {}
        ways["page cache hot"] = lambda path: hot(heated(path))
        sides = {f"{where}, {state}": _of(way, path) for state, way in ways.items() for where, path in files.items()}
        report.add(interleaved(stage.runs, sides), unit)
        for state in ways:
            for kind in kinds:
                report.compare(f"{kind} over {plain}, {state}", f"{kind}, {state}", f"{plain}, {state}")
    report.notes += [] if is_root() else [_ROOT_ONLY]
    report.notes += [] if passes_through() else [_NO_PASSTHROUGH]
    return report


def _of(way: Callable[[Path], float], path: Path) -> Callable[[], float]:
    return lambda: way(path)


def first_byte(stage: Stage) -> Report:
    """How long a first read of 4 KiB takes when nothing is there: one whole piece is fetched and verified for it."""
    middle = stage.size // 2
    with cachefs_seed(stage.origin, http=False) as box:
        peer = str(box.peer)

        def through_the_mount(offset: int) -> float:
            with stage.cold_mount("--peer", peer) as mount:
                return first_bytes(shown(mount), offset)

        def plainly(offset: int) -> float:
            return 1000 * bare(stage, "pread", "--peer", peer, offset // ERIGON_PIECE_LENGTH)

        sides: dict[str, Callable[[], float]] = {
            "mount, head of the file": lambda: through_the_mount(0),
            "mount, middle": lambda: through_the_mount(middle),
            "bare libtorrent, first piece": lambda: plainly(0),
            "bare libtorrent, middle piece": lambda: plainly(middle),
        }
        report = Report("Time to the first byte, cold, from one torrent peer")
        report.add(interleaved(stage.runs, sides), "ms")
    report.notes.append("The bare download makes its session within its time; the mount has one. Both have to connect.")
    return report
