"""One request for neighbouring blocks, and the thread that receives its answer.

How it works: on a busy machine, to hand a block from a thread to the event loop and on to another thread costs half
as much as hashing it. So one thread stays with a request: it receives a block, has it verified and written, tells the
loop so, and goes on with the next; small blocks that come swiftly, several at a time. It returns within a moment when
the loop wants to look at the request again, in the middle of a block if need be, what came of it staying in the
buffer; and by itself after a second, so that many slow requests can share the threads. Of a `Stretch`, the thread
changes `came`, and what it noted of blocks it didn't take, and the loop the rest: what it is told, it hears in order,
and before it hears that the thread has returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

import trio

from cachefs.content import Manifest
from cachefs.errors import SourceFailed
from cachefs.fetch.base import Claim, Taker
from cachefs.fetch.http.wire import Measured, in_thread

_TURN = 1.0
"""For how many seconds a thread stays with a request."""

_KEPT_BUFFERS = 4
_GATHERED = 2**20
_SWIFT = 2**26
"""Bytes a second: from there on small blocks are received several at a time."""

Coming = TypeVar("Coming", bound="Stretch")
Heard = TypeVar("Heard", bound="Stretch", contravariant=True)


class Stretch:
    """Neighbouring blocks that come in order; `at` is the one that is coming.

    `wants` says whether a block that has come is to be written; where a thread stays, it is asked in the thread.
    """

    def __init__(self, manifest: Manifest, blocks: range, wants: Callable[[int], bool]) -> None:
        self.manifest = manifest
        self.blocks = blocks
        self.at = blocks.start
        self.began = trio.current_time()
        self.came = 0
        """The bytes that came, in all."""
        self.passed: set[int] = set()
        """The blocks that came and weren't written."""
        self._wants = wants

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
    def done(self) -> bool:
        return self.at == self.blocks.stop

    @property
    def gives_way(self) -> bool:
        """Whether something else goes before it."""
        return False

    def left(self) -> range:
        """The blocks that are still to come."""
        return range(self.at, self.blocks.stop)

    def takes(self, index: int) -> bool:
        """Whether block `index`, which has come, is to be written; it is asked once, maybe in a thread."""
        if self._wants(index):
            return True
        self.passed.add(index)
        return False

    def next(self) -> None:
        self.at += 1
        self.began = trio.current_time()


class CutShort(SourceFailed):
    """A body that ended in the midst of a block."""

    def __init__(self, received: int, size: int) -> None:
        super().__init__(f"cut short after {received} of {size} bytes of a block")


class Buffers:
    """Memory to receive blocks in, kept for the next request: to take it anew costs a tenth of hashing what comes."""

    def __init__(self) -> None:
        self._kept: list[memoryview] = []

    @contextmanager
    def lent(self, block_length: int) -> Iterator[memoryview]:
        """A buffer for a block, or for as many as a mebibyte has; with anything in it."""
        size = max(1, _GATHERED // block_length) * block_length
        fitting = [buffer for buffer in self._kept if len(buffer) == size]
        self._kept = fitting[1:]
        buffer = fitting[0] if fitting else memoryview(bytearray(size))
        try:
            yield buffer
        finally:
            self._kept = [buffer, *self._kept][:_KEPT_BUFFERS]


class Listener(Protocol[Heard]):
    """Whom a thread tells, in the event loop."""

    def received(self, run: Heard, size: int) -> None:
        """Bytes came."""

    def wrote(self, run: Heard) -> bool:
        """Block `run.at` is in the file, or the run doesn't take it; whether the next one is still wanted."""


class Reception(Generic[Coming]):
    """What threads do that stay with a request, one after the other."""

    def __init__(
        self, run: Coming, body: Measured, buffer: memoryview, sink: Taker, listener: Listener[Coming]
    ) -> None:
        self.fault: Exception | None = None
        """What went wrong in the loop when it was told something."""
        self._run = run
        self._body = body
        self._buffer = buffer
        self._sink = sink
        self._listener = listener
        self._wanted = True
        self._swift = False
        self._bytes = self._blocks = 0
        """What came, and was written, since the loop was told last."""
        self._loop = trio.lowlevel.current_trio_token()

    async def run(self, claim: Claim) -> None:
        """Have a thread stay, and let go of the claim. Raises as `stay` does, and what went wrong in the loop."""
        try:
            await in_thread(self.stay, claim)
        finally:
            self._sink.release(claim)
        if self.fault is not None:
            raise self.fault

    def stay(self, claim: Claim) -> None:
        """Receive, verify and write, in a thread, until all has come, the body ends or something is to be done first.

        SourceFailed if the body is cut short; BlockInvalid, StoreFull, StoreFailed.
        """
        until = time.monotonic() + _TURN
        index, at = self._run.at, self._run.received
        try:
            while index < self._run.blocks.stop and self._wanted:
                at += self._receive(index, at)
                index, at = self._write(index, at)
                self._tell()
                if claim.recalled or self._run.gives_way or self._body.whole or time.monotonic() > until:
                    return
        finally:
            self._tell()

    def _end(self, index: int) -> int:
        """Up to where the buffer is to be filled if block `index` begins it."""
        manifest = self._run.manifest
        blocks = max(1, len(self._buffer) // manifest.block_length) if self._swift else 1
        last = min(index + blocks, self._run.blocks.stop) - 1
        return manifest.span(last).end - manifest.span(index).offset

    def _receive(self, index: int, at: int) -> int:
        view, began = self._buffer[at : self._end(index)], time.monotonic()
        count = self._body.receive(view)
        trio.from_thread.check_cancelled()
        if count == 0:
            raise CutShort(at, self._run.manifest.span(index).length)
        count = count or 0
        self._swift = count == len(view) and count > _SWIFT * (time.monotonic() - began)
        self._run.came += count
        self._bytes += count
        return count

    def _write(self, index: int, at: int) -> tuple[int, int]:
        """Verify and write the blocks that are whole: the next one, and how much of it is in the buffer then."""
        done = 0
        while index < self._run.blocks.stop and at - done >= (length := self._run.manifest.span(index).length):
            block = self._buffer[done : done + length]
            if self._run.takes(index):
                self._sink.write(index, block)
            else:
                self._run.manifest.verify(index, block)
            self._blocks += 1
            index, done = index + 1, done + length
        self._buffer[: at - done] = self._buffer[done:at]
        return index, at - done

    def _tell(self) -> None:
        if self._bytes or self._blocks:
            self._loop.run_sync_soon(self._told, self._bytes, self._blocks)
            self._bytes = self._blocks = 0

    def _told(self, size: int, blocks: int) -> None:
        try:
            self._listener.received(self._run, size)
            for _ in range(blocks):
                self._wanted = self._listener.wrote(self._run) and self._wanted
        except Exception as error:  # trio would end everything
            self.fault, self._wanted = error, False
