"""`cachefs evict`: delete what is held of some files, now."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.filesize import decimal

from cachefs.cli.progress import names_bar, shown_on
from cachefs.cli.target import daemon_options, data_dir_of
from cachefs.cli.terminal import echo
from cachefs.control.keeping import perform


@click.command()
@click.argument("patterns", nargs=-1, required=True)
@daemon_options
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def evict(patterns: tuple[str, ...], mountpoint: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Delete what is held of the files that match PATTERNS; they are fetched again when they are read.

    Files that are open or pinned stay, and are named. Works on a data directory that isn't mounted, too.
    """
    with names_bar("evicting") as bar:
        result = perform(data_dir_of(mountpoint, data_dir), "evict", shown_on(bar), patterns=patterns)
    if as_json:
        echo(json.dumps(result, indent=2))
        return
    for name, why in result["stays"].items():
        echo(f"{name} stays: {why}")
    echo(f"{len(result['gone']):,} evicted, {decimal(result['freed'])} freed")
