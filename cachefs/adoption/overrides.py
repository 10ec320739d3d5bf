"""Local files in `<data-dir>/snapshots/`: used instead of being downloaded, if the lock says that they are it.

How it works: at every start, before anything is mounted, and at every reload, the files there that have a name in
the lock are compared with it. One that is the lock's is taken over. One that isn't is told, with both hashes, ready to
be pasted into the lock, and left alone. A file is hashed when it is new or changed; after that it costs a stat. Links
of users who may merely write there, a node say, are not followed: they could lead through all of the machine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import trio

from cachefs.adoption.hashing import Local, Report, local_files
from cachefs.adoption.takeover import Takeover
from cachefs.content import ContentId
from cachefs.errors import CachefsError

log = logging.getLogger(__name__)

_TELL_EVERY = 5.0


@dataclass(frozen=True, slots=True)
class Overrides:
    """The files of `folder`. `complete` gives the hashes, in hex, of which the store has everything."""

    folder: Path
    takeover: Takeover
    complete: Callable[[], Set[str]]

    async def apply(self, entries: Mapping[str, ContentId], report: Report) -> list[str]:
        """Take over what is the lock's; lines for people about what isn't. Raises nothing: a mount comes up without.

        `report` is told how far hashing is, and so is the log.
        """
        if not entries:  # a data directory of records alone need not even have the folder
            return []
        try:
            files, unreadable = await trio.to_thread.run_sync(local_files, self.folder, entries, self.folder.parent)
        except OSError as error:
            return [f"{error.filename or self.folder}: local files can't be looked for: {error.strerror}"]
        self.takeover.memory.refresh()
        complete = self.complete()
        files = [file for file in files if file.expected is not None and not self._is_done(file, complete)]
        lines = [f"{self.folder / name}: {why}" for name, why in sorted(unreadable.items())]
        if not files:
            return lines
        try:
            adoption = await self.takeover.files(files, _Progress(report))
        except CachefsError as error:
            return [*lines, f"{self.folder}: local files can't be used: {error}"]
        if adoption.taken:
            log.info("%s: %d files are used as they are (%s)", self.folder, len(adoption.taken), adoption.ways())
        lines += [f"{name}: the local file can't be used: {why}" for name, why in adoption.failed.items()]
        return lines + [line for other in adoption.others for line in other.lines()]

    def _is_done(self, file: Local, complete: Set[str]) -> bool:
        known = self.takeover.memory.recall(file.path, file.seal)
        return known is not None and known.content == file.expected and known.content.hex in complete


class _Progress:
    """Tells the log now and then how far hashing is, and `report` always."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._began = self._told_at = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        self._report(done, total)
        now = time.monotonic()
        if now - self._told_at >= _TELL_EVERY:
            self._told_at = now
            rate = done / (now - self._began) / 1e6
            log.info("hashing local files: %.1f of %.1f GB, %.0f MB/s", done / 1e9, total / 1e9, rate)
