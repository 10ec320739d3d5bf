"""`cachefs torrent-hashes`: the chain.toml of a directory, printed."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from cachefs.catalog.chain import format_chain
from cachefs.cli.progress import bytes_bar
from cachefs.cli.target import DIRECTORY
from cachefs.cli.terminal import echo
from cachefs.origin.torrents import Described, Report, describe


@click.command("torrent-hashes")
@click.argument("directory", metavar="DIR", type=DIRECTORY)
def torrent_hashes(directory: Path) -> None:
    """Print the chain.toml of the files below DIR, sorted by name; nothing is written.

    A .torrent beside a file that is newer than the file is trusted; other files are hashed with all cores.
    """
    with bytes_bar("hashing") as report:
        found = trio.run(_describe, directory, report)
    tell_skipped(found)
    echo(format_chain({file.name: file.content for file in found.files}), nl=False)


async def _describe(directory: Path, report: Report | None) -> Described:
    return await describe(directory, report=report, write=False)


def tell_skipped(found: Described) -> None:
    """Say on stderr what was left out, and why."""
    for skipped in found.skipped:
        echo(f"cachefs: {skipped.name} is left out: {skipped.why}", err=True)
