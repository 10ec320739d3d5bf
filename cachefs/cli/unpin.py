"""`cachefs unpin`: let files be evicted again."""

from __future__ import annotations

from pathlib import Path

import click

from cachefs.cli.target import daemon_options, data_dir_of
from cachefs.cli.terminal import echo
from cachefs.control.keeping import perform


@click.command()
@click.argument("patterns", nargs=-1, required=True)
@daemon_options
def unpin(patterns: tuple[str, ...], mountpoint: Path | None, data_dir: Path | None) -> None:
    """Let the pinned files that match PATTERNS be evicted again. Nothing is evicted at once."""
    names = perform(data_dir_of(mountpoint, data_dir), "unpin", lambda _: None, patterns=patterns)
    echo(f"{len(names):,} unpinned")
