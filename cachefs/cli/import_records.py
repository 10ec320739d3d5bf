"""`cachefs import`: records from a list of checksums, a registry, a Metalink or an older record list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from cachefs.catalog.records import Record
from cachefs.cli.records import Target, options, target
from cachefs.cli.terminal import echo
from cachefs.errors import CachefsError
from cachefs.records import MusicCache
from cachefs.records.lists import PARSERS, Imported, guess_format, make_all_ready, take_in


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--format", "form", type=click.Choice(list(PARSERS)), help="What it is, if its name doesn't tell.")
@click.option("--base-url", default="", metavar="URL", help="Where the files are, for a list that gives no URLs.")
@click.option("--keep", is_flag=True, help="Leave records alone that the list says otherwise of.")
@click.option("--fetch", is_flag=True, help="Fetch now what has no SHA-256 or size yet; else it is at its first play.")
@options
def command(
    file: Path,
    form: str | None,
    base_url: str,
    keep: bool,
    fetch: bool,
    config_file: Path | None,
    data_dir: Path | None,
) -> None:
    """Write the files that FILE lists to records-lock.toml; all of them, or nothing.

    \b
    sums      SHA256SUMS or MD5SUMS (needs --base-url)
    pooch     pooch's registry.txt (--base-url for names without a URL)
    metalink  Metalink 4
    columns   name, url, md5: CSV, TSV or JSON
    """
    place = target(config_file, data_dir)
    form = form or guess_format(file)

    async def work(cache: MusicCache) -> Imported:
        return take_in(cache, file, form, base_url=base_url, keep=keep)

    imported = place.run(work)
    place.tell_daemon()
    unready = len(imported.unready)
    echo(f"{len(imported.taken)} taken, {imported.known} known already, {unready} to be fetched first")
    if fetch and unready:
        _fetch(place, imported.unready)


def _fetch(place: Target, unready: Sequence[Record]) -> None:
    failed = place.run(lambda cache: make_all_ready(cache, unready, _tell))
    place.tell_daemon()
    if failed:
        raise CachefsError(f"{failed} of {len(unready)} could not be fetched")


def _tell(record: Record, error: CachefsError | None) -> None:
    echo(f"{record.name}: {error or record.content}", err=error is not None)
