"""`cachefs db`: BittorrentInfo, as it is in the data directory's database."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from cachefs.cli.target import daemon_options, with_data_dir
from cachefs.cli.terminal import echo
from cachefs.errors import CatalogError
from cachefs.layout import STATE
from cachefs.store.state import Info, State


@click.group()
@daemon_options
@click.pass_context
def db(context: click.Context, mountpoint: Path | None, data_dir: Path | None) -> None:
    """Look into the database of the only mount, or of the one that is named."""
    context.obj = mountpoint, data_dir


@db.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="As JSON: a list of objects with the five fields.")
@with_data_dir
def show(data_dir: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Print BittorrentInfo, or the rows of NAMEs: Name, Hash, Length, Created, Completed.

    Length is in bytes, "-" (null) until it is known; Completed is "-" (null) while the file is incomplete. Times are
    in UTC.
    """
    state = State.look(data_dir / STATE)
    try:
        infos = state.infos()
    finally:
        state.close()
    for name in names:
        if name not in infos:
            raise CatalogError(data_dir / STATE, "not in BittorrentInfo", key=name)
    rows = [_row(infos[name]) for name in names or infos]
    echo(json.dumps(rows, indent=2) if as_json else _table(rows))


def _row(info: Info) -> dict[str, Any]:
    return {
        "Name": info.name,
        "Hash": info.hash,
        "Length": info.length,
        "Created": _time(info.created),
        "Completed": _time(info.completed),
    }


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _table(rows: list[dict[str, Any]]) -> str:
    heads = ("Name", "Hash", "Length", "Created", "Completed")
    cells = [heads, *(tuple("-" if row[head] is None else str(row[head]) for head in heads) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if head == "Length" else cell.ljust(width) for head, cell, width in triples
        ).rstrip()
        for triples in (tuple(zip(heads, line, widths, strict=True)) for line in cells)
    )
