"""How far to read ahead of one open file: nothing until a sequential pattern shows, then doubling.

How it works: the window follows the byte position up to which a reader has read in order. The kernel
splits a sequential read into requests that may arrive slightly out of order, so a request near the position
continues the run and one elsewhere ends it. After `START` bytes in order, more than a scanner's probe or one page
fault's read-around, `FIRST` blocks are read ahead. Each block read in order doubles that, up to a limit that follows
the measured bandwidth: on a slow link a deep queue would only make the next jump wait. A wide window ends at every
few blocks only, so that what is asked for next is worth a request. Pure: no clock, no I/O.
"""

from __future__ import annotations

START = 2**20
"""Bytes read in order before anything is read ahead."""

FIRST = 4
"""Blocks read ahead to begin with."""

SLACK = 2 * 2**20
"""How far out of order, in bytes, the kernel's parallel requests may be."""

STEP = 8
"""A window grows by so many blocks at a time, or by the same part of it if it is small."""

HORIZON = 2.0
"""Seconds of bandwidth that readahead may hold."""


class Window:
    """The readahead of one open file, in blocks of `block_length` bytes."""

    def __init__(self, block_length: int, blocks: int) -> None:
        self._block_length = block_length
        self._blocks = blocks
        self._position = -1
        self._run = 0

    @property
    def position(self) -> int:
        """Up to where the reader has read, in bytes; -1 before its first read."""
        return self._position

    @property
    def begun(self) -> bool:
        """Whether enough was read in order for readahead to begin."""
        return self._run >= START

    def saw(self, offset: int, size: int) -> range:
        """Take note of a read. If it ends a sequential run by a jump: the blocks that the run was about to reach."""
        end = offset + size
        left = range(0)
        if self._position >= 0 and abs(offset - self._position) <= max(SLACK, size):
            self._run += min(size, max(0, end - self._position))
            self._position = max(self._position, end)
        else:
            if self.begun:
                left = range(
                    max(0, self._position - SLACK) // self._block_length, -(-self._position // self._block_length)
                )
            self._position, self._run = end, 0
        return left

    def ahead(self, limit: int) -> range:
        """The blocks to read ahead now, after the one last read: at most `limit` of them, less by up to a step."""
        if not self.begun:
            return range(0)
        size = min(limit, FIRST << min(self._run // self._block_length, 14))
        first = max(self._position - 1, 0) // self._block_length + 1
        step = min(STEP, max(1, size // STEP))
        stop = first + size
        return range(first, self._blocks if stop >= self._blocks else stop // step * step)


def limit(rate: float, block_length: int, most: int) -> int:
    """How many blocks may be read ahead at `rate` bytes per second: `HORIZON` seconds' worth, 2 to `most`.

    `most` below 2 is kept to: 0 turns readahead off.
    """
    return min(most, max(2, int(rate * HORIZON / block_length) + 1))
