"""Commands on a terminal, where they show how far they are."""

from __future__ import annotations

import os
import pty
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.mount_kit import command_of


@contextmanager
def on_a_terminal(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A command whose stderr is a terminal, and the terminal's other end."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb"), subprocess.Popen(command_of(arguments), stderr=theirs) as process:
        os.close(theirs)
        try:
            yield process, ours
        finally:
            process.kill()


def shown_until(terminal: int, words: bytes) -> None:
    """Read what is shown on a terminal until these words are."""
    seen = b""
    while words not in seen:
        seen += os.read(terminal, 65536)
