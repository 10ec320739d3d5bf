"""Why and when a mount ends.

How it works: a signal, a command, or the kernel, which was told by somebody else: each says here that the mount is to
end, and why, in words for the log. The first one counts. SIGHUP is no reason, but comes the same way.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable

import trio

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ending:
    """The end of one mount."""

    def __init__(self) -> None:
        self._begun = trio.Event()

    def begin(self, why: str) -> None:
        """End the mount, which the log tells unless it is ending already."""
        if not self._begun.is_set():
            log.info("stopping: %s", why)
        self._begun.set()

    async def wait(self) -> None:
        """Return when there is a reason to end."""
        await self._begun.wait()

    async def watch_signals(self, hang_up: Callable[[], None]) -> None:
        """Take signals for ever; `hang_up` is called at SIGHUP."""
        for each in _SIGNALS:
            # As it is again when this ends: then nothing may break off what is being taken down.
            signal.signal(each, signal.SIG_IGN)
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            async for number in signals:
                name = signal.Signals(number).name
                if self._begun.is_set():
                    log.info("%s: already stopping", name)
                elif number == signal.SIGHUP:
                    hang_up()
                else:
                    self.begin(name)
