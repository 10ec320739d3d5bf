"""`cachefs pin`: keep files from being evicted, or list what is kept."""

from __future__ import annotations

from pathlib import Path

import click

from cachefs.cli.target import daemon_options, data_dir_of
from cachefs.cli.terminal import echo
from cachefs.control.keeping import perform


@click.command()
@click.argument("patterns", nargs=-1)
@daemon_options
def pin(patterns: tuple[str, ...], mountpoint: Path | None, data_dir: Path | None) -> None:
    """Keep the files that match PATTERNS from being evicted; without any, list the pins.

    A pattern is a name or a shell pattern such as 'domain/*'; * stands for anything, / included. A pin belongs to the
    name, whatever content the lock gives it. It fetches nothing: `cachefs prefetch` does.
    """
    directory = data_dir_of(mountpoint, data_dir)
    if patterns:
        names = perform(directory, "pin", lambda _: None, patterns=patterns)
        echo(f"{len(names):,} pinned")
        return
    for name in perform(directory, "pins", lambda _: None):
        echo(name)
