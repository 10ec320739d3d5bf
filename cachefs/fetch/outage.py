"""Noticing that nothing comes from anywhere, and saying so once.

How it works: a network that is cut looks, from here, like every source falling silent while readers wait. Each
source has failures of its own all the time, and each reader hears of its own at its deadline; an operator wants one
line when it began and one when it was over. So once a second this looks at two numbers: how many wait, and what
all sources together have given. Seconds in which somebody waited and nothing came add up, whoever waited; when they
reach `PATIENCE` it is an outage, and the next byte from anywhere ends it. When nobody waits no time passes: silence is
no sign then. What is in the store is read all the while.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds of waiting in vain, all together, that make an outage."""

_EVERY = 1.0


class Outage:
    """Watches for it and logs it; `run` it beside what it watches."""

    def __init__(
        self, waited_for: Callable[[], Sequence[str]], progress: Callable[[], int], evidence: Callable[[], str]
    ) -> None:
        """`waited_for`: names, one a wait; `progress`: a number that changes when anything comes; `evidence`: words."""
        self._waited_for = waited_for
        self._progress = progress
        self._evidence = evidence
        self._seen = progress()
        self._in_vain = 0.0
        self._since: float | None = None

    def seconds(self) -> float | None:
        """For how long nothing has come, in seconds; None if there is no outage."""
        return None if self._since is None else trio.current_time() - self._since

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await trio.sleep(_EVERY)
            self._look()

    def _look(self) -> None:
        progress = self._progress()
        if progress != self._seen:
            self._seen, self._in_vain = progress, 0.0
            self._over()
        elif self._since is None and (names := self._waited_for()):
            self._in_vain += _EVERY
            if self._in_vain >= PATIENCE:
                self._begun(names)

    def _begun(self, names: Sequence[str]) -> None:
        self._since = trio.current_time() - self._in_vain
        reasons = self._evidence() or "no source says why"
        waiting = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more reads"
        log.warning(
            "nothing comes from any source; %s waited %.0f s in vain (%s). What is in the store can be read",
            waiting, self._in_vain, reasons,
        )  # fmt: skip

    def _over(self) -> None:
        if self._since is not None:
            log.warning("bytes come again, after %.0f s without any", self.seconds())
            self._since = None
