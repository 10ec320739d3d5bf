"""`cachefs scrub`: have the daemon read everything it holds from the disk, and fetch again what is wrong."""

from __future__ import annotations

from pathlib import Path

import click

from cachefs.cli.progress import bytes_bar, shown_on
from cachefs.cli.target import data_dir_of
from cachefs.cli.verify import conclude
from cachefs.config.values import Wrong, as_size
from cachefs.control import socket as control


class RateType(click.ParamType[float]):
    """Bytes per second: a number, or a size as in cachefs.toml, whose B may be left out."""

    name = "BYTES"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        try:
            return as_size(text if text.endswith("B") else f"{text}B", Path())
        except Wrong:
            self.fail(f"{text!r} is not bytes per second, as 50M, 1.5MiB or 52428800", param, ctx)


@click.command()
@click.argument("mountpoint", required=False, type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path), help="Name the daemon by its data directory.")
@click.option(
    "--rate", type=RateType(), help="Bytes per second to read, 50M say; 0 for no limit. [scrub] rate if not given."
)
@click.option("--json", "as_json", is_flag=True, help="What was found, as JSON.")
def scrub(mountpoint: Path | None, data_dir: Path | None, rate: float | None, as_json: bool) -> None:
    """Read all that the mount at MOUNTPOINT (or the only one) holds from the disk, and fetch what is wrong again.

    The daemon does this by itself every [scrub] interval. Exits with 1 if something is wrong and can't be fetched.
    """
    place = data_dir_of(mountpoint, data_dir)
    arguments = {} if rate is None else {"rate": rate}
    with bytes_bar("scrubbing") as bar:
        answer = control.follow(place, "scrub", shown_on(bar), **arguments)
    conclude(answer, as_json=as_json)
