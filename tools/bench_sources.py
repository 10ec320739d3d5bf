"""The benchmarks of web seeds and of hedging: the ways to ask one, and random reads beside a source that crawls.

How it works: both fetch from nginx web seeds with no peer in sight. For hedging
there are two web seeds, of which one crawls. A source's speed is only known once it was asked: until then it gets its
share of the reads, and what was sent to the slow one is late unless the other is asked as well.
"""

from __future__ import annotations

import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import quantiles

from cachefs.metainfo import ERIGON_PIECE_LENGTH
from tests.counterparts import cachefs_seed, nginx
from tests.player_kit import slow_link
from tools.bench_stage import NAME, Stage, first_bytes, read_through, shown
from tools.benchkit import MB, Report, interleaved, timed

_READERS, _READS = 8, 25
_LINK = 12_500_000
"""Bytes a second: 100 Mbit/s."""

_JUMPS = 10
_UNDER_WAY = 4.0
"""Seconds after which the reader in order reads ahead as far as it will."""

_CRAWLING = "limit_rate 100k;"


def ways(stage: Stage) -> Report:
    """A first sequential read from a web seed, asked directly, through rclone and by libtorrent, over curl."""
    with nginx(stage.origin) as url, stage.fresh_folder() as folder:
        through = folder / "cachefs.toml"
        through.write_text("[fetch]\ndirect = false\n")

        def through_the_mount(*options: str) -> float:
            with stage.cold_mount("--webseed", url, *options) as mount:
                return stage.rate(read_through(shown(mount)))

        def curl() -> float:
            stage.settle()
            return stage.rate(timed("curl", "-sf", "-o", "/dev/null", f"{url}{NAME}"))

        rclone = ("--config", str(through))
        direct, by_rclone, own, plain = "mount, directly", "mount, through rclone", "mount, by libtorrent", "curl"
        sides = {
            direct: through_the_mount,
            by_rclone: lambda: through_the_mount(*rclone),
            own: lambda: through_the_mount(*rclone, "--no-rclone"),
            plain: curl,
        }
        report = Report("Cold sequential read from a web seed (nginx), by each way to ask it")
        report.add(interleaved(stage.runs, sides), "MB/s")
    report.compare("directly over through rclone", direct, by_rclone)
    report.compare("directly over by libtorrent's own web seeds", direct, own)
    report.compare("through rclone over curl", by_rclone, plain)
    report.notes.append("curl writes to /dev/null: it neither verifies nor stores what it gets.")
    return report


def hedged(stage: Stage) -> Report:
    """The slowest hundredth of random cold reads by several readers, with one source that crawls, hedged and not."""
    with nginx(stage.origin) as good, nginx(stage.origin, location=_CRAWLING) as crawling:

        def p99(hedging: bool) -> float:
            with stage.fresh_folder() as folder:
                settings = folder / "cachefs.toml"
                settings.write_text(f"[fetch]\nhedging = {str(hedging).lower()}\n[read]\nreadahead_blocks = 0\n")
                sources = ("--webseed", crawling, "--webseed", good, "--config", str(settings))
                with stage.cold_mount(*sources) as mount:
                    return quantiles(_random_reads(shown(mount), stage.size), n=100)[98]

        report = Report(f"Random cold reads of 4 KiB, {_READERS} readers, one of two web seeds crawls: 99th percentile")
        report.add(interleaved(stage.runs, {"hedged": lambda: p99(True), "not hedged": lambda: p99(False)}), "ms")
    report.compare("hedged over not hedged (less is better)", "hedged", "not hedged")
    report.notes.append(f"{_READERS * _READS} reads, each in a piece of its own; the crawling seed sends 100 kB/s.")
    return report


def jumping(stage: Stage) -> Report:
    """Lone reads far from everything on a slow link, alone and beside a reader in order, by web seed and by peer."""
    with nginx(stage.origin) as url, cachefs_seed(stage.origin, http=False) as box:
        assert box.peer is not None
        addresses = {"--webseed": url, "--peer": f"http://{box.peer}/"}
        figures: dict[str, list[float]] = {}
        for option, address in addresses.items():
            with slow_link(address, _LINK) as link:
                given = link.url if option == "--webseed" else link.url.removeprefix("http://").rstrip("/")
                with stage.cold_mount(option, given) as mount:
                    alone, beside = _jumps(stage, shown(mount))
                figures[f"{option}, alone"] = alone
                figures[f"{option}, beside a reader in order"] = beside
    report = Report(f"A lone read of 4 KiB over a link of {_LINK * 8 / MB:.0f} Mbit/s")
    report.add(figures, "s")
    report.notes.append(f"A piece takes {ERIGON_PIECE_LENGTH / _LINK:.2f} s on this link.")
    return report


def _jumps(stage: Stage, path: Path) -> tuple[list[float], list[float]]:
    """Seconds of reads in pieces of their own from the file's second half: by themselves, then beside dd."""
    pieces = list(range(stage.size // ERIGON_PIECE_LENGTH // 2, stage.size // ERIGON_PIECE_LENGTH))
    places = [piece * ERIGON_PIECE_LENGTH for piece in random.Random(2).sample(pieces, 2 * _JUMPS)]
    alone = [first_bytes(path, place) / 1000 for place in places[:_JUMPS]]
    with subprocess.Popen(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"]) as reader:
        try:
            time.sleep(_UNDER_WAY)
            return alone, [first_bytes(path, place) / 1000 for place in places[_JUMPS:]]
        finally:
            reader.kill()


def _random_reads(path: Path, size: int) -> list[float]:
    """Milliseconds of each of all readers' reads, every one in a piece of its own."""
    pieces = random.Random(1).sample(range(size // ERIGON_PIECE_LENGTH), _READERS * _READS)
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda piece: first_bytes(path, piece * ERIGON_PIECE_LENGTH), pieces))
