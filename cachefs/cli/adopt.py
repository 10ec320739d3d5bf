"""`cachefs adopt DIR`: take over an existing snapshots directory, without downloading or copying anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import trio
from rich.filesize import decimal

from cachefs.adoption.offline import adopt as take_over
from cachefs.adoption.takeover import Adoption
from cachefs.cli.progress import bytes_bar
from cachefs.cli.seed import DIRECTORY
from cachefs.config import load_config
from cachefs.errors import ConfigError

_NAMED = 20


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
    Without a lock and --chain-toml, DIR's own snapshot-lock.json decides. What is interrupted goes on where it was.

    Exit code 1 if a file of a name in the lock isn't what the lock says, or can't be read.
    """
    config = load_config(config_file).override(data_dir=data_dir, chain_toml=chain_toml, chain=chain)
    if config.mount.data_dir is None:
        raise ConfigError("data_dir", "not given: --data-dir DIR, or [mount] data_dir; it is where the bytes are kept")
    with bytes_bar("hashing") as report:
        adoption = trio.run(take_over, config, config.mount.data_dir.absolute(), directory, report)
    click.echo(json.dumps(adoption.as_json(), indent=2) if as_json else "\n".join(_lines(adoption)))
    if adoption.others or adoption.failed:
        click.get_current_context().exit(1)


def _lines(adoption: Adoption) -> Iterator[str]:
    for other in sorted(adoption.others, key=lambda each: each.name):
        yield from other.lines()
    for name, why in sorted(adoption.failed.items()):
        yield f"{name}: {why}"
    if adoption.taken:
        yield f"{len(adoption.taken):,} files match, {decimal(adoption.size)} ({adoption.ways()})"
    else:
        yield "no file matches"
    if adoption.others or adoption.failed:
        yield f"{len(adoption.others):,} are something else, {len(adoption.failed):,} can't be used; left alone"
    if adoption.unnamed:
        yield f"{len(adoption.unnamed):,} have no name in the lock: {_some(adoption.unnamed)}"
    if adoption.missing:
        yield f"{len(adoption.missing):,} names will be fetched when read: {_some(adoption.missing)}"


def _some(names: list[str]) -> str:
    listed = ", ".join(sorted(names)[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    return listed.encode("utf-8", "backslashreplace").decode()  # a file may have any bytes for a name
