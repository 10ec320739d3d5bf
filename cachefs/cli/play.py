"""`cachefs play`: the path of a record, or a player on it."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import click

from cachefs.catalog import records
from cachefs.cli.records import Target, options, target
from cachefs.errors import CachefsError
from cachefs.records import MusicCache
from cachefs.records.lists import made_ready, records_of


@click.command("play")
@click.argument("name")
@click.option("--wait", is_flag=True, help="Return when all of it is here.")
@click.option("--player", metavar="COMMAND", help="Run this with the paths as its last arguments, mpv say.")
@options
def command(name: str, wait: bool, player: str | None, config_file: Path | None, data_dir: Path | None) -> None:
    """Print where the record NAME, or each of a playlist (m3u, m3u8, pls), can be read, or hand it to a player.

    With a mount that is a path in it, at once: what isn't here is fetched while it is read. Without one, or with
    --wait, the record is fetched first.
    """
    place = target(config_file, data_dir)
    names = records_of(name, place.data_dir, place.mountpoint()) or [name]
    paths = [str(_path(place, each, wait)) for each in names]
    if player is None:
        click.echo("\n".join(paths))
        return
    try:
        code = subprocess.run([*shlex.split(player), *paths], check=False).returncode
    except (OSError, ValueError) as error:
        raise CachefsError(f"{player}: can't be run: {error}") from None
    raise SystemExit(code)


def _path(place: Target, name: str, wait: bool) -> Path:
    _make_ready(place, name)
    mountpoint = place.mountpoint()
    if mountpoint is None:
        return place.run(lambda cache: _stored(cache, name))
    path = mountpoint / "records" / name
    if wait:
        _read_through(path)
    elif not path.exists():
        raise CachefsError(f"{path}: no such record")
    return path


def _make_ready(place: Target, name: str) -> None:
    """Fetch a record that came from a list and was never fetched: only then is it known what the mount is to show."""
    record = records.load(place.data_dir / records.LOCK_NAME).records.get(name)
    if record is not None and not record.ready:
        place.run(lambda cache: made_ready(cache, record))
        place.tell_daemon()


async def _stored(cache: MusicCache, name: str) -> Path:
    """The file of a record's content in the store, fetched if it isn't there."""
    return cache.vault.path(await cache.request(cache.record(name)))


def _read_through(path: Path) -> None:
    try:
        with path.open("rb", buffering=0) as file:
            while file.read(2**20):
                pass
    except OSError as error:
        raise CachefsError(f"{path}: {error.strerror}; `cachefs status` tells more") from None
