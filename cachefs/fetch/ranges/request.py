"""One request for a stretch of blocks, and what is done with the bytes that come.

How it works: the answer's head is judged before its body: the length of the whole, and the checksum that the server
declares of it, must be the record's, if they are told. Then blocks are received, verified, written and landed. Where
they come quickly, a thread stays with the request (`reception.py`); where each takes a while, the event loop receives
what comes, so that a reader's jump ends the request at once, and not after the moment that a thread may take to notice.
A block that takes longer than a server may be silent is left to another URL, where one may be asked.
A server may give less than it was asked for, and the rest is asked for anew. One that ignores the range sends all from
the beginning: then blocks pass by that are here already, or that nobody wants. Of the latter those are kept that there
is room for, which the sink is asked for one by one as they come: only what is wanted has been granted room before.
Nor is such an answer left at the stretch's end: to ask for what follows is to be sent all of it once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from urllib.parse import urlsplit

import trio

from cachefs.content import Manifest
from cachefs.errors import BlockInvalid, RecordMismatch, SourceSlow, UrlFailed
from cachefs.fetch.base import Job, Taker
from cachefs.fetch.http.client import Answer, RangeRefused, WebClient
from cachefs.fetch.http.digests import WANTED, declared
from cachefs.fetch.http.reception import Buffers, CutShort, Reception, Stretch
from cachefs.fetch.http.wire import Measured

_QUICK = 0.1
"""Seconds for a block: the moment after which a thread looks up."""


class Stream:
    """A stretch of blocks under way; `at` is the one that is coming."""

    def __init__(self, blocks: range) -> None:
        self.blocks = blocks
        self.at = blocks.start
        self.to_the_end = False
        """Whether what follows comes as well, and is taken as long as there is room."""
        self.scope = trio.CancelScope()

    def covers(self, index: int) -> bool:
        """Whether the block comes with this stretch."""
        return self.at <= index < self.blocks.stop

    def leave(self, index: int) -> None:
        """Leave the block, and what follows, to another request, if they come with this stretch."""
        if self.covers(index):
            self._stop(index)

    def extend(self, stop: int) -> None:
        """Go on to the end of the file, of `stop` blocks."""
        self._stop(stop)
        self.to_the_end = True

    def passed(self, index: int) -> None:
        """The block has come and wasn't kept: what follows won't be either."""
        if self.to_the_end and self.covers(index):
            self._stop(index + 1)

    def _stop(self, stop: int) -> None:
        self.blocks = range(self.blocks.start, stop)


class Download(Protocol):
    """Whom a request works for."""

    job: Job
    sink: Taker

    def goes_on(self, stream: Stream) -> bool:
        """Whether the rest of the stretch is still wanted from here."""

    def wants(self, index: int) -> bool:
        """Whether a block is wanted now; in any thread."""

    def received(self, url: str, size: int) -> None:
        """Bytes came."""


class RangeRequest:
    """A stretch asked of one URL; `landed` counts the blocks that came. It is the `Listener` of its own reception.

    `others` tells whether another URL may be asked for a block that this one is slow with.
    """

    def __init__(
        self,
        client: WebClient,
        buffers: Buffers,
        url: str,
        download: Download,
        stream: Stream,
        others: Callable[[], bool],
    ) -> None:
        self.landed = 0
        self._others = others
        self._client = client
        self._buffers = buffers
        self._url = url
        self._download = download
        self._stream = stream
        self._quick = False
        self._patience = trio.CancelScope()

    @property
    def _manifest(self) -> Manifest:
        return self._download.job.item.manifest

    async def run(self) -> None:
        """Fetch the stretch, or as much of it as stays wanted. UrlFailed and its kinds, StoreFull, StoreFailed."""
        manifest, stream = self._manifest, self._stream
        stream.at = next((i for i in stream.blocks if i not in self._download.job.have), stream.blocks.stop)
        if stream.at == stream.blocks.stop:
            return
        start, end = manifest.span(stream.at).offset, manifest.span(stream.blocks.stop - 1).end
        try:
            async with self._client.get(self._url, WANTED | {"Range": f"bytes={start}-{end - 1}"}) as answer:
                first = self._judged(answer, start, end)
                if not _knows_ranges(answer) and self._download.job.item.metainfo is None:  # nor may peers bring it
                    stream.extend(manifest.blocks)
                await self._take(answer, Stretch(manifest, range(first, stream.blocks.stop), self._takes_in_thread))
        except RangeRefused as error:
            self._require_length(error.url, error.total)
            raise

    def _judged(self, answer: Answer, start: int, end: int) -> int:
        """The first block that this answer brings; RecordMismatch if it is about other bytes."""
        begins, total = 0, answer.length
        if answer.status == 206:
            told = answer.range
            if told is None or told.first != start or not start <= told.last < end:
                said = answer.headers.get("content-range", "no Content-Range")
                raise UrlFailed(answer.url, f"HTTP 206 with {said:.80}, asked for bytes {start}-{end - 1}")
            begins, total = start, told.total
        self._require_length(answer.url, total)
        digest, content = declared(answer.headers), self._manifest.content
        if content.algorithm == "sha256" and digest.sha256 and digest.sha256 != content.digest:
            why = f"declares sha256:{digest.sha256.hex()} ({digest.header}), not {content}"
            self._mismatch(answer.url, self._manifest.length, why)
        return begins // self._manifest.block_length

    def _require_length(self, url: str, total: int | None) -> None:
        """RecordMismatch if the whole has another length, as far as that is told."""
        length = self._manifest.length
        if total not in (None, length):
            self._mismatch(url, total or 0, f"is {total} bytes long, the record says {length}")

    def _mismatch(self, url: str, size: int, why: str, got: str = "") -> None:
        raise RecordMismatch(url, str(self._manifest.content), got, size, why)

    async def _take(self, answer: Answer, run: Stretch) -> None:
        """Receive, verify and land blocks, until the stretch ends or isn't wanted any more."""
        with self._buffers.lent(self._manifest.block_length) as buffer:
            while True:
                try:
                    if not await self._stay(answer, run, buffer):
                        await self._take_one(answer, run, buffer)
                except BlockInvalid as error:
                    self._lied(answer, run.at, error)
                if not self._goes_on():
                    return

    def _goes_on(self) -> bool:
        return self._stream.at < self._stream.blocks.stop and self._download.goes_on(self._stream)

    async def _stay(self, answer: Answer, run: Stretch, buffer: memoryview) -> bool:
        """Have a thread receive what is left, and return when it does; False if that isn't worth it, or not ours."""
        sink, body = self._download.sink, answer.body
        if not self._is_quick(run) or not isinstance(body, Measured) or (claim := sink.claim(run.left())) is None:
            return False
        try:
            with trio.move_on_after(answer.stall) as self._patience:
                await Reception(run, body, buffer, sink, self).run(claim)
        except CutShort:
            raise answer.cut_short() from None
        if self._patience.cancelled_caught:
            raise answer.silent()
        return True

    async def _take_one(self, answer: Answer, run: Stretch, buffer: memoryview) -> None:
        """Receive a block as it comes, ready to be cancelled at any moment, and leave it to the sink to be written."""
        view = buffer[: run.length]
        while run.received < len(view):
            count = await answer.read_next(view[run.received :])
            if not count:
                raise answer.cut_short()
            run.came += count
            self._download.received(self._url, count)
            self._require_pace(answer, run)
        if self._takes(run.at, self._download.sink.has_room):
            await self._download.sink.deliver(run.at, view)
            self.landed += 1
        else:
            await trio.to_thread.run_sync(self._manifest.verify, run.at, view)
        self._next(run)

    def _takes(self, index: int, has_room: Callable[[int], bool]) -> bool:
        """Whether a block that has come is to be written."""
        return index not in self._download.job.have and (self._download.wants(index) or has_room(index))

    def _takes_in_thread(self, index: int) -> bool:
        return self._takes(index, lambda index: trio.from_thread.run_sync(self._download.sink.has_room, index))

    def _require_pace(self, answer: Answer, run: Stretch) -> None:
        """SourceSlow where another URL may well have sent all of the block by now."""
        if run.received < run.length and trio.current_time() - run.began > answer.stall and self._others():
            raise SourceSlow(answer.url, f"gave {run.received} of {run.length} bytes in {answer.stall:g} s")

    def _is_quick(self, run: Stretch) -> bool:
        """Whether blocks come quickly, the one that is coming as well."""
        return self._quick and trio.current_time() - run.began < _QUICK

    def received(self, run: Stretch, size: int) -> None:
        """A thread has received bytes."""
        self._download.received(self._url, size)
        self._patience.deadline = trio.current_time() + self._client.rules.stall

    def wrote(self, run: Stretch) -> bool:
        """A thread has written the next block, or passed it over; whether the rest is still wanted."""
        if run.at not in self._download.job.have and run.at not in run.passed:
            self._download.sink.landed(run.at)
            self.landed += 1
        self._next(run)
        return self._goes_on()

    def _next(self, run: Stretch) -> None:
        self._quick = trio.current_time() - run.began < _QUICK
        if run.at not in self._download.job.have:
            self._stream.passed(run.at)
        run.next()
        self._stream.at = max(self._stream.at, run.at)

    def _lied(self, answer: Answer, index: int, error: BlockInvalid) -> None:
        told = f"block {index} is sha256:{error.got.hex()}, the piece list says {error.expected.hex()}"
        size = self._manifest.length
        self._mismatch(answer.url, size, f"{told}; the record is {error.content} of {size} bytes", error.got.hex())


def _knows_ranges(answer: Answer) -> bool:
    """Whether the server gives parts, if not this time: for a range that is all of a file, some answer without one."""
    return answer.status == 206 or answer.headers.get("accept-ranges", "").strip().lower() == "bytes"


def origin_of(url: str) -> str:
    """The server's part of a URL: what the status calls the source."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/"
