"""How much may be fetched for a process that hasn't asked for it: a budget of readahead for each.

How it works: blocks that are read ahead and not yet used count against their process's budget, over all files
that it has open. What is used is given back; what was fetched in vain, because the file was closed or read
elsewhere, stays counted and is forgotten slowly, by half a minute. So a process that reads files through is
never held back, and one that begins many and finishes none (a media scanner, a file manager's
previews) soon gets just what it asks for. Pure but for the clock.
"""

from __future__ import annotations

import trio

HALF_LIFE = 30.0
"""Seconds in which half of what was fetched in vain is forgotten."""


class Account:
    """One process's readahead, in bytes: `budget` is the most that it may have unused at a time."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._unused: dict[int, int] = {}
        self._sum = 0
        self._wasted = 0.0
        self._reckoned_at = trio.current_time()

    def left(self, reader: int) -> int:
        """How many bytes `reader` may have read ahead of it now."""
        others = self._sum - self._unused.get(reader, 0)
        return max(0, int(self._budget - others - self.wasted))

    def ahead(self, reader: int, size: int) -> None:
        """So much is read ahead of this reader and not used yet."""
        self._sum += size - self._unused.pop(reader, 0)
        if size:
            self._unused[reader] = size

    def waste(self, size: int) -> None:
        """So much was read ahead in vain."""
        self._wasted = self.wasted + size
        self._reckoned_at = trio.current_time()

    @property
    def wasted(self) -> float:
        """The bytes read ahead in vain that aren't forgotten yet."""
        return float(self._wasted * 0.5 ** ((trio.current_time() - self._reckoned_at) / HALF_LIFE))

    def close(self, reader: int) -> None:
        """The reader is gone, and what was ahead of it with it."""
        size = self._unused.pop(reader, 0)
        self._sum -= size
        self.waste(size)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to remember."""
        return not self._unused and self.wasted < 1


class Accounts:
    """The accounts of all processes, by process id."""

    _MANY = 1000

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._accounts: dict[int, Account] = {}

    def of(self, process: int) -> Account:
        """The account of a process."""
        account = self._accounts.get(process)
        if account is None:
            if len(self._accounts) >= self._MANY:
                self._accounts = {pid: other for pid, other in self._accounts.items() if not other.idle}
            account = self._accounts[process] = Account(self._budget)
        return account
