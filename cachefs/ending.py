"""Why and when a mount ends.

How it works: a signal, a command, or the kernel, which was told by somebody else: each says here that the mount is to
end, and why, in words for the log. The first one counts. Signals are taken from the first moment on. One that comes
before there is a mount breaks off the start, whatever it is at; from then on everything ends in the order of a mount. A
mount that ends before it was usable has failed, which is told as an error. SIGHUP ends nothing: it is a message.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from types import FrameType

import trio

from cachefs.errors import CachefsError, Terminated

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ending:
    """The end of one mount. `hang_ups` gives an item for each SIGHUP, or for several that came at once."""

    def __init__(self) -> None:
        self._begun = trio.Event()
        self._why = ""
        self._start = trio.CancelScope()
        self._may_break_off = True
        self._was_usable = False
        self._hang_up, self.hang_ups = trio.open_memory_channel[None](1)

    def begin(self, why: str) -> None:
        """End the mount, which the log tells unless it is ending already."""
        if not self._begun.is_set():
            log.info("stopping: %s", why)
            self._why = why
        self._begun.set()

    async def wait(self) -> None:
        """Return when there is a reason to end."""
        await self._begun.wait()

    async def mounting(self) -> None:
        """To be called before there is a mount: from here on nothing is broken off."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._may_break_off = False

    def usable(self) -> bool:
        """The mount has come up; False if it is to end already."""
        self._was_usable = not self._begun.is_set()
        return self._was_usable

    @contextlib.asynccontextmanager
    async def at_signals(self) -> AsyncIterator[None]:
        """Take signals meanwhile; afterwards they are passed over, so that the process can end in peace.

        Terminated, KeyboardInterrupt or CachefsError if the mount was to end before it was usable.
        """
        with _receiver() as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, signals)
                with self._start:
                    yield
                nursery.cancel_scope.cancel()
        if not self._was_usable:
            self._raise()

    async def _listen(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if self._begun.is_set():
                log.info("%s: already stopping", name)
            elif number == signal.SIGHUP:
                with contextlib.suppress(trio.WouldBlock):
                    self._hang_up.send_nowait(None)
            else:
                self.begin(name)
                if self._may_break_off:
                    self._start.cancel()

    def _raise(self) -> None:
        if self._why == signal.SIGINT.name:
            raise KeyboardInterrupt
        if self._why == signal.SIGTERM.name:
            raise Terminated
        raise CachefsError(f"{self._why} before the mount was usable")


@contextlib.contextmanager
def _receiver() -> Iterator[AsyncIterator[int]]:
    # Blocked while it is made, so that none gets lost; and never for a moment as the system has them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _handle(lambda number, frame: None)
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        yield signals
    # The interpreter, as it ends, would give back to the system what has a handler.
    _handle(signal.SIG_IGN)


def _handle(how: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for each in _SIGNALS:
        signal.signal(each, how)
