"""What an object that is being mended tells those who have blocks fetched, and how they wait for it."""

from __future__ import annotations

from typing import Protocol

import trio

from cachefs.errors import CachefsError


class Watcher(Protocol):
    """Who has blocks fetched, and is told when what is here changes otherwise than by landing."""

    def doubted(self) -> None:
        """Some of what was here isn't, or is in another file."""

    def mended(self) -> None:
        """What is missing may be written now."""


class Mending:
    """The file is being made fit to be written to, or couldn't be."""

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.error: CachefsError | None = None

    def end(self, error: CachefsError | None = None) -> None:
        self.error = error
        self.ended.set()
