"""`cachefs play`: the path of a record, or a player on it."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from cachefs.catalog.records import Record
from cachefs.cli import leaves
from cachefs.cli.progress import bytes_bar
from cachefs.cli.records import Target, failing, opened, options, target, tell_strange
from cachefs.cli.terminal import echo
from cachefs.errors import CachefsError
from cachefs.layout import RECORDS
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
    paths = list(_paths(place, mountpoint, found.records, wait))
    if player is None:
        echo("".join(f"{path}\n" for path in paths), nl=False)
    elif len(found.records) == 1 and not wait:
        opened(paths[0])
    code = _played(player, paths) if player is not None and paths else 0
    raise SystemExit(code or int(len(paths) < len(found.records)))


def _paths(place: Target, mountpoint: Path | None, records: Sequence[Record], wait: bool) -> Iterator[Path]:
    """Where each can be read. Of several, one that can't be had is told, and the others are played all the same."""
    for record in records:
        try:
            yield _path(place, mountpoint, record, wait)
        except (CachefsError, BaseExceptionGroup) as error:
            found = list(leaves(error))
            if len(records) == 1 or not all(isinstance(one, CachefsError) for one in found):
                raise
            echo(f"cachefs: {found[0]}", err=True)


def _played(player: str, paths: Sequence[Path]) -> int:
    try:
        return subprocess.run([*shlex.split(player), *paths], check=False).returncode
    except OSError as error:
        raise CachefsError(f"{player}: can't be run: {error.strerror}") from None
    except ValueError as error:
        raise CachefsError(f"{player}: can't be run: {error}") from None


def _path(place: Target, mountpoint: Path | None, record: Record, wait: bool) -> Path:
    if not record.ready:
        record = _made_ready(place, record)
    if mountpoint is None:
        return place.run(lambda cache: _stored(cache, record))
    path = mountpoint / RECORDS / record.name
    with failing(path):
        path.stat()
    if wait:
        _read_through(path)
    return path


def _made_ready(place: Target, record: Record) -> Record:
    """A record that came from a list, fetched for the first time: only then is it known what the mount is to show."""
    record = place.run(lambda cache: made_ready(cache, record))
    place.tell_daemon()
    return record


async def _stored(cache: MusicCache, record: Record) -> Path:
    """The file of a record's content in the store, fetched if it isn't there."""
    with bytes_bar(record.name) as progress:
        return cache.vault.path(await cache.request(record, progress)).absolute()


def _read_through(path: Path) -> None:
    with bytes_bar(path.name) as report, failing(path), path.open("rb", buffering=0) as file:
        done, size = 0, path.stat().st_size
        while data := file.read(2**20):
            done += len(data)
            if report is not None:
                report(done, size)
