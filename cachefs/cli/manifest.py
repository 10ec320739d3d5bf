"""`cachefs manifest`: the manifest.txt of a directory, printed."""

from __future__ import annotations

from pathlib import Path

import click

from cachefs.catalog.names import BadName, check_name
from cachefs.cli.target import DIRECTORY
from cachefs.cli.terminal import echo
from cachefs.errors import ControlError
from cachefs.layout import SNAPSHOTS
from cachefs.mountinfo import own_mounts
from cachefs.origin.torrents import list_names


@click.command()
@click.argument("directory", metavar="[DIR]", required=False, type=DIRECTORY)
def manifest(directory: Path | None) -> None:
    """Print the names below DIR, one a line, sorted: content, and .torrent files, as a web seed's manifest.txt has it.

    Without DIR, the snapshots of the only mount. Nothing is opened or fetched.
    """
    for name in list_names(directory or _mounted()):
        try:
            check_name(name)
        except BadName as error:
            echo(f"cachefs: {name!r} is left out: {error.why}", err=True)
        else:
            echo(name)


def _mounted() -> Path:
    found = {entry.mountpoint for entry in own_mounts()}
    if len(found) != 1:
        raise ControlError("several are mounted; name a directory" if found else "nothing is mounted; name a directory")
    return found.pop() / SNAPSHOTS
