"""`cachefs reload`: have a running mount take its lock into use as it is in the file now."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cachefs.cli.progress import bytes_bar, shown_on
from cachefs.cli.target import data_dir_of
from cachefs.cli.terminal import echo
from cachefs.control import socket as control


@click.command()
@click.argument("mountpoint", required=False, type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path), help="Name the daemon by its data directory.")
@click.option("--json", "as_json", is_flag=True, help="The difference, as JSON.")
def reload(mountpoint: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Take the lock of the mount at MOUNTPOINT (or the only one) into use, and show what that changes.

    The whole lock is checked first: a bad edit changes nothing and is told with its line. Open files keep
    their bytes; whoever opens a file from now on gets the new ones. SIGHUP to the daemon does the same.
    """
    place = data_dir_of(mountpoint, data_dir)
    with bytes_bar("hashing local files") as bar:
        answer = control.follow(place, "reload", shown_on(bar))
    echo(json.dumps(answer["difference"], indent=2) if as_json else "\n".join(answer["text"]))
