"""Bars on stderr for what is being worked through, bytes or names, where stderr is a terminal.

How it works: a bar shows nothing before the first report, and is gone when the work is done. What it is called may be
anybody's file name or URL, so it is shown as it is: brackets and braces in it mean nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cachefs.cli.terminal import plain

if TYPE_CHECKING:
    from rich.progress import Progress

Report = Callable[[int, int | None], None]
"""Told how much is done so far, and how much there is if that is known: bytes, or names."""

_LONGEST = 60


def bars(*, of_bytes: bool = True) -> Progress:
    """An empty set of bars, to be entered; call it only where stderr is a terminal."""
    from rich import progress
    from rich.console import Console

    columns: list[progress.ProgressColumn] = [progress.TextColumn("{task.description}", markup=False)]
    columns += [progress.BarColumn()]
    columns += [progress.DownloadColumn(), progress.TransferSpeedColumn()] if of_bytes else []
    columns += [] if of_bytes else [progress.MofNCompleteColumn()]
    columns += [progress.TimeRemainingColumn()]
    return progress.Progress(*columns, console=Console(stderr=True), transient=True)


@contextmanager
def bytes_bar(what: str) -> Iterator[Report | None]:
    """A function to report to; None where there is no terminal to draw on."""
    with _bar(what, of_bytes=True) as report:
        yield report


@contextmanager
def names_bar(what: str) -> Iterator[Report]:
    """The same for numbers of names; what is reported where there is no terminal goes nowhere."""
    with _bar(what, of_bytes=False) as report:
        yield report or (lambda done, total: None)


@contextmanager
def _bar(what: str, *, of_bytes: bool) -> Iterator[Report | None]:
    if not sys.stderr.isatty():
        yield None
        return
    with bars(of_bytes=of_bytes) as bar:
        what = plain(what)
        task = bar.add_task(what if len(what) <= _LONGEST else f"…{what[1 - _LONGEST :]}", total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def shown_on(bar: Report | None) -> Callable[[Any], None]:
    """What takes a job's progress to a bar, if there is one."""

    def told(progress: Any) -> None:
        if bar is not None and progress is not None:
            bar(progress["done"], progress["total"])

    return told
