"""`cachefs prefetch`: fetch whole files before anybody reads them, with a bar for all and one for each at work."""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal

from cachefs.cli.progress import bars
from cachefs.cli.records import Target, tell_strange
from cachefs.cli.target import daemon_options, data_dir_of
from cachefs.cli.terminal import echo
from cachefs.config import Config
from cachefs.control import socket as control
from cachefs.layout import RECORDS, label
from cachefs.records.naming import in_playlist


@click.command()
@click.argument("patterns", nargs=-1, required=True)
@daemon_options
@click.option("--pin", is_flag=True, help="Pin the files, too: they aren't evicted until they are unpinned.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
def prefetch(
    patterns: tuple[str, ...], mountpoint: Path | None, data_dir: Path | None, pin: bool, as_json: bool
) -> None:
    """Fetch all of the files that match PATTERNS, behind what readers wait for.

    A pattern is a name or a shell pattern such as 'domain/*'; * stands for anything, / included. A playlist file (m3u,
    m3u8, pls) stands for its records. Needs a running mount.
    Interrupting it ends the fetching; what is here stays. Ends with 1 if a file can't be had, or there is no room.
    """
    directory = data_dir_of(mountpoint, data_dir)
    patterns = tuple(each for pattern in patterns for each in _with_playlists(pattern, directory))
    if pin:
        control.ask(directory, "pin", patterns=patterns)
    with _bars() as told:
        result = control.follow(directory, "prefetch", told, patterns=patterns)
    if as_json:
        echo(json.dumps(result, indent=2))
    else:
        echo(f"{result['done']:,} of {result['files']:,} files here, {decimal(result['fetched'])} fetched")
    for name, why in sorted(result["failed"].items()):
        echo(f"{name}: {why}", err=True)
    if result["failed"]:
        sys.exit(1)


def _with_playlists(pattern: str, data_dir: Path) -> list[str]:
    listed = in_playlist(pattern, data_dir, Target(data_dir, Config()).mountpoint())
    if listed is None:
        return [pattern]
    tell_strange(pattern, listed)
    return [glob.escape(label(RECORDS, name)) for name in listed.names]


@contextmanager
def _bars() -> Iterator[Callable[[Any], None]]:
    """What takes the progress: bars on stderr if that is a terminal, nothing otherwise."""
    if not sys.stderr.isatty():
        yield lambda progress: None
        return
    with bars() as shown:
        tasks = {"": shown.add_task("all", total=None)}

        def told(progress: Mapping[str, Any] | None) -> None:
            if progress is None:
                return
            description = f"{progress['done']:,} of {progress['files']:,} files"
            shown.update(tasks[""], description=description, completed=progress["have"], total=progress["length"])
            active = {part["name"]: part for part in progress["active"]}
            for name in tasks.keys() - active.keys() - {""}:
                shown.remove_task(tasks.pop(name))
            for name, part in active.items():
                if name not in tasks:
                    tasks[name] = shown.add_task(name)
                shown.update(tasks[name], completed=part["have"], total=part["length"])

        yield told
