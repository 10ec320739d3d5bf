"""`cachefs play`: the path of a record, or a player on it."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import click

from cachefs.catalog import records
from cachefs.catalog.records import CATALOGUE
from cachefs.cli.progress import bytes_bar
from cachefs.cli.records import Target, failing, opened, options, target, tell_strange
from cachefs.errors import CachefsError
from cachefs.records import MusicCache
from cachefs.records.lists import made_ready
from cachefs.records.naming import meant


@click.command("play")
@click.argument("name")
@click.option("--wait", is_flag=True, help="Return when all of it is here.")
@click.option("--player", metavar="COMMAND", help="Run this with the paths as its last arguments, mpv say.")
@options
def command(name: str, wait: bool, player: str | None, config_file: Path | None, data_dir: Path | None) -> None:
    """Print where the record NAME can be read, or each of a playlist (m3u, m3u8, pls) or folder, or play them.

    With a mount that is a path in it, at once: what isn't here is fetched while it is read. Without one, or with
    --wait, the record is fetched first. NAME may also be the record's URL or its path in the mount.
    """
    place = target(config_file, data_dir)
    mountpoint = place.mountpoint()
    found = meant(name, place.data_dir, mountpoint)
    tell_strange(name, found)
    paths = [_path(place, mountpoint, each, wait) for each in found.names]
    if player is None:
        click.echo("\n".join(map(str, paths)))
        return
    if len(paths) == 1 and not wait:
        opened(paths[0])
    raise SystemExit(_played(player, paths))


def _played(player: str, paths: Sequence[Path]) -> int:
    try:
        return subprocess.run([*shlex.split(player), *paths], check=False).returncode
    except OSError as error:
        raise CachefsError(f"{player}: can't be run: {error.strerror}") from None
    except ValueError as error:
        raise CachefsError(f"{player}: can't be run: {error}") from None


def _path(place: Target, mountpoint: Path | None, name: str, wait: bool) -> Path:
    _make_ready(place, name)
    if mountpoint is None:
        return place.run(lambda cache: _stored(cache, name))
    path = mountpoint / CATALOGUE / name
    with failing(path):
        path.stat()
    if wait:
        _read_through(path)
    return path


def _make_ready(place: Target, name: str) -> None:
    """Fetch a record that came from a list and was never fetched: only then is it known what the mount is to show."""
    record = records.load(place.data_dir / records.LOCK_NAME).records.get(name)
    if record is not None and not record.ready:
        place.run(lambda cache: made_ready(cache, record))
        place.tell_daemon()


async def _stored(cache: MusicCache, name: str) -> Path:
    """The file of a record's content in the store, fetched if it isn't there."""
    with bytes_bar(name) as progress:
        return cache.vault.path(await cache.request(cache.record(name), progress)).absolute()


def _read_through(path: Path) -> None:
    with bytes_bar(path.name) as report, failing(path), path.open("rb", buffering=0) as file:
        done, size = 0, path.stat().st_size
        while data := file.read(2**20):
            done += len(data)
            if report is not None:
                report(done, size)
