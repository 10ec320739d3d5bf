"""Fetching one record's pieces from its URLs, in the order in which they are wanted.

How it works: a stretch of neighbouring blocks that are wanted is one request with a `Range`; each block is
verified as it comes, written and landed. At each block it is decided anew whether to go on: a block that nobody
wants any more, after a seek say, ends the request at once, and what is waited for elsewhere goes before what is
only read ahead. So a scanner that reads a head and a tail fetches two blocks, and a player one long stretch.
A server that knows no ranges sends the whole, of which every block that there is room for is taken as it passes by, and
what follows is, too, while the record is open: else each jump, and each stretch, would fetch it anew.

A request that breaks off after some blocks simply leaves the rest wanted, and they are asked for again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Set
from typing import TYPE_CHECKING

import trio

from cachefs.errors import CachefsError, Fault, UrlFailed
from cachefs.fetch.base import Job, Taker, Transfer
from cachefs.fetch.ranges.request import Stream, origin_of

if TYPE_CHECKING:
    from cachefs.fetch.ranges.fetcher import RangeFetcher

log = logging.getLogger(__name__)

_STREAMS = 2
"""The most requests of one download at a time: two readers of one record may be at different places."""

_LONG = 0.2
"""Seconds for one block. From there on, one that is only read ahead is broken off for one that is waited for."""

_NEAR = 2
"""Blocks: what is nearer than that to where a request is comes with it soon enough."""

_METER_SECONDS = 3.0


class RangeDownload:
    """One record being fetched. It ends when nobody reads it any more and nothing is under way; `open` revives it."""

    def __init__(self, fetcher: RangeFetcher, job: Job, sink: Taker) -> None:
        self.job = job
        self._fetcher = fetcher
        self.sink = sink
        self._urgent: dict[int, float] = {}
        """What is waited for, and since when."""
        self._ahead: Set[int] = frozenset()
        self._streams: list[Stream] = []
        self._closed = False
        self._trouble = ""
        self._recent: deque[tuple[float, int]] = deque()
        self._gave: set[str] = set()

    @property
    def busy(self) -> bool:
        return bool(self._streams)

    def demand(self, urgent: Set[int], ahead: Set[int]) -> None:
        now = trio.current_time()
        self._urgent, self._ahead = {index: self._urgent.get(index, now) for index in urgent}, ahead
        for stream in self._streams:
            if stream.at not in urgent and (not self._is_of_use(stream) or (self._is_slow() and self._waits_beside())):
                stream.scope.cancel()
        self._start()

    def _is_of_use(self, stream: Stream) -> bool:
        """Whether the block that is coming is read ahead, or goes with one that is."""
        return stream.at in self._ahead or (stream.to_the_end and not self._closed)

    def _is_slow(self) -> bool:
        """Whether a block takes so long that to finish one that is read ahead would keep a reader waiting."""
        rate = self._rate()
        return 0 < rate < self.job.item.manifest.block_length / _LONG

    def _waits_beside(self) -> bool:
        """Whether somebody waits for what no request brings."""
        return any(self._is_free(index) for index in self._urgent)

    def trouble(self) -> str:
        return self._trouble

    def restart(self) -> None:
        self._fetcher.restart(self.job.item.urls)

    def open(self) -> None:
        self._closed = False
        self._fetcher.remember(self)

    def close(self) -> None:
        self._closed = True
        self.demand(frozenset(), frozenset())
        self._end_if_idle()

    def doubted(self) -> None:
        """Some of `have` was wrong, and isn't in it any more: nothing of that is kept here."""

    def leave(self) -> None:
        self.close()

    def transfer(self) -> Transfer:
        wanted, streams = len(self._urgent) + len(self._ahead), len(self._streams)
        return Transfer(self.job.item.content, self.job.item.name, streams, self._rate(), wanted, self._trouble)

    def _rate(self) -> float:
        """Bytes a second, lately."""
        since = trio.current_time() - _METER_SECONDS
        return sum(size for when, size in self._recent if when >= since) / _METER_SECONDS

    def sources(self) -> list[str]:
        return sorted(self._gave)

    def moved_at(self) -> float:
        return self._recent[-1][0] if self._recent else float("-inf")

    def askable(self) -> list[str]:
        """The URLs that may be asked now."""
        return self._fetcher.usable(self.job.item.urls)

    def flying(self) -> set[int]:
        """The blocks that are on their way."""
        return {index for stream in self._streams for index in range(stream.at, stream.blocks.stop)}

    def landed(self, index: int) -> None:
        """Somebody else landed a block: `have` says so already."""

    def _start(self) -> None:
        """Have requests under way for what is wanted."""
        while len(self._streams) < _STREAMS and (blocks := self._next()):
            stream = Stream(blocks)
            self._streams.append(stream)
            self._fetcher.start(self._fetch, stream)

    def _end_if_idle(self) -> None:
        if self._closed and not self._streams:
            self._fetcher.forget(self)
            self.sink.ended()

    def _next(self) -> range:
        """The next stretch to ask for: from a block that is waited for, or else from the first to read ahead.

        Nothing is read ahead while something is waited for: it would take its bandwidth.
        """
        following = {index for stream in self._streams for index in self._following(stream)}
        waiting = [index for index in self._urgent if self._is_free(index) or self._comes_late(index)]
        if waiting := [index for index in waiting if index not in following]:
            first = min(waiting, key=self._turn)
            for stream in self._streams:
                stream.leave(first)
            return self._stretch(first)
        if self._streams or any(index not in self.job.have for index in self._urgent):
            return range(0)
        ahead = sorted(index for index in self._ahead if self._is_free(index))
        return self._stretch(ahead[0]) if ahead else range(0)

    def _following(self, stream: Stream) -> range:
        """What is waited for right behind a stretch. It is of the same reader: beside it, it would slow it down."""
        last = first = stream.blocks.stop
        while last in self._urgent and self._is_free(last):
            last += 1
        return range(first, last)

    def _turn(self, index: int) -> tuple[bool, float, int]:
        """What no request brings goes first; of that, or else of what comes late, what was waited for longest."""
        return not self._is_free(index), self._urgent[index], index

    def _is_free(self, index: int) -> bool:
        return index not in self.job.have and not any(stream.covers(index) for stream in self._streams)

    def _comes_late(self, index: int) -> bool:
        """Whether a block is on its way, but behind others that take long."""
        near = [stream.to_the_end or index - stream.at < _NEAR for stream in self._streams if stream.covers(index)]
        return bool(near) and not any(near) and index not in self.job.have and self._is_slow()

    def _stretch(self, first: int) -> range:
        last = first
        while (last + 1 in self._urgent or last + 1 in self._ahead) and self._is_free(last + 1):
            last += 1
        return range(first, last + 1)

    def goes_on(self, stream: Stream) -> bool:
        """Whether the stretch is still worth its bandwidth, at a block's beginning."""
        if stream.at in self._urgent:
            return True
        return self._is_of_use(stream) and not self._waits_beside()

    def wants(self, index: int) -> bool:
        """Whether a block is asked for, by a reader or as readahead; in any thread."""
        return index in self._urgent or index in self._ahead

    def received(self, url: str, size: int) -> None:
        """Take note of bytes that came."""
        self._gave.add(origin_of(url))
        self._fetcher.ledger.received(origin_of(url), size)
        now = trio.current_time()
        self._recent.append((now, size))
        while self._recent[0][0] < now - _METER_SECONDS:
            self._recent.popleft()

    async def _fetch(self, stream: Stream) -> None:
        try:
            with stream.scope:
                await self._fetcher.ask(self, stream)
                self._trouble = ""
        except CachefsError as error:
            self._give_up(error)
        except Exception as error:  # a fault of ours costs a request, not the mount
            log.exception("%s: fetching from its URLs", self.job.item.name)
            self._give_up(Fault(error))
        finally:
            self._streams.remove(stream)
        self._start()
        self._end_if_idle()

    def _give_up(self, error: CachefsError) -> None:
        """Tell those who wait, unless the blocks may still come from peers; ask no more until somebody asks again."""
        self._trouble = str(error)
        self._urgent, self._ahead = {}, frozenset()
        if self.job.item.metainfo is None or not isinstance(error, UrlFailed):
            self.sink.failed(error)
