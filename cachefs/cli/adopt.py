"""`cachefs adopt DIR`: take over an existing snapshots directory, without downloading or copying anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import trio

from cachefs.adoption.offline import adopt as take_over
from cachefs.cli.progress import Report, bytes_bar, shown_on
from cachefs.cli.target import DIRECTORY
from cachefs.cli.terminal import echo
from cachefs.config import Config, load_config, settings_file
from cachefs.control import socket as control
from cachefs.errors import DataDirBusy


@click.command()
@click.argument("directory", metavar="DIR", type=DIRECTORY)
@click.option("--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="A cachefs.toml.")
@click.option("--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Where bytes and state are kept.")
@click.option("--chain-toml", metavar="PATH|URL", help="What the lock is made from, if there is none yet.")
@click.option("--chain", metavar="NAME", help="The chain's name, if chain.toml's file name doesn't tell.")
@click.option("--json", "as_json", is_flag=True, help="The whole report, as JSON.")
def adopt(
    directory: Path,
    config_file: Path | None,
    data_dir: Path | None,
    chain_toml: str | None,
    chain: str | None,
    as_json: bool,
) -> None:
    """Take the files below DIR, an existing snapshots directory, into the data directory's store.

    Each file that has a name in the lock is hashed with all cores. Those that are the lock's are held from then on: by
    reflink, by hard link, or, from another file system, in place; DIR's files are never moved, changed or copied.
    What is interrupted goes on where it was.

    While it is mounted, the daemon does it. Without a lock and --chain-toml, DIR's own snapshot-lock.json decides.

    Exit code 1 if a file of a name in the lock isn't what the lock says, or can't be read.
    """
    config = load_config(settings_file(config_file, data_dir))
    config = config.override(data_dir=data_dir, chain_toml=chain_toml, chain=chain)
    data_dir = config.mount.needed_data_dir().absolute()
    with bytes_bar("hashing") as bar:
        answer = _adopted(config, data_dir, directory, bar)
    text = answer.pop("text")
    echo(json.dumps(answer, indent=2) if as_json else "\n".join(text))
    if answer["others"] or answer["failed"]:
        click.get_current_context().exit(1)


def _adopted(config: Config, data_dir: Path, directory: Path, bar: Report | None) -> dict[str, Any]:
    try:
        return trio.run(take_over, config, data_dir, directory, bar).answer()
    except DataDirBusy:  # a mount uses it, and does this itself
        answer: dict[str, Any] = control.follow(data_dir, "adopt", shown_on(bar), directory=str(directory))
        return answer
