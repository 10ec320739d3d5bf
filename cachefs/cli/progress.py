"""Bars on stderr for bytes that are being worked through, where stderr is a terminal.

How it works: a bar shows nothing before the first report, and is gone when the work is done. What it is called may be
anybody's file name or URL, so it is shown as it is: brackets and braces in it mean nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

Report = Callable[[int, int | None], None]
"""Told the bytes that are done so far, and the bytes there are if that is known."""

_LONGEST = 60


def bars() -> Progress:
    """An empty set of bars, to be entered; call it only where stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


@contextmanager
def bytes_bar(what: str) -> Iterator[Report | None]:
    """A function to report to; None where there is no terminal to draw on."""
    if not sys.stderr.isatty():
        yield None
        return
    with bars() as bar:
        task = bar.add_task(what if len(what) <= _LONGEST else f"…{what[1 - _LONGEST :]}", total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
