"""The benchmarks beside other mounts: what else shows a file of a web server, or of a torrent, as if it were here.

How it works: each program mounts the same file from the same source, as its manual has it, with its cache, if it has
one, on the same disk. In each mount, in turns, a first page is read from the middle of the cold file, then all of it
from end to end, then all of it once more with nothing of it in the kernel's page cache. A source that is wrong in one
byte shows who looks: what a reader gets is compared with what he should get. The file is a quarter of the stage's: some
of them take their time. btfs finds no peer on loopback, so it, and the mount beside it, run in a network of their own,
with the peer at the other end of a cable.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cachefs import metainfo, mountinfo
from tests.counterparts import cachefs_seed, nginx, running
from tests.network_kit import FAR_ADDRESS, two_networks
from tests.player_kit import cold
from tests.records_kit import OPEN_TOML
from tools.bench_stage import NAME, Stage, first_bytes, forgotten, prepare, read_through, shown
from tools.benchkit import Report, is_root, say
from tools.mounting import CACHEFS, memory_of, mounted

OURS = "cachefs"
_COLD = "all of it, cold"
_FIGURES = {"first 4 KiB, in the middle": "ms", _COLD: "MB/s", "all of it, again": "MB/s", "memory": "MB"}
_RCLONE = CACHEFS.with_name("rclone")
_PATIENCE = ("--deadline", "5")
"""Seconds that a read waits for bytes that don't come, where the only source is wrong."""

_SMALL = 2**25
"""Bytes of the file that is wrong in one of them."""

_CHUNK = 2**16


@dataclass(frozen=True, slots=True)
class Shown:
    """The stage's file in a mount, and the process that shows it."""

    path: Path
    pid: int


Side = Callable[[Stage, str], AbstractContextManager[Shown]]
"""Mounts the stage's file from a URL, which ends in `/`."""


def web_mounts(stage: Stage) -> Report:
    """The file through mounts of a web server."""
    report = Report("Beside other mounts of a web server (nginx)")
    with _smaller(stage, stage.size // 4) as quarter, _web_server(quarter) as url, quarter.fresh_folder() as folder:
        _compare(report, quarter, url, _web_sides(_etched(quarter, url, folder)))
    with _smaller(stage, _SMALL) as small:
        _look_for_wrong_bytes(report, small)
    report.notes.append("httpdirfs is told --no-range-check: else it takes this nginx for one without ranges.")
    return report


def torrent_mounts(stage: Stage) -> Report:
    """The file through mounts of a torrent."""
    report = Report("Beside another mount of a torrent")
    if not is_root():
        report.notes.append("Not root: btfs needs a network of its own, so this is left out.")
        return report
    far = ("--listen", f"{FAR_ADDRESS}:0")
    with _smaller(stage, stage.size // 4) as quarter, two_networks() as network:
        with cachefs_seed(quarter.origin, *far, http=False, within=network.far) as box:
            sides = {OURS: _by_peer(network.near), "btfs": _foreign(_btfs(network.near))}
            _compare(report, quarter, str(box.peer), sides)
    return report


@contextmanager
def _smaller(stage: Stage, size: int) -> Iterator[Stage]:
    """A stage in this one, with a file of `size` bytes."""
    with stage.fresh_folder() as folder:
        yield prepare(folder, size, stage.runs)


def _web_server(stage: Stage) -> AbstractContextManager[str]:
    return nginx(stage.origin, location="autoindex on;")


def _compare(report: Report, stage: Stage, source: str, sides: Mapping[str, Side]) -> None:
    """Add what each side took: to the first page, for all of it, for all of it again, and in memory."""
    looks = {figure: dict[str, list[float]]() for figure in _FIGURES}
    for run in range(1, stage.runs + 1):
        for name, side in sides.items():
            say(f"  run {run} of {stage.runs}: {name}")
            for figure, value in zip(_FIGURES, _look(stage, source, side), strict=True):
                looks[figure].setdefault(f"{figure}: {name}", []).append(value)
    for figure, unit in _FIGURES.items():
        report.add(looks[figure], unit)
    others = [name for name in sides if not name.startswith(OURS)]
    for ours in [name for name in sides if name.startswith(OURS)]:
        for other in others:
            report.compare(f"{_COLD}: {ours} over {other}", f"{_COLD}: {ours}", f"{_COLD}: {other}")


def _look(stage: Stage, source: str, side: Side) -> tuple[float, float, float, float]:
    with side(stage, source) as file:
        stage.settle()
        first = first_bytes(file.path, stage.size // 2)
        cold = stage.rate(read_through(file.path))
        again = stage.rate(read_through(forgotten(file.path)))
        return first, cold, again, memory_of(file.pid)


def _look_for_wrong_bytes(report: Report, small: Stage) -> None:
    """Add how many wrong bytes each mount hands out when its source has one."""
    right = small.original.read_bytes()
    with _web_server(small) as url, small.fresh_folder() as folder:
        sides = _web_sides(_etched(small, url, folder))
        with small.original.open("r+b") as file:
            file.seek(_SMALL // 2)
            file.write(bytes([right[_SMALL // 2] ^ 1]))
        for name, side in sides.items():
            say(f"  a wrong byte: {name}")
            with side(small, url) as mount:
                report.add({f"wrong bytes that a reader got: {name}": [_wrong_bytes(mount.path, right)]}, "")


def _wrong_bytes(path: Path, right: bytes) -> int:
    """How many of the bytes that can be read are wrong."""
    wrong = 0
    with path.open("rb", buffering=0) as file:
        for at in range(0, len(right), _CHUNK):
            expected = right[at : at + _CHUNK]
            with suppress(OSError):  # refused: nobody got it
                got = os.pread(file.fileno(), _CHUNK, at)
                wrong += sum(a != b for a, b in zip(got, expected, strict=True)) if got != expected else 0
    return wrong


Command = Callable[[Stage, str, Path], Sequence[str | Path]]
"""What shows the stage's file from a source, short of the mount point; there is a folder for what it keeps."""


# The mounts: ours, then the others'


def _web_sides(etched: Path) -> dict[str, Side]:
    return {
        OURS: _by_web_seed,
        f"{OURS}, as a record": _as_record(etched),
        "rclone mount --vfs-cache-mode full": _foreign(_rclone("full")),
        "rclone mount --vfs-cache-mode off": _foreign(_rclone("off")),
        "httpdirfs --cache": _foreign(_httpdirfs),
    }


@contextmanager
def _by_web_seed(stage: Stage, url: str) -> Iterator[Shown]:
    with stage.cold_mount("--webseed", url, *_PATIENCE) as mount:
        yield Shown(shown(mount), mount.pid)


def _by_peer(within: Sequence[str]) -> Side:
    @contextmanager
    def side(stage: Stage, peer: str) -> Iterator[Shown]:
        with stage.cold_mount("--peer", peer, within=within) as mount:
            yield Shown(shown(mount), mount.pid)

    return side


def _etched(stage: Stage, url: str, folder: Path) -> Path:
    """A data directory in which the file is a record, none of whose bytes are there."""
    data = cold(folder, {NAME: f"{url}{NAME}"})
    (data / "cachefs.toml").write_text(OPEN_TOML)
    return data


def _as_record(etched: Path) -> Side:
    @contextmanager
    def side(stage: Stage, url: str) -> Iterator[Shown]:
        with stage.fresh_folder() as folder:
            shutil.copytree(etched, folder / "data")
            with mounted(folder, *_PATIENCE) as mount:
                yield Shown(mount.path / "records" / NAME, mount.pid)

    return side


def _foreign(command: Command) -> Side:
    @contextmanager
    def side(stage: Stage, source: str) -> Iterator[Shown]:
        with stage.fresh_folder() as folder:
            kept, path = folder / "kept", folder / "mnt"
            kept.mkdir()
            path.mkdir()
            with running("the other mount", [*command(stage, source, kept), path], signal.SIGTERM) as child:
                try:
                    child.wait_until("showing the file", (path / NAME).exists)
                    yield Shown(path / NAME, child.process.pid)
                finally:
                    if path.is_mount():
                        mountinfo.unmount_lazily(path)

    return side


def _rclone(cache: str) -> Command:
    def command(stage: Stage, url: str, kept: Path) -> list[str | Path]:
        options = ("--vfs-cache-mode", cache, "--cache-dir", kept, "--config", os.devnull)
        return [_RCLONE, "mount", "--read-only", *options, f":http,url='{url}':"]

    return command


def _httpdirfs(stage: Stage, url: str, kept: Path) -> list[str | Path]:
    return ["httpdirfs", "-f", "--no-range-check", "--cache", "--cache-location", kept, url]


def _btfs(within: Sequence[str]) -> Command:
    def command(stage: Stage, peer: str, kept: Path) -> list[str | Path]:
        content = metainfo.parse(stage.torrent.read_bytes()).content
        magnet = f"magnet:?xt=urn:btih:{content.hex}&x.pe={peer}"
        return [*within, "btfs", "-f", f"--data-directory={kept}", magnet]

    return command
