"""Commands on a terminal, where they show how far they are."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.mount_kit import command_of

_PATIENCE = 60.0


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
    """Read what is shown on a terminal until these words are; fail if they never are."""
    seen, patience = b"", time.monotonic() + _PATIENCE
    while words not in seen:
        ready, _, _ = select.select([terminal], [], [], max(0.0, patience - time.monotonic()))
        assert ready, f"{words!r} is not shown within {_PATIENCE:g} s, but {seen[-1000:]!r}"
        seen += os.read(terminal, 65536)
