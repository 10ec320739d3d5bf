"""`cachefs verify`: hash what is held of names, and say what is wrong with it.

How it works: while a mount is running, its daemon does it: what is wrong is no longer served from that moment, and
`--repair` has it fetched. Without one the command takes the data directory's lock and does it itself. Output is
sorted by name, and the same for the same store.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal

from cachefs.cli.progress import Report, bytes_bar, shown_on
from cachefs.cli.target import daemon_options, data_dir_of
from cachefs.cli.terminal import echo, log_to_stderr
from cachefs.control import socket as control
from cachefs.errors import DataDirBusy
from cachefs.mountinfo import mount_at
from cachefs.verification import verify_data_dir


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@daemon_options
@click.option("--fail-fast", is_flag=True, help="Stop at the first that is wrong.")
@click.option("--repair", is_flag=True, help="Fetch wrong blocks again, and these alone; needs the mount running.")
@click.option("--json", "as_json", is_flag=True, help="What was found, as JSON.")
def verify(
    names: tuple[str, ...],
    mountpoint: Path | None,
    data_dir: Path | None,
    fail_fast: bool,
    repair: bool,
    as_json: bool,
) -> None:
    """Hash what is held of each NAME (a shell pattern; all without any), with all cores.

    A block that is wrong is never served again: it is missing, and fetched when it is read, or now with --repair. Until
    it is here again, it is told at each verification. Exits with 1 if something was wrong and isn't repaired.
    """
    log_to_stderr(logging.ERROR, "cachefs: %(message)s")  # what is lost is printed by name, below
    for name in names:
        if mount_at(Path(name)) is not None:
            raise click.UsageError(f"{name} is a mount point, and names of files are meant here; --mountpoint {name}")
    place = data_dir_of(mountpoint, data_dir)
    with bytes_bar("verifying") as bar:
        if repair:  # that takes a daemon in any case
            answer = _ask(place, names, bar, fail_fast, repair)
        else:
            try:
                report = bar or (lambda done, total: None)
                answer = verify_data_dir(place, names, fail_fast=fail_fast, report=report).as_json()
            except DataDirBusy:
                answer = _ask(place, names, bar, fail_fast, repair)
    conclude(answer, as_json=as_json)


def _ask(place: Path, names: tuple[str, ...], bar: Report | None, fail_fast: bool, repair: bool) -> Mapping[str, Any]:
    arguments = {"names": names, "fail_fast": fail_fast, "repair": repair}
    answer: Mapping[str, Any] = control.follow(place, "verify", shown_on(bar), **arguments)
    return answer


def conclude(answer: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what was found and end the command: with 1 if not everything is right now."""
    echo(json.dumps(answer, indent=2) if as_json else "\n".join(lines(answer)))
    if not answer["good"]:
        raise click.exceptions.Exit(1)


def lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """An outcome as text: a line for each name that is not as it was, and a summary."""
    for verdict in answer["verdicts"]:
        yield f"{verdict['name']}: {_found(verdict)}"
    wrong = sum(len(verdict["wrong"]) for verdict in answer["verdicts"])
    mended = sum(verdict["mended"] for verdict in answer["verdicts"])
    names = f"{answer['names']:,} {'name' if answer['names'] == 1 else 'names'}"
    lost = sum(len(verdict["lost"]) for verdict in answer["verdicts"])
    earlier = f", {lost:,} wrong before" if lost else ""
    yield f"{names} held, {decimal(answer['bytes'])} hashed; {wrong:,} blocks wrong{earlier}, {mended:,} fetched again"


def _found(verdict: Mapping[str, Any]) -> str:
    wrong, lost, parts = verdict["wrong"], verdict["lost"], []
    if wrong:
        parts.append(f"{len(wrong)} of {verdict['held']} blocks wrong ({ranges(wrong)})")
    if lost:
        parts.append(f"{len(lost)} missing that {'was' if len(lost) == 1 else 'were'} wrong before ({ranges(lost)})")
    if verdict["mended"]:
        whole = verdict["mended"] == len(wrong) + len(lost)
        parts.append("fetched again" if whole else f"{verdict['mended']} fetched again")
    if verdict["trouble"]:
        parts.append(verdict["trouble"])
    return "; ".join(parts)


def ranges(numbers: list[int]) -> str:
    """Sorted numbers as `0-3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
