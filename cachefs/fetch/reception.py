"""One request for neighbouring blocks, and the thread that receives its answer.

How it works: on a busy machine, to hand a block from a thread to the event loop and on to another thread costs half
as much as hashing it. So one thread stays with a request: it receives a block, has it verified and written, tells the
loop so, and goes on with the next. It returns within a moment when the loop wants to look at the request again, in
the middle of a block if need be, what came of it staying in the buffer; and by itself after a second, so that many
slow requests can share the threads. Of a `Run`, the thread changes `came` alone, and the loop the rest: what it is
told, it hears in order, and before it hears that the thread has returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import trio

from cachefs.content import Manifest
from cachefs.errors import SourceFailed
from cachefs.fetch.base import Claim, SharedTaker
from cachefs.fetch.remotes import RemoteSource
from cachefs.fetch.wire import Measured

_TURN = 1.0
"""For how many seconds a thread stays with a request."""

_KEPT_BUFFERS = 4


class Run:
    """One request: neighbouring blocks of one source, in order."""

    def __init__(self, source: RemoteSource, manifest: Manifest, blocks: range) -> None:
        self.source = source
        self.manifest = manifest
        self.blocks = blocks
        self.at = blocks.start
        self.began = trio.current_time()
        self.came = 0
        """The bytes that came, in all."""
        self.dropped = False
        self.jump = False
        """Whether it is for one block alone, which somebody waits for."""
        self.scope = trio.CancelScope()

    @property
    def received(self) -> int:
        """The bytes that came of block `at`."""
        before = (self.at - self.blocks.start) * self.manifest.block_length
        return min(self.came - before, self.length)

    @property
    def length(self) -> int:
        """How many bytes block `at` has."""
        return self.manifest.span(self.at).length

    @property
    def gives_way(self) -> bool:
        """Whether a reader's jump goes before it."""
        return self.source.jumps > 0 and not self.jump

    @property
    def done(self) -> bool:
        return self.at == self.blocks.stop

    def left(self) -> range:
        """The blocks that are still to come."""
        return range(self.at, self.blocks.stop)

    def drop(self) -> None:
        self.dropped = True
        self.scope.cancel()

    def next(self) -> None:
        self.at += 1
        self.began = trio.current_time()


def cut_short(received: int, size: int) -> SourceFailed:
    """What to raise when no more comes than that of a block."""
    return SourceFailed(f"cut short after {received} of {size} bytes of a block")


class Buffers:
    """Memory to receive blocks in, kept for the next request: to take it anew costs a tenth of hashing what comes."""

    def __init__(self) -> None:
        self._kept: list[memoryview] = []

    @contextmanager
    def lent(self, size: int) -> Iterator[memoryview]:
        """A buffer of `size` bytes, with anything in it."""
        fitting = [buffer for buffer in self._kept if len(buffer) == size]
        self._kept = fitting[1:]
        buffer = fitting[0] if fitting else memoryview(bytearray(size))
        try:
            yield buffer
        finally:
            self._kept = [buffer, *self._kept][:_KEPT_BUFFERS]


class Listener(Protocol):
    """Whom a thread tells, in the event loop."""

    def received(self, run: Run, size: int) -> None:
        """Bytes came."""

    def wrote(self, run: Run) -> bool:
        """Block `run.at` is in the file; whether the next one is still wanted."""


class Reception:
    """What threads do that stay with a request, one after the other."""

    def __init__(self, run: Run, body: Measured, buffer: memoryview, sink: SharedTaker, listener: Listener) -> None:
        self.fault: Exception | None = None
        """What went wrong in the loop when it was told something."""
        self._run = run
        self._body = body
        self._buffer = buffer
        self._sink = sink
        self._listener = listener
        self._wanted = True
        self._untold = 0
        self._loop = trio.lowlevel.current_trio_token()

    def stay(self, claim: Claim) -> None:
        """Receive, verify and write, in a thread, until all has come or something else is to be done first.

        SourceFailed if the body ends early; BlockInvalid, StoreFull, StoreFailed.
        """
        until = time.monotonic() + _TURN
        index, at = self._run.at, self._run.received
        try:
            while index < self._run.blocks.stop and self._wanted:
                view = self._buffer[: self._run.manifest.span(index).length]
                at += self._receive(view, at)
                if at == len(view):
                    self._sink.write(index, view)
                    self._tell(self._wrote)
                    index, at = index + 1, 0
                if claim.recalled or self._run.gives_way or time.monotonic() > until:
                    return
        finally:
            if self._untold:
                self._tell(self._received)

    def _receive(self, view: memoryview, at: int) -> int:
        count = self._body.receive(view[at:])
        trio.from_thread.check_cancelled()
        if count == 0:
            raise cut_short(at, len(view))
        if count is None:
            return 0
        self._run.came += count
        self._untold += count
        if at + count < len(view):
            self._tell(self._received)
        return count

    def _tell(self, what: Callable[[int], None]) -> None:
        size, self._untold = self._untold, 0
        self._loop.run_sync_soon(self._told, what, size)

    def _told(self, what: Callable[[int], None], size: int) -> None:
        try:
            what(size)
        except Exception as error:  # trio would end everything
            self.fault, self._wanted = error, False

    def _received(self, size: int) -> None:
        self._listener.received(self._run, size)

    def _wrote(self, size: int) -> None:
        self._listener.received(self._run, size)
        self._wanted = self._listener.wrote(self._run) and self._wanted
