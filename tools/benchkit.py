"""How the benchmarks measure and print.

How it works: what is compared runs in turns (A B C, A B C, …), so that a machine that slows down slows all of them,
and each side is told by its median with minimum and maximum. A ratio is that of two medians of one run of the
benchmark; only ratios are worth comparing between machines. Before a timed run dirty pages are written out,
untimed, so that no side pays for what another wrote.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cachefs import __version__
from tools.mounting import output

MB = 1e6
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True, slots=True)
class Series:
    """One side's measured values."""

    name: str
    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A comparison of medians; `goal`, if there is one, is the least that is aimed at."""

    name: str
    value: float
    goal: float | None = None

    @property
    def verdict(self) -> str:
        return "" if self.goal is None else "met" if self.value >= self.goal else "missed"


@dataclass(slots=True)
class Report:
    """One benchmark's figures, with what has to be known to read them."""

    title: str
    series: list[Series] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, measured: Mapping[str, list[float]], unit: str) -> None:
        self.series += [Series(name, tuple(values), unit) for name, values in measured.items()]

    def compare(self, name: str, ours: str, theirs: str, goal: float | None = None) -> None:
        """The ratio of two series' medians, for figures of which more is better."""
        self.ratios.append(Ratio(name, self._of(ours).median / self._of(theirs).median, goal))

    def faster(self, *names: str) -> str:
        """Which of these series has the highest median."""
        return max(names, key=lambda name: self._of(name).median)

    def slower(self, *names: str) -> str:
        """Which of these series has the lowest median."""
        return min(names, key=lambda name: self._of(name).median)

    def _of(self, name: str) -> Series:
        return next(series for series in self.series if series.name == name)


def interleaved(runs: int, sides: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Run all sides in turns, `runs` times; each returns its figure."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(1, runs + 1):
        for name, side in sides.items():
            say(f"  run {run} of {runs}: {name}")
            values[name].append(side())
    return values


def timed(*command: str | Path) -> float:
    """How many seconds a command takes that must succeed."""
    started = time.perf_counter()
    output(*command)
    return time.perf_counter() - started


def settle(folder: Path) -> None:
    """Make every timed run start alike: nothing dirty, and memory full of clean page cache, as on a machine that is up.

    A virtual machine gives free memory back to its host within seconds, and the first write to each page of it then
    costs several times the copy: whoever touches more fresh pages would be measured by that alone. So next to nothing
    is left free. Reading a sparse file fills the cache without touching the disk; the kernel takes its pages when they
    are needed.
    """
    os.sync()
    filler = folder / "filler"
    filler.touch()
    os.truncate(filler, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with filler.open("rb", buffering=0) as file:
        chunk = bytearray(2**24)
        reserve = _kept_free()
        while _free_memory() > reserve and file.readinto(chunk):
            pass


def _kept_free() -> int:
    """Bytes: what the kernel keeps free by itself, its zones' high watermarks, and a quarter more."""
    fields = map(str.split, Path("/proc/zoneinfo").read_text().splitlines())
    pages = sum(int(field[1]) for field in fields if field[:1] == ["high"])
    return os.sysconf("SC_PAGE_SIZE") * pages * 5 // 4


def _free_memory() -> int:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemFree"))
    return int(line.split()[1]) * 1024


def is_root() -> bool:
    return os.geteuid() == 0


def drop_caches() -> None:
    """Empty the kernel's page cache, dentries and inodes; root only."""
    os.sync()
    _DROP_CACHES.write_text("3\n")


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def machine(folder: Path) -> list[str]:
    """What the figures were taken on."""
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        f"{os.cpu_count()} cores ({model.partition(':')[2].strip() or platform.machine()}), {memory:.0f} GiB of memory",
        f"Linux {platform.release()}, {filesystem(folder)} for data, Python {platform.python_version()}",
        f"cachefs {__version__}{_commit()}",
    ]


def filesystem(folder: Path) -> str:
    """The type of the file system that `folder` is on."""
    return output("findmnt", "-n", "-o", "FSTYPE", "-T", folder).strip()


def _commit() -> str:
    command: list[str | Path] = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return f" at {done.stdout.strip()}" if done.returncode == 0 else ""


def as_text(report: Report) -> str:
    """A report for the terminal."""
    lines = ["", report.title]
    width = max(map(len, [*(item.name for item in report.series), *(item.name for item in report.ratios)]))
    for series in report.series:
        low, middle, high = _spread(series)
        lines.append(f"  {series.name:{width}}  {low:>9} {middle:>9} {high:>9}  {series.unit}")
    for ratio in report.ratios:
        goal = f"  goal {ratio.goal:g}: {ratio.verdict}" if ratio.goal is not None else ""
        lines.append(f"  {ratio.name:{width}}  {'':9} {ratio.value:>9.2f} {'':9}{goal}")
    return "\n".join([*lines, *(f"  {note}" for note in report.notes)])


def as_markdown(report: Report) -> str:
    """A report for docs/benchmarks.md."""
    lines = ["", f"## {report.title}", ""]
    if report.series:
        lines += ["| | min | median | max | |", "|---|--:|--:|--:|---|"]
    for series in report.series:
        low, middle, high = _spread(series)
        lines.append(f"| {_cell(series.name)} | {low} | **{middle}** | {high} | {series.unit} |")
    if report.ratios:
        lines += ["", "| ratio of medians | | goal | |", "|---|--:|--:|---|"]
    for ratio in report.ratios:
        goal = "" if ratio.goal is None else f"{ratio.goal:g}"
        lines.append(f"| {_cell(ratio.name)} | **{ratio.value:.2f}** | {goal} | {ratio.verdict} |")
    if report.notes:
        lines += ["", *report.notes]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _spread(series: Series) -> tuple[str, str, str]:
    return _shown(min(series.values)), _shown(series.median), _shown(max(series.values))


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
