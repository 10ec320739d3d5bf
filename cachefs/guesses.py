"""Requests that nobody made: the kernel's own readahead of a file that is read here and there.

How it works: the kernel reads ahead of every reader, by up to 128 KiB, and its requests look like any others. Where a
piece is a quarter of a mebibyte and the link is slow, one that reaches into the next piece doubles what a jump or a
scanner's probe costs. So until a reader has read in order for a while, a request for more than a page that begins just
where the last one ended, and whose blocks aren't here, is taken for a guess and refused. That costs a reader nothing
but a round trip: the kernel drops pages whose readahead failed, and asks for each anew, alone, when somebody wants it.
A request for a single page is never a guess, and neither is one in a stretch that was refused before.

Only readers through the page cache never see that. One that opened the file with O_DIRECT would see the error, and so
might a loop device, which has the file from a process that is gone: for both there are no guesses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from cachefs.errors import CachefsError
from cachefs.window import Window

PAGE = 4096
_REMEMBERED = 16


class NobodyAsked(CachefsError):
    """A request of the kernel's readahead, which it makes again if somebody needs what it is for."""


class Guesses:
    """What of one open file's requests is a guess, where `possible` says that there may be any."""

    def __init__(self, window: Window, possible: Callable[[], bool]) -> None:
        self._window = window
        self._possible = possible
        self._refused: deque[range] = deque(maxlen=_REMEMBERED)

    def has(self, offset: int, size: int) -> bool:
        """Whether a request for what isn't here is a guess."""
        if size <= PAGE or self._window.begun or any(offset in stretch for stretch in self._refused):
            return False
        goes_on = offset == self._window.position or any(offset == stretch.stop for stretch in self._refused)
        return goes_on and self._possible()

    def refuse(self, offset: int, size: int) -> None:
        """NobodyAsked if this request is a guess; the next one for the same isn't."""
        if self.has(offset, size):
            self._refused.append(range(offset, offset + size))
            raise NobodyAsked("read ahead by the kernel")
