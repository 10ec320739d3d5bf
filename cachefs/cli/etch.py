"""`cachefs etch`: download what a URL gives, keep it by its checksum, and write a record of it."""

from __future__ import annotations

from pathlib import Path

import click

from cachefs.catalog.record import dump
from cachefs.cli.progress import bytes_bar
from cachefs.cli.records import options, target
from cachefs.cli.terminal import echo
from cachefs.records import Order, etch


@click.command("etch")
@click.argument("what", metavar="URL|FILE")
@click.option("--name", default="", help="The record's name; otherwise the last part of the URL.")
@click.option(
    "--mirror", "mirrors", multiple=True, metavar="URL", help="Another place of the same bytes; may be repeated."
)
@click.option("--url", metavar="URL", help="With a FILE: the URL that the record names; nothing is downloaded.")
@click.option(
    "--again", is_flag=True, help="Download it anew, and take what comes: its content was changed on purpose."
)
@click.option("--swarm", is_flag=True, help="Let listeners fetch it from each other, too: adds a torrent's info-hash.")
@options
def command(
    what: str,
    name: str,
    mirrors: tuple[str, ...],
    url: str | None,
    again: bool,
    swarm: bool,
    config_file: Path | None,
    data_dir: Path | None,
) -> None:
    """Etch URL: download it, keep its bytes by their SHA-256, and write a record to records-lock.toml.

    The record is printed. When something is wrong, this says what, and nothing is changed. It works with and without
    a mount on the data directory.
    """
    place = target(config_file, data_dir)
    order = Order(url or what, name, mirrors, Path(what) if url else None, again, swarm)
    with bytes_bar(order.url) as progress:
        etched = place.run(lambda cache: etch(cache, order, progress))
    place.tell_daemon()
    if not etched.downloaded and order.source is None:
        echo("etched already; --again downloads it anew", err=True)
    echo(dump(etched.record), nl=False)
