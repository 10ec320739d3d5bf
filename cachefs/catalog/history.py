"""The lock's last versions, so that an edit can be taken back.

How it works: every lock that was written or taken into use is kept as a file of its own, numbered in order, in
`<data-dir>/lock-history/`; the newest is the present one and ten older ones stay. A version is the lock's exact
text. The directory also carries the flock that keeps two commands from editing the lock at once: each of them
reads, changes and replaces it as one step. A lock that somebody edits by hand is kept when it is taken into use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cachefs.catalog.files import read_text, replace_text
from cachefs.errors import CatalogError

KEPT = 10
"""How many locks are kept besides the present one."""

_NAME = re.compile(r"([0-9]{6})\.json")


@dataclass(frozen=True, slots=True)
class Version:
    """A lock that was in use; `since` is when it was kept, in Unix seconds."""

    path: Path
    since: float

    def text(self) -> str:
        """The lock's text; CatalogError if it can't be read."""
        return read_text(self.path)


class History:
    """The versions in `directory`, which is made when the first is kept."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def versions(self) -> list[Version]:
        """All that are kept, the newest first."""
        with _named(self.directory):
            paths = [path for path in self.directory.glob("*.json") if _NAME.fullmatch(path.name)]
            return [Version(path, path.stat().st_mtime) for path in sorted(paths, reverse=True)]

    def keep(self, text: str) -> None:
        """Keep `text` as the newest version, unless it is that already; CatalogError if it can't be written."""
        versions = self.versions()
        if versions and versions[0].text() == text:
            return
        number = int(versions[0].path.stem) + 1 if versions else 1
        with _named(self.directory):
            self.directory.mkdir(mode=0o700, exist_ok=True)
            replace_text(self.directory / f"{number:06}.json", text)
            for old in versions[KEPT:]:
                old.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def editing(self) -> Iterator[None]:
        """Hold this while the lock is changed: another command waits until it is done."""
        with _named(self.directory):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CatalogError(path, f"can't be used: {error.strerror}") from error
