"""`cachefs gc`: delete what no name stands for any more, and keep to the limits, now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal

from cachefs.cli.progress import names_bar, shown_on
from cachefs.cli.target import daemon_options, data_dir_of
from cachefs.cli.terminal import echo
from cachefs.config import load_config, settings_file
from cachefs.control.keeping import perform
from cachefs.store.eviction import Limits


@click.command()
@daemon_options
@click.option("--config", "config_file", type=click.Path(dir_okay=False, path_type=Path), help="Has the [limits].")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def gc(mountpoint: Path | None, data_dir: Path | None, config_file: Path | None, as_json: bool) -> None:
    """Delete content and piece lists that no lock names any more, and what the limits say is too much or too old.

    A mount knows its limits; for a data directory that isn't mounted they come from --config, or else from its
    cachefs.toml. What is open or pinned stays.
    """
    config = load_config(settings_file(config_file, data_dir))
    directory = data_dir_of(mountpoint, data_dir or config.mount.data_dir)
    with names_bar("collecting") as bar:
        result = perform(directory, "gc", shown_on(bar), limits=Limits.of_settings(config.limits))
    echo(json.dumps(result, indent=2) if as_json else "\n".join(_lines(result)))


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    nameless, limits, sidecars = result["nameless"], result["limits"], result["sidecars"]
    yield f"{len(nameless['gone']):,} without a name, {decimal(sum(nameless['gone'].values()))}"
    yield f"{len(limits['gone']):,} beyond the limits, {decimal(sum(limits['gone'].values()))}"
    if sidecars["gone"]:
        freed = decimal(sum(sidecars["gone"].values()))
        yield f"{len(sidecars['gone']):,} piece lists and torrents of no record, {freed}"
    for name, why in (nameless["stays"] | limits["stays"] | sidecars["stays"]).items():
        yield f"{name} stays: {why}"
    yield f"{decimal(result['freed'])} freed"
