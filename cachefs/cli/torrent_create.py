"""`cachefs torrent-create`: a .torrent beside every file of a directory."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from cachefs.cli.progress import bytes_bar
from cachefs.cli.target import DIRECTORY, NEW_DIRECTORY
from cachefs.cli.terminal import echo
from cachefs.cli.torrent_hashes import tell_skipped
from cachefs.origin.torrents import describe


@click.command("torrent-create")
@click.argument("directory", metavar="DIR", type=DIRECTORY)
@click.option("--out", type=NEW_DIRECTORY, help="Write the .torrent files below this directory instead.")
def torrent_create(directory: Path, out: Path | None) -> None:
    """Write a .torrent beside every file below DIR, as Erigon makes them, and print the names of the new ones.

    A .torrent that is newer than its file stays as it is.
    """
    with bytes_bar("hashing") as report:
        found = trio.run(describe, directory, out, report)
    tell_skipped(found)
    for name in found.hashed:
        echo(f"{name}.torrent")
