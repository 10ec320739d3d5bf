"""`cachefs torrent-magnet`: the magnet link of a .torrent."""

from __future__ import annotations

from pathlib import Path

import click

from cachefs import metainfo
from cachefs.cli.terminal import echo
from cachefs.cli.torrent_cat import TORRENT, load


@click.command("torrent-magnet")
@click.argument("torrents", metavar="FILE...", nargs=-1, required=True, type=TORRENT)
def torrent_magnet(torrents: tuple[Path, ...]) -> None:
    """Print the magnet link of each .torrent FILE, one a line."""
    for path in torrents:
        echo(metainfo.magnet(load(path)))
