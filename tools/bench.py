"""`make bench`: how fast cachefs is, as ratios to what else this machine can do with the same bytes.

How it works: each benchmark is a function that takes a stage (a large file with its torrent, and a number of runs) and
returns a report; the table below is the list of them. Everything runs on loopback, on the disk that TMPDIR names, or
else on the checkout's; folders, mounts and processes belong to contexts, so nothing stays behind, also after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Run as `tools/bench.py`: the checkout is what `tools` and `tests` are packages of.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from cachefs.errors import CachefsError
from tests.counterparts import CounterpartFailed
from tools import (
    bench_adopt,
    bench_content,
    bench_names,
    bench_others,
    bench_players,
    bench_sources,
    bench_upkeep,
    benchkit,
    mounting,
)
from tools.bench_stage import Stage, prepare
from tools.benchkit import Report, say
from tools.mounting import Failed

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS: dict[str, Callable[[Stage], Report]] = {
    "cold-peer": bench_content.cold_peer,
    "cold-web": bench_content.cold_web,
    "other-web": bench_others.web_mounts,
    "other-torrent": bench_others.torrent_mounts,
    "ways": bench_sources.ways,
    "hedging": bench_sources.hedged,
    "jumping": bench_sources.jumping,
    "warm": bench_content.warm,
    "random": bench_content.random_4k,
    "first-byte": bench_content.first_byte,
    "verify": bench_upkeep.verify,
    "metadata": bench_names.metadata,
    "catalogue": bench_names.catalogue,
    "players": bench_players.players,
    "scan": bench_players.scanned,
    "adopt": bench_adopt.adopt,
    "restart": bench_adopt.restart,
}
_MIB = 2**20
_COPIES = 4
"""How many times the large file may be on the disk at once, with some to spare: the original, and a directory to adopt
of two and a half times its size or one download."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", multiple=True, type=click.Choice(list(BENCHMARKS)), help="Just this one; may be repeated.")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="How often each side runs.")
@click.option("--size", type=click.IntRange(8), default=2048, show_default=True, help="The large file, in MiB.")
@click.option("--markdown", is_flag=True, help="Print tables for docs/benchmarks.md.")
def main(only: tuple[str, ...], runs: int, size: int, markdown: bool) -> None:
    """Measure, and print minimum, median and maximum of each side and the ratios of medians."""
    mounting.end_on_signals()
    try:
        _place()
        _run(only or tuple(BENCHMARKS), runs, size, markdown)
    except (Failed, CachefsError, CounterpartFailed, OSError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        say("interrupted; everything is cleared away")
        sys.exit(130)


def _place() -> None:
    """Without TMPDIR, work on the disk that the checkout is on: the usual place may be in memory."""
    if "TMPDIR" not in os.environ:
        tempfile.tempdir = str(ROOT.parent if os.access(ROOT.parent, os.W_OK) else "/var/tmp")


def _run(names: tuple[str, ...], runs: int, size: int, markdown: bool) -> None:
    length = size * _MIB + 12_345
    needed = _COPIES * length + 512 * _MIB
    with mounting.scratch("cachefs-bench-", needed) as folder:
        say(f"in {folder}; up to {needed / 1e9:.1f} GB are needed, and there are")
        facts = [*benchkit.machine(folder), f"a file of {length:,} bytes, pieces of 2 MiB; {runs} runs, in turns"]
        click.echo("\n".join(f"- {fact}" if markdown else fact for fact in facts))
        if not markdown:
            click.echo("each side: minimum, median, maximum; each ratio: of the medians")
        stage = prepare(folder, length, runs)
        show = benchkit.as_markdown if markdown else benchkit.as_text
        for name in names:
            say(name)
            click.echo(show(BENCHMARKS[name](stage)))


if __name__ == "__main__":
    main()
