"""What the demo shows: numbered steps, commands as typed, and a fetch as it happens.

How it works: on a terminal a fetch is a group of live bars, one for the file and one for each source with what it
has given so far; the last picture stays. Elsewhere the same lines are printed once, when the fetch has ended, so
that a log or a page of documentation reads like the screen.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_INDENT = "   "
_BAR_WIDTH = 20
_NARROW_BAR_WIDTH = 8
_PAGE_WIDTH = 110
"""Columns where there is no terminal to ask."""


class Screen:
    """Prints the story."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = _PAGE_WIDTH
        self._steps = 0

    def title(self, text: str) -> None:
        self.console.print(Text(text, style="bold"))

    def step(self, text: str) -> None:
        self._steps += 1
        self.console.print()
        self.console.print(Text(f"{self._steps}  {text}", style="bold cyan"))

    def command(self, *lines: str) -> None:
        """A command as it is run, on one line or more."""
        typed = f" \\\n{_INDENT}    ".join(lines)
        self.console.print(Text(f"{_INDENT}$ {typed}", style="green"))

    def said(self, text: str) -> None:
        """What a command printed."""
        for line in text.splitlines():
            self.console.print(Text(_INDENT + line, style="dim"))

    def note(self, text: str) -> None:
        self.console.print(Text(_INDENT + text))

    def holds(self, text: str) -> None:
        """A claim that has just been checked."""
        self.console.print(Text.assemble(_INDENT, ("✓ ", "bold green"), text))

    def failed(self, text: str) -> None:
        self.console.print(Text.assemble(_INDENT, ("✗ ", "bold red"), text))


class Fetching:
    """The picture of one file being read: call `update` as it goes, and leave the context when it is over."""

    def __init__(self, screen: Screen, name: str, size: int) -> None:
        self._console = screen.console
        self._name = name
        self._size = size
        self._live = Live(console=self._console, refresh_per_second=8) if self._console.is_terminal else None
        self._picture = Table.grid()

    def update(self, done: int, seconds: float, sources: Mapping[str, tuple[int, float]]) -> None:
        """`done` bytes were read in `seconds`; each source gave so many bytes, now at so many a second."""
        picture = Table.grid(padding=(0, 2))
        for _ in range(4):
            picture.add_column(no_wrap=True)
        speed = f"{decimal(int(done / seconds))}/s" if seconds > 0 else ""
        picture.add_row(_INDENT + self._name, self._bar(done, "cyan"), decimal(done), f"{seconds:.1f} s, {speed}")
        for source, (received, rate) in sources.items():
            now = f"{decimal(int(rate))}/s" if rate > 0 and done < self._size else ""
            picture.add_row(f"{_INDENT}  from {source}", self._bar(received, "magenta"), decimal(received), now)
        self._picture = picture
        if self._live is not None:
            self._live.update(picture)

    def _bar(self, amount: int, style: str) -> ProgressBar:
        width = _BAR_WIDTH if self._console.width >= _PAGE_WIDTH else _NARROW_BAR_WIDTH
        return ProgressBar(self._size, amount, width, complete_style=style, finished_style=style)

    def __enter__(self) -> Fetching:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            return
        with self._console.capture() as drawn:
            self._console.print(self._picture)
        self._console.out("\n".join(line.rstrip() for line in drawn.get().splitlines()))
