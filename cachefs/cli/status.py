"""`cachefs status`: what a running mount holds, fetches and waits for."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cachefs.cli.target import data_dir_of
from cachefs.cli.terminal import echo
from cachefs.control import socket as control
from cachefs.control.report import lines


@click.command()
@click.argument("mountpoint", required=False, type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path), help="Name the daemon by its data directory.")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def status(mountpoint: Path | None, data_dir: Path | None, as_json: bool) -> None:
    """Show what the mount at MOUNTPOINT (or the only one) holds, fetches and waits for."""
    answer = control.ask(data_dir_of(mountpoint, data_dir), "status")
    echo(json.dumps(answer, indent=2) if as_json else "\n".join(lines(answer)))
