"""`cachefs export`: the records as a list that other programs read."""

from __future__ import annotations

from pathlib import Path

import click

from cachefs.catalog import records
from cachefs.catalog.files import is_there
from cachefs.cli.records import options, target
from cachefs.cli.terminal import echo
from cachefs.errors import CachefsError
from cachefs.records import MusicCache
from cachefs.records.lists import WRITERS, export, playlist


@click.command("export")
@click.argument("form", metavar="FORMAT", type=click.Choice([*WRITERS, "m3u"]))
@options
def command(form: str, config_file: Path | None, data_dir: Path | None) -> None:
    """Print all records as a list.

    \b
    sums      SHA256SUMS, for `sha256sum -c` in the mount's records/
    pooch     a registry for pooch
    metalink  Metalink 4, with sizes, piece lists and mirrors
    m3u       a playlist of the files in the mount
    """
    place = target(config_file, data_dir)
    lock_path = place.data_dir / records.LOCK_NAME
    if not is_there(lock_path):
        raise CachefsError(f"{lock_path}: there are no records")

    async def work(cache: MusicCache) -> str:
        if form != "m3u":
            return export(cache, form)
        mountpoint = place.mountpoint()
        if mountpoint is None:
            raise CachefsError(f"{place.data_dir} is not mounted, and a playlist is of the files in the mount")
        return playlist(records.load(cache.lock_path), mountpoint)

    echo(place.run(work), nl=False)
