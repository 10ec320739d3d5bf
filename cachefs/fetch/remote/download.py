"""One file fetched by ranges, from web seeds and the operator's remotes, block by block.

How it works: what is wanted is cut into runs of neighbouring blocks, and each run is one request to one source; a
block that somebody waits for begins its run, so it comes first. The blocks of a run are verified and land as they
arrive, by a thread that stays with the request where nobody else may be writing to them (http/reception.py). Which
source is asked, when a block is late and may be asked for twice, is for policy.py to say. The first right answer wins,
and the other request is dropped. So is one that nobody waits for, if it keeps a block that somebody waits for from
being asked for. A request that fails is judged by judge.py, and its blocks are asked for elsewhere at once.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from cachefs.content import Span
from cachefs.errors import CachefsError, Fault, NotAtSource, OtherContent, SourceFailed
from cachefs.fetch.base import Job, Taker, Transfer
from cachefs.fetch.http.reception import CutShort, Reception
from cachefs.fetch.http.wire import Body, Measured
from cachefs.fetch.remote.judge import Judge
from cachefs.fetch.remote.remotes import RemoteSource
from cachefs.fetch.remote.run import Run

if TYPE_CHECKING:
    from cachefs.fetch.remote.fetcher import RemoteFetcher

log = logging.getLogger(__name__)

_RUN_BYTES = 8 * 2**20
_AHEAD_RUNS = 4
_GIVE_WAY = 0.005
_TOO_SOON = 0.05
"""Seconds before which nothing can be said against a source that another one was quicker than."""
_HELD_UP = 0.1
"""Seconds that somebody waits for a source to have a place, before a request that nobody waits for makes it."""
_BEHIND = 0.5
"""Seconds that somebody waits for a block behind others that nobody waits for, before it is asked for by itself."""


class RemoteDownload:
    """A `Download` by ranges; from `RemoteFetcher.download`."""

    def __init__(self, fetcher: RemoteFetcher, job: Job, sink: Taker) -> None:
        self.job = job
        self.opened = True
        self.landed_bytes = self._measured_bytes = 0
        self.rate = 0.0
        self._fetcher = fetcher
        self._sink = sink
        self._urgent: dict[int, float] = {}
        self._ahead: list[int] = []
        self._runs: set[Run] = set()
        self._judge = Judge(fetcher, job.item)
        self._moved_at = float("-inf")
        self._gave: set[str] = set()

    @property
    def busy(self) -> bool:
        return bool(self._urgent or self._ahead or self._runs)

    def askable(self, but: Set[RemoteSource] = frozenset()) -> list[RemoteSource]:
        """The sources that may be asked for it now, best first, as if there were none of `but`."""
        return self._fetcher.usable(self.job.item, but)

    def flying(self) -> set[int]:
        """The blocks that a request is under way for."""
        return {index for run in self._runs for index in run.left()}

    # What the cache asks

    def demand(self, urgent: Set[int], ahead: Set[int]) -> None:
        now = trio.current_time()
        have = self.job.have
        self._urgent = {index: self._urgent.get(index, now) for index in sorted(urgent) if index not in have}
        self._ahead = sorted(index for index in ahead if index not in have)
        wanted = self._wanted()
        for run in self._runs:
            if wanted.isdisjoint(run.left()):
                run.drop()
        if self.busy:  # else there is nothing to begin: the router says so of every torrent, many times a second
            self._fetcher.want(self)

    def moved_at(self) -> float:
        return self._moved_at

    def sources(self) -> list[str]:
        return sorted(self._gave)

    def trouble(self) -> str:
        return self._judge.trouble

    def restart(self) -> None:
        for source in self._fetcher.sources(self.job.item):
            source.health.forgive(self.job.item.content)
        self._fetcher.schedule()

    def doubted(self) -> None:
        """What is here is looked up whenever something is wanted: there is nothing to forget."""

    def open(self) -> None:
        self.opened = True
        self._fetcher.remember(self)

    def close(self) -> None:
        self.opened = False
        self.demand(frozenset(), frozenset())
        self._end_if_idle()

    def leave(self) -> None:
        self.close()

    def _end_if_idle(self) -> None:
        if not self.opened and not self._runs:
            self._fetcher.forget(self)
            self._sink.ended()

    def measure(self, seconds: float) -> None:
        """Take what landed since the last time for what landed in so many seconds."""
        self.rate = (self.landed_bytes - self._measured_bytes) / seconds
        self._measured_bytes = self.landed_bytes

    def transfer(self) -> Transfer:
        sources = len({run.source for run in self._runs})
        wanted = len(self._urgent) + len(self._ahead)
        return Transfer(self.job.item.content, self.job.item.name, sources, self.rate, wanted, self.trouble())

    def landed(self, index: int) -> None:
        """A block is here, by whatever way: whoever is still busy with it has lost."""
        since = self._urgent.pop(index, None)
        if index in self._ahead:
            self._ahead.remove(index)
        waited = None if since is None else trio.current_time() - since
        size = self.job.item.manifest.span(index).length
        self._fetcher.hedging.landed(size, waited)
        for run in self._runs:
            if run.at == index and run.received < size and not run.dropped:
                self._lost(run)

    def _lost(self, run: Run) -> None:
        age = trio.current_time() - run.began
        if age < _TOO_SOON:
            pass  # it had no time to answer
        elif not run.received:
            self._judge.failed(run.source, f"silent for {age:.1f} s, while another source answered")
        else:
            run.source.health.measured(run.received, age)
            why = f"slow: {run.received / max(age, 1e-3) / 1000:,.0f} kB/s; another source was quicker"
            self._fetcher.ledger.failed(run.source.name, why)
        run.drop()

    # Requests

    def start(self, *, urgent: bool) -> None:
        """Begin the requests that are due and for which a source is free."""
        flying = self.flying()
        for index in list(self._urgent) if urgent else self._ahead:
            if index in flying or index in self.job.have:
                continue
            if not urgent and len(self._runs) >= _AHEAD_RUNS:
                return
            source = next((s for s in self.askable() if self._fetcher.is_free(s)), None)
            if source is None:
                return
            blocks = self._neighbours(index, flying, source)
            flying.update(blocks)
            self._begin(source, blocks)

    def _neighbours(self, first: int, flying: Set[int], source: RemoteSource) -> range:
        """The run of wanted blocks from `first` on; up to the last, if the source begins at the very start anyway."""
        wanted = self._wanted() - flying
        if not source.health.ranges:
            return range(max(wanted) + 1)
        most = max(1, _RUN_BYTES // self.job.item.manifest.block_length)
        stop = first + 1
        while stop in wanted and stop - first < most:
            stop += 1
        return range(first, stop)

    def _begin(self, source: RemoteSource, blocks: range) -> None:
        run = Run(source, self.job.item.manifest, blocks, self._has_use)
        run.jump = len(run.blocks) == 1 and run.at in self._urgent
        run.source.busy += 1
        run.source.jumps += run.jump
        self._runs.add(run)
        self._fetcher.asking.add(self)
        self._fetcher.start(self._run, run)

    def spare(self) -> list[Run]:
        """The requests that nobody waits for."""
        return [run for run in self._runs if self._urgent.keys().isdisjoint(run.left())]

    def hurry(self, late_after: float) -> None:
        """See to what somebody has waited for too long: a second source is asked, a third after twice that."""
        now = trio.current_time()
        for index, since in list(self._urgent.items()):
            runs, waited = [run for run in self._runs if index in run.left()], now - since
            if waited >= late_after * max(1, len(runs)) and self._ask_another(index, runs):
                continue
            if not runs and waited >= _HELD_UP:
                self._fetcher.make_place(self.askable())
            elif waited >= _BEHIND and all(self._has_behind(run, index) for run in runs):
                for run in runs:
                    run.drop()

    def _ask_another(self, index: int, runs: list[Run]) -> bool:
        """Ask for a block at a source that has a place, and brings it by none of `runs`; whether there is one."""
        size, asked = self.job.item.manifest.block_length, {run.source for run in runs}
        but = {s for s in self._fetcher.sources(self.job.item) if s in asked or not self._fetcher.is_free(s)}
        other = next(iter(self.askable(but)), None)
        if other is None or (runs and not self._fetcher.hedging.allows(size)):
            return False
        if runs:
            self._fetcher.hedging.hedge(size)
        self._begin(other, range(index if other.health.ranges else 0, index + 1))
        return True

    def _has_behind(self, run: Run, index: int) -> bool:
        """Whether a request brings a block only after others that nobody waits for."""
        return run.at < index and self._urgent.keys().isdisjoint(range(run.at, index))

    async def _run(self, run: Run) -> None:
        try:
            with run.scope:
                await self._request(run)
            if run.scope.cancelled_caught and not run.dropped:
                raise SourceFailed(f"silent for {self._fetcher.settings.stall:g} s")
        except CachefsError as error:
            self._failed(run, error)
        except Exception as error:  # a fault of ours costs a request, not the mount
            log.exception("%s: fetching from %s", self.job.item.name, run.source)
            self._judge.failed(run.source, str(Fault(error)))
        finally:
            self._runs.discard(run)
            if not self._runs:
                self._fetcher.asking.discard(self)
            run.source.busy -= 1
            run.source.jumps -= run.jump
        # Not when all ends: a request that began then would be cancelled at once, and begin the next one, for ever.
        self._fetcher.schedule()
        self._end_if_idle()

    def _failed(self, run: Run, error: CachefsError) -> None:
        if not self._judge.blames(run.source, error):  # the store's: nothing that another source could mend
            self._urgent, self._ahead = {}, []
            self._sink.failed(error)

    async def _request(self, run: Run) -> None:
        paths = run.source.paths(self.job.item.name)
        for path in paths:
            try:
                await self._read(run, path)
            except NotAtSource:
                if path == paths[-1]:
                    raise
            else:
                run.source.learn(self.job.item.name, path)
                return

    async def _read(self, run: Run, path: str) -> None:
        with self._fetcher.buffers.lent(run.manifest.block_length) as buffer:
            while self._goes_on(run):
                before = run.came
                async with self._open(run, path) as body:
                    while self._goes_on(run) and not body.whole:
                        await self._make_way(run)
                        if not (isinstance(body, Measured) and await self._stay(run, body, buffer)):
                            await self._fetch_block(run, body, buffer)
                    if body.whole and run.came == before:
                        raise CutShort(run.received, run.length)

    @asynccontextmanager
    async def _open(self, run: Run, path: str) -> AsyncIterator[Body]:
        """The bytes that are still to come, or the first of them: the next request is for the rest."""
        if run.whole and run.came:
            raise CutShort(run.received, run.length)
        manifest = run.manifest
        start = manifest.span(run.blocks.start).offset + run.came
        span = Span(start, manifest.span(run.blocks.stop - 1).end - start)
        self._be_patient(run)
        async with self._fetcher.open(run.source, path, None if run.whole else span) as body:
            if body.total not in (-1, manifest.length):
                raise OtherContent(f"has {body.total} bytes under this name, the lock's content has {manifest.length}")
            yield body

    def _wanted(self) -> set[int]:
        return self._urgent.keys() | set(self._ahead)

    def _goes_on(self, run: Run) -> bool:
        return not run.done and (run.at == run.blocks.start or self._still_wanted(run))

    def _still_wanted(self, run: Run) -> bool:
        return not self._wanted().isdisjoint(run.left())

    def _has_use(self, run: Run, index: int) -> bool:
        """Whether a block is to be written: in a whole file come blocks that nobody wants, and there is no room for."""
        wanted = not run.whole or index in self._urgent or index in self._ahead
        return wanted and index not in self.job.have

    async def _stay(self, run: Run, body: Measured, buffer: memoryview) -> bool:
        """Have a thread receive what is left, and return when it does; False if the blocks aren't ours to write."""
        claim = self._sink.claim(run.left())
        if claim is None:
            return False
        await Reception(run, body, buffer, self._sink, self).run(claim)
        return True

    async def _fetch_block(self, run: Run, body: Body, buffer: memoryview) -> None:
        """Receive one block, or what the body has of it, and leave it to the sink how it is written."""
        view = buffer[: run.length]
        while run.received < len(view):
            await self._make_way(run)
            count = await body.read_some(view[run.received :])
            if not count and body.whole:
                return
            if not count:
                raise CutShort(run.received, len(view))
            run.came += count
            self.received(run, count)
        if run.takes(run.at):
            await self._sink.deliver(run.at, view)
        else:
            await trio.to_thread.run_sync(run.manifest.verify, run.at, view)
        self._answered(run)

    def received(self, run: Run, size: int) -> None:
        """Bytes of a request came."""
        self._moved_at = trio.current_time()
        self._fetcher.received(run.source, size)
        self._be_patient(run)

    def wrote(self, run: Run) -> bool:
        """A thread has written a request's next block, or passed it over; whether the rest is still wanted."""
        if run.at not in self.job.have and run.at not in run.passed:
            self._sink.landed(run.at)
        self._answered(run)
        return self._still_wanted(run)

    async def _make_way(self, run: Run) -> None:
        """Leave the link to readers that jumped, while nobody waits for what this request brings."""
        paused_at = trio.current_time()
        while run.gives_way and self._urgent.keys().isdisjoint(run.left()):
            self._be_patient(run)
            await trio.sleep(_GIVE_WAY)
        run.began += trio.current_time() - paused_at

    def _be_patient(self, run: Run) -> None:
        run.scope.deadline = trio.current_time() + self._fetcher.settings.stall

    def _answered(self, run: Run) -> None:
        run.source.health.measured(run.length, trio.current_time() - run.began)
        run.source.health.breaker.succeeded()
        if not run.whole:
            run.source.health.answered_a_range()
        if run.at not in run.passed:
            self.landed_bytes += run.length
            self._fetcher.moved(self)
            self._gave.add(run.source.name)
        self._judge.trouble = ""
        run.next()
