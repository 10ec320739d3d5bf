"""`cachefs manifest-verify`: whether web seeds have what their manifest.txt says, and what the chain needs."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from cachefs.catalog.chain import load_chain
from cachefs.cli.progress import names_bar
from cachefs.cli.terminal import echo
from cachefs.webcheck import Checked, check


@click.command("manifest-verify")
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@click.option(
    "--chain-toml", type=click.Path(dir_okay=False, path_type=Path), help="What they should have: names, hashes."
)
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=30.0, show_default=True, help="Seconds for an answer."
)
def manifest_verify(urls: tuple[str, ...], chain_toml: Path | None, timeout: float) -> None:
    """Check the web seed at each base URL against its manifest.txt, and against a chain.toml if one is given.

    Each name it lists must have a .torrent that is of this name, and content of the length the .torrent says. With
    --chain-toml, its names must be listed, and the info-hashes be right. Content is not downloaded. Prints a line for
    each fault, sorted, and a summary for each URL. Exits with 1 if there is a fault.
    """
    wanted = load_chain(chain_toml) if chain_toml is not None else {}
    results = []
    for url in urls:
        with names_bar(url) as report:
            results.append(trio.run(check, url, wanted, timeout, report))
        _tell(results[-1])
    if any(result.faults for result in results):
        raise click.exceptions.Exit(1)


def _tell(result: Checked) -> None:
    for fault in result.faults:
        echo(f"{result.base}{fault.name}: {fault.why}")
    echo(f"{result.base}: {result.names:,} names, {len(result.faults):,} faults")
